"""The link to home automation, over a real mosquitto."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ConfigError, DiskFullError
from edge.config import load_config
from edge.homeassistant import HomeTopics
from edge.store import DeviceStore
from tests.brokers import HOST, Peer, RunningBroker, ScriptedBroker
from tests.edge.calling import NOBODY, RunningApi, a_device, stored
from tests.edge.running import looking_at, record, wait_until

pytestmark = pytest.mark.mqtt


@pytest.fixture
def home(tmp_path: Path) -> Iterator[RunningBroker]:
    """Give a broker of the house."""
    (tmp_path / "broker").mkdir()
    with RunningBroker("mosquitto", tmp_path / "broker") as running:
        yield running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device of its own."""
    return a_device(tmp_path / "me")


def topics(prefix: str = "homeassistant") -> HomeTopics:
    """Give its topics."""
    return HomeTopics(prefix=prefix, fleet="shop", device="pi-1")


def linked(directory: Path, home: RunningBroker, **settings: Any) -> RunningApi:
    """Run a device's services with the link."""
    return RunningApi(directory, home_broker=home.url, **settings)


def retained(home: RunningBroker) -> dict[str, bytes]:
    """Give what the broker keeps for all who come, but for what it tells of itself."""
    with Peer(home.address, "looker", "#") as peer:
        peer.publish("end", b"")
        found: dict[str, bytes] = {}
        while (message := peer.messages.get(timeout=30)).topic != "end":
            found[message.topic] = bytes(message.payload)
    return found


def hear(api: RunningApi, words: str) -> None:
    """Wait for a sentence."""
    wait_until(lambda: any(words in sentence for sentence in api.sentences), words)


def state(peer: Peer) -> Any:
    """Give the sensors' next values."""
    return json.loads(peer.receive(topics().state).payload)


def test_sensors_are_announced_and_follow_the_device(directory: Path, home: RunningBroker) -> None:
    """Retained, so whoever comes later has them; offline when the device has stopped."""
    with Peer(home.address, "hass", "homeassistant/#", "pfedrec-home/#") as peer:
        with linked(directory, home):
            for topic in topics().announcements(""):
                assert json.loads(peer.receive(topic).payload)["state_topic"] == topics().state
            assert state(peer)["interactions"] == 0
            assert peer.receive(topics().availability).payload == b"online"
            record(directory, "bread", "egg")
            with looking_at(directory) as store:
                store.set_facts(online=1, activity="training", trained_at=1777638600.0)
            last = state(peer)
            while last["activity"] != "training":
                last = state(peer)
        assert last == {
            "version": None,
            "interactions": 2,
            "online": True,
            "activity": "training",
            "last_training": "2026-05-01T12:30:00+00:00",
        }
        assert peer.receive(topics().availability).payload == b"offline"
    assert set(retained(home)) == set(topics().retained())


def test_commands_are_recorded(directory: Path, home: RunningBroker) -> None:
    """An id counts once; what is wrong is dropped; the sensor follows."""
    with Peer(home.address, "hass", topics().state, topics().availability) as peer, linked(directory, home):
        peer.receive(topics().availability)
        for payload in (b"bread", b'{"item": "egg", "id": "a"}', b'{"item": "egg", "id": "a"}', b"{", b""):
            peer.publish(topics().record, payload)
        peer.publish(topics().record, b'{"item": "fig", "at": "2026-05-01T12:30:00"}')
        wait_until(lambda: stored(directory) == 3, "the commands")
        with looking_at(directory) as store:
            rows = store._rows("SELECT item, at FROM interactions ORDER BY id")
        assert [item for item, _ in rows] == ["bread", "egg", "fig"]
        assert rows[2][1] == 1777638600.0
        while state(peer)["interactions"] < 3:
            pass


def test_command_that_is_retained_is_ignored(
    directory: Path, home: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """It would count with each connection; and the log does not say what it was."""
    with Peer(home.address, "hass", topics().availability) as peer:
        peer.publish(topics().record, b"secret-item", retain=True)
        with linked(directory, home):
            wait_until(lambda: "is not recorded: it is retained" in caplog.text, "the refusal")
            peer.publish(topics().record, b"\xff secret-item")
            wait_until(lambda: "an item key in UTF-8" in caplog.text, "the refusal of another")
    assert stored(directory) == 0
    assert "secret-item" not in caplog.text


def test_commands_wait_for_a_device_that_is_away(directory: Path, home: RunningBroker) -> None:
    """The broker keeps them; none is lost or counted twice over a restart."""
    with Peer(home.address, "hass", topics().availability) as peer:
        with linked(directory, home):
            while peer.receive(topics().availability).payload != b"online":
                pass
            peer.publish(topics().record, b"bread")
            wait_until(lambda: stored(directory) == 1, "the first command")
        peer.publish(topics().record, b"egg")
        assert stored(directory) == 1
        with linked(directory, home):
            wait_until(lambda: stored(directory) == 2, "the second command")
            peer.publish(topics().record, b"fig")
            wait_until(lambda: stored(directory) == 3, "the third command")


def test_nothing_that_is_published_names_an_item(directory: Path, home: RunningBroker) -> None:
    """Whatever way it came: only who commands publishes it."""
    with linked(directory, home) as api:
        body = {"interactions": [{"item": "secret-item"}]}
        assert api.call("POST", "/v1/interactions", body).status == 200
        with Peer(home.address, "hass", topics().state) as peer:
            while state(peer)["interactions"] < 1:
                pass
    assert b"secret-item" not in b"".join(retained(home).values())


def test_sensors_are_taken_away_when_switched_off(directory: Path, home: RunningBroker) -> None:
    """Once, with a sentence; and no command is taken any more."""
    with linked(directory, home) as api:
        wait_until(lambda: len(retained(home)) == len(topics().retained()), "the announcement")
    with linked(directory, home, home_enabled="false") as api:
        hear(api, "the sensors were taken away from mqtt://127.0.0.1:")
    assert retained(home) == {}
    with Peer(home.address, "hass") as peer:
        peer.publish(topics().record, b"bread")
    with linked(directory, home, home_enabled="false") as api:
        assert api.sentences == []
    with linked(directory, home) as api:
        wait_until(lambda: len(retained(home)) == len(topics().retained()), "the announcement")
    assert stored(directory) == 0


def test_sensors_move_with_their_prefix(directory: Path, home: RunningBroker) -> None:
    """What was announced by another one goes."""
    for prefix in ("homeassistant", "other/place"):
        with linked(directory, home, home_prefix=prefix):
            expected = set(topics(prefix).retained())
            wait_until(lambda expected=expected: set(retained(home)) == expected, prefix)  # type: ignore[misc]


def test_sensors_left_on_another_broker_are_told_of(directory: Path, home: RunningBroker) -> None:
    """Until they are taken away there."""
    with linked(directory, home):
        wait_until(lambda: len(retained(home)) == len(topics().retained()), "the announcement")
    with RunningApi(directory) as api:
        [sentence] = api.sentences
        assert f"still announced at {HOST}:{home.port}" in sentence
    with linked(directory, home, home_enabled="false") as api:
        hear(api, "were taken away")
    with RunningApi(directory) as api:
        assert api.sentences == []


def test_broker_that_goes_is_said_once_and_waited_for(directory: Path, home: RunningBroker) -> None:
    """Everything is announced again: it may have forgotten."""
    with linked(directory, home) as api:
        wait_until(lambda: len(retained(home)) == len(topics().retained()), "the announcement")
        home.kill()
        hear(api, "home automation: ")
        home.start()
        hear(api, "home automation's broker is back")
        wait_until(lambda: len(retained(home)) == len(topics().retained()), "the announcement")
    assert sum("trying again" in sentence for sentence in api.sentences) == 1


def test_broker_that_refuses_ends_the_link_alone(directory: Path) -> None:
    """The device goes on without it."""
    with (
        ScriptedBroker(5) as refusing,
        RunningApi(directory, home_broker=f"mqtt://ann:secret@{HOST}:{refusing.address.port}") as api,
    ):
        hear(api, "refuses the device: not authorized; check home_broker")
        assert api.call("GET", "/v1/status").status == 200
        assert "secret" not in str(api.sentences)


@pytest.mark.parametrize(
    "url",
    [NOBODY, "mqtt://localhost:1", "mqtt://LOCALHOST.:1", "mqtt://[::1]:1", "mqtt://ann:secret@127.0.0.1:1"],
)
def test_fleets_own_broker_is_refused(directory: Path, url: str) -> None:
    """However it is written: its operator would see what the user does."""
    with pytest.raises(ConfigError, match="home_broker is the fleet's own broker") as found:
        load_config(directory, {"PFEDREC_HOME_BROKER": url})
    assert "secret" not in str(found.value)
    allowed = {"PFEDREC_HOME_BROKER": url, "PFEDREC_HOME_ON_FLEET_BROKER": "true"}
    assert load_config(directory, allowed).shares_fleet_broker


def test_fleets_own_broker_is_warned_of_when_it_is_chosen(directory: Path, home: RunningBroker) -> None:
    """At each start."""
    settings: dict[str, Any] = {"broker": home.url, "home_broker": home.url, "home_on_fleet_broker": "true"}
    with RunningApi(directory, **settings) as api:
        hear(api, "its operator can read the status sensors and each item that is recorded by MQTT")


def test_link_survives_what_the_store_refuses(
    directory: Path, home: RunningBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that could not be stored is not acknowledged: the broker sends it again."""
    caplog.set_level(logging.WARNING)

    def fail(*_: object) -> None:
        raise DiskFullError("no space is left")

    with Peer(home.address, "hass", topics().availability) as peer:
        with linked(directory, home), monkeypatch.context() as patch:
            while peer.receive(topics().availability).payload != b"online":
                pass
            patch.setattr(DeviceStore, "record_once", fail)
            peer.publish(topics().record, b"bread")
            wait_until(lambda: "home automation: no space is left" in caplog.text, "the failure")
        with linked(directory, home):
            wait_until(lambda: stored(directory) == 1, "the command")
