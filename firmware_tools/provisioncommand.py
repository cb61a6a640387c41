"""``firmware-tools provision``: identities, keys, certificates and configurations of many devices."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.claim import ENROLMENT_PORT
from broker.commandline import Duration, HostName, PathName, echo_facts, echo_json, say
from broker.errors import InputError
from broker.storage import read_file

if TYPE_CHECKING:
    from broker.authority.authority import Authority
    from broker.authority.batches import Batch

_DIRECTORY = click.option(
    "--dir",
    "directory",
    required=True,
    type=PathName(file_okay=False),
    help="The aggregator's directory, with its authority.",
)
_COUNT = click.option("--count", type=click.IntRange(1, 10_000), help="Devices; their ids are drawn.")
_PREFIX = click.option("--prefix", default="device", show_default=True, help="What drawn ids begin with.")
_IDS = click.option(
    "--ids",
    "ids_file",
    type=PathName(dir_okay=False),
    metavar="FILE",
    help="Ids of your own, one a line.",
)
_DAYS = click.option(
    "--days",
    default=1825,
    show_default=True,
    type=click.IntRange(1, 7300),
    help="Validity of the certificates.",
)
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
@_DIRECTORY
@_COUNT
@_PREFIX
@_IDS
@click.option("--out", type=PathName(), metavar="DIR", help="Write a folder with one for each device.")
@click.option("--archive", type=PathName(), metavar="FILE", help="Write a tar archive instead.")
@_DAYS
@click.option(
    "--host", type=HostName(), help="The broker's name as the devices reach it.  [default: the first of init]"
)
@click.option(
    "--settings",
    "settings_file",
    type=PathName(dir_okay=False),
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
    from firmware_tools.provisioning import Order, provision, read_settings

    chosen = _devices(count, ids_file)
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
        form="folder" if archive is None else "archive",
        broker=broker_for_devices(authority, config, host),
        days=days,
        devices=chosen,
        prefix=prefix,
        count=count or 0,
        renew=renew,
        overlap=None if overlap_s is None else timedelta(seconds=overlap_s),
        settings="" if settings_file is None else read_settings(settings_file),
    )
    _tell(provision(authority, order, datetime.now(UTC), say), authority, place, as_json=as_json)


@provision.command()
@_DIRECTORY
@_COUNT
@_PREFIX
@_IDS
@click.option("--out", required=True, type=PathName(), metavar="FILE", help="Write a CSV file.")
@_DAYS
@click.option(
    "--host",
    type=HostName(),
    help="The enrolment server's name as devices reach it.  [default: the first of init]",
)
@click.option(
    "--port", default=ENROLMENT_PORT, show_default=True, type=click.IntRange(1, 65535), help="Its port."
)
@click.option(
    "--valid",
    "valid_s",
    default="7d",
    show_default=True,
    type=Duration(60.0, 3.2e7),
    help="To be used within.",
)
@_JSON
def claims(
    *,
    directory: Path,
    count: int | None,
    prefix: str,
    ids_file: Path | None,
    out: Path,
    days: int,
    host: str | None,
    port: int,
    valid_s: float,
    as_json: bool,
) -> None:
    """Make claims, with which devices enrol themselves: each is good for one certificate, once.

    The file has a line for each device: its id, its claim, until when. Who has a claim can be that device.

    \b
    Example:
      firmware-tools provision claims --dir shop --count 20 --prefix kiosk --out claims.csv
      edge-aggregator enrol --dir shop
    """
    from broker.aggregator.security import AUTHORITY_NAME
    from broker.authority.authority import Authority
    from firmware_tools.provisioning import Order, provision

    authority = Authority(directory / AUTHORITY_NAME)
    if host is not None and host not in authority.hosts:
        raise InputError(
            f"the broker's certificate is not for {host}; it is for {', '.join(authority.hosts)}"
        )
    order = Order(
        out=out,
        form="claims",
        broker=f"{host or authority.host}:{port}",
        days=days,
        devices=_devices(count, ids_file),
        prefix=prefix,
        count=count or 0,
        claim_days=valid_s / 86_400.0,
    )
    _tell(provision(authority, order, datetime.now(UTC), say), authority, out, as_json=as_json)


def _devices(count: int | None, ids_file: Path | None) -> tuple[str, ...] | None:
    from firmware_tools.provisioning import parse_ids

    if (count is None) == (ids_file is None):
        raise click.UsageError("give either --count or --ids")
    return None if ids_file is None else parse_ids(read_file(ids_file), str(ids_file))


def _tell(batch: "Batch", authority: "Authority", place: Path, *, as_json: bool) -> None:
    facts = {
        "batch": batch.name,
        "fleet": authority.fleet,
        "devices": len(batch.devices),
        "place": str(place),
    }
    if as_json:
        echo_json(facts | {"ids": batch.devices})
    else:
        echo_facts(facts)


@provision.command()
@click.argument("path", type=PathName())
@click.option(
    "--head-key",
    required=True,
    type=PathName(dir_okay=False),
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
