"""The aggregator's configuration: ``config.toml`` in its directory."""

from dataclasses import dataclass
from typing import Literal

from broker.address import BrokerAddress
from broker.aggregator.core import RoundSettings
from broker.configfile import option
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Plan
from broker.protocol.topics import checked_id
from trainer.aggregation import FedAvg, FedBuff, Strategy
from trainer.errors import ParameterError
from trainer.params import Hyperparameters, paper_hyperparameters

OWN_BROKERS: tuple[Literal["auto", "mosquitto", "embedded"], ...] = ("auto", "mosquitto", "embedded")


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
        "auto (mosquitto if installed, else the embedded amqtt), mosquitto, embedded, or mqtt://HOST:PORT.",
    )
    listen: str = option(
        "127.0.0.1", "Address that our own broker listens on; 0.0.0.0 lets devices in from other machines."
    )
    port: int = option(1883, "TCP port of our own broker.")
    strategy: str = option(
        "fedbuff", "fedbuff (weights updates by staleness) or fedavg (the paper's plain average)."
    )
    buffer: int = option(32, "Accepted updates that close a round.")
    deadline_s: float = option(30.0, "Seconds after its first update that close a round too; 0: never.")
    max_staleness: int = option(10, "Versions that an update may be behind; older ones do not count.")
    staleness_exponent: float = option(0.5, "a in the staleness weight (1 + staleness)^-a.")
    population: int = option(0, "Devices in the fleet; 0 counts those seen so far.")
    check_in_s: float = option(30.0, "Seconds between a device's looks at the newest version.")
    max_idle_passes: int = option(100, "Passes that a device makes without a new interaction.")
    encoding: str = option("int8", "How updates are encoded: float32 (exact) or int8 (a quarter the size).")
    lr: float = option(0.1, "Learning rate of a device's own score function.")
    item_lr: float = option(0.0, "Learning rate of the item rows; 0: lr * items * 80 - lr, as in the paper.")
    negatives: int = option(4, "Items drawn as negatives for each interaction.")
    batch_size: int = option(256, "Samples in a mini-batch.")

    def __post_init__(self) -> None:
        checked_id(self.fleet, "the fleet name")
        if self.broker not in OWN_BROKERS:
            _ = BrokerAddress.parse(self.broker)
        if not 1 <= self.port <= 65535:
            raise ParameterError(f"port is {self.port}; it must lie between 1 and 65535")
        if self.strategy not in ("fedbuff", "fedavg"):
            raise ParameterError(f"strategy is {self.strategy!r}; it must be fedbuff or fedavg")
        if self.encoding not in ENCODINGS:
            raise ParameterError(f"encoding is {self.encoding!r}; it must be one of {', '.join(ENCODINGS)}")
        if self.population < 0:
            raise ParameterError(f"population is {self.population}; it must be 0 or more")
        if not 1 <= self.max_idle_passes <= 1_000_000:
            raise ParameterError(f"max_idle_passes is {self.max_idle_passes}; it must be 1 to 1000000")
        _ = (self.round_settings, self.make_strategy(), self.hyperparameters(1))

    @property
    def round_settings(self) -> RoundSettings:
        """When rounds close."""
        return RoundSettings(
            buffer=self.buffer,
            deadline_s=self.deadline_s or None,
            max_staleness=self.max_staleness,
            population=self.population or None,
            check_in_s=self.check_in_s,
        )

    def make_strategy(self) -> Strategy:
        """How rounds combine updates."""
        return FedAvg() if self.strategy == "fedavg" else FedBuff(self.staleness_exponent)

    def hyperparameters(self, n_items: int) -> Hyperparameters:
        """How devices train on a catalogue of `n_items`."""
        return Hyperparameters(
            lr=self.lr,
            item_lr=self.item_lr or paper_hyperparameters(n_items, lr=self.lr).item_lr,
            negatives=self.negatives,
            batch_size=self.batch_size,
        )

    def plan(self, n_items: int) -> Plan:
        """What the head tells devices."""
        hyperparameters = self.hyperparameters(n_items)
        return Plan(
            lr=float(hyperparameters.lr),
            item_lr=float(hyperparameters.item_lr),
            negatives=hyperparameters.negatives,
            batch_size=hyperparameters.batch_size,
            encoding=self.encoding,
            check_in_s=float(self.check_in_s),
            max_idle_passes=self.max_idle_passes,
        )
