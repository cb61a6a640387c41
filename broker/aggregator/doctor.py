"""Looks at an aggregator and its surroundings for ``edge-aggregator doctor``. It changes nothing."""

import shutil
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

from broker.address import BrokerAddress
from broker.aggregator.config import OWN_BROKERS, AggregatorConfig
from broker.aggregator.directory import CONFIG_NAME, DATABASE_NAME, is_served, load_config, open_store
from broker.aggregator.examination import ledger_agrees
from broker.aggregator.security import AUTHORITY_NAME
from broker.aggregator.trial import Trial
from broker.authority.authority import Authority
from broker.authority.soundness import first_complaint
from broker.embedded import reachable_host
from broker.errors import (
    ConfigError,
    CorruptError,
    DiskFullError,
    EarlierVersionError,
    FileUnreadableError,
    InUseError,
    MissingExtraError,
    NewerVersionError,
    NotWritableError,
    PFedRecError,
    StoreLostError,
    StoreRefusedError,
)
from broker.findings import Finding, note, ok, problem, unchecked
from broker.protocol.topics import FleetTopics
from broker.storage import is_in_use, user_name
from broker.tls import certificate_facts

_MB = 1e6
_LEAST_FREE_MB, _GOOD_FREE_MB = 20.0, 1_000.0
_RENEW_DAYS = 30
_REMEDIES: dict[type[PFedRecError], str] = {
    StoreLostError: "start the database server (start waits for it), or correct store in config.toml",
    StoreRefusedError: "correct store in config.toml, the user's password (PGPASSWORD), or the database",
    MissingExtraError: "install it, or leave store in config.toml empty",
    InUseError: "wait until the other process has ended, and call again",
    NewerVersionError: "go on with the later release, or go back as docs/operating.md says",
    DiskFullError: "free some space; nothing was lost",
    NotWritableError: "let the directory's owner write it, or call as that user",
    CorruptError: "restore a backup (edge-aggregator restore)",
}
_OTHERWISE = "do what the sentence says"
_PACKAGES = ("pfedrec-edge", "numpy", "paho-mqtt", "SQLAlchemy")


def examine(directory: Path, environment: Mapping[str, str], now: datetime, **flags: object) -> list[Finding]:
    """Make every check, whatever the others say.

    Parameters
    ----------
    now : datetime
        With its time zone.
    flags : object
        Settings that were given to the command.

    Raises
    ------
    NotInitialisedError
        When there is no aggregator in the directory.
    """
    try:
        config = load_config(directory, environment, **flags)
    except (ConfigError, FileUnreadableError) as error:
        return [_versions(None), problem("settings", str(error), "correct what the sentence names")]
    served, store = _store(directory, config)
    return [
        _versions(config),
        ok("settings", f"fleet {config.fleet}, strategy {config.strategy}, updates as {config.encoding}"),
        _secrets(directory),
        _disk(directory),
        store,
        _certificates(directory, config, now),
        *_broker(directory, config, served=served),
    ]


def address_of(directory: Path, config: AggregatorConfig) -> BrokerAddress:
    """Give where the broker is, and what to speak TLS with.

    Raises
    ------
    NotInitialisedError, CorruptError
        When it is secure and its authority is missing or damaged.
    """
    if config.broker in OWN_BROKERS:
        address = BrokerAddress(host=reachable_host(config.listen), port=config.port, secure=config.secure)
    else:
        address = BrokerAddress.parse(config.broker)
    if config.secure:
        address = address.with_tls(Authority(directory / AUTHORITY_NAME).aggregator_files)
    return address


def _versions(config: AggregatorConfig | None) -> Finding:
    names = [*_PACKAGES, *(["psycopg"] if config is not None and config.store else [])]
    found, missing = (
        [f"Python {'.'.join(map(str, sys.version_info[:3]))}", f"SQLite {sqlite3.sqlite_version}"],
        [],
    )
    for name in names:
        try:
            found.append(f"{name} {package_version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = "install pfedrec-edge[aggregator] again, with PostgreSQL pfedrec-edge[postgres]"
        return problem("versions", f"{', '.join(found)}; not installed: {', '.join(missing)}", remedy)
    return ok("versions", ", ".join(found))


def _secrets(directory: Path) -> Finding:
    secret = [directory / CONFIG_NAME, *(directory / AUTHORITY_NAME).glob("*.key")]
    secret += directory.glob(f"{DATABASE_NAME}*")
    open_to_others = [path for path in secret if path.exists() and path.stat().st_mode & 0o077]
    if open_to_others:
        names = " ".join(str(path) for path in open_to_others)
        return problem("permissions", f"others may read {names}", f"chmod 600 {names}")
    owner = directory.stat().st_uid
    of_others = [path for path in secret if path.exists() and path.stat().st_uid != owner]
    if of_others:
        names = ", ".join(path.name for path in of_others)
        return problem(
            "permissions",
            f"{names} and the directory, {user_name(owner)}'s, belong to different users",
            f"chown -R {user_name(owner)}: {directory}",
        )
    return ok("permissions", "settings, store and keys are their owner's alone")


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free / _MB
    size = sum(path.stat().st_size for path in directory.glob(f"{DATABASE_NAME}*")) / _MB
    found = f"{free:.0f} MB free, the store has {size:.1f} MB"
    remedy = "free some space, for example old logs (journalctl --vacuum-size=200M), or lower keep_versions"
    if free < max(_LEAST_FREE_MB, size / 10.0):
        return problem("disk", found, remedy)
    return note("disk", found, remedy) if free < _GOOD_FREE_MB else ok("disk", found)


def _store(directory: Path, config: AggregatorConfig) -> tuple[bool, Finding]:
    """Tell whether it is served, as far as can be told, and what was found of it."""
    where = str(config.store_address.without_secrets) if config.store else DATABASE_NAME
    try:
        with closing(open_store(directory, config, looking=True)) as store:
            served, state = is_served(directory, store), store.load()
            agrees = served or ledger_agrees(store)
    except EarlierVersionError as error:
        # With PostgreSQL this cannot be told without the store; ours would be on this machine, most likely.
        remedy = "back it up with the earlier release, then start this one"
        return is_in_use(directory), note("store", str(error), remedy)
    except PFedRecError as error:
        remedy = next((each for kind, each in _REMEDIES.items() if isinstance(error, kind)), _OTHERWISE)
        return False, problem("store", str(error), remedy)
    found = f"{where}: version {state.version}, {len(state.seen)} devices"
    if not agrees:
        remedy = "edge-aggregator fsck says which version is not what its journal says"
        return served, problem("store", f"{found}; versions count other updates than the journal", remedy)
    return served, ok("store", f"{found}, {'served' if served else 'not served'}")


def _certificates(directory: Path, config: AggregatorConfig, now: datetime) -> Finding:
    if not config.secure:
        return unchecked("certificates", "the fleet is without TLS (edge-aggregator init --secure)")
    renew = "edge-aggregator keys renew"
    try:
        authority = Authority(directory / AUTHORITY_NAME)
        complaint = first_complaint(authority, own_broker=config.broker in OWN_BROKERS)
        if complaint is not None:
            return problem("certificates", *complaint)
        files = [authority.path / name for name in ("ca.pem", "server.pem", "aggregator.pem")]
        # With a broker of somebody else's, the server's may be where that is.
        dates = [(path.name, certificate_facts(path)) for path in files if path.exists()]
    except PFedRecError as error:
        return problem("certificates", str(error), "restore the directory authority from a backup")
    name, facts = min(dates, key=lambda each: each[1].not_after)
    until = f"{facts.not_after:%Y-%m-%d}"
    if now >= facts.not_after:
        return problem("certificates", f"{name} has expired on {until}", renew)
    if now < max(facts.not_before for _, facts in dates):
        return problem("certificates", "a certificate is not valid yet", "set the clock")
    if (facts.not_after - now).days < _RENEW_DAYS:
        return note("certificates", f"{name} is valid until {until}", renew)
    return ok("certificates", f"all are valid until {until} at least")


def _broker(directory: Path, config: AggregatorConfig, *, served: bool) -> list[Finding]:
    if config.broker in OWN_BROKERS and not served:
        return [unchecked("broker", "it is our own and runs with start")]
    if config.secure and served:
        # A certificate's name is the client's id there: we would take the place of the one that serves.
        return [unchecked("broker", "it knows us by our certificate, and start is there with it")]
    try:
        address = address_of(directory, config)
    except PFedRecError as error:
        return [problem("broker", str(error), "correct what the sentence names")]
    return Trial(address, FleetTopics(config.fleet)).findings()
