"""A device's directory: made once, whole or not at all, and its settings from three places."""

import stat
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from broker.address import BrokerAddress
from broker.errors import (
    AlreadyInitialisedError,
    ConfigError,
    NotInitialisedError,
    NotWritableError,
    PFedRecError,
)
from edge.config import (
    CONFIG_NAME,
    DATABASE_NAME,
    DeviceConfig,
    initialise,
    load_config,
    needs_restart,
    open_store,
)
from edge.guards import Limits
from edge.store import DeviceStore
from tests.edge.old_database import dump
from trainer.errors import ParameterError

SETTINGS: dict[str, Any] = {"device_id": "pi-1", "fleet": "shop", "broker": "mqtt://10.0.0.2"}


def a_config(**changes: Any) -> DeviceConfig:
    """Give a configuration."""
    return DeviceConfig(**(SETTINGS | changes))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a directory that was set up."""
    initialise(tmp_path / "me", a_config())
    return tmp_path / "me"


def everything_in(directory: Path) -> dict[str, bytes]:
    """Give all files and their contents."""
    return {each.name: each.read_bytes() for each in directory.iterdir()}


def test_config_of_good_values_tells_where_the_broker_is() -> None:
    """And chooses the scorer by itself."""
    config = a_config(broker="mqtt://ann:secret@[::1]:1884")
    expected = BrokerAddress(host="::1", port=1884, username="ann", password="secret")  # noqa: S106
    assert config.address == expected
    assert config.scorer_choice == "auto"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device_id": ""}, "the device id ''"),
        ({"device_id": "a/b"}, "the device id 'a/b'"),
        ({"device_id": "x" * 65}, "the device id"),
        ({"fleet": "#"}, "the fleet name '#'"),
        ({"fleet": "ü"}, "the fleet name"),
        ({"broker": "10.0.0.2:1883"}, "no broker address"),
        ({"broker": "mqtt://"}, "no broker address"),
        ({"broker": "http://10.0.0.2"}, "no broker address"),
        ({"broker": "mqtt://h:99999"}, "no broker address"),
        ({"scorer": "TFLite"}, "scorer is 'TFLite'; it must be one of auto, tflite, numpy"),
    ],
)
def test_config_of_bad_value_is_refused(changes: dict[str, str], sentence: str) -> None:
    """With what was found and what would be right."""
    with pytest.raises(ParameterError, match=sentence):
        a_config(**changes)


def test_initialise_makes_a_directory_that_can_be_used(directory: Path) -> None:
    """Settings with comments, and an empty database with a number of its own."""
    assert load_config(directory, {}) == a_config()
    assert (directory / CONFIG_NAME).read_text().count("# ") >= 4
    with closing(open_store(directory)) as store:
        assert store.remembered().incarnation < 2**53
        assert store.fact("connection") == 0


def test_initialise_gives_every_device_another_number(tmp_path: Path) -> None:
    """So that nobody takes a new device's updates for those of the old one with this id."""
    numbers = set()
    for name in "abcde":
        initialise(tmp_path / name, a_config())
        with closing(open_store(tmp_path / name)) as store:
            numbers.add(store.remembered().incarnation)
    assert len(numbers) == 5


def test_initialise_keeps_the_password_from_others(tmp_path: Path) -> None:
    """The settings hold it; only their owner may read them."""
    initialise(tmp_path, a_config(broker="mqtt://ann:secret@10.0.0.2"))
    assert stat.S_IMODE((tmp_path / CONFIG_NAME).stat().st_mode) == 0o600


def test_initialise_twice_changes_nothing(directory: Path) -> None:
    """The sentence says how to use what is there."""
    before = everything_in(directory)
    with pytest.raises(AlreadyInitialisedError, match="edge-client start --dir"):
        initialise(directory, a_config(device_id="pi-2"))
    assert everything_in(directory) == before


def test_initialise_after_one_that_was_cut_short_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings come last: without them the directory counts as not made."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.config.write_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        initialise(tmp_path, a_config())
    monkeypatch.undo()
    for ask in (lambda: load_config(tmp_path, {}), lambda: open_store(tmp_path)):
        with pytest.raises(NotInitialisedError):
            ask()
    with closing(DeviceStore(tmp_path / DATABASE_NAME)) as left_over:
        left_over.record([("bread", 1.0)])
    (tmp_path / f"{DATABASE_NAME}-wal").write_bytes(b"left over")
    initialise(tmp_path, a_config())
    with closing(open_store(tmp_path)) as store:
        assert store.interacted().total == 0


def test_initialise_where_nothing_can_be_written_names_the_directory(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError, match="choose another directory"):
        initialise(tmp_path / "file" / "me", a_config())


def test_load_config_takes_the_environment_before_the_file_and_flags_before_both(directory: Path) -> None:
    """In this order; what is not given is as in the file."""
    environment = {"PFEDREC_FLEET": "other", "PFEDREC_BROKER": "mqtt://b", "HOME": "/"}
    assert load_config(directory, environment) == a_config(fleet="other", broker="mqtt://b")
    found = load_config(directory, environment, broker="mqtt://c", scorer=None)
    assert found == a_config(fleet="other", broker="mqtt://c")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"device_id = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"", "the device id ''"),
        (b'device_id = "a"\nfleet = "b"\nbroker = "mqtt://c"\nscore = "numpy"\n', "unknown entry 'score'"),
        (b'device_id = 1\nfleet = "b"\nbroker = "mqtt://c"\n', "device_id must be text, not 1"),
        (b'device_id = "a b"\nfleet = "b"\nbroker = "mqtt://c"\n', "the device id 'a b'"),
        (b'training = "never"\n', r"training must be a table, not 'never'; write \[training\]"),
        (b'[training]\nquiet = "07:00"\n', r"\[training\]: unknown entry 'quiet'; known are quiet_hours"),
        (b'[training]\nquiet_hours = "7"\n', r"\[training\]: quiet_hours has '7'; write spans as"),
        (b'[training]\nmax_load_per_core = "4"\n', r"\[training\]: max_load_per_core must be a number"),
    ],
)
def test_load_config_of_broken_file_names_it(directory: Path, content: bytes, sentence: str) -> None:
    """And says what is wrong."""
    path = directory / CONFIG_NAME
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        load_config(directory, {})
    assert str(path) in str(refusal.value)


def test_load_config_of_section_takes_what_is_given_and_defaults_for_the_rest(directory: Path) -> None:
    """The file of an earlier release has no such table; a variable wins over the file here, too."""
    path = directory / CONFIG_NAME
    settings = path.read_text().split("# When to train")[0]
    path.write_text(settings)
    assert load_config(directory, {}).training == Limits()
    path.write_text(f'{settings}\n[training]\nquiet_hours = "22:00-06:00"\nmax_load_per_core = 2\n')
    found = load_config(directory, {"PFEDREC_TRAINING_MAX_LOAD_PER_CORE": "1.5"}).training
    assert found == Limits(quiet_hours="22:00-06:00", max_load_per_core=1.5)
    with pytest.raises(ConfigError, match="PFEDREC_TRAINING_METERED: metered is 'maybe'"):
        load_config(directory, {"PFEDREC_TRAINING_METERED": "maybe"})


def test_needs_restart_names_what_a_running_device_cannot_change() -> None:
    """When it trains, and with which scorer, it can."""
    before = a_config()
    assert needs_restart(before, a_config(scorer="numpy", training=Limits(quiet_hours="1:00-2:00"))) == []
    assert needs_restart(before, a_config(fleet="b", broker="mqtt://c")) == ["fleet", "broker"]


def test_load_config_with_bad_variable_is_refused(directory: Path) -> None:
    """As a bad entry would be."""
    with pytest.raises(ConfigError, match="the device id 'a b'"):
        load_config(directory, {"PFEDREC_DEVICE_ID": "a b"})


def test_config_survives_its_file(tmp_path: Path) -> None:
    """With every character that TOML has to escape."""
    config = a_config(broker='mqtt://a"b:c\\d@10.0.0.2')
    initialise(tmp_path, config)
    content = tomllib.loads((tmp_path / CONFIG_NAME).read_text())
    assert content == asdict(config)
    assert load_config(tmp_path, {}) == config


@pytest.mark.parametrize("ask", [lambda path: load_config(path, {}), open_store])
def test_directory_that_was_not_made_says_how_to_make_it(
    tmp_path: Path, ask: Callable[[Path], object]
) -> None:
    """With the whole command; and makes nothing."""
    with pytest.raises(NotInitialisedError, match=r"edge-client init --dir .* --device-id ID --fleet NAME"):
        ask(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_open_store_without_database_does_not_make_a_new_one(directory: Path) -> None:
    """A new one would have another number, and no interactions."""
    (directory / DATABASE_NAME).unlink()
    with pytest.raises(PFedRecError, match=DATABASE_NAME):
        open_store(directory)
    assert not (directory / DATABASE_NAME).exists()


def test_open_store_again_changes_nothing(directory: Path) -> None:
    """Looking is not writing."""
    before = dump(directory / DATABASE_NAME)
    open_store(directory).close()
    assert dump(directory / DATABASE_NAME) == before
