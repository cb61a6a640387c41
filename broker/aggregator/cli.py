"""``edge-aggregator``: set up, run and look at a fleet's aggregator."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.address import DEFAULT_TLS_PORT, BrokerAddress
from broker.aggregator import storecommands
from broker.aggregator.config import OWN_BROKERS, AggregatorConfig
from broker.aggregator.devicecommand import DEVICE_DAYS, device, keys
from broker.aggregator.enrolcommand import enrol
from broker.aggregator.itemscommand import items
from broker.aggregator.options import DIRECTORY, JSON
from broker.aggregator.releasecommand import release
from broker.commandline import Duration, HostName, Identifier, echo_facts, echo_json, report, run, say
from broker.embedded import choose_broker, own_broker
from broker.errors import ConfigError, PFedRecError
from broker.journal import Trouble
from broker.protocol.encodings import ENCODINGS
from broker.servicecommand import install_service
from broker.storage import exclusive
from trainer.aggregation import ROBUST
from trainer.errors import ParameterError
from trainer.params import MAX_DIM

if TYPE_CHECKING:
    from broker.aggregator.admission import Admission
    from broker.aggregator.health import Health
    from broker.aggregator.metrics import Metrics
    from broker.aggregator.service import AggregatorService
    from broker.aggregator.store.interface import RoundRecord
    from broker.aggregator.store.sql import SqlStore
    from broker.authority.authority import Authority
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
    type=click.Path(path_type=Path, readable=False),
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
@click.option("--listen", help="Address that our own broker listens on.  [default: 127.0.0.1]")
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
@click.option("--broker", help="auto, mosquitto, embedded, or mqtt://HOST:PORT.  [default: as configured]")
@click.option("--port", type=int, help="Of our own broker.  [default: as configured]")
@click.option(
    "--worker",
    type=Identifier("the worker's name"),
    help="Be one of several workers, under this name (docs/scaling.md).",
)
@click.option("--verbose", is_flag=True, help="Log more.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object a line.",
)
def start(
    directory: Path,
    broker: str | None,
    port: int | None,
    worker: str | None,
    log_format: str,
    *,
    verbose: bool,
) -> None:
    """Serve the fleet until SIGTERM or Ctrl-C; a restart resumes where it stopped.

    SIGHUP: read config.toml again; buffer, deadline_s, max_staleness and log_level change at once.

    \b
    Example:
      edge-aggregator start --dir shop --broker mqtt://192.168.1.10:1883
    """
    from broker.aggregator.admission import Admission
    from broker.aggregator.directory import BROKER_NAME, load_config, open_store, require_shareable
    from broker.aggregator.offering import Offering
    from broker.aggregator.recovery import serve_with
    from broker.journal import set_level, set_up_logging
    from broker.servicing import Service
    from broker.supervisor import Supervisor

    def load() -> AggregatorConfig:
        config = load_config(directory, os.environ, broker=broker, port=port)
        set_level("debug" if verbose else config.log_level)
        return config

    set_up_logging(verbose=verbose, form=log_format)
    supervisor = Supervisor()
    service = Service(supervisor, load, say)
    service.listen()
    config = load()
    if worker is not None:
        require_shareable(config)
    authority = _authority(config, directory)
    sign = None if authority is None else authority.head_signer().sign
    with (
        exclusive(directory, with_others=worker is not None),
        _broker(config, directory / BROKER_NAME, authority) as (address, require_running, each_turn),
        _watching(config, directory) as (watch, health),
    ):
        admission = Admission(config.admission)
        follow_lists = _lists(directory, admission)
        follow_register = _register(authority, admission)
        _try_out(config, address)
        call_others = _roll_call(config, address, worker)

        def serve(store: "SqlStore") -> None:
            nonlocal config
            with _serving(store, worker) as make_service:
                call_others(store.instance())
                aggregator = make_service(config, store, address, say, watch, sign, admission)
                aggregator.offer_releases(Offering(directory))

                def turn() -> None:
                    each_turn()
                    follow_lists()
                    follow_register()
                    service.each_round(aggregator)

                try:
                    health.watched = aggregator
                    aggregator.run(service.stop, require_running, turn)
                finally:
                    health.watched = None
                    config = aggregator.config  # after a store that was away, what a reload has changed stays

        try:
            serve_with(
                lambda: open_store(directory, config),
                serve,
                service.stop,
                say,
                lambda: supervisor.alive(time.monotonic()),
            )
        finally:
            service.end()
    say("stopped")


@contextmanager
def _serving(store: "SqlStore", worker: str | None) -> "Iterator[Callable[..., AggregatorService]]":
    """Serve a store, alone or as a worker; give what makes the service."""
    from broker.aggregator.directory import serving
    from broker.aggregator.service import AggregatorService
    from broker.aggregator.store.postgres import PostgresStore
    from broker.aggregator.worker import WorkerService

    if worker is None or not isinstance(store, PostgresStore):
        with serving(store):
            yield AggregatorService
    else:
        with store.working(worker):
            yield partial(WorkerService, name=worker)


def _roll_call(config: AggregatorConfig, address: BrokerAddress, worker: str | None) -> Callable[[int], None]:
    """Give what refuses, the first time it is called, to serve a fleet that others serve at this broker."""
    from broker.aggregator.rollcall import require_alone

    # Our own broker has nobody else's fleet; one that takes ids from certificates has room for one of us.
    asked = config.broker in OWN_BROKERS or config.secure

    def call(instance: int) -> None:
        nonlocal asked
        if not asked:
            require_alone(address, config.fleet, worker=worker, instance=instance)
        asked = True

    return call


def _try_out(config: AggregatorConfig, address: BrokerAddress) -> None:
    """Say, once it is known, what somebody else's broker does not do that a fleet needs."""
    from broker.aggregator.trial import Trial
    from broker.errand import Errand
    from broker.findings import Level
    from broker.protocol.topics import FleetTopics

    def work() -> None:
        for each in Trial(address, FleetTopics(config.fleet)).findings():
            # That it is not there, the connection says by itself.
            if each.level is Level.PROBLEM and each.check != "broker":
                say(Trouble(f"the broker {address}: {each.found}; do: {each.remedy}"))

    if config.try_broker and config.broker not in OWN_BROKERS and not config.secure:
        Errand(work)


def _authority(config: AggregatorConfig, directory: Path) -> "Authority | None":
    if not config.secure:
        return None
    from broker.aggregator.security import AUTHORITY_NAME
    from broker.authority.authority import Authority

    authority = Authority(directory / AUTHORITY_NAME)
    authority.finish_renewal()
    return authority


@contextmanager
def _broker(
    config: AggregatorConfig, directory: Path, authority: "Authority | None"
) -> Iterator[tuple[BrokerAddress, Callable[[], None], Callable[[], None]]]:
    """Give the broker's address, what notices its end, and what to do with each turn of the loop."""
    wanted = next((name for name in OWN_BROKERS if name == config.broker), None)
    if wanted is None:
        address = BrokerAddress.parse(config.broker)
        if authority is not None:
            address = address.with_tls(authority.aggregator_files)
        yield address, lambda: None, lambda: None
        return
    if authority is None:
        kind = choose_broker(wanted)
        with own_broker(kind, config.listen, config.port, directory) as broker:
            say(f"{kind} listens on {config.listen}:{config.port}; devices use --broker {broker.address}")
            yield broker.address, broker.require_running, lambda: None
        return
    from broker.aggregator.security import Revocations, secure_listener

    choose_broker("mosquitto")
    if wanted == "embedded":
        say(Trouble("the embedded broker speaks no TLS; mosquitto runs in its place"))
    revocations = Revocations(authority)
    secure = secure_listener(authority)
    with own_broker("mosquitto", config.listen, config.port, directory, secure) as broker:
        say(f"mosquitto listens on {config.listen}:{config.port} with TLS, for who has a certificate")

        def follow() -> None:
            if revocations.changed():
                broker.reload()
                say("the list of revoked certificates was read again")

        yield broker.address.with_tls(authority.aggregator_files), broker.require_running, follow


def _lists(directory: Path, admission: "Admission") -> Callable[[], None]:
    """Give what keeps an admission in step with the operator's lists."""
    from broker.aggregator.devicelists import FollowedLists

    lists = FollowedLists(directory)
    lists.follow(admission)

    def follow() -> None:
        try:
            if lists.follow(admission):
                say("the lists of blocked and allowed devices were read again")
        except ConfigError as error:
            say(Trouble(f"the lists of devices stay as they were: {error}"))

    return follow


def _register(authority: "Authority | None", admission: "Admission") -> Callable[[], None]:
    """Give what keeps an admission in step with who has a certificate."""
    if authority is None:
        return lambda: None
    from broker.aggregator.security import Standing

    standing = Standing(authority)

    def follow() -> None:
        try:
            count = standing.follow(admission, datetime.now(UTC))
            if count:
                say(f"{count} certificate{'s' * (count != 1)} revoked, as newer ones have taken their place")
        except PFedRecError as error:
            say(Trouble(f"the register of certificates was not followed: {error}"))

    follow()
    return follow


@contextmanager
def _watching(config: AggregatorConfig, directory: Path) -> "Iterator[tuple[Metrics | None, Health]]":
    """Serve figures and health where the settings say so, whether the store answers or not."""
    from broker.aggregator.health import Health

    health = Health(None, directory)
    if config.metrics_port == 0:
        yield None, health
        return
    from broker.aggregator.directory import DATABASE_NAME
    from broker.aggregator.listener import listening
    from broker.aggregator.metrics import CONTENT_TYPE, Metrics

    metrics = Metrics(
        config.fleet,
        lambda: sum(path.stat().st_size for path in directory.glob(f"{DATABASE_NAME}*") if path.exists()),
    )
    host = config.metrics_listen
    with listening(host, config.metrics_port, metrics.render, CONTENT_TYPE, health) as port:
        say(f"metrics and health at http://{host}:{port}/metrics, /healthz and /readyz")
        yield metrics, health


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
