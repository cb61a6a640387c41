"""``firmware-tools bundle``: signed releases for devices (docs/updates.md)."""

from pathlib import Path
from typing import Any

import click

from broker.commandline import Duration, Identifier, PathName, echo_facts, echo_json, say
from broker.errors import BundleForbiddenError, InputError, SchemaError
from broker.protocol.releases import (
    MAX_BUNDLE_BYTES,
    Manifest,
    SignedManifest,
    check_files,
    read_bundle,
    require_fleet,
    signer_of,
)
from broker.protocol.signatures import keys_from_text
from broker.storage import open_file, read_file

_FILE = PathName(dir_okay=False)
_BUNDLE = click.argument("file", type=_FILE)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


@click.group()
def bundle() -> None:
    """Sign what devices run: a scorer, settings, an application's files.

    \b
    Example:
      firmware-tools bundle key --out keys
      firmware-tools bundle create --fleet shop --release 1 --key keys/release.key --app build --out shop-1
      firmware-tools bundle verify shop-1 --keys keys/release_key.pub
    """


@bundle.command()
@click.option(
    "--out",
    required=True,
    type=PathName(file_okay=False),
    help="A folder for the two halves.",
)
def key(out: Path) -> None:
    """Make a release key: release.key, to be kept offline, and release_key.pub, for devices.

    \b
    Example:
      firmware-tools bundle key --out keys
    """
    from firmware_tools import bundle as making

    making.make_key(out)
    say(f"{out / making.SECRET_NAME} signs releases: keep it offline, and a copy of it elsewhere")
    say(f"devices believe it with: edge-client init ... --release-key {out / making.PUBLIC_NAME}")


@bundle.command()
@click.option("--fleet", required=True, type=Identifier("the fleet name"), help="Whose devices it is for.")
@click.option(
    "--release", required=True, type=click.IntRange(1, 2**53), help="Its number; higher than any before."
)
@click.option("--key", "secret", required=True, type=_FILE, help="release.key.")
@click.option("--out", required=True, type=_FILE, help="The bundle to write.")
@click.option("--model", type=_FILE, help="A scorer: a TFLite model as firmware-tools build makes it.")
@click.option("--settings", type=_FILE, help="A TOML file: scorer, table_writes_mb, [training].")
@click.option(
    "--app",
    "application",
    type=PathName(file_okay=False),
    help="A folder with the application's files.",
)
@click.option("--health", default="", help="Of these, the program that tells with 0 that it works: app/NAME.")
@click.option(
    "--health-timeout", default="30s", show_default=True, type=Duration(), help="How long it may take."
)
@click.option("--runtime", default="0", help="The earliest pfedrec-edge that it works with.  [default: any]")
@click.option(
    "--machine", "machines", multiple=True, help="A processor, as uname -m has it; may be repeated."
)
@click.option("--note", default="", help="A line for people.")
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@_JSON
def create(
    *,
    out: Path,
    secret: Path,
    model: Path | None,
    settings: Path | None,
    application: Path | None,
    health_timeout: float,
    force: bool,
    as_json: bool,
    **said: Any,
) -> None:
    """Make a bundle. The same files, options and key give the same bytes.

    \b
    Example:
      firmware-tools bundle create --fleet shop --release 2 --key keys/release.key --app build --out shop-2
    """
    from firmware_tools import bundle as making

    if out.exists() and not force:
        raise InputError(f"{out} exists and was left as it was; give --force to replace it")
    paths = making.Sources(model=model, settings=settings, application=application).paths()
    if not paths:
        raise InputError("a release needs something: give --model, --settings or --app")
    try:
        manifest = Manifest(files=making.listed(paths), health_timeout_s=round(health_timeout), **said)
    except SchemaError as error:
        raise BundleForbiddenError(str(error)) from error
    _tell(making.create(out, manifest, paths, secret), as_json=as_json)


@bundle.command()
@_BUNDLE
@_JSON
def inspect(*, file: Path, as_json: bool) -> None:
    """Tell what is in a bundle. Its signature is checked, but not whose it is; its files are not read.

    \b
    Example:
      firmware-tools bundle inspect shop-2
    """
    with open_file(file) as stream:
        signed = read_bundle(stream, file.stat().st_size)
    _tell(signed, as_json=as_json)


@bundle.command()
@_BUNDLE
@click.option("--keys", required=True, type=_FILE, help="release_key.pub.")
@click.option("--fleet", type=Identifier("the fleet name"), help="Whose it must be.  [default: anybody's]")
@click.option(
    "--max-mb",
    default=MAX_BUNDLE_BYTES / 1e6,
    type=click.FloatRange(0.0, MAX_BUNDLE_BYTES / 1e6),
    help="As the devices' update_max_mb.  [default: any]",
)
@_JSON
def verify(*, file: Path, keys: Path, fleet: str | None, max_mb: float, as_json: bool) -> None:
    """Check a bundle as a device does: size, signature, fleet, and every file's SHA-256.

    Each refusal has a code of its own, 60 to 67 (docs/exit-codes.md).

    \b
    Example:
      firmware-tools bundle verify shop-2 --keys keys/release_key.pub --fleet shop
    """
    believed = keys_from_text(read_file(keys).decode("utf-8", "replace"), str(keys))
    with open_file(file) as stream:
        signed = read_bundle(stream, file.stat().st_size, int(max_mb * 1e6))
        signer_of(signed, believed)
        if fleet is not None:
            require_fleet(signed.manifest, fleet)
        check_files(stream, signed.manifest)
    _tell(signed, as_json=as_json)


def _tell(signed: SignedManifest, *, as_json: bool) -> None:
    manifest = signed.manifest
    facts: dict[str, Any] = {
        "fleet": manifest.fleet,
        "release": manifest.release,
        "note": manifest.note,
        "bytes": signed.size,
        "key": signed.key.hex(),
        "runtime": manifest.runtime,
        "machines": list(manifest.machines),
        "health": manifest.health,
    }
    if as_json:
        files = [
            {
                "path": each.path,
                "bytes": each.size,
                "sha256": each.sha256.hex(),
                "executable": each.executable,
            }
            for each in manifest.files
        ]
        echo_json(facts | {"health_timeout_s": manifest.health_timeout_s, "files": files})
        return
    shown = {name: value or "-" for name, value in facts.items()} | {
        "machines": ", ".join(manifest.machines) or "any",
        "runtime": "any" if manifest.runtime == "0" else f"{manifest.runtime} or later",
    }
    echo_facts(shown | {each.path: f"{each.size} bytes" for each in manifest.files})
