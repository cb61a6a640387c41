"""What brokers do with messages, tried out on real ones."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.trial import Trial
from broker.embedded import end_with_parent, free_port, mosquitto_path
from broker.findings import Finding, Level
from broker.probe import probe
from broker.protocol.topics import FleetTopics
from tests.broker.aggregator.fleet import make_directory
from tests.brokers import HOST, PATIENCE_S, Peer, RunningBroker, require
from tests.edge.running import RunningCommand

pytestmark = pytest.mark.mqtt

CHECKS = ["broker", "strangers", "topics", "sessions", "retained", "sizes", "queue"]


@contextmanager
def a_mosquitto(folder: Path, *lines: str) -> Iterator[BrokerAddress]:
    """Run a mosquitto with settings that are not ours."""
    require("mosquitto")
    port = free_port(HOST)
    settings = folder / "other.conf"
    settings.write_text("\n".join([f"listener {port} {HOST}", "user root", *lines, ""]))
    with subprocess.Popen(
        [mosquitto_path() or "", "-c", str(settings)],
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - as our own brokers
    ) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while probe(BrokerAddress(host=HOST, port=port), "looks").outcome == "closed":
                assert time.monotonic() < until, "it does not listen"
                time.sleep(0.02)
            yield BrokerAddress(host=HOST, port=port)
        finally:
            process.terminate()


def tried(address: BrokerAddress) -> dict[str, Finding]:
    """Try a broker; give the findings by check."""
    findings = Trial(address, FleetTopics("shop")).findings()
    assert [each.check for each in findings] == CHECKS
    assert all(each.remedy for each in findings if each.level in (Level.NOTE, Level.PROBLEM))
    return {each.check: each for each in findings}


def levels(found: dict[str, Finding]) -> dict[str, Level]:
    """Give those that are not ok."""
    return {check: each.level for check, each in found.items() if each.level is not Level.OK}


def test_our_own_mosquitto_does_all(mosquitto: RunningBroker) -> None:
    """And nothing is left on it."""
    assert levels(tried(mosquitto.address)) == {}
    with Peer(mosquitto.address, "looks", "pfedrec/#") as peer:
        peer.publish("pfedrec/end", b"")
        assert peer.messages.get(timeout=10).topic == "pfedrec/end"


def test_amqtt_leaks_and_forgets(tmp_path: Path) -> None:
    """Neither keeps a fleet from working."""
    with RunningBroker("amqtt", tmp_path / "amqtt") as broker:
        found = levels(tried(broker.address))
    assert found == {"sessions": Level.NOTE, "retained": Level.NOTE}


def test_amqtt_that_gives_everybody_a_running_fleets_head_is_judged_by_what_was_asked_for(
    tmp_path: Path,
) -> None:
    """It sends retained messages unasked: they are no answer, to no check."""
    with RunningBroker("amqtt", tmp_path / "amqtt") as broker:
        with Peer(broker.address, "fleet", FleetTopics("shop").everything) as peer:
            peer.publish("pfedrec/1/shop/head", b"a head", retain=True)
            assert peer.messages.get(timeout=10).topic == "pfedrec/1/shop/head"
        found = levels(tried(broker.address))
    assert found == {"sessions": Level.NOTE, "retained": Level.NOTE}


def test_queue_of_a_mosquitto_as_debian_installs_it_is_too_short(tmp_path: Path) -> None:
    """A new aggregator would know a thousand devices of a greater fleet."""
    with a_mosquitto(tmp_path, "allow_anonymous true") as address:
        found = tried(address)
    assert levels(found) == {"queue": Level.PROBLEM}
    assert "max_queued_messages 0" in found["queue"].remedy


def test_start_says_what_a_broker_of_somebody_elses_lacks(tmp_path: Path) -> None:
    """Once, and goes on; whoever knows it says so."""
    directory = make_directory(tmp_path / "a", AggregatorConfig(fleet="shop"))
    with a_mosquitto(tmp_path, "allow_anonymous true") as address:
        joined = ["--dir", str(directory), "--broker", str(address)]
        with RunningCommand("edge-aggregator", "start", *joined, PFEDREC_TRY_BROKER="true") as running:
            running.hear("max_queued_messages 0")


def test_limit_on_messages_is_found(tmp_path: Path) -> None:
    """A table's chunks would not come through."""
    settings = ("allow_anonymous true", "max_queued_messages 0")
    with a_mosquitto(tmp_path, *settings, "max_packet_size 100000") as address:
        assert levels(tried(address)) == {"sizes": Level.PROBLEM}


def test_topics_that_are_not_granted_are_found(tmp_path: Path) -> None:
    """The access rules have another fleet's name."""
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite pfedrec/1/another/#\n")
    rules.chmod(0o600)
    settings = ("allow_anonymous true", "max_queued_messages 0", f"acl_file {rules}")
    with a_mosquitto(tmp_path, *settings) as address:
        found = tried(address)
    assert levels(found) == {"topics": Level.PROBLEM} | dict.fromkeys(CHECKS[3:], Level.UNCHECKED)
    assert "pfedrec/1/shop/#" in found["topics"].remedy


def test_passwords_keep_strangers_out(tmp_path: Path) -> None:
    """A wrong one keeps us out, and the rest cannot be looked at."""
    passwords = tmp_path / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-c", "-b", str(passwords), "fleet", "secret"], check=True, capture_output=True
    )
    settings = ("allow_anonymous false", "max_queued_messages 0", f"password_file {passwords}")
    with a_mosquitto(tmp_path, *settings) as address:
        known = BrokerAddress(host=HOST, port=address.port, username="fleet", password="secret")  # noqa: S106
        found = tried(known)
        assert levels(found) == {}
        assert "nobody is taken" in found["strangers"].found
        refused = tried(address)
    assert refused["broker"].level is Level.PROBLEM
    assert {each.level for check, each in refused.items() if check != "broker"} == {Level.UNCHECKED}


def test_broker_that_is_not_there_is_one_problem() -> None:
    """Told as for a device."""
    found = tried(BrokerAddress(host=HOST, port=free_port(HOST)))
    assert "nothing listens" in found["broker"].found
    assert levels(found) == {"broker": Level.PROBLEM} | dict.fromkeys(CHECKS[1:], Level.UNCHECKED)
