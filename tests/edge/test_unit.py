"""The systemd unit: what it says, what systemd thinks of it, and what must hold before it is written."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.errors import InputError
from broker.unit import Unit, install, require_fit
from edge.cli import cli
from edge.config import DeviceConfig
from edge.unit import device_unit
from tests.edge.running import a_directory

ME = "root" if os.geteuid() == 0 else os.environ.get("USER", "root")
MOST_EXPOSED = 3.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed; apt-get install systemd"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory below /var/lib")


def a_unit(directory: Path, user: str | None) -> Unit:
    """Give a unit whose interpreter everybody has."""
    config = DeviceConfig(device_id="pi-1", fleet="shop", broker="mqtt://127.0.0.1:1")
    return replace(device_unit(directory, config, user), python=Path("/usr/bin/env"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device."""
    return a_directory(tmp_path / "device", "shop", "mqtt://127.0.0.1:1")


def call(directory: Path, *options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["install-service", "--dir", str(directory), *options])


def exposure(path: Path) -> float:
    """Give what systemd-analyze makes of a unit, from 0 to 10."""
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", found.stdout)
    return float(level)


@needs_systemd
@pytest.mark.process
@pytest.mark.parametrize("user", [None, ME], ids=["dynamic", "own"])
def test_systemd_finds_the_unit_right_and_hardly_exposed(tmp_path: Path, user: str | None) -> None:
    """No warning, and at most 3.0 of 10, in both forms."""
    path = tmp_path / "pfedrec-edge.service"
    directory = Path("/var/lib/pfedrec-edge") if user is None else tmp_path
    path.write_text(a_unit(directory, user).text())
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert exposure(path) <= MOST_EXPOSED


@needs_systemd
@pytest.mark.process
@pytest.mark.parametrize("name", ["a b", 'quo"te', "per%cent", "dol$lar", "back\\slash", "semi;colon", "ü"])
def test_strange_paths_are_quoted(tmp_path: Path, name: str) -> None:
    """Systemd reads the words that were meant."""
    path = tmp_path / "pfedrec-edge.service"
    path.write_text(a_unit(tmp_path / name, ME).text())
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_service_that_was_stopped_while_it_started_has_not_failed(directory: Path) -> None:
    """SIGTERM in the first seconds ends it with 143, before it listens for it."""
    assert "\nSuccessExitStatus=143\n" in a_unit(directory, ME).text()


def test_unit_is_written_once_and_written_anew(directory: Path, tmp_path: Path) -> None:
    """And removed; the device stays."""
    path = tmp_path / "pfedrec-edge.service"
    options = ("--user", ME, "--unit-dir", str(tmp_path))
    for _ in range(2):
        found = call(directory, *options)
        assert found.exit_code == 0, found.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    text = path.read_text()
    for line in ("Type=notify", f"User={ME}", f"ReadWritePaths={directory}", "WatchdogSec=120"):
        assert line in text.splitlines()
    assert f"-m edge.cli start --dir {directory}" in text
    assert call(directory, "--uninstall", "--unit-dir", str(tmp_path)).exit_code == 0
    assert not path.exists()
    assert directory.exists()


def test_printed_unit_is_the_written_one(directory: Path, tmp_path: Path) -> None:
    """Without touching anything."""
    printed = call(directory, "--user", ME, "--print")
    call(directory, "--user", ME, "--unit-dir", str(tmp_path))
    assert printed.stdout == (tmp_path / "pfedrec-edge.service").read_text()


def test_somebody_else_s_unit_is_left_alone(directory: Path, tmp_path: Path) -> None:
    """Neither replaced nor removed."""
    path = tmp_path / "pfedrec-edge.service"
    path.write_text("[Unit]\nDescription=mine\n")
    for more in ((), ("--uninstall",)):
        found = call(directory, "--user", ME, "--unit-dir", str(tmp_path), *more)
        assert "was not written by edge-client" in str(found.exception)
    assert path.read_text().endswith("mine\n")


def test_directory_must_be_the_user_s(directory: Path, tmp_path: Path) -> None:
    """Else the service could not write in it; the sentence has the command."""
    with pytest.raises(InputError, match="has no user nobody-has-this"):
        install(a_unit(directory, "nobody-has-this"), tmp_path / "a.service")
    other = "daemon" if ME == "root" else "root"
    with pytest.raises(InputError, match=f"chown -R {other}: "):
        install(a_unit(directory, other), tmp_path / "a.service")


def test_user_of_the_service_s_own_needs_a_directory_of_the_state_s(tmp_path: Path) -> None:
    """Directly below /var/lib; and an interpreter that it may run."""
    for directory in (tmp_path, Path("/var/lib/a/b")):
        with pytest.raises(InputError, match=r"directly below /var/lib, or name who runs it with --user"):
            require_fit(a_unit(directory, None))
    try:
        require_fit(a_unit(Path("/var/lib/pfedrec-edge"), None))
    except InputError as error:
        # Where this checkout lies in somebody's home, it is that and not the directory.
        assert "closed to a user of the service's own" in str(error)  # noqa: PT017


def test_user_of_the_service_s_own_must_be_let_in(tmp_path: Path) -> None:
    """An interpreter in somebody's home is not for others."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    unit = replace(a_unit(Path("/var/lib/me"), None), python=closed / "bin" / "python")
    with pytest.raises(InputError, match="is closed to a user of the service's own"):
        require_fit(unit)


@pytest.mark.parametrize(
    "options", [("--user", "a b"), ("--user", "-x"), ("--name", "../x"), ("--name", ""), ("--name", "a b")]
)
def test_names_that_are_none_are_usage_errors(directory: Path, options: tuple[str, str]) -> None:
    """They become parts of a file's name, and of its lines."""
    assert call(directory, *options).exit_code == 2


@pytest.fixture
def state_directory() -> Iterator[Path]:
    """Give a name below /var/lib that nobody has."""
    path = Path(f"/var/lib/pfedrec-test-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@as_root
@pytest.mark.root
def test_dynamic_unit_names_its_state_directory(state_directory: Path) -> None:
    """Systemd hands it over to the user it makes."""
    a_directory(state_directory, "shop", "mqtt://127.0.0.1:1")
    found = call(state_directory, "--print")
    if "closed to a user of the service's own" in str(found.exception):
        pytest.skip("the package is installed where others may not look")
    lines = found.stdout.splitlines()
    assert "DynamicUser=yes" in lines
    assert f"StateDirectory={state_directory.name}" in lines
