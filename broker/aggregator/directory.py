"""An aggregator's directory: ``config.toml``, ``state.sqlite3``, and its own broker's ``broker/``."""

import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from broker import configfile
from broker.aggregator.catalogue import parse_item_keys
from broker.aggregator.catalogue_changes import MAX_TABLE_BYTES
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.store.interface import Genesis
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import AlreadyInitialisedError
from broker.protocol.messages import MAX_ITEMS_IN_CATALOGUE
from broker.storage import (
    exclusive,
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
        When it was made before; nothing is changed.
    DataFormatError, FileUnreadableError
        About the item file.
    ParameterError
        When `dim` is out of range, or the table would be too large to be stored or sent.
    DiskFullError, NotWritableError
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
        for left_over in path.glob(f"{DATABASE_NAME}*"):
            left_over.unlink()
        store = SqliteStore(path / DATABASE_NAME)
        try:
            instance = secrets.randbits(53)
            store.initialise(
                Genesis(
                    instance=instance, item_keys=item_keys, table=table, start=start, created_at=created_at
                )
            )
        finally:
            store.close()
        # It may come to hold the broker's password.
        write_atomically(path / CONFIG_NAME, configfile.to_toml(config).encode(), mode=0o600)
    return len(item_keys)


def load_config(path: Path, environment: Mapping[str, str], **flags: object) -> AggregatorConfig:
    """Read the configuration of a directory.

    Raises
    ------
    NotInitialisedError, ConfigError, FileUnreadableError
    """
    require_initialised(path, CONFIG_NAME, f"edge-aggregator init --dir {path} --fleet NAME --items FILE")
    return configfile.load(AggregatorConfig, path / CONFIG_NAME, environment, **flags)


def open_store(path: Path) -> SqliteStore:
    """Open the database of a directory.

    Raises
    ------
    NotInitialisedError, NewerVersionError, CorruptError, DiskFullError, InUseError, NotWritableError
    """
    require_initialised(path, CONFIG_NAME, f"edge-aggregator init --dir {path} --fleet NAME --items FILE")
    require_database(path / DATABASE_NAME)
    return SqliteStore(path / DATABASE_NAME)
