"""The buffer between paho and its socket, over real sockets."""

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from threading import Event

import pytest

from broker.mqttclient import BufferedSocket

Pair = tuple[BufferedSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a buffered socket that does not wait, and its other end, which does."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    theirs.settimeout(10.0)
    with closing(ours), closing(theirs):
        yield BufferedSocket(ours, lambda _: True), theirs


def test_bytes_come_in_whatever_pieces_are_asked_for(pair: Pair) -> None:
    """What was received beyond what was asked for is given next, and counts as pending until then."""
    buffered, other = pair
    other.sendall(b"abcdefgh")

    assert [buffered.recv(1), buffered.recv(3)] == [b"a", b"bcd"]
    assert buffered.pending() == 4
    assert buffered.recv(100) == b"efgh"
    assert buffered.pending() == 0
    with pytest.raises(BlockingIOError):
        buffered.recv(1)


def test_end_of_the_other_side_is_no_bytes(pair: Pair) -> None:
    """As a socket says it."""
    buffered, other = pair
    other.sendall(b"a")
    other.shutdown(socket.SHUT_WR)

    assert [buffered.recv(9), buffered.recv(9)] == [b"a", b""]


def test_packets_go_out_together_and_in_order(pair: Pair) -> None:
    """Nothing is sent before the flush, or the close; then all is."""
    buffered, other = pair

    assert [buffered.send(b"ab"), buffered.send(bytearray(b"cd"))] == [2, 2]
    buffered.flush()
    assert other.recv(100) == b"abcd"
    buffered.send(b"ef")
    buffered.close()
    assert other.recv(100) == b"ef"


def test_what_the_system_does_not_take_waits_and_has_a_bound(pair: Pair) -> None:
    """A reader that does not read stops the writer, and loses nothing."""
    buffered, other = pair
    sent = bytearray()
    with suppress(BlockingIOError):
        for number in count():
            packet = bytes([number % 251]) * 10_000
            buffered.send(packet)
            sent += packet

    found = bytearray()
    while len(found) < len(sent):
        buffered.flush()
        found += other.recv(1 << 20)
    assert found == sent


def test_failed_write_is_told_by_the_next_read(pair: Pair) -> None:
    """Paho looks for errors there; asked whether to wait, the socket says no."""
    buffered, other = pair
    other.close()
    buffered.send(b"a")

    buffered.flush()

    assert buffered.pending()
    with pytest.raises(OSError, match="ipe"):
        buffered.recv(1)


def test_nothing_is_received_while_there_is_no_room_for_it() -> None:
    """It waits in the system, and at the other side."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    with closing(ours), closing(theirs):
        room = Event()
        buffered = BufferedSocket(ours, lambda _: room.is_set())
        theirs.sendall(b"abc")

        with pytest.raises(BlockingIOError):
            buffered.recv(1)
        room.set()
        assert buffered.recv(9) == b"abc"


def test_something_is_received_now_and_then_without_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a broker would be taken for gone while a long queue is worked off."""
    monkeypatch.setattr("broker.mqttclient._LONGEST_REST_S", 0.0)
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    with closing(ours), closing(theirs):
        buffered = BufferedSocket(ours, lambda _: False)
        theirs.sendall(b"abc")

        assert buffered.recv(9) == b"abc"
