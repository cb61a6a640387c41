"""An aggregator's directory: ``config.toml``, ``state.sqlite3``, and its own broker's ``broker/``.

With a PostgreSQL store the directory has no ``state.sqlite3``, and any number of directories, on any
machines, may have the same store.
"""

import dataclasses
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from broker import configfile
from broker.aggregator.catalogue import parse_item_keys
from broker.aggregator.catalogue_changes import MAX_TABLE_BYTES
from broker.aggregator.config import OWN_BROKERS, AggregatorConfig
from broker.aggregator.store.interface import Genesis
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.sql import SqlStore
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import AlreadyInitialisedError, NotInitialisedError
from broker.protocol.messages import MAX_ITEMS_IN_CATALOGUE
from broker.storage import (
    SQLITE_SUFFIXES,
    exclusive,
    is_in_use,
    make_directory,
    read_file,
    require_database,
    require_initialised,
    write_atomically,
)
from trainer.errors import ParameterError
from trainer.params import initial_score_function, initial_table

CONFIG_NAME = "config.toml"
DATABASE_NAME = "state.sqlite3"
BROKER_NAME = "broker"


def initialise(
    path: Path,
    config: AggregatorConfig,
    items: Path,
    *,
    dim: int,
    seed: int | None,
    created_at: float,
    scale: float = 1.0,
) -> int:
    """Make a directory, with a first table from N(0, scale²); give the number of items.

    The configuration is written last: without it the directory counts as not made, and ``init`` may be
    called again.

    Raises
    ------
    AlreadyInitialisedError
        When it was made before, or holds a fleet's database; nothing is changed.
    DataFormatError, FileUnreadableError
        About the item file.
    ParameterError
        When `dim` is out of range, or the table would be too large to be stored or sent.
    DiskFullError, NotWritableError
    StoreLostError, StoreRefusedError
        About a PostgreSQL server.
    """
    item_keys = parse_item_keys(read_file(items), str(items))
    if len(item_keys) > MAX_ITEMS_IN_CATALOGUE or 4 * len(item_keys) * dim > MAX_TABLE_BYTES:
        raise ParameterError(
            f"{len(item_keys)} items of {dim} dimensions are too many; at most {MAX_ITEMS_IN_CATALOGUE} "
            f"items, and {MAX_TABLE_BYTES // 4} values in all, can be served"
        )
    rng = np.random.default_rng(seed)
    table = initial_table(len(item_keys), dim, rng, scale=scale)
    start = initial_score_function(dim, rng)
    if (path / CONFIG_NAME).exists():
        raise AlreadyInitialisedError(
            f"{path} was set up before; use it with: edge-aggregator start --dir {path}, "
            "or choose another directory"
        )
    make_directory(path)
    with exclusive(path):
        require_no_fleet(path)
        for suffix in SQLITE_SUFFIXES:
            (path / f"{DATABASE_NAME}{suffix}").unlink(missing_ok=True)
        with closing(store_of(path, config)) as store:
            if config.store and store.is_initialised():
                raise AlreadyInitialisedError(
                    f"{config.store_address} holds a fleet already; choose another database, "
                    "or serve that fleet from a copy of its directory"
                )
            instance = secrets.randbits(53)
            store.initialise(
                Genesis(
                    instance=instance, item_keys=item_keys, table=table, start=start, created_at=created_at
                )
            )
        if config.store:
            config = dataclasses.replace(config, store=config.store_address.without_secrets)
        # It may come to hold the broker's password.
        write_atomically(path / CONFIG_NAME, configfile.to_toml(config).encode(), mode=0o600)
    return len(item_keys)


def require_no_fleet(path: Path) -> None:
    """Refuse a directory whose database holds more than an ``init`` that was cut off has put there.

    Raises
    ------
    AlreadyInitialisedError
    """
    if (found := _fleet_in(path)) is not None:
        raise AlreadyInitialisedError(f"{_without_settings(path, found)}; nothing was changed")


def _without_settings(path: Path, found: str) -> str:
    return (
        f"{path} has no {CONFIG_NAME}, but {path / DATABASE_NAME} holds {found}; put {CONFIG_NAME} back "
        "from a copy, or init another directory with the same --fleet and restore this database there"
    )


def _fleet_in(path: Path) -> str | None:
    """Say what a directory's database holds, None for no more than a beginning."""
    database = path / DATABASE_NAME
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(database)) as connection:
            return "a fleet" if _is_used(connection) else None
    except sqlite3.Error as error:
        return f"what cannot be read ({error})"


def _require_settings(path: Path) -> None:
    try:
        require_initialised(path, CONFIG_NAME, f"edge-aggregator init --dir {path} --fleet NAME --items FILE")
    except NotInitialisedError as error:
        # Where `init` would refuse, it is no advice.
        if (found := _fleet_in(path)) is None:
            raise
        raise NotInitialisedError(_without_settings(path, found)) from error


def _is_used(connection: sqlite3.Connection) -> bool:
    """Tell whether a database, of whatever release, was ever served or changed since its ``init``."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    marks = {
        "facts": "SELECT 1 FROM facts WHERE name = 'session' AND value > 0",
        "versions": "SELECT 1 FROM versions WHERE version > 0",
        "catalogue_changes": "SELECT 1 FROM catalogue_changes",
    }
    return any(connection.execute(marks[each]).fetchone() for each in marks if each in there) or bool(
        there and "migrations" not in there
    )


def load_config(path: Path, environment: Mapping[str, str], **flags: object) -> AggregatorConfig:
    """Read the configuration of a directory.

    Raises
    ------
    NotInitialisedError, ConfigError, FileUnreadableError
    """
    _require_settings(path)
    return configfile.load(AggregatorConfig, path / CONFIG_NAME, environment, **flags)


def open_store(path: Path, config: AggregatorConfig | None = None, *, looking: bool = False) -> SqlStore:
    """Open the store of a directory; `config` is read from it unless given.

    Parameters
    ----------
    looking : bool
        For all but `start` and `restore`: what an earlier release wrote is left to it.

    Raises
    ------
    NotInitialisedError, NewerVersionError, CorruptError, DiskFullError, InUseError, NotWritableError
    EarlierVersionError
        When `looking`.
    StoreLostError, StoreRefusedError, MissingExtraError
        About a PostgreSQL server.
    """
    _require_settings(path)
    config = config or load_config(path, {})
    if not config.store:
        require_database(path / DATABASE_NAME)
    return store_of(path, config, looking=looking)


def store_of(path: Path, config: AggregatorConfig, *, looking: bool = False) -> SqlStore:
    """Open the store that a configuration names, made where missing unless `looking`."""
    if config.store:
        return PostgresStore(config.store_address, config.keep_versions, looking=looking)
    return SqliteStore(path / DATABASE_NAME, config.keep_versions, looking=looking)


def require_shareable(config: AggregatorConfig) -> None:
    """Refuse to run one of several workers with a broker or a store that is one process's own.

    Raises
    ------
    ParameterError
    """
    if not config.store:
        raise ParameterError(
            "workers share a PostgreSQL store, and this directory keeps a file; move the fleet there with "
            "edge-aggregator backup and restore, or start it without --worker"
        )
    if config.broker in OWN_BROKERS:
        raise ParameterError(
            "workers share a broker that runs by itself; name it: --broker mqtt://HOST:PORT "
            "(docs/scaling.md), or start without --worker"
        )


@contextmanager
def serving(store: SqlStore) -> Iterator[None]:
    """Be the only one who serves, or changes, what is in a store, beside holding the directory's lock.

    Raises
    ------
    InUseError
        When another process, perhaps on another machine, serves from the same PostgreSQL database.
    """
    with store.serving() if isinstance(store, PostgresStore) else nullcontext():
        yield


def is_served(path: Path, store: SqlStore) -> bool:
    """Tell whether a process serves the store: a look, which may be out of date at once."""
    return store.is_served() if isinstance(store, PostgresStore) else is_in_use(path)
