"""The MQTT connection against real brokers: nothing is lost in silence, and it comes back by itself."""

import logging
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import paho.mqtt.client as paho
import pytest

from broker.address import BrokerAddress
from broker.connection import (
    SERVERS_LONGEST_WAIT_S,
    Connected,
    Connection,
    EventQueue,
    LinkEvent,
    Lost,
    Received,
    Refused,
    jittered_waits,
)
from broker.embedded import free_port, mosquitto_path
from broker.errors import SchemaError
from broker.protocol.topics import Filter, Topic
from broker.protocol.wire import MAX_MESSAGE_BYTES
from tests.brokers import HOST, PATIENCE_S, Peer, RunningBroker, ScriptedBroker, require, wait_for


class Client:
    """A connection with the queue that it fills."""

    def __init__(self, address: BrokerAddress, client_id: str) -> None:
        self.events: queue.Queue[LinkEvent] = queue.Queue()
        self.connection = Connection(address, client_id, self.events)
        self._client_id = client_id

    def __enter__(self) -> Self:
        self.connection.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.connection.stop()

    def connected(self) -> Connected:
        """Wait until the broker has accepted the connection."""
        return wait_for(self.events, Connected)

    def subscribed(self, *filters: str) -> Self:
        """Subscribe, and wait until the broker delivers."""
        echo = f"{self._client_id}/echo"
        self.connection.subscribe([*map(Filter, filters), Filter(echo)])
        self.connection.publish(Topic(echo), b"")
        self.connection.acknowledge(self.received(echo))
        return self

    def received(self, topic: str) -> Received:
        """Give the next message on a topic."""
        while True:
            message = wait_for(self.events, Received)
            if message.topic == topic:
                return message


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Give a root for topics and client ids that no other test has."""
    return f"{request.node.name.translate(str.maketrans('[]/+#', '-----'))}"


# --- messages ----------------------------------------------------------------------------------------


def test_published_message_reaches_others(broker: RunningBroker, name: str) -> None:
    """What is published arrives as it was."""
    with Peer(broker.address, f"{name}-p", f"{name}/#") as peer, Client(broker.address, name) as client:
        client.connected()

        client.connection.publish(Topic(f"{name}/t"), b"\x00payload\xff")

        assert peer.receive(f"{name}/t").payload == b"\x00payload\xff"


def test_message_of_others_is_an_event(broker: RunningBroker, name: str) -> None:
    """Topic, payload and service level come through, and the connection that it came by."""
    with Client(broker.address, name) as client, Peer(broker.address, f"{name}-p") as peer:
        client.connected()
        client.subscribed(f"{name}/+")

        peer.publish(f"{name}/t", b"hello")

        message = client.received(f"{name}/t")
        assert (message.payload, message.qos, message.connection) == (b"hello", 1, 1)


def test_largest_message_passes(broker: RunningBroker, name: str) -> None:
    """The protocol's limit is below that of the brokers."""
    with Client(broker.address, name) as client:
        client.connected()
        client.subscribed(f"{name}/+")
        payload = b"\xa5" * MAX_MESSAGE_BYTES

        client.connection.publish(Topic(f"{name}/t"), payload)

        assert client.received(f"{name}/t").payload == payload


def test_message_above_the_limit_is_refused_before_it_is_sent(broker: RunningBroker, name: str) -> None:
    """A message that brokers would answer with a disconnect never leaves; the connection stays."""
    with Client(broker.address, name) as client:
        client.connected()
        client.subscribed(f"{name}/+")

        with pytest.raises(SchemaError, match=f"{name}/t; a message has at most {MAX_MESSAGE_BYTES}"):
            client.connection.publish(Topic(f"{name}/t"), bytes(MAX_MESSAGE_BYTES + 1))

        client.connection.publish(Topic(f"{name}/t"), b"small")
        assert client.received(f"{name}/t").payload == b"small"


def test_retained_message_waits_for_whoever_comes_later(broker: RunningBroker, name: str) -> None:
    """The newest retained message of a topic is there for a new subscriber."""
    with Client(broker.address, name) as client:
        client.connected()
        client.subscribed(f"{name}/+")
        for payload in (b"old", b"new"):
            client.connection.publish(Topic(f"{name}/t"), payload, retain=True)
        assert client.received(f"{name}/t").payload == b"old"
        assert client.received(f"{name}/t").payload == b"new"

    with Peer(broker.address, f"{name}-p", f"{name}/#") as peer:
        message = peer.receive(f"{name}/t")
        assert (message.payload, message.retain) == (b"new", True)


def test_message_after_unsubscribing_does_not_come(broker: RunningBroker, name: str) -> None:
    """Only what is still subscribed arrives."""
    with Client(broker.address, name) as client:
        client.connected()
        client.subscribed(f"{name}/a", f"{name}/b")

        client.connection.unsubscribe([Filter(f"{name}/a")])
        for topic in ("a", "b"):
            client.connection.publish(Topic(f"{name}/{topic}"), b"")

        topics = [wait_for(client.events, Received).topic]
        while topics[-1] != f"{name}/b":
            topics.append(wait_for(client.events, Received).topic)
        assert f"{name}/a" not in topics


def test_publish_without_a_connection_is_dropped(name: str) -> None:
    """Whoever publishes learns of the next connection and sends again what matters."""
    client = Client(BrokerAddress(host=HOST, port=free_port()), name)

    client.connection.publish(Topic("t"), b"x")

    assert not client.connection.connected


# --- acknowledgements --------------------------------------------------------------------------------


@pytest.mark.mqtt
def test_unacknowledged_message_comes_again_and_an_acknowledged_one_does_not(
    mosquitto: RunningBroker, name: str
) -> None:
    """What its owner did not take care of is delivered to the next connection of the same client."""
    with Peer(mosquitto.address, f"{name}-p") as peer:
        with Client(mosquitto.address, name) as client:
            client.connected()
            client.subscribed(f"{name}/+")
            for payload in (b"1", b"2", b"3"):
                peer.publish(f"{name}/t", payload)
            messages = [client.received(f"{name}/t") for _ in range(3)]
            client.connection.acknowledge(messages[1])

        with Client(mosquitto.address, name) as client:
            peer.publish(f"{name}/t", b"4")
            again = [client.received(f"{name}/t").payload for _ in range(3)]

    assert again == [b"1", b"3", b"4"]


@pytest.mark.mqtt
def test_message_sent_while_away_comes_later(mosquitto: RunningBroker, name: str) -> None:
    """The broker keeps a queue for a client that it knows."""
    with Client(mosquitto.address, name) as client:
        client.connected()
        client.subscribed(f"{name}/+")
    with Peer(mosquitto.address, f"{name}-p") as peer:
        peer.publish(f"{name}/t", b"meanwhile")

    with Client(mosquitto.address, name) as client:
        assert client.received(f"{name}/t").payload == b"meanwhile"


@pytest.mark.mqtt
def test_acknowledging_a_message_of_an_earlier_connection_does_nothing(
    mosquitto: RunningBroker, name: str
) -> None:
    """Its number may be that of another message by now, which must not be lost."""
    with Client(mosquitto.address, name) as client:
        client.connected()
        client.connection.subscribe([Filter(f"{name}/+")])
        client.connection.publish(Topic(f"{name}/t"), b"old")
        old = client.received(f"{name}/t")
        mosquitto.kill()
        mosquitto.start()
        client.connected()
        client.connection.subscribe([Filter(f"{name}/+")])
        client.connection.publish(Topic(f"{name}/t"), b"new")
        new = client.received(f"{name}/t")
        while new.payload == b"old":  # the publisher never learnt that it had arrived
            client.connection.acknowledge(new)
            new = client.received(f"{name}/t")

        client.connection.acknowledge(replace(new, connection=old.connection))

    with Client(mosquitto.address, name) as client:
        assert client.received(f"{name}/t").payload == b"new"


# --- connections that end ----------------------------------------------------------------------------


def test_connection_comes_back_after_the_broker_was_killed(mortal_broker: RunningBroker, name: str) -> None:
    """Its owner learns that it was lost and that it is back, and messages flow again."""
    numbers: list[int] = []

    def last_will(number: int) -> tuple[Topic, bytes]:
        numbers.append(number)
        return Topic(f"{name}/will"), b""

    events: queue.Queue[LinkEvent] = queue.Queue()
    connection = Connection(mortal_broker.address, name, events, last_will=last_will)
    connection.start()
    try:
        assert wait_for(events, Connected) == Connected(1)
        mortal_broker.kill()
        assert str(mortal_broker.address) in wait_for(events, Lost).reason
        was_connected = connection.connected
        mortal_broker.start()

        number = wait_for(events, Connected).number

        assert (was_connected, connection.connected) == (False, True)
        assert numbers == list(range(1, number + 1))
        connection.subscribe([Filter(f"{name}/t")])
        connection.publish(Topic(f"{name}/t"), b"again")
        assert wait_for(events, Received).payload == b"again"
    finally:
        connection.stop()


def test_unreachable_broker_is_tried_again_and_again(name: str) -> None:
    """Each attempt that fails is an event; nothing is raised."""
    address = BrokerAddress(host=HOST, port=free_port())

    with Client(address, name) as client:
        lost = [wait_for(client.events, Lost) for _ in range(3)]

    assert lost == [Lost(f"no broker answers at {address}")] * 3


WILL = """
import queue, sys
from broker.address import BrokerAddress
from broker.connection import Connected, Connection
address, topic = BrokerAddress.parse(sys.argv[1]), sys.argv[2]
events = queue.Queue()
connection = Connection(address, topic + "-victim", events, last_will=lambda n: (topic, b"died %d" % n))
connection.start()
assert events.get() == Connected(1)
# amqtt publishes the will of whoever leaves before it has served them once.
connection.subscribe([topic + "/echo"])
connection.publish(topic + "/echo", b"")
while getattr(events.get(), "topic", "") != topic + "/echo":
    pass
print("connected", flush=True)
sys.stdin.read()
connection.stop()
"""


@contextmanager
def a_client_process(broker: RunningBroker, topic: str) -> Iterator[subprocess.Popen[str]]:
    """Run a connection with a last will on `topic` in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", WILL, broker.url, topic],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.process
def test_last_will_is_published_when_the_process_is_killed(broker: RunningBroker, name: str) -> None:
    """Others learn at once, and whoever comes later too, that a client died."""
    with (
        Peer(broker.address, f"{name}-p", f"{name}/#") as peer,
        a_client_process(broker, f"{name}/will") as process,
    ):
        process.send_signal(signal.SIGKILL)

        assert peer.receive(f"{name}/will").payload == b"died 1"
    with Peer(broker.address, f"{name}-later", f"{name}/#") as later:
        assert later.receive(f"{name}/will").retain


@pytest.mark.process
def test_last_will_is_not_published_after_a_stop(broker: RunningBroker, name: str) -> None:
    """Leaving is not dying."""
    with Peer(broker.address, f"{name}-p", f"{name}/#") as peer:
        with a_client_process(broker, f"{name}/will") as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0

        peer.publish(f"{name}/afterwards", b"")
        topics = [peer.messages.get(timeout=PATIENCE_S).topic]
        while topics[-1] != f"{name}/afterwards":
            topics.append(peer.messages.get(timeout=PATIENCE_S).topic)
        assert f"{name}/will" not in topics


def test_last_will_that_cannot_be_made_does_not_stop_the_connection(
    broker: RunningBroker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in a callback is logged; the network thread goes on."""
    events: queue.Queue[LinkEvent] = queue.Queue()

    def last_will(_number: int) -> tuple[Topic, bytes]:
        raise ZeroDivisionError

    connection = Connection(broker.address, name, events, last_will=last_will)
    connection.start()
    try:
        wait_for(events, Connected)
    finally:
        connection.stop()

    assert "an MQTT callback failed" in caplog.text


def test_network_thread_may_end_by_itself_while_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a broker cuts the connection then: paho looks at its thread, and finds none to join."""
    looks = iter([object(), object()])
    found = property(lambda _: next(looks, None), lambda _client, _thread: None)
    client = Client(BrokerAddress(host=HOST, port=free_port()), name)
    monkeypatch.setattr(paho.Client, "_thread", found, raising=False)

    client.connection.stop()

    assert next(looks, None) is None


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 2, 4, 5])
def test_refusal_that_trying_again_cannot_cure_is_an_event(code: int, name: str) -> None:
    """MQTT 3.1.1, table 3.1: version, client id, user name or password, not authorised."""
    with ScriptedBroker(code) as scripted, Client(scripted.address, name) as client:
        refused = wait_for(client.events, Refused)

        assert refused.reason
        assert not client.connection.connected


def test_broker_that_is_not_ready_yet_is_tried_again(name: str) -> None:
    """Code 3, server unavailable, passes: it counts as lost, not as refused."""
    with ScriptedBroker(3, 3, 0) as scripted, Client(scripted.address, name) as client:
        seen = [client.events.get(timeout=PATIENCE_S) for _ in range(3)]

    answer = Lost(f"{scripted.address} answers: server unavailable")
    assert seen == [answer, answer, Connected(3)]


@pytest.fixture
def closed_broker(tmp_path: Path) -> Iterator[BrokerAddress]:
    """Give a mosquitto that lets in only the user ``me`` with the password ``right``."""
    require("mosquitto")
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed; it comes with: apt-get install mosquitto")
    port = free_port()
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "me", "right"], check=True, capture_output=True)
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} {HOST}\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
    )
    process = subprocess.Popen(
        [mosquitto_path() or "", "-c", str(configuration)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            yield BrokerAddress(host=HOST, port=port)
        finally:
            process.kill()


@pytest.mark.mqtt
@pytest.mark.parametrize("credentials", [{}, {"username": "me"}, {"username": "me", "password": "wrong"}])
def test_wrong_credentials_are_refused(
    closed_broker: BrokerAddress, credentials: dict[str, str], name: str
) -> None:
    """A broker that knows its users says no; the reason does not hold the password."""
    address = replace(closed_broker, **credentials)  # type: ignore[arg-type] # texts only

    with Client(address, name) as client:
        assert wait_for(client.events, Refused) == Refused("not authorized")


@pytest.mark.mqtt
def test_right_credentials_are_accepted(closed_broker: BrokerAddress, name: str) -> None:
    """The user name and password of the address are used."""
    with Client(replace(closed_broker, username="me", password="right"), name) as client:  # noqa: S106 - of this test's broker
        assert client.connected()


# --- an owner that fails -----------------------------------------------------------------------------


class PickySink:
    """An owner's queue whose entrance fails for some messages."""

    def __init__(self, error: Exception) -> None:
        self.events: queue.Queue[LinkEvent] = queue.Queue()
        self._error = error

    def put_nowait(self, item: LinkEvent, /) -> None:
        """Take what does not say no."""
        if isinstance(item, Received) and item.payload == b"no":
            raise self._error
        self.events.put_nowait(item)


def overflows_after(broker: RunningBroker, name: str, sink: PickySink) -> int:
    """Send two messages that the sink does not take, and wait for a third; give what was counted."""
    connection = Connection(broker.address, name, sink)
    connection.start()
    try:
        wait_for(sink.events, Connected)
        connection.subscribe([Filter(f"{name}/t")])
        for payload in (b"no", b"no", b"yes"):
            connection.publish(Topic(f"{name}/t"), payload)
        while wait_for(sink.events, Received).payload != b"yes":
            pass
        return connection.overflows
    finally:
        connection.stop()


def test_exception_in_the_sink_does_not_end_the_network_thread(
    broker: RunningBroker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are lost to their owner and the mistake is logged; the next message comes."""
    assert overflows_after(broker, name, PickySink(ZeroDivisionError())) == 0
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_full_queue_drops_and_counts(
    broker: RunningBroker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An owner that does not keep up costs no memory without bound, and it can see it."""
    assert overflows_after(broker, name, PickySink(queue.Full())) == 2
    assert "the event queue is full; 2 events" in caplog.records[-1].getMessage()


# --- waiting -----------------------------------------------------------------------------------------


def test_waits_are_drawn_below_a_bound_that_doubles_up_to_a_minute() -> None:
    """Full jitter: a fleet that lost its broker does not return at once."""
    bounds: list[float] = []

    def highest(low: float, high: float) -> float:
        assert low == 0.0
        bounds.append(high)
        return high

    waits = list(islice(jittered_waits(highest), 9))

    assert waits == bounds == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_waits_of_an_aggregator_are_shorter() -> None:
    """A fleet waits for it: it is back soon after its broker is."""
    waits = jittered_waits(lambda _, high: high, SERVERS_LONGEST_WAIT_S)
    assert list(islice(waits, 6)) == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_wait_is_never_nothing() -> None:
    """A draw of zero still leaves the broker a moment."""
    assert list(islice(jittered_waits(lambda low, _: low), 3)) == [0.05] * 3


def test_full_queue_refuses_messages_but_not_what_happened_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message comes again after the next connection; that one was lost would never be told again."""
    monkeypatch.setattr("broker.connection.QUEUE_EVENTS", 1)
    events = EventQueue()
    message = Received("t", b"", 1, 1, 1)
    events.put_nowait(message)

    with pytest.raises(queue.Full):
        events.put_nowait(message)
    events.put_nowait(Lost("gone"))

    assert [events.get_nowait(), events.get_nowait()] == [message, Lost("gone")]


@pytest.mark.parametrize("limit", ["_RESTING_EVENTS", "_RESTING_BYTES"])
def test_queue_has_no_room_from_its_limit_on_until_half_is_taken(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the network is read again only when it is worth it."""
    monkeypatch.setattr(f"broker.connection.{limit}", 4)
    events = EventQueue()
    for number in range(4):
        assert events.wait_for_room(0.0)
        events.put_nowait(Received("t", b"1", number, 1, 1))

    assert not events.wait_for_room(0.0)
    events.get_nowait()
    assert not events.wait_for_room(0.0)
    events.get_nowait()
    assert events.wait_for_room(0.0)


@pytest.mark.mqtt
def test_broker_keeps_what_there_is_no_room_for(
    mosquitto: RunningBroker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes events: reading stops near the limit. Once they are taken, everything comes, in order."""
    monkeypatch.setattr("broker.connection._RESTING_EVENTS", 10)
    events, topic = EventQueue(), Topic(f"{name}/flood")
    connection = Connection(mosquitto.address, name, events)
    connection.start()
    try:
        assert isinstance(events.get(timeout=PATIENCE_S), Connected)
        connection.subscribe([Filter(topic)])
        connection.publish(topic, b"it delivers")
        connection.acknowledge(wait_for(events, Received))
        with Peer(mosquitto.address, f"{name}-peer") as peer:
            for number in range(60):
                peer.publish(topic, number.to_bytes(2, "big") + bytes(50_000))
        waited = events.qsize()
        found: list[int] = []
        while len(found) < 60:
            event = events.get(timeout=PATIENCE_S)
            assert isinstance(event, Received)
            found.append(int.from_bytes(event.payload[:2], "big"))
            connection.acknowledge(event)
    finally:
        connection.stop()

    assert waited < 30
    assert found == list(range(60))


def test_queue_takes_so_many_bytes_of_what_the_broker_does_not_hold_back() -> None:
    """Of QoS 0 any number may be under way; of QoS 1 the broker sends the next after an acknowledgement."""
    events = EventQueue(loose_bytes=10)
    loose, held = Received("t", b"12345", 1, 0, 1), Received("t", b"12345", 1, 1, 1)
    events.put_nowait(loose)
    events.put_nowait(held)
    with pytest.raises(queue.Full):
        events.put_nowait(loose)
    events.put_nowait(held)
    assert [events.get_nowait() for _ in range(3)] == [loose, held, held]
    events.put_nowait(loose)


def test_queue_gives_what_is_there_in_order_and_has_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many as are wanted; nothing is waited for."""
    monkeypatch.setattr("broker.connection._RESTING_EVENTS", 4)
    events = EventQueue()
    for number in range(4):
        events.put_nowait(Connected(number))
    assert not events.wait_for_room(0.0)

    assert events.take_now(3) == [Connected(0), Connected(1), Connected(2)]

    assert events.wait_for_room(0.0)
    assert events.take_now(3) == [Connected(3)]
    assert events.take_now(3) == []
