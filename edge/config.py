"""The device's configuration: ``config.toml`` in its directory."""

import math
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from broker import configfile
from broker.address import BrokerAddress
from broker.configfile import option, section
from broker.errors import (
    AlreadyInitialisedError,
    BundleForbiddenError,
    BundleUnfitError,
    ConfigError,
    CorruptError,
    FileUnreadableError,
)
from broker.protocol.releases import MAX_BUNDLE_BYTES, SETTINGS
from broker.protocol.signatures import keys_from_text
from broker.protocol.topics import checked_id
from broker.storage import (
    exclusive,
    hold,
    make_directory,
    read_file,
    require_database,
    require_initialised,
    write_atomically,
)
from broker.tls import TlsFiles, certificate_facts
from edge.guards import Limits
from edge.homeassistant import checked_prefix
from edge.itemrule import DEFAULT_RULE, ItemRule
from edge.putaside import finish, unfinished
from edge.retention import Retention
from edge.slots import Slots
from edge.store import DeviceStore
from trainer.errors import ParameterError

CONFIG_NAME = "config.toml"
DATABASE_NAME = "device.sqlite3"
SOCKET_NAME = "api.sock"
TOKEN_NAME = "api-token"  # noqa: S105 - the name of its file
_REBUILD_WAIT_S = 30.0
"""How long a command waits for a database that is being rebuilt, and a rebuild for commands."""

_LONGEST_TRIAL_S = 86_400.0
FILES = {
    "tls_ca": "ca.pem",
    "tls_cert": "cert.pem",
    "tls_key": "key.pem",
    "head_keys": "head_key.pub",
    "release_keys": "release_key.pub",
}
"""Settings that name a file, and what it is called in this directory and in a bundle."""
OPTIONAL_FILES = frozenset({"release_keys"})
"""Of those, what a bundle need not have."""
BUNDLE_NAME = "device.toml"

WHILE_RUNNING = frozenset({"scorer", "table_writes_mb", "training"})
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
    broker: str = option(
        "", "The MQTT broker: mqtt://[USER[:PASSWORD]@]HOST:PORT, or mqtts://HOST:PORT with TLS."
    )
    tls_ca: str = option(
        "", "With mqtts: who signs the broker's certificate (PEM); empty: the system's list."
    )
    tls_cert: str = option("", "With mqtts: this device's certificate (PEM).")
    tls_key: str = option("", "With mqtts: its secret key (PEM); a file for its owner alone.")
    head_keys: str = option(
        "", "Public keys, one of which must have signed what the aggregator publishes; empty: not asked for."
    )
    release_keys: str = option(
        "", "Public keys, one of which must have signed a release; empty: none is taken. See docs/updates.md."
    )
    scorer: str = option("auto", "auto (TFLite where it is installed), tflite, or numpy.")
    keep_interactions: int = option(
        20_000, "Interactions to keep at most; repeats of an item go first, then the oldest. 0: all."
    )
    keep_days: float = option(0.0, "Days to keep an interaction, from the newest one back. 0: for ever.")
    table_writes_mb: float = option(
        4.0, "Megabytes a day to write for newer versions of the fleet's table, on average; 0: any number."
    )
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
    update_max_mb: float = option(64.0, "Megabytes that a release's bundle may have.")
    update_commands: bool = option(
        default=False,
        help_text="Whether a release may bring a program that start runs to see whether it works.",
    )
    update_groups: str = option(
        "", "Groups of devices that this one is in, with commas between: they get releases first."
    )
    update_trial_s: float = option(
        60.0, "Seconds that a release must run with the broker reached to be kept; ten times as long without."
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
        if not 0.0 <= self.table_writes_mb < math.inf:
            raise ParameterError(
                f"table_writes_mb is {self.table_writes_mb}; it must be 0 (without a limit) or more"
            )
        if not 0.0 < self.update_max_mb <= MAX_BUNDLE_BYTES / 1e6:
            raise ParameterError(
                f"update_max_mb is {self.update_max_mb}; it must be above 0 and at most "
                f"{MAX_BUNDLE_BYTES / 1e6:.0f}"
            )
        for group in self.groups:
            checked_id(group, "update_groups: the group")
        if not 0.0 <= self.update_trial_s <= _LONGEST_TRIAL_S:
            raise ParameterError(
                f"update_trial_s is {self.update_trial_s}; it must lie between 0 and {_LONGEST_TRIAL_S:.0f}"
            )
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
        """Where the broker is, and what to speak TLS with."""
        address = BrokerAddress.parse(self.broker)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ParameterError("tls_cert and tls_key go together; one of them is empty")
        if not (self.tls_ca or self.tls_cert):
            return address
        ca, cert, key = (Path(each) if each else None for each in (self.tls_ca, self.tls_cert, self.tls_key))
        return address.with_tls(TlsFiles(ca=ca, cert=cert, key=key))

    @property
    def retention(self) -> Retention:
        """Which interactions are kept."""
        return Retention(most=self.keep_interactions, days=self.keep_days)

    @property
    def table_writes(self) -> float:
        """Bytes a day to write for newer versions of the table; 0 for any number."""
        return self.table_writes_mb * 1e6

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
    def groups(self) -> frozenset[str]:
        """The groups of devices that this one is in."""
        return frozenset(name.strip() for name in self.update_groups.split(",") if name.strip())

    @property
    def scorer_choice(self) -> Literal["auto", "tflite", "numpy"]:
        """Which scorer is wanted."""
        return next(name for name in SCORERS if name == self.scorer)


def needs_restart(before: DeviceConfig, after: DeviceConfig) -> list[str]:
    """Name the settings that differ and that a running ``start`` cannot change."""
    names = [field.name for field in fields(DeviceConfig) if field.name not in WHILE_RUNNING]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def checked_settings(content: bytes, where: str = SETTINGS) -> dict[str, Any]:
    """Read the settings that a release changes: those that a running ``start`` can take, and no others.

    What says who the device is, whom it believes, and what of its user's data it keeps, no release changes.

    Raises
    ------
    BundleForbiddenError
        When they are no TOML, or one is unknown, out of range or not a release's to change.
    """
    try:
        settings = tomllib.loads(content.decode())
        known = {"device_id": "any", "fleet": "any", "broker": "mqtt://localhost"}
        others = settings.keys() - WHILE_RUNNING
        if others:
            raise ConfigError(  # noqa: TRY301 - one way to the sentence
                f"a release may set {', '.join(sorted(WHILE_RUNNING))}, not {', '.join(sorted(others))}"
            )
        configfile.require_valid(DeviceConfig, known | settings, where)
    except (ValueError, ConfigError) as error:
        raise BundleForbiddenError(f"{where} is not allowed: {error}") from error
    return settings


def _place(address: BrokerAddress) -> tuple[str, int]:
    host = address.host.casefold().rstrip(".")
    local = host in ("localhost", "::1") or host.startswith("127.")
    return "localhost" if local else host, address.port


def read_bundle(path: Path) -> tuple[DeviceConfig, dict[str, Path]]:
    """Read what an operator has made for this device; give its configuration, and files by their setting.

    Raises
    ------
    FileUnreadableError
        When a file of it is missing.
    ConfigError
        When it is no bundle.
    """
    config = configfile.load(DeviceConfig, path / BUNDLE_NAME, {})
    files = {name: path / file for name, file in FILES.items()}
    return config, {name: file for name, file in files.items() if name not in OPTIONAL_FILES or file.exists()}


def initialise(path: Path, config: DeviceConfig, files: Mapping[str, Path] | None = None) -> None:
    """Make a device's directory; the configuration is written last and marks it as made.

    Parameters
    ----------
    files : mapping of str to Path, optional
        What to copy into it, by the setting that names it: certificates and keys. They are tried first.

    Raises
    ------
    FileUnreadableError, ConfigError
        When one of the files cannot be read, or is not what it should be.
    AlreadyInitialisedError
        When it was made before; nothing is changed.
    DiskFullError, NotWritableError
    """
    if (path / CONFIG_NAME).exists():
        raise AlreadyInitialisedError(
            f"{path} was set up before; use it with: edge-client start --dir {path}, "
            "or choose another directory"
        )
    if files:
        given = with_files(config, files)
        _ = (given.address.context(), read_head_keys(given), read_release_keys(given))
        require_own_certificate(given)
        contents = {name: read_file(file) for name, file in files.items()}
    make_directory(path)
    with exclusive(path):
        for left_over in path.glob(f"{DATABASE_NAME}*"):
            left_over.unlink()
        store = DeviceStore(path / DATABASE_NAME)
        try:
            store.set_facts(incarnation=secrets.randbits(53), connection=0)
        finally:
            store.close()
        for name in files or ():
            mode = 0o600 if name == "tls_key" else 0o644
            write_atomically(path / FILES[name], contents[name], mode=mode)
        config = with_files(config, {name: FILES[name] for name in files or ()})
        # It may hold the broker's password.
        write_atomically(path / CONFIG_NAME, configfile.to_toml(config).encode(), mode=0o600)


def load_config(path: Path, environment: Mapping[str, str], **flags: object) -> DeviceConfig:
    """Read the configuration of a directory.

    Raises
    ------
    NotInitialisedError, ConfigError, FileUnreadableError
    """
    _require(path, CONFIG_NAME)
    config = configfile.load_over(
        DeviceConfig, path / CONFIG_NAME, environment, _release_settings(path), flags
    )
    named = {name: getattr(config, name) for name in FILES if getattr(config, name)}
    return with_files(config, {name: path / file for name, file in named.items()})


def with_files(config: DeviceConfig, files: Mapping[str, Path | str]) -> DeviceConfig:
    """Give the configuration with these files, by the settings that name them (`FILES`)."""
    settings: dict[str, Any] = {name: str(file) for name, file in files.items()}
    return replace(config, **settings)


def require_settings_fit(path: Path, settings: Mapping[str, Any]) -> None:
    """Check that a directory's configuration allows what a release sets.

    Raises
    ------
    BundleUnfitError
    """
    try:
        configfile.load_over(DeviceConfig, path / CONFIG_NAME, {}, settings, {})
    except ConfigError as error:
        raise BundleUnfitError(f"the release's settings do not go with this device's: {error}") from error


def _release_settings(path: Path) -> dict[str, Any]:
    """Give what the release in use sets; nothing where that is damaged, which the next start finds out."""
    try:
        content = Slots(path).settings()
        return {} if content is None else checked_settings(content)
    except (BundleForbiddenError, CorruptError):
        return {}


def read_head_keys(config: DeviceConfig) -> tuple[bytes, ...]:
    """Read the keys that heads must be signed with; none if none are asked for.

    Raises
    ------
    ConfigError
        When there is no such file, or it holds something else.
    """
    return _read_keys(config.head_keys)


def read_release_keys(config: DeviceConfig) -> tuple[bytes, ...]:
    """Read the keys that releases must be signed with; none if none are taken. Raises as `read_head_keys`."""
    return _read_keys(config.release_keys)


def require_own_certificate(config: DeviceConfig) -> None:
    """Check that the certificate, if there is one, is this device's: brokers take the client's id from it.

    Raises
    ------
    ConfigError
        When it is another's, whose connection each of ours would end, or cannot be read.
    """
    file = config.address.tls.cert
    if file is not None and (name := certificate_facts(file).common_name) != config.device_id:
        raise ConfigError(f"{file} is the certificate of {name}; this is {config.device_id}")


def _read_keys(file: str) -> tuple[bytes, ...]:
    if not file:
        return ()
    try:
        return keys_from_text(read_file(Path(file)).decode("utf-8", "replace"), file)
    except (FileUnreadableError, ParameterError) as error:
        raise ConfigError(str(error)) from error


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
        require_database(database, f"edge-client start --dir {path} makes a new one")
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
