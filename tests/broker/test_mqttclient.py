"""The client's own way for messages, against a broker that says what a test has it say."""

import queue
import socket
import struct
import time
from collections.abc import Iterator
from threading import Event

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.mqttclient import Client
from tests.brokers import HOST, PATIENCE_S

Packet = tuple[int, bytes]
"""First byte, and what follows the length."""

CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 0x10, 0x32, 0x40, 0x82
DUP, RETAIN = 8, 1
KEEPALIVE_S = 1


class Link:
    """The broker's end of a connection."""

    def __init__(self, peer: socket.socket) -> None:
        peer.settimeout(PATIENCE_S)
        self._peer = peer
        self._stream = peer.makefile("rb")

    def receive(self) -> Packet:
        """Give the next packet."""
        first, size, place = self._byte(), 0, 0
        while (byte := self._byte()) & 128:
            size, place = size | (byte & 127) << place, place + 7
        return first, self._stream.read(size | byte << place)

    def _byte(self) -> int:
        return self._stream.read(1)[0]

    def send_bytes(self, content: bytes) -> None:
        """Send a part of a packet."""
        self._peer.sendall(content)

    def send(self, *packets: Packet) -> None:
        """Send packets, as one write."""
        self._peer.sendall(b"".join(bytes([first, len(content)]) + content for first, content in packets))

    def end(self) -> None:
        """Cut the connection."""
        self._peer.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self._peer.close()


class Run:
    """A client and the broker that it finds."""

    def __init__(self, listener: socket.socket, client: Client) -> None:
        self._listener = listener
        self.client = client
        self.connected = Event()
        self.arrived_before = 0
        """Messages that had come when the newest connection was made."""
        self.arrived: queue.Queue[tuple[str, bytes, int, int, bool]] = queue.Queue()
        client.on_arrival = lambda *message: self.arrived.put(message)
        client.on_connect = self._on_connect

    def _on_connect(self, *_: object) -> None:
        self.client.send_again()
        self.arrived_before = self.arrived.qsize()
        self.connected.set()

    def accept(self, *behind: Packet) -> Link:
        """Accept the client's next connection, up to its CONNACK and what is sent with it."""
        link = Link(self._listener.accept()[0])
        assert link.receive()[0] == CONNECT
        self.connected.clear()
        link.send((0x20, b"\0\0"), *behind)
        assert self.connected.wait(PATIENCE_S)
        return link


@pytest.fixture
def run() -> Iterator[Run]:
    """Give a client that connects, and comes back at once."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE_S)
        client = Client(CallbackAPIVersion.VERSION2, client_id="me", manual_ack=True, clean_session=False)
        client.reconnect_delay_set(1, 1)
        found = Run(listener, client)
        client.connect_async(HOST, listener.getsockname()[1], keepalive=KEEPALIVE_S)
        client.loop_start()
        yield found
        client.disconnect()
        client.loop_stop()


def a_publish(topic: bytes, payload: bytes, mid: int, first: int = PUBLISH) -> Packet:
    """Give a PUBLISH packet."""
    return first, struct.pack(">H", len(topic)) + topic + struct.pack(">H", mid) + payload


def test_message_goes_out_and_is_forgotten_when_it_is_confirmed(run: Run) -> None:
    """Section 3.3 of MQTT 3.1.1; the next connection sends again only what was not confirmed."""
    link = run.accept()
    run.client.send("a/b", b"one", retain=False)
    run.client.send("a/c", bytes(200), retain=False)
    assert [link.receive(), link.receive()] == [
        a_publish(b"a/b", b"one", 1),
        a_publish(b"a/c", bytes(200), 2),
    ]
    link.send((PUBACK, b"\0\1"), a_publish(b"t", b"", 9))
    run.arrived.get(timeout=PATIENCE_S)  # and so was the PUBACK
    link.end()

    again = run.accept()
    run.client.send("a/d", b"", retain=False)

    assert again.receive() == a_publish(b"a/c", bytes(200), 2, PUBLISH | DUP)
    assert again.receive() == a_publish(b"a/d", b"", 3)
    again.end()


def test_message_comes_with_all_that_it_has(run: Run) -> None:
    """In order with packets of other kinds; a topic that is not UTF-8 is its reader's to refuse."""
    link = run.accept()
    link.send(
        a_publish(b"a", b"kept", 1, PUBLISH | RETAIN),
        (0x90, b"\0\7\1"),
        (0x30, b"\0\1b" + b"loose"),
        a_publish(b"\xff", b"", 513),
    )

    assert [run.arrived.get(timeout=PATIENCE_S) for _ in range(3)] == [
        ("a", b"kept", 1, 1, True),
        ("b", b"loose", 0, 0, False),
        ("\N{REPLACEMENT CHARACTER}", b"", 513, 1, False),
    ]
    link.end()


def test_message_behind_the_answer_to_connect_comes_after_the_connection(run: Run) -> None:
    """As a broker sends what it has kept for a client: in one piece with its CONNACK."""
    link = run.accept(a_publish(b"a", b"kept", 1), a_publish(b"a", b"too", 2))

    assert run.arrived_before == 0
    assert [run.arrived.get(timeout=PATIENCE_S)[1] for _ in range(2)] == [b"kept", b"too"]
    link.end()


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\5abc", b"\0\1a\0"])
def test_message_that_is_cut_off_ends_the_connection(run: Run, content: bytes) -> None:
    """It is paho's, which takes the broker for broken; the client comes back."""
    link = run.accept()
    link.send((PUBLISH, content))
    run.accept().end()
    link.end()


def test_broker_whose_message_comes_slowly_is_not_taken_for_gone(run: Run) -> None:
    """Its answer to a ping comes behind the message; each byte shows that it is there."""
    link = run.accept()
    link.send_bytes(bytes((PUBLISH, 5 + 40)) + b"\0\1s\0\1")
    for _ in range(40):  # longer than two keepalives
        time.sleep(KEEPALIVE_S / 12)
        link.send_bytes(b"x")

    assert run.arrived.get(timeout=PATIENCE_S) == ("s", b"x" * 40, 1, 1, False)
    link.end()


def test_what_is_gathered_goes_out_at_the_end_in_order(run: Run) -> None:
    """And what was asked for before goes before."""
    link = run.accept()
    run.client.subscribe("x", 1)
    with run.client.gathered():
        run.client.acknowledge(700, run.client.socket())
        run.client.send("r", b"1", retain=False)
    run.client.send("r", b"2", retain=False)

    assert [link.receive()[0] for _ in range(4)] == [SUBSCRIBE, PUBACK, PUBLISH, PUBLISH]
    link.end()


def test_acknowledgement_does_not_get_into_the_next_connection(run: Run) -> None:
    """Its number may be another message's there; what was published does."""
    link = run.accept()
    with run.client.gathered():
        run.client.acknowledge(700, run.client.socket())
        run.client.send("r", b"1", retain=False)
        link.end()
        again = run.accept()

    assert again.receive() == a_publish(b"r", b"1", 1, PUBLISH | DUP)
    run.client.send("r", b"2", retain=False)
    assert again.receive() == a_publish(b"r", b"2", 2)
    again.end()


def test_acknowledgement_of_an_earlier_connection_is_left_out(run: Run) -> None:
    """And does not take with it what was gathered for the one that there is."""
    link = run.accept()
    before = run.client.socket()
    link.end()
    again = run.accept()
    with run.client.gathered():
        run.client.send("r", b"1", retain=False)
        run.client.acknowledge(700, before)
        run.client.send("r", b"2", retain=False)

    assert [again.receive() for _ in range(2)] == [a_publish(b"r", b"1", 1), a_publish(b"r", b"2", 2)]
    again.end()


def test_number_under_way_is_not_used_for_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers begin anew after 65,535."""
    link = run.accept()
    run.client.send("r", b"1", retain=False)
    monkeypatch.setattr(run.client, "_last_mid", 65_534)
    for number in (2, 3):
        run.client.send("r", b"%d" % number, retain=False)

    assert [link.receive()[1][3:5] for _ in range(3)] == [b"\0\1", b"\xff\xff", b"\0\2"]
    link.end()


@pytest.mark.parametrize(("limit", "most"), [("_MOST_UNDER_WAY", 2), ("_MOST_UNDER_WAY_BYTES", 20)])
def test_only_the_newest_messages_are_sent_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """All are sent once; none that is to be retained is sent again, as its owner publishes that anew."""
    monkeypatch.setattr(f"broker.mqttclient.{limit}", most)
    link = run.accept()
    for payload in (b"1", b"2", b"kept", b"3"):
        run.client.send("r", payload, retain=payload == b"kept")
    assert [link.receive() for _ in range(4)] == [
        a_publish(b"r", b"1", 1),
        a_publish(b"r", b"2", 2),
        a_publish(b"r", b"kept", 3, PUBLISH | RETAIN),
        a_publish(b"r", b"3", 4),
    ]
    link.end()

    again = run.accept()
    run.client.send("r", b"4", retain=False)

    assert [again.receive()[1][-1:] for _ in range(3)] == [b"2", b"3", b"4"]
    again.end()
