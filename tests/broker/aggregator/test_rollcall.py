"""Who else serves a fleet, found out before a word is said to its devices."""

import os
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import open_store
from broker.aggregator.rollcall import require_alone, who_serves
from broker.errors import InUseError
from broker.protocol.messages import Status, encode
from broker.protocol.topics import FleetTopics
from tests.broker.aggregator.fleet import make_directory, serving
from tests.brokers import HOST, Peer, RunningBroker
from tests.integration.processes import Mortal, command_path, wait_until

pytestmark = pytest.mark.mqtt
_numbers = count(1)


@pytest.fixture
def fleet() -> str:
    """Give a fleet that no other test has."""
    return f"roll-call-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def path(tmp_path: Path, fleet: str) -> Path:
    """Give an aggregator's directory."""
    return make_directory(tmp_path / "aggregator", AggregatorConfig(fleet=fleet))


def test_running_aggregator_answers_until_it_ends(
    shared_mosquitto: RunningBroker, fleet: str, path: Path
) -> None:
    """Nobody is there before and after."""
    address = shared_mosquitto.address
    with closing(open_store(path)) as store:
        instance = store.instance()
    assert who_serves(address, fleet) == {}
    with serving(path, address):
        wait_until(lambda: bool(who_serves(address, fleet)), "the aggregator answers")
        with pytest.raises(InUseError, match=rf"fleet {fleet} is served at .* by another aggregator \(alone"):
            require_alone(address, fleet, worker=None, instance=instance)
        with pytest.raises(InUseError, match="give one of the two another fleet name"):
            require_alone(address, fleet, worker="a", instance=instance + 1)
        require_alone(address, fleet, worker="a", instance=instance)
    assert who_serves(address, fleet) == {}


def test_running_aggregator_is_found_every_time(broker: RunningBroker, fleet: str, path: Path) -> None:
    """Also where a broker works on a subscription and on what is published behind it at the same time."""
    with serving(path, broker.address) as service:
        wait_until(lambda: service.head_published, "the aggregator serves")
        assert [list(who_serves(broker.address, fleet)) for _ in range(5)] == [["alone"]] * 5


def test_what_a_broker_keeps_of_one_that_is_gone_does_not_count(
    shared_mosquitto: RunningBroker, fleet: str
) -> None:
    """A broker that was killed with it cannot have published its last will."""
    topics = FleetTopics(fleet)
    gone = Status(online=True, session=1, incarnation=1, version=1, scorer="none", software="test")
    with Peer(shared_mosquitto.address, f"{fleet}-peer") as peer:
        peer.publish(topics.presence("alone"), encode(gone), retain=True)
        peer.publish(topics.presence("b"), b"\xff no status", retain=True)

        assert who_serves(shared_mosquitto.address, fleet) == {}


def test_where_no_broker_answers_nobody_serves(fleet: str) -> None:
    """The broker may come later: a start waits for it."""
    assert who_serves(BrokerAddress(host=HOST, port=1), fleet) == {}


@pytest.mark.process
def test_second_start_of_a_fleet_is_refused_with_a_sentence(
    shared_mosquitto: RunningBroker, fleet: str, path: Path, tmp_path: Path
) -> None:
    """Another directory, with a store of its own; the devices hear nothing of it."""
    other = make_directory(tmp_path / "other", AggregatorConfig(fleet=fleet))
    command = [
        command_path("edge-aggregator"),
        "start",
        "--broker",
        shared_mosquitto.url,
        "--dir",
        str(other),
    ]
    with serving(path, shared_mosquitto.address):
        wait_until(lambda: bool(who_serves(shared_mosquitto.address, fleet)), "the aggregator answers")
        second = Mortal("second", command, tmp_path / "log")
        second.start()
        wait_until(lambda: not second.running, "the second start ends")
        second.check_running()

    assert second.ended_alone == ["second ended with 23 by itself"]
    assert "is served at" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
