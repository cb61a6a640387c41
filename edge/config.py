"""The device's configuration: ``config.toml`` in its directory."""

import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from broker import configfile
from broker.address import BrokerAddress
from broker.configfile import option, section
from broker.errors import AlreadyInitialisedError
from broker.protocol.topics import checked_id
from broker.storage import (
    exclusive,
    hold,
    make_directory,
    require_database,
    require_initialised,
    write_atomically,
)
from edge.guards import Limits
from edge.homeassistant import checked_prefix
from edge.itemrule import DEFAULT_RULE, ItemRule
from edge.putaside import finish, unfinished
from edge.retention import Retention
from edge.store import DeviceStore
from trainer.errors import ParameterError

CONFIG_NAME = "config.toml"
DATABASE_NAME = "device.sqlite3"
SOCKET_NAME = "api.sock"
TOKEN_NAME = "api-token"  # noqa: S105 - the name of its file
_REBUILD_WAIT_S = 30.0
"""How long a command waits for a database that is being rebuilt, and a rebuild for commands."""

WHILE_RUNNING = frozenset({"scorer", "training"})
"""What a running ``start`` takes from a changed file; the rest is who the device is, and its fleet."""
SCORERS: tuple[Literal["auto", "tflite", "numpy"], ...] = ("auto", "tflite", "numpy")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Everything that the file, the environment and flags can set.

    Raises
    ------
    ParameterError
        When a value is not allowed.
    """

    device_id: str = option("", "This device's id: unique in the fleet, and its MQTT client id.")
    fleet: str = option("", "The fleet's name, as the aggregator has it.")
    broker: str = option("", "The MQTT broker: mqtt://[USER[:PASSWORD]@]HOST:PORT.")
    scorer: str = option("auto", "auto (TFLite where it is installed), tflite, or numpy.")
    keep_interactions: int = option(
        20_000, "Interactions to keep at most; repeats of an item go first, then the oldest. 0: all."
    )
    keep_days: float = option(0.0, "Days to keep an interaction, from the newest one back. 0: for ever.")
    api_socket: bool = option(
        default=True, help_text="Whether start serves the local API on api.sock in this directory."
    )
    api_port: int = option(
        0, "Where start serves it on 127.0.0.1, too, for who has the token in the file api-token; 0: nowhere."
    )
    listen_item: str = option(
        DEFAULT_RULE,
        "Which item a submitted listen is: templates, the first whose fields it has. See docs/api.md.",
    )
    home_broker: str = option(
        "", "An MQTT broker of home automation, as `broker` is written; empty: none. See docs/api.md."
    )
    home_enabled: bool = option(
        default=True, help_text="false takes the sensors away from home_broker again, and ends commands."
    )
    home_prefix: str = option("homeassistant", "Where Home Assistant looks for sensors.")
    home_on_fleet_broker: bool = option(
        default=False,
        help_text="Allow home_broker to be the fleet's: its operator then sees what is recorded by MQTT.",
    )
    training: Limits = section(  # noqa: RUF009 - gives a field
        Limits, "When to train. What cannot be read on this machine never forbids."
    )

    def __post_init__(self) -> None:
        checked_id(self.device_id, "the device id")
        checked_id(self.fleet, "the fleet name")
        _ = self.address
        if self.scorer not in SCORERS:
            raise ParameterError(f"scorer is {self.scorer!r}; it must be one of {', '.join(SCORERS)}")
        if self.keep_interactions < 0:
            raise ParameterError(f"keep_interactions is {self.keep_interactions}; it must be 0 (all) or more")
        if not 0.0 <= self.keep_days < math.inf:
            raise ParameterError(f"keep_days is {self.keep_days}; it must be 0 (for ever) or more")
        if not 0 <= self.api_port <= 65535:
            raise ParameterError(f"api_port is {self.api_port}; it must be 0 (off) or a port up to 65535")
        _ = self.item_rule
        checked_prefix(self.home_prefix)
        if self.shares_fleet_broker and not self.home_on_fleet_broker:
            raise ParameterError(
                f"home_broker is the fleet's own broker, {self.address}: its operator would see each item "
                "that home automation records; give another, or set home_on_fleet_broker = true to allow it"
            )

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is."""
        return BrokerAddress.parse(self.broker)

    @property
    def retention(self) -> Retention:
        """Which interactions are kept."""
        return Retention(most=self.keep_interactions, days=self.keep_days)

    @property
    def item_rule(self) -> ItemRule:
        """Which item a listen is."""
        return ItemRule.parse(self.listen_item)

    @property
    def home_address(self) -> BrokerAddress | None:
        """Where home automation's broker is, None without."""
        return BrokerAddress.parse(self.home_broker) if self.home_broker else None

    @property
    def shares_fleet_broker(self) -> bool:
        """Whether home automation's broker is the fleet's, as far as the two addresses tell."""
        home = self.home_address
        return home is not None and _place(home) == _place(self.address)

    @property
    def scorer_choice(self) -> Literal["auto", "tflite", "numpy"]:
        """Which scorer is wanted."""
        return next(name for name in SCORERS if name == self.scorer)


def needs_restart(before: DeviceConfig, after: DeviceConfig) -> list[str]:
    """Name the settings that differ and that a running ``start`` cannot change."""
    names = [field.name for field in fields(DeviceConfig) if field.name not in WHILE_RUNNING]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _place(address: BrokerAddress) -> tuple[str, int]:
    host = address.host.casefold().rstrip(".")
    local = host in ("localhost", "::1") or host.startswith("127.")
    return "localhost" if local else host, address.port


def initialise(path: Path, config: DeviceConfig) -> None:
    """Make a device's directory; the configuration is written last and marks it as made.

    Raises
    ------
    AlreadyInitialisedError
        When it was made before; nothing is changed.
    DiskFullError, NotWritableError
    """
    if (path / CONFIG_NAME).exists():
        raise AlreadyInitialisedError(
            f"{path} was set up before; use it with: edge-client start --dir {path}, "
            "or choose another directory"
        )
    make_directory(path)
    with exclusive(path):
        for left_over in path.glob(f"{DATABASE_NAME}*"):
            left_over.unlink()
        store = DeviceStore(path / DATABASE_NAME)
        try:
            store.set_facts(incarnation=secrets.randbits(53), connection=0)
        finally:
            store.close()
        # It may hold the broker's password.
        write_atomically(path / CONFIG_NAME, configfile.to_toml(config).encode(), mode=0o600)


def load_config(path: Path, environment: Mapping[str, str], **flags: object) -> DeviceConfig:
    """Read the configuration of a directory.

    Raises
    ------
    NotInitialisedError, ConfigError, FileUnreadableError
    """
    _require(path, CONFIG_NAME)
    return configfile.load(DeviceConfig, path / CONFIG_NAME, environment, **flags)


def open_store(path: Path) -> DeviceStore:
    """Open the database of a directory. While it is open, nobody can put it aside.

    Raises
    ------
    NotInitialisedError, NewerVersionError, CorruptError, DiskFullError, InUseError, NotWritableError
    """
    _require(path, CONFIG_NAME)
    database = path / DATABASE_NAME
    held = hold(path, shared=True, wait_s=_REBUILD_WAIT_S)
    if unfinished(database):  # a rebuild was cut off in its last steps
        os.close(held)
        with alone(path):
            finish(database)
        held = hold(path, shared=True, wait_s=_REBUILD_WAIT_S)
    try:
        require_database(database)
    except BaseException:
        os.close(held)
        raise
    return DeviceStore(database, held)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep everybody from opening the database of a directory.

    Raises
    ------
    InUseError
        When somebody has it open for long.
    """
    held = hold(path, wait_s=_REBUILD_WAIT_S)
    try:
        yield
    finally:
        os.close(held)


def _require(path: Path, name: str) -> None:
    require_initialised(
        path, name, f"edge-client init --dir {path} --device-id ID --fleet NAME --broker mqtt://HOST:PORT"
    )
