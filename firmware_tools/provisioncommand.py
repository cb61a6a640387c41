"""``firmware-tools provision``: identities, keys, certificates and configurations of many devices."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from broker.commandline import Duration, echo_facts, echo_json, say
from broker.storage import read_file

_DAYS = 1825
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


@click.group()
def provision() -> None:
    """Make the identities of up to 10,000 devices at once (docs/provisioning.md). Needs [aggregator].

    \b
    Example:
      firmware-tools provision devices --dir shop --count 300 --prefix kiosk --out batch-1
      firmware-tools provision verify batch-1 --head-key shop/authority/head_key.pub
    """


@provision.command()
@click.option(
    "--dir",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The aggregator's directory, with its authority.",
)
@click.option("--count", type=click.IntRange(1, 10_000), help="Devices to make; their ids are drawn.")
@click.option("--prefix", default="device", show_default=True, help="What drawn ids begin with.")
@click.option(
    "--ids",
    "ids_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ids of your own, one a line.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write a folder with one for each device."
)
@click.option(
    "--archive", type=click.Path(path_type=Path), metavar="FILE", help="Write a tar archive instead."
)
@click.option("--days", default=_DAYS, show_default=True, type=click.IntRange(1, 7300), help="Validity.")
@click.option("--host", help="The broker's name as the devices reach it.  [default: the first of init]")
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Entries of config.toml that all of them get.",
)
@click.option("--renew", is_flag=True, help="New certificates for devices that there are; with --ids.")
@click.option(
    "--overlap",
    "overlap_s",
    type=Duration(),
    help="With --renew: revoke the earlier certificates after this (30d).  [default: never]",
)
@_JSON
def devices(
    *,
    directory: Path,
    count: int | None,
    prefix: str,
    ids_file: Path | None,
    out: Path | None,
    archive: Path | None,
    days: int,
    host: str | None,
    settings_file: Path | None,
    renew: bool,
    overlap_s: float | None,
    as_json: bool,
) -> None:
    """Make bundles that `edge-client init --bundle` takes, signed together.

    No id is ever given twice, by whatever run. A run that was cut off is finished by the same call.
    What is made holds secret keys: bring it to the devices by a way that you trust, and delete it here.

    \b
    Example:
      firmware-tools provision devices --dir shop --count 300 --prefix kiosk --out batch-1
      edge-client init --dir me --bundle batch-1/devices/kiosk-7k2m9x4q5t
    """
    from broker.aggregator.directory import load_config
    from broker.aggregator.security import AUTHORITY_NAME, broker_for_devices
    from broker.authority.authority import Authority
    from firmware_tools.provisioning import Order, parse_ids, provision, read_settings

    if (count is None) == (ids_file is None):
        raise click.UsageError("give either --count or --ids")
    place = out or archive
    if place is None or (out and archive):
        raise click.UsageError("give either --out or --archive")
    if renew and ids_file is None:
        raise click.UsageError("--renew goes with --ids")
    if overlap_s is not None and not renew:
        raise click.UsageError("--overlap goes with --renew")
    config = load_config(directory, os.environ)
    authority = Authority(directory / AUTHORITY_NAME)
    order = Order(
        out=place,
        archive=archive is not None,
        broker=broker_for_devices(authority, config, host),
        days=days,
        devices=None if ids_file is None else parse_ids(read_file(ids_file), str(ids_file)),
        prefix=prefix,
        count=count or 0,
        renew=renew,
        overlap=None if overlap_s is None else timedelta(seconds=overlap_s),
        settings="" if settings_file is None else read_settings(settings_file),
    )
    manifest = provision(authority, order, datetime.now(UTC), say)
    names = manifest.devices
    facts = {"batch": manifest.batch, "fleet": manifest.fleet, "devices": len(names), "place": str(place)}
    if as_json:
        echo_json(facts | {"ids": names})
    else:
        echo_facts(facts)


@provision.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--head-key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The fleet's public keys: head_key.pub, from a place that you trust.",
)
@_JSON
def verify(*, path: Path, head_key: Path, as_json: bool) -> None:
    """Check that a folder or an archive is whole and as it was signed; nothing is unpacked.

    \b
    Example:
      firmware-tools provision verify batch-1.tar --head-key head_key.pub
    """
    from broker.protocol.signatures import keys_from_text
    from firmware_tools.batch import check

    keys = keys_from_text(read_file(head_key).decode("utf-8", "replace"), str(head_key))
    manifest = check(path, keys)
    facts = {
        "batch": manifest.batch,
        "fleet": manifest.fleet,
        "made": manifest.made_at,
        "devices": len(manifest.devices),
        "files": len(manifest.files),
    }
    if as_json:
        echo_json(facts)
    else:
        echo_facts(facts)
