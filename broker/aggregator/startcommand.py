"""``edge-aggregator start``: the parts that serve a fleet, put together."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.address import BrokerAddress
from broker.aggregator.config import OWN_BROKERS, AggregatorConfig
from broker.aggregator.options import DIRECTORY
from broker.commandline import Identifier, say
from broker.embedded import choose_broker, own_broker
from broker.errors import ConfigError, PFedRecError
from broker.journal import Trouble
from broker.storage import exclusive

if TYPE_CHECKING:
    from broker.aggregator.admission import Admission
    from broker.aggregator.health import Health
    from broker.aggregator.metrics import Metrics
    from broker.aggregator.service import AggregatorService
    from broker.aggregator.store.sql import SqlStore
    from broker.authority.authority import Authority


@click.command()
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
