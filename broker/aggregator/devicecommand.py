"""``edge-aggregator device`` and ``keys``: who may take part, and what heads are signed with."""

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.aggregator.options import DIRECTORY, JSON
from broker.commandline import Duration, HostName, Identifier, confirm, echo_json, say
from broker.errors import InputError, PFedRecError

if TYPE_CHECKING:
    from broker.authority.authority import Authority
    from broker.authority.register import Entry

DEVICE_DAYS = 1825
_ID = click.argument("device", metavar="ID", type=Identifier("the device id"))


@click.group()
def device() -> None:
    """Let devices in, and keep them out. All of it takes effect while the aggregator runs.

    \b
    Example:
      edge-aggregator device add --dir shop kitchen-pi
      edge-aggregator device revoke --dir shop kitchen-pi
    """


@device.command()
@DIRECTORY
@_ID
@click.option(
    "--days", default=DEVICE_DAYS, show_default=True, type=click.IntRange(1, 7300), help="Validity."
)
@click.option(
    "--host",
    type=HostName(),
    help="The broker's name as the device reaches it.  [default: the first of init]",
)
@click.option(
    "--overlap",
    "overlap_s",
    type=Duration(),
    help="Revoke its earlier certificates after this (30d).  [default: never]",
)
def add(directory: Path, device: str, days: int, host: str | None, overlap_s: float | None) -> None:
    """Make a bundle for a device: certificate, key, and whom to believe. Again: to renew it.

    Bring the directory to the device by a way that you trust, and delete it here: it holds a secret key.

    \b
    Example:
      edge-aggregator device add --dir shop kitchen-pi
      edge-client init --dir me --bundle kitchen-pi
      edge-aggregator device add --dir shop --overlap 30d kitchen-pi
      edge-client renew --dir me --bundle kitchen-pi
    """
    from broker.aggregator.directory import load_config
    from broker.aggregator.security import add_device

    config = load_config(directory, os.environ)
    overlap = None if overlap_s is None else timedelta(seconds=overlap_s)
    bundle = add_device(directory, config, device, datetime.now(UTC), days, host, overlap)
    say(f"{bundle} is made; on the device: edge-client init (or renew) --dir DIR --bundle {bundle.name}")


@device.command()
@DIRECTORY
@click.argument("devices", metavar="ID...", nargs=-1, required=True, type=Identifier("the device id"))
@click.option("--old", is_flag=True, help="All but the newest of each.")
def revoke(directory: Path, devices: tuple[str, ...], *, old: bool) -> None:
    """Revoke all certificates of devices: they get no new connection, and nothing of theirs is taken.

    A connection that is open lasts until it breaks; the aggregator refuses what comes by it. A new
    certificate (`device add`) lets the device in again.

    \b
    Example:
      edge-aggregator device revoke --dir shop kitchen-pi
    """
    count = _authority(directory).revoke(devices, datetime.now(UTC), but_newest=old)
    say(f"{count} certificate{'s' * (count != 1)} of {', '.join(devices)[:200]} revoked")
    say("a broker of our own that runs takes note within a second; give others authority/crl.pem")


@device.command()
@DIRECTORY
@click.argument("devices", metavar="ID...", nargs=-1, required=True, type=Identifier("the device id"))
def block(directory: Path, devices: tuple[str, ...]) -> None:
    """Take nothing from these devices any more; also without certificates.

    \b
    Example:
      edge-aggregator device block --dir shop kitchen-pi
    """
    _change_blocked(directory, add=devices)


@device.command()
@DIRECTORY
@click.argument("devices", metavar="ID...", nargs=-1, required=True, type=Identifier("the device id"))
def unblock(directory: Path, devices: tuple[str, ...]) -> None:
    """Take from these devices again.

    \b
    Example:
      edge-aggregator device unblock --dir shop kitchen-pi
    """
    _change_blocked(directory, remove=devices)


@device.command()
@DIRECTORY
@click.argument("devices", metavar="ID...", nargs=-1, type=Identifier("the device id"))
@click.option("--remove", is_flag=True, help="Take these off the list.")
@click.option("--everyone", is_flag=True, help="Remove the list: all may take part that are not blocked.")
def allow(directory: Path, devices: tuple[str, ...], *, remove: bool, everyone: bool) -> None:
    """Let these devices take part, and no others: the first call makes the list.

    \b
    Example:
      edge-aggregator device allow --dir shop kitchen-pi attic-pi
    """
    if everyone == bool(devices):
        raise click.UsageError("give IDs or --everyone")
    from broker.aggregator.devicelists import ALLOWED_NAME

    path = directory / ALLOWED_NAME
    if everyone:
        from broker.aggregator.devicelists import remove_list
        from broker.aggregator.directory import load_config

        load_config(directory, os.environ)
        remove_list(path)
        say("all devices may take part that are not blocked")
        return
    count = _change(path, **{"remove" if remove else "add": devices})
    if count is None:
        raise InputError(
            f"there is no {path} to take a device off: all devices may take part that are not blocked; "
            "nothing was changed"
        )
    say(f"{count} device{'s' * (count != 1)} may take part, and no others; see {path}")


def _change_blocked(directory: Path, **changes: tuple[str, ...]) -> None:
    from broker.aggregator.devicelists import BLOCKED_NAME

    path = directory / BLOCKED_NAME
    count = _change(path, **changes) or 0
    say(f"{count} device{'s are' if count != 1 else ' is'} blocked; see {path}")
    for name in _never_seen(directory, changes.get("add", ())):
        say(f"no device {name} has come yet; see whether the id is right")


def _never_seen(directory: Path, devices: tuple[str, ...]) -> list[str]:
    from broker.aggregator.directory import load_config, open_store

    if not devices:
        return []
    try:
        with closing(open_store(directory, load_config(directory, os.environ), looking=True)) as store:
            seen = store.load(answers=False).seen
    except PFedRecError:  # they are blocked, whether the store answers or not
        return []
    return [name for name in devices if name not in seen]


def _change(path: Path, **changes: tuple[str, ...]) -> int | None:
    from broker.aggregator.devicelists import change_list
    from broker.aggregator.directory import load_config

    load_config(path.parent, os.environ)
    return change_list(path, **changes)


@device.command("list")
@DIRECTORY
@JSON
def list_devices(directory: Path, *, as_json: bool) -> None:
    """List the certificates that were issued.

    \b
    Example:
      edge-aggregator device list --dir shop --json
    """
    from dataclasses import asdict

    entries = _authority(directory).entries
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [asdict(entry) | {"state": _state(entry, now)} for entry in entries]
    if as_json:
        echo_json(rows)
        return
    click.echo(f"{'kind':<10}  {'name':<24}  {'state':<8}  {'until (UTC)':<25}  serial")
    for row in rows:
        click.echo(
            f"{row['kind']:<10}  {row['name']:<24}  {row['state']:<8}  {row['not_after']:<25}  "
            f"{row['serial']}"
        )


def _state(entry: "Entry", now: datetime) -> str:
    if entry.revoked_at:
        return "revoked"
    if datetime.fromisoformat(entry.not_after) <= now:
        return "expired"
    return "replaced" if entry.revoke_after else "valid"


@click.group()
def keys() -> None:
    """Renew the broker's certificate, and change the key that heads are signed with.

    \b
    Example:
      edge-aggregator keys rotate --dir shop
    """


@keys.command()
@DIRECTORY
@click.option(
    "--host", "hosts", multiple=True, type=HostName(), help="One more name of the broker; may be repeated."
)
def renew(directory: Path, hosts: tuple[str, ...]) -> None:
    """Issue the broker's and the aggregator's certificates anew; used from the next start on.

    With --host devices may reach the broker by that name too, and new bundles have the first of them.

    \b
    Example:
      edge-aggregator keys renew --dir shop --host new.example
    """
    _authority(directory).renew(datetime.now(UTC), hosts)
    say("the broker's and the aggregator's certificates are new; start again to use them")


@keys.command()
@DIRECTORY
@click.option("--yes", is_flag=True, help="Do not ask.")
def rotate(directory: Path, *, yes: bool) -> None:
    """Sign heads with the next key, which devices have known all along; used from the next start on.

    A device that has met a head of the new key believes no earlier one. It learns the key after that from
    authority/head_key.pub, which should reach it before the next change; so the second asks first.

    \b
    Example:
      edge-aggregator keys rotate --dir shop
    """
    authority = _authority(directory)
    if authority.was_rotated:
        confirm(
            f"Has every device got {authority.path / 'head_key.pub'} since the last rotation? "
            "Those that have not will believe no head any more. Rotate?",
            yes=yes,
        )
    authority.rotate_head_key()
    say("heads are signed with the next key from the next start on")
    say(f"give devices {directory / 'authority' / 'head_key.pub'} before you rotate again")


def _authority(directory: Path) -> "Authority":
    from broker.aggregator.directory import load_config
    from broker.aggregator.security import AUTHORITY_NAME
    from broker.authority.authority import Authority

    load_config(directory, os.environ)
    return Authority(directory / AUTHORITY_NAME)
