"""The aggregator's configuration: its defaults, its limits, and what it becomes."""

from pathlib import Path

import pytest

from broker import configfile
from broker.aggregator.config import AggregatorConfig
from broker.errors import ConfigError
from broker.presets import load_preset
from broker.protocol.encodings import ENCODINGS
from trainer.aggregation import FedAvg, FedBuff
from trainer.errors import ParameterError


def test_defaults_with_a_fleet_are_the_device_presets_on_our_own_broker() -> None:
    """Only the fleet's name has no default."""
    config = AggregatorConfig(fleet="shop")

    assert (config.broker, config.port, config.buffer, config.encoding) == ("auto", 1883, 32, "int8")
    assert config.make_strategy() == FedBuff(0.5)
    plan = config.plan(1682)
    preset = load_preset("device", "pfedrec")
    assert plan.hyperparameters == preset.hyperparameters(1682)
    assert plan.taste == preset.taste(timed=True)
    assert config == AggregatorConfig.from_preset(preset, plan.taste, fleet="shop")
    assert (plan.encoding, plan.check_in_s, plan.max_idle_passes) == ("int8", 30.0, 100)


def test_round_settings_take_zero_as_not_set() -> None:
    """0 means no deadline, and a population that is counted."""
    config = AggregatorConfig(fleet="shop", deadline_s=0.0, population=0)

    assert (config.round_settings.deadline_s, config.round_settings.population) == (None, None)


def test_round_settings_are_those_of_the_file() -> None:
    """Each figure ends where the rounds read it."""
    config = AggregatorConfig(
        fleet="shop", buffer=5, deadline_s=2.5, max_staleness=3, population=9, check_in_s=7.0
    )

    settings = config.round_settings
    assert (settings.buffer, settings.deadline_s, settings.max_staleness) == (5, 2.5, 3)
    assert (settings.population, settings.check_in_s) == (9, 7.0)


def test_pace_and_least_updates_reach_the_rounds() -> None:
    """0 is no pace; a smaller buffer, as of fedasync, is never short of the least."""
    config = AggregatorConfig(fleet="f", updates_per_s=50.0, least_updates=8)
    assert (config.round_settings.updates_per_s, config.round_settings.least_updates) == (50.0, 8)
    assert AggregatorConfig(fleet="f").round_settings.updates_per_s is None
    at_once = AggregatorConfig(fleet="f", strategy="fedasync", least_updates=8).round_settings
    assert (at_once.buffer, at_once.least_updates) == (1, 1)


def test_strategy_is_made_with_its_exponent() -> None:
    """The staleness exponent is FedBuff's; FedAvg has none."""
    assert AggregatorConfig(fleet="f", staleness_exponent=2.0).make_strategy() == FedBuff(2.0)
    assert AggregatorConfig(fleet="f", strategy="fedavg").make_strategy() == FedAvg()


def test_item_lr_that_is_set_wins_over_the_papers() -> None:
    """A milder item step is one entry."""
    assert AggregatorConfig(fleet="f", item_lr=12.5).plan(1000).item_lr == 12.5


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_can_be_asked_for(encoding: str) -> None:
    """What the aggregator reads it can put into the plan."""
    assert AggregatorConfig(fleet="f", encoding=encoding).plan(10).encoding == encoding


@pytest.mark.parametrize("broker", ["auto", "mosquitto", "embedded", "mqtt://u:p@host:1", "mqtt://[::1]"])
def test_broker_is_our_own_or_an_address(broker: str) -> None:
    """Both ways to name a broker are allowed."""
    assert AggregatorConfig(fleet="f", broker=broker).broker == broker


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"fleet": ""}, "fleet"),
        ({"fleet": "a/b"}, "fleet"),
        ({"broker": "emqx"}, "broker address"),
        ({"broker": "mqtt://"}, "broker address"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"strategy": "fedprox"}, "fedbuff, fedavg, fedasync"),
        ({"buffer": 0}, "buffer"),
        ({"deadline_s": 0.001}, "deadline"),
        ({"deadline_s": -1.0}, "deadline"),
        ({"deadline_s": float("nan")}, "deadline"),
        ({"max_staleness": -1}, "max_staleness"),
        ({"staleness_exponent": -0.5}, "exponent"),
        ({"staleness_exponent": float("nan")}, "exponent"),
        ({"population": -1}, "population"),
        ({"population": 2**63}, "between 1 and 1000000000000 clients"),
        ({"check_in_s": -1.0}, "check_in_s"),
        ({"max_idle_passes": 0}, "max_idle_passes"),
        ({"max_idle_passes": 1_000_001}, "max_idle_passes"),
        ({"encoding": "float64"}, "float32, float16, int8"),
        ({"lr": -0.1}, "lr"),
        ({"item_lr": float("nan")}, "item_lr"),
        ({"negatives": 0}, "negatives"),
        ({"batch_size": 0}, "batch_size"),
    ],
    ids=str,
)
def test_value_out_of_range_is_named(wrong: dict[str, object], named: str) -> None:
    """A configuration that cannot work never comes into being."""
    with pytest.raises(ParameterError, match=named):
        AggregatorConfig(**({"fleet": "shop"} | wrong))  # type: ignore[arg-type] # as from a file


def test_wrong_address_is_shown_without_its_password() -> None:
    """The sentence about a wrong address goes to logs; the password does not."""
    with pytest.raises(ParameterError) as caught:
        AggregatorConfig(fleet="f", broker="mqtt://me:s3cret@")

    assert "s3cret" not in str(caught.value)


def test_file_gives_the_same_configuration_back(tmp_path: Path) -> None:
    """What is written with comments is read as it was."""
    config = AggregatorConfig(fleet="shop", broker="mqtt://u:p%20w@host", deadline_s=0.25, item_lr=1e-7)
    path = tmp_path / "config.toml"
    path.write_text(configfile.to_toml(config))

    assert configfile.load(AggregatorConfig, path, {}) == config


def test_environment_and_flags_win_over_the_file(tmp_path: Path) -> None:
    """The file, then the environment, then flags."""
    path = tmp_path / "config.toml"
    path.write_text('fleet = "shop"\nport = 1\nbuffer = 2\n')

    config = configfile.load(
        AggregatorConfig, path, {"PFEDREC_PORT": "3", "PFEDREC_BUFFER": "4"}, port=5, broker=None
    )

    assert (config.port, config.buffer, config.broker) == (5, 4, "auto")


def test_file_without_a_fleet_is_refused(tmp_path: Path) -> None:
    """The one entry without a default must be there."""
    path = tmp_path / "config.toml"
    path.write_text("port = 1\n")

    with pytest.raises(ConfigError, match="fleet name"):
        configfile.load(AggregatorConfig, path, {})
