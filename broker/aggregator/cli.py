"""``edge-aggregator``: set up, run and look at a fleet's aggregator."""

import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.address import DEFAULT_TLS_PORT
from broker.aggregator import storecommands
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.devicecommand import DEVICE_DAYS, device, keys
from broker.aggregator.enrolcommand import enrol
from broker.aggregator.itemscommand import items
from broker.aggregator.options import DIRECTORY, JSON
from broker.aggregator.releasecommand import release
from broker.aggregator.startcommand import start
from broker.commandline import (
    Duration,
    HostName,
    Identifier,
    PathName,
    echo_facts,
    echo_json,
    report,
    run,
    say,
)
from broker.protocol.encodings import ENCODINGS
from broker.servicecommand import install_service
from trainer.aggregation import ROBUST
from trainer.errors import ParameterError
from trainer.params import MAX_DIM

if TYPE_CHECKING:
    from broker.aggregator.store.interface import RoundRecord
    from broker.unit import Unit


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfedrec-edge")
def cli() -> None:
    """Collect a fleet's item-embedding updates and publish new versions of the shared table.

    \b
    Example:
      edge-aggregator init --dir shop --fleet shop --items items.txt
      edge-aggregator start --dir shop
    """


@cli.command()
@DIRECTORY
@click.option("--fleet", required=True, type=Identifier("the fleet name"), help="Part of every MQTT topic.")
@click.option(
    "--items",
    required=True,
    type=PathName(readable=False),
    help="One item key a line, or the first column of a CSV or u.item file.",
)
@click.option(
    "--preset",
    default="device",
    show_default=True,
    help="Settings of training: device, paper, or a file of that form.",
)
@click.option(
    "--dim", type=click.IntRange(1, MAX_DIM), help="Width of an embedding.  [default: the preset's]"
)
@click.option("--buffer", type=int, help="Accepted updates that close a round.  [default: 32]")
@click.option(
    "--deadline", "deadline_s", type=Duration(), help="After its first update a round closes.  [default: 30s]"
)
@click.option("--strategy", help="fedbuff, fedavg or fedasync.  [default: fedbuff]")
@click.option("--robust", is_flag=True, help="Settings against harmful updates (docs/aggregation.md).")
@click.option("--max-staleness", type=int, help="Versions an update may be behind.  [default: 10]")
@click.option(
    "--check-in", "check_in_s", type=Duration(), help="Between a device's looks at the head.  [default: 30s]"
)
@click.option("--max-idle-passes", type=int, help="Passes without a new interaction.  [default: 100]")
@click.option("--population", type=int, help="Devices in the fleet.  [default: those seen]")
@click.option("--encoding", help=f"Of updates: {', '.join(ENCODINGS)}.  [default: int8]")
@click.option("--item-lr", type=float, help="Learning rate of item rows.  [default: the preset's]")
@click.option("--port", type=int, help="Of our own broker.  [default: 1883, with --secure 8883]")
@click.option(
    "--store",
    help="postgresql://USER@HOST/DATABASE without a password.  [default: a file, or PFEDREC_STORE]",
)
@click.option("--seed", type=click.IntRange(0), help="Of the first table.  [default: drawn]")
@click.option("--secure", is_flag=True, help="TLS with certificates, signed heads (docs/security.md).")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    type=HostName(),
    help="With --secure: the broker's name; may be repeated.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=Identifier("the device id"),
    help="With --secure: a device to make a bundle for; may be repeated.",
)
@click.option(
    "--listen", type=HostName(), help="Address that our own broker listens on.  [default: 127.0.0.1]"
)
def init(
    directory: Path,
    items: Path,
    preset: str,
    dim: int | None,
    seed: int | None,
    hosts: tuple[str, ...],
    devices: tuple[str, ...],
    *,
    robust: bool,
    secure: bool,
    **settings: Any,
) -> None:
    """Set up a directory: configuration, catalogue, and version 0 of the table.

    All other settings are in DIR/config.toml, with comments.

    \b
    Example:
      edge-aggregator init --dir shop --fleet shop --items items.txt --buffer 16 --deadline 1m
    """
    from broker.aggregator.directory import CONFIG_NAME, initialise, require_no_fleet
    from broker.presets import load_preset

    if (hosts or devices) and not secure:
        raise click.UsageError("--host and --device go with --secure")
    settings |= ROBUST if robust else {}
    if secure:
        settings |= {"secure": True, "updates_per_minute": 60.0, "port": settings["port"] or DEFAULT_TLS_PORT}
    settings["store"] = _store_of(settings["store"])
    training = load_preset(preset, "pfedrec", {} if dim is None else {"dim": dim})
    config = AggregatorConfig.from_preset(training, training.taste(timed=True), **settings)
    if secure and not (directory / CONFIG_NAME).exists():
        from broker.aggregator.security import make_authority

        require_no_fleet(directory)
        own = () if config.listen in ("0.0.0.0", "::", "127.0.0.1") else (config.listen,)  # noqa: S104
        make_authority(directory, config.fleet, tuple(dict.fromkeys((*hosts, *own))), datetime.now(UTC))
    n_items = initialise(
        directory, config, items, dim=training.dim, scale=training.scale, seed=seed, created_at=time.time()
    )
    say(f"{directory} is set up for fleet {config.fleet}: {n_items} items, {training.dim} dimensions")
    for name in devices:
        from broker.aggregator.security import add_device

        say(f"device {name}: {add_device(directory, config, name, datetime.now(UTC), days=DEVICE_DAYS)}")
    say(f"settings: {directory / CONFIG_NAME}; run it with: edge-aggregator start --dir {directory}")


def _store_of(flag: str | None) -> str | None:
    from broker.aggregator.store.address import StoreAddress

    if flag is None:
        return os.environ.get("PFEDREC_STORE")
    if StoreAddress(flag).has_secret:
        # Everybody on the machine can read the arguments of a process.
        raise ParameterError(
            "--store holds a password, which others on this machine can see; give it in PGPASSWORD, in a "
            "password file (~/.pgpass), or the whole address in PFEDREC_STORE"
        )
    return flag


@cli.command()
@DIRECTORY
@JSON
def status(directory: Path, *, as_json: bool) -> None:
    """Tell the newest version and what became of all updates.

    \b
    Example:
      edge-aggregator status --dir shop --json
    """
    from broker.aggregator.directory import is_served, load_config, open_store

    config = load_config(directory, os.environ)
    store = open_store(directory, config, looking=True)
    try:
        state, ledger = store.load(), store.ledger()
        rounds = store.rounds(1)
        running = is_served(directory, store)
    finally:
        store.close()
    rows, dim = state.table.shape
    facts = {
        "fleet": config.fleet,
        "running": running,
        "version": state.version,
        "sha256": rounds[0].sha256.hex() if rounds else None,
        "items": rows,
        "dim": dim,
        "devices": len(state.seen),
        "updates": asdict(ledger),
    }
    if as_json:
        echo_json(facts)
        return
    facts["updates"] = ", ".join(f"{count} {name}" for name, count in asdict(ledger).items())
    facts["running"] = "yes" if facts["running"] else "no"
    echo_facts({name: value for name, value in facts.items() if value is not None})


@cli.command()
@DIRECTORY
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="How many, newest first."
)
@JSON
def rounds(directory: Path, limit: int, *, as_json: bool) -> None:
    """List the newest server rounds.

    \b
    Example:
      edge-aggregator rounds --dir shop --limit 5
    """
    from broker.aggregator.directory import load_config, open_store

    store = open_store(directory, load_config(directory, os.environ), looking=True)
    try:
        records = store.rounds(limit)
    finally:
        store.close()
    if as_json:
        echo_json([asdict(record) | {"sha256": record.sha256.hex()} for record in records])
        return
    if not records:
        say("no round has been closed yet")
        return
    click.echo("version  updates  closed by  staleness      bytes up  closed at (UTC)      guard    HR@10")
    for record in records:
        line = (
            f"{record.version:>7}  {record.updates:>7}  {record.closed_by:<9}  "
            f"{record.staleness_mean:>9.2f}  {record.bytes_up:>12}  "
            f"{datetime.fromtimestamp(record.closed_at, UTC):%Y-%m-%d %H:%M:%S}  "
            f"{_quality_of(record)}"
        )
        click.echo(line.rstrip())


@cli.command()
@DIRECTORY
@JSON
@click.option("--broker", help="auto, mosquitto, embedded, or mqtt://HOST:PORT.  [default: as configured]")
@click.option("--port", type=int, help="Of our own broker.  [default: as configured]")
def doctor(directory: Path, broker: str | None, port: int | None, *, as_json: bool) -> None:
    """Look for what keeps the fleet from working well, and say what to do about it.

    The broker is tried out on topics of its own. Ends with 0 when nothing must be done, and with 50 when
    something must.

    \b
    Example:
      edge-aggregator doctor --dir shop
    """
    from broker.aggregator.doctor import examine

    report(examine(directory, os.environ, datetime.now(UTC), broker=broker, port=port), as_json=as_json)


def _unit_of(directory: Path, user: str | None) -> "Unit":
    from broker.aggregator.directory import load_config
    from broker.aggregator.unit import aggregator_unit

    return aggregator_unit(directory, load_config(directory, os.environ), user)


def _quality_of(record: "RoundRecord") -> str:
    quality = record.quality
    if quality is None or not quality.reports:
        return ""
    return f"{quality.finding:<8} {quality.hits / quality.reports:.3f} ({quality.reports} devices)"


cli.add_command(start)
cli.add_command(items)
for command in storecommands.COMMANDS:
    cli.add_command(command)
cli.add_command(device)
cli.add_command(keys)
cli.add_command(enrol)
cli.add_command(release)
cli.add_command(
    install_service(
        "edge-aggregator",
        "pfedrec-aggregator",
        _unit_of,
        """
    Example:
      edge-aggregator install-service --dir /var/lib/pfedrec-shop
    """,
    )
)


def main() -> None:
    """Run ``edge-aggregator``."""
    run(cli, "edge-aggregator")


if __name__ == "__main__":
    main()
