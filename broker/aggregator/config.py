"""The aggregator's configuration: ``config.toml`` in its directory."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from broker.address import BrokerAddress
from broker.aggregator.admission import AdmissionSettings
from broker.aggregator.decisions import RoundSettings
from broker.aggregator.guard import GuardSettings
from broker.aggregator.store.address import StoreAddress
from broker.aggregator.store.interface import KEEP_VERSIONS
from broker.configfile import option
from broker.presets import Preset
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Plan
from broker.protocol.topics import checked_id
from trainer.aggregation import AggregationSettings, Strategy
from trainer.errors import ParameterError
from trainer.params import Hyperparameters, item_lr
from trainer.taste import TasteSettings

OWN_BROKERS: tuple[Literal["auto", "mosquitto", "embedded"], ...] = ("auto", "mosquitto", "embedded")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """Everything that the file, the environment and flags can set; see `to_toml` for the help texts.

    Raises
    ------
    ParameterError
        When a value is out of range.
    """

    fleet: str = option("", "The fleet's name: part of every MQTT topic.")
    broker: str = option(
        "auto",
        "auto (mosquitto if installed, else the embedded amqtt), mosquitto, embedded, or mqtt[s]://HOST:PORT.",
    )
    try_broker: bool = option(
        default=True,
        help_text="Whether start tries out a broker that is not its own, and says what a fleet would miss.",
    )
    listen: str = option(
        "127.0.0.1", "Address that our own broker listens on; 0.0.0.0 lets devices in from other machines."
    )
    port: int = option(1883, "TCP port of our own broker.")
    updates_per_minute: float = option(
        0.0, "Updates that one device may send a minute, or four times as many other messages; 0: any number."
    )
    most_devices: int = option(1_000_000, "Devices that may ever come; later ones are refused.")
    secure: bool = option(
        default=False,
        help_text="TLS with certificates of DIR/authority, and signed heads; see docs/security.md.",
    )
    metrics_listen: str = option(
        "127.0.0.1",
        "Address that /metrics, /healthz and /readyz are served at; it asks nobody who they are.",
    )
    metrics_port: int = option(0, "TCP port of /metrics, /healthz and /readyz; 0: they are not served.")
    log_level: str = option("info", "debug, info, warning or error: the least that is logged.")
    store: str = option(
        "",
        "Empty: state.sqlite3 in this directory; or postgresql://USER@HOST/DATABASE. The password is better "
        "in PGPASSWORD, ~/.pgpass or PFEDREC_STORE.",
    )
    keep_versions: int = option(
        KEEP_VERSIONS,
        "Newest versions that fsck proves and rollback offers: their tables and updates are kept.",
    )
    strategy: str = option(
        "fedbuff",
        "fedbuff (weights updates by staleness), fedavg (a plain average) or fedasync (each at once).",
    )
    buffer: int = option(32, "Accepted updates that close a round.")
    deadline_s: float = option(30.0, "Seconds after its first update that close a round too; 0: never.")
    max_staleness: int = option(10, "Versions that an update may be behind; older ones do not count.")
    staleness_exponent: float = option(0.5, "a in the staleness weight (1 + staleness)^-a.")
    mixing: float = option(0.0, "fedasync: the weight of a fresh update, at most 1; 0: 1 / population.")
    clip: float = option(0.0, "Longest norm of an update; longer ones are scaled down. 0: any.")
    clip_to_median: float = option(0.0, "The same, as a multiple of the median norm of the round; 0: off.")
    similarity: float = option(
        0.0, "Drop updates that agree with the round less than this part of the median's agreement; 0: off."
    )
    robust: str = option("none", "Of each coordinate: none (the mean), trimmed-mean or median.")
    trim: float = option(0.1, "trimmed-mean: the share left out at each end.")
    server_optimiser: str = option(
        "none", "What makes the step from a round's mean: none, adagrad, adam, yogi."
    )
    server_lr: float = option(0.1, "The server optimiser's learning rate.")
    step_encoding: str = option(
        "float32",
        "How a version's step is rounded: float32 (not) or int8 (a byte a value goes down to devices).",
    )
    population: int = option(0, "Devices in the fleet; 0 counts those seen so far.")
    check_in_s: float = option(30.0, "Seconds between a device's looks at the newest version.")
    updates_per_s: float = option(
        0.0, "Updates that the whole fleet should send a second, at most; devices wait longer then. 0: any."
    )
    least_updates: int = option(1, "Fewer updates do not close a round at its deadline.")
    guard_reports: int = option(
        24, "Devices' reports that promote a version once there are twice as many devices; 0: no guard."
    )
    guard_wait_s: float = option(120.0, "Seconds after which a version is promoted with fewer reports.")
    max_idle_passes: int = option(100, "Passes that a device makes without a new interaction.")
    encoding: str = option(
        "int8", f"How updates are encoded: {', '.join(ENCODINGS)}; docs/protocol.md says what each costs."
    )
    lr: float = option(0.1, "Learning rate of a device's own score function.")
    item_lr: float = option(0.0, "Learning rate of the item rows; 0: lr * items * lr_eta - lr.")
    lr_eta: float = option(80.0, "See item_lr.")
    negatives: int = option(8, "Items drawn as negatives for each interaction.")
    batch_size: int = option(256, "Samples in a mini-batch.")
    decay: float = option(0.1, "L2 decay of a device's own score function.")
    taste_recency: float = option(
        2.0, "The own view: newer interactions after which an item counts 1/e of the newest; 0: all alike."
    )
    taste_strength: float = option(
        1.0, "The own view: how far the user's taste moves it; 0: the rows of the last pass are the view."
    )

    @classmethod
    def from_preset(cls, preset: Preset, taste: TasteSettings, **settings: Any) -> "AggregatorConfig":
        """Take the settings of training from a preset; those given as `settings` win."""
        return cls(
            **{
                "lr": preset.lr,
                "lr_eta": preset.lr_eta,
                "negatives": preset.negatives,
                "batch_size": preset.batch_size,
                "decay": preset.decay,
                "taste_recency": taste.recency,
                "taste_strength": taste.strength,
            }
            | {name: value for name, value in settings.items() if value is not None}
        )

    def __post_init__(self) -> None:
        checked_id(self.fleet, "the fleet name")
        if self.broker not in OWN_BROKERS:
            address = BrokerAddress.parse(self.broker)
            if self.secure and not address.secure:
                raise ParameterError(f"secure asks for TLS, and {address} is without; write mqtts://")
        if not 1 <= self.port <= 65535:
            raise ParameterError(f"port is {self.port}; it must lie between 1 and 65535")
        if not 0 <= self.metrics_port <= 65535:
            raise ParameterError(f"metrics_port is {self.metrics_port}; it must lie between 0 and 65535")
        if self.log_level not in LOG_LEVELS:
            raise ParameterError(
                f"log_level is {self.log_level!r}; it must be one of {', '.join(LOG_LEVELS)}"
            )
        if self.encoding not in ENCODINGS:
            raise ParameterError(f"encoding is {self.encoding!r}; it must be one of {', '.join(ENCODINGS)}")
        if self.store:
            _ = StoreAddress(self.store)
        if not 2 <= self.keep_versions <= 100_000:
            raise ParameterError(f"keep_versions is {self.keep_versions}; it must lie between 2 and 100000")
        if self.population < 0:
            raise ParameterError(f"population is {self.population}; it must be 0 or more")
        if not 1 <= self.max_idle_passes <= 1_000_000:
            raise ParameterError(f"max_idle_passes is {self.max_idle_passes}; it must be 1 to 1000000")
        _ = (self.admission, self.round_settings, self.make_strategy(), self.hyperparameters(1), self.taste)

    @property
    def admission(self) -> AdmissionSettings:
        """What is taken from devices."""
        return AdmissionSettings(
            updates_per_minute=self.updates_per_minute or None, most_devices=self.most_devices
        )

    @property
    def store_address(self) -> StoreAddress:
        """Where `store` is, if it is not a file of the directory."""
        return StoreAddress(self.store)

    @property
    def round_settings(self) -> RoundSettings:
        """When rounds close."""
        return RoundSettings(
            buffer=self.aggregation.buffer(self.buffer),
            deadline_s=self.deadline_s or None,
            max_staleness=self.max_staleness,
            population=self.population or None,
            check_in_s=self.check_in_s,
            updates_per_s=self.updates_per_s or None,
            least_updates=min(self.least_updates, self.aggregation.buffer(self.buffer)),
            guard=GuardSettings(reports=self.guard_reports, wait_s=self.guard_wait_s),
        )

    def make_strategy(self) -> Strategy:
        """How rounds combine updates."""
        return self.aggregation.make()

    @property
    def aggregation(self) -> AggregationSettings:
        """How rounds combine updates, by name."""
        return AggregationSettings(**{f.name: getattr(self, f.name) for f in fields(AggregationSettings)})

    def hyperparameters(self, n_items: int) -> Hyperparameters:
        """How devices train on a catalogue of `n_items`."""
        return Hyperparameters(
            lr=self.lr,
            item_lr=self.item_lr or item_lr(self.lr, n_items, self.lr_eta),
            negatives=self.negatives,
            batch_size=self.batch_size,
            decay=self.decay,
        )

    @property
    def taste(self) -> TasteSettings:
        """What users' own views are."""
        return TasteSettings(recency=self.taste_recency, strength=self.taste_strength)

    def plan(self, n_items: int) -> Plan:
        """What the head tells devices."""
        hyperparameters = self.hyperparameters(n_items)
        return Plan(
            lr=float(hyperparameters.lr),
            item_lr=float(hyperparameters.item_lr),
            negatives=hyperparameters.negatives,
            batch_size=hyperparameters.batch_size,
            decay=float(hyperparameters.decay),
            taste_recency=float(self.taste_recency),
            taste_strength=float(self.taste_strength),
            encoding=self.encoding,
            check_in_s=float(self.check_in_s),
            max_idle_passes=self.max_idle_passes,
            guard=self.round_settings.guard.rate(self.round_settings.buffer),
        )
