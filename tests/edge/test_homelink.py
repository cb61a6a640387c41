"""The link to home automation, with a real broker: what it announces, records, and takes away."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ConfigError
from edge.config import load_config
from edge.homeassistant import HomeTopics
from tests.brokers import PATIENCE_S, Peer, RunningBroker
from tests.edge.calling import RunningApi, a_device, stored
from tests.edge.running import wait_until

TOPICS = HomeTopics(prefix="homeassistant", fleet="shop", device="pi-1")
SENSORS = ["version", "interactions", "online", "activity", "last_training"]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Give a device's directory."""
    return a_device(tmp_path / "me")


@contextmanager
def at_home(broker: RunningBroker, *filters: str) -> Iterator[Peer]:
    """Be home automation: hear what devices say."""
    with Peer(broker.address, "home", *filters) as peer:
        yield peer


def heard(peer: Peer, topic: str) -> Any:
    """Give the next message on a topic."""
    return peer.receive(topic)


def test_sensors_are_announced_and_told(device: Path, mosquitto: RunningBroker) -> None:
    """As Home Assistant's discovery has it: retained, each with a value that is in the state."""
    configs = {key: f"homeassistant/sensor/{TOPICS.node}/{key}/config" for key in SENSORS}
    with (
        at_home(mosquitto, *configs.values(), TOPICS.state, TOPICS.availability) as home,
        RunningApi(device, home_broker=mosquitto.url),
    ):
        ids = set()
        for key, topic in configs.items():
            config = json.loads(heard(home, topic).payload)
            assert config["state_topic"] == TOPICS.state
            assert config["availability_topic"] == TOPICS.availability
            assert key in config["value_template"]
            ids.add(config["unique_id"])
        assert len(ids) == len(SENSORS)
        state = json.loads(heard(home, TOPICS.state).payload)
        assert list(state) == SENSORS
        assert state["interactions"] == 0
        assert heard(home, TOPICS.availability).payload == b"online"
    with at_home(mosquitto, TOPICS.availability) as home:
        assert heard(home, TOPICS.availability).payload == b"offline"


def test_commands_are_recorded(device: Path, mosquitto: RunningBroker) -> None:
    """A key as it is, or JSON with a time and an identity; what is neither is not."""
    with at_home(mosquitto, TOPICS.availability) as home, RunningApi(device, home_broker=mosquitto.url):
        assert heard(home, TOPICS.availability).payload == b"online"
        home.publish(TOPICS.record, b"item-1")
        for _ in range(2):
            home.publish(TOPICS.record, json.dumps({"item": "item-2", "id": "once"}).encode())
        for wrong in (b"", b"\xff", b"{}", b'{"item": 1}', b"x" * 3000, b'{"item": "a", "more": 1}'):
            home.publish(TOPICS.record, wrong)
        home.publish(TOPICS.record, b"item-3")
        wait_until(lambda: stored(device) == 3, "three interactions")


def test_retained_command_is_not_recorded(device: Path, mosquitto: RunningBroker) -> None:
    """It would count again with each connection."""
    with at_home(mosquitto, TOPICS.availability) as home:
        home.publish(TOPICS.record, b"item-1", retain=True)
        with RunningApi(device, home_broker=mosquitto.url):
            assert heard(home, TOPICS.availability).payload == b"online"
            home.publish(TOPICS.record, b"item-2")
            wait_until(lambda: stored(device) == 1, "the command that is not retained")
        home.publish(TOPICS.record, b"", retain=True)
    assert stored(device) == 1


def test_sensors_are_taken_away(device: Path, mosquitto: RunningBroker) -> None:
    """With home_enabled = false, once; nothing retained is left on the broker."""
    with at_home(mosquitto, TOPICS.availability) as home, RunningApi(device, home_broker=mosquitto.url):
        assert heard(home, TOPICS.availability).payload == b"online"

    with RunningApi(device, home_broker=mosquitto.url, home_enabled="false") as ending:
        wait_until(lambda: any("taken away" in each for each in ending.sentences), "the sentence")

    with at_home(mosquitto, "homeassistant/#", "pfedrec-home/#", "done") as home:
        home.publish("done", b"now")
        # Retained messages come with the subscription, so before this one.
        assert home.messages.get(timeout=PATIENCE_S).topic == "done"
    with RunningApi(device, home_broker=mosquitto.url, home_enabled="false") as again:
        assert again.sentences == []


def test_fleets_own_broker_is_refused(device: Path) -> None:
    """Unless it is allowed: its operator would see what is recorded."""
    environment = {"PFEDREC_HOME_BROKER": "mqtt://localhost:1"}
    with pytest.raises(ConfigError, match="home_broker is the fleet's own broker"):
        load_config(device, environment)
    allowed = load_config(device, environment | {"PFEDREC_HOME_ON_FLEET_BROKER": "true"})
    assert allowed.shares_fleet_broker
