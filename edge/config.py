"""The device's configuration: ``config.toml`` in its directory."""

import secrets
from collections.abc import Mapping
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
    make_directory,
    require_database,
    require_initialised,
    write_atomically,
)
from edge.guards import Limits
from edge.store import DeviceStore
from trainer.errors import ParameterError

CONFIG_NAME = "config.toml"
DATABASE_NAME = "device.sqlite3"

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
    training: Limits = section(  # noqa: RUF009 - gives a field
        Limits, "When to train. What cannot be read on this machine never forbids."
    )

    def __post_init__(self) -> None:
        checked_id(self.device_id, "the device id")
        checked_id(self.fleet, "the fleet name")
        _ = self.address
        if self.scorer not in SCORERS:
            raise ParameterError(f"scorer is {self.scorer!r}; it must be one of {', '.join(SCORERS)}")

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is."""
        return BrokerAddress.parse(self.broker)

    @property
    def scorer_choice(self) -> Literal["auto", "tflite", "numpy"]:
        """Which scorer is wanted."""
        return next(name for name in SCORERS if name == self.scorer)


def needs_restart(before: DeviceConfig, after: DeviceConfig) -> list[str]:
    """Name the settings that differ and that a running ``start`` cannot change."""
    names = [field.name for field in fields(DeviceConfig) if field.name not in WHILE_RUNNING]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


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
    """Open the database of a directory.

    Raises
    ------
    NotInitialisedError, NewerVersionError, CorruptError, DiskFullError, InUseError, NotWritableError
    """
    _require(path, CONFIG_NAME)
    require_database(path / DATABASE_NAME)
    return DeviceStore(path / DATABASE_NAME)


def _require(path: Path, name: str) -> None:
    require_initialised(
        path, name, f"edge-client init --dir {path} --device-id ID --fleet NAME --broker mqtt://HOST:PORT"
    )
