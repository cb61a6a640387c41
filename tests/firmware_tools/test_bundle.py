"""``firmware-tools bundle``: made, told, checked; each refusal with its code."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.errors import PFedRecError
from broker.exit_codes import ExitCode, exit_code_of
from edge.scorer import read_model
from firmware_tools.cli import cli
from tests.bundles import OTHER_SECRET, a_bundle


def call(*arguments: str | Path) -> Result:
    """Run ``firmware-tools bundle``."""
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments)])


def code_of(result: Result) -> int:
    """Give the code that the program would end with."""
    error = result.exception
    return exit_code_of(error) if isinstance(error, PFedRecError) else result.exit_code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a key and an application in it."""
    assert call("key", "--out", tmp_path / "keys").exit_code == 0
    application = tmp_path / "build"
    (application / "bin").mkdir(parents=True)
    (application / "bin" / "check").write_text("#!/bin/sh\nexit 0\n")
    (application / "bin" / "check").chmod(0o755)
    (application / "page.html").write_text("<p>hello</p>")
    (tmp_path / "model").write_bytes(read_model())
    (tmp_path / "settings").write_text('scorer = "numpy"\n[training]\nmin_new_interactions = 3\n')
    return tmp_path


def create(folder: Path, *options: str | Path, out: str = "shop-1", release: int = 1) -> Result:
    """Make a bundle with the folder's key."""
    key = folder / "keys" / "release.key"
    given = ("--fleet", "shop", "--release", str(release), "--key", key, "--out", folder / out)
    return call("create", *given, *options)


def everything(folder: Path) -> tuple[str | Path, ...]:
    """Give options for a release with all that there can be in one."""
    return (
        *("--model", folder / "model", "--settings", folder / "settings", "--app", folder / "build"),
        *("--health", "app/bin/check", "--health-timeout", "5s", "--runtime", "0.1.0"),
        *("--machine", "x86_64", "--machine", "aarch64", "--note", "spring"),
    )


def verify(folder: Path, name: str = "shop-1", *options: str | Path) -> Result:
    """Check a bundle with the folder's public key."""
    return call(
        "verify", folder / name, "--keys", folder / "keys" / "release_key.pub", "--fleet", "shop", *options
    )


def test_bundle_is_made_and_checked(folder: Path) -> None:
    """With everything in it; and the same again gives the same bytes."""
    assert create(folder, *everything(folder)).exit_code == 0
    facts = json.loads(verify(folder, "shop-1", "--json").stdout)
    assert facts == json.loads(call("inspect", folder / "shop-1", "--json").stdout)
    assert [file["path"] for file in facts["files"]] == [
        "app/bin/check",
        "app/page.html",
        "model.tflite",
        "settings.toml",
    ]
    assert [file["executable"] for file in facts["files"]] == [True, False, False, False]
    assert (facts["health"], facts["health_timeout_s"], facts["note"]) == ("app/bin/check", 5, "spring")
    assert facts["bytes"] == (folder / "shop-1").stat().st_size
    assert "page.html" in verify(folder).stdout

    assert create(folder, *everything(folder), out="again").exit_code == 0
    assert (folder / "again").read_bytes() == (folder / "shop-1").read_bytes()


def test_key_is_its_owners_alone_and_never_replaced(folder: Path) -> None:
    """The secret half has mode 0600."""
    secret = folder / "keys" / "release.key"
    before = secret.read_bytes()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert code_of(call("key", "--out", folder / "keys")) == ExitCode.USAGE
    assert secret.read_bytes() == before


def test_bundle_is_not_replaced_unless_told(folder: Path) -> None:
    """A release that was given away should not become another one."""
    create(folder, "--app", folder / "build")
    assert code_of(create(folder, "--model", folder / "model")) == ExitCode.USAGE
    assert create(folder, "--model", folder / "model", "--force").exit_code == 0


def test_each_refusal_has_its_code(folder: Path) -> None:
    """As a device gives them."""
    assert create(folder, *everything(folder)).exit_code == 0
    whole = (folder / "shop-1").read_bytes()
    (folder / "bit").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / "short").write_bytes(whole[:-1])
    (folder / "stranger").write_bytes(a_bundle(secret=OTHER_SECRET))
    assert code_of(verify(folder, "bit")) == ExitCode.BUNDLE_DAMAGED
    assert code_of(verify(folder, "short")) == ExitCode.BUNDLE_CUT_OFF
    assert code_of(verify(folder, "stranger")) == ExitCode.BUNDLE_UNTRUSTED
    assert code_of(verify(folder, "shop-1", "--max-mb", "0.001")) == ExitCode.BUNDLE_TOO_LARGE
    assert code_of(verify(folder, "shop-1", "--fleet", "attic")) == ExitCode.BUNDLE_FOREIGN
    assert code_of(verify(folder, "none")) == ExitCode.FILE_UNREADABLE


@pytest.mark.parametrize("kind", ["link", "pipe", "hidden", "space"])
def test_only_plain_files_get_in(folder: Path, kind: str) -> None:
    """A link would lead wherever the device's is."""
    path = folder / "build" / {"hidden": ".profile", "space": "a b"}.get(kind, "x")
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "pipe":
            os.mkfifo(path)
        case _:
            path.write_text("x")
    assert code_of(create(folder, "--app", folder / "build")) == ExitCode.BUNDLE_FORBIDDEN
    assert not (folder / "shop-1").exists()


@pytest.mark.parametrize(
    "settings",
    ['broker = "mqtt://elsewhere"', "keep_days = 1.0", 'scorer = "abacus"', "[training]\nbattery = 1", "="],
)
def test_only_some_settings_are_a_releases(folder: Path, settings: str) -> None:
    """Who the device is, whom it believes and what it keeps are not; nor is what is no setting."""
    (folder / "settings").write_text(settings)
    assert code_of(create(folder, "--settings", folder / "settings")) == ExitCode.BUNDLE_FORBIDDEN


def test_model_must_be_one(folder: Path) -> None:
    """By its first bytes: whether it scores well a device finds out."""
    (folder / "model").write_bytes(b"not a model at all")
    assert code_of(create(folder, "--model", folder / "model")) == ExitCode.BUNDLE_FORBIDDEN


def test_wrong_calls_are_told(folder: Path) -> None:
    """Nothing in it; a health check that is not in it; a key that is none; an application that is a file."""
    assert code_of(create(folder)) == ExitCode.USAGE
    assert (
        code_of(create(folder, "--app", folder / "build", "--health", "app/no")) == ExitCode.BUNDLE_FORBIDDEN
    )
    assert code_of(create(folder, "--app", folder / "model")) in (ExitCode.USAGE, 2)
    (folder / "keys" / "release.key").write_text("secret")
    assert code_of(create(folder, "--app", folder / "build")) == ExitCode.USAGE
