"""What stands between paho and its socket, over real sockets."""

import select
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from threading import Event
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqttsocket import BufferedSocket

Pair = tuple[BufferedSocket, socket.socket]

CONNACK = bytes([0x20, 2, 0, 0])
PINGRESP = bytes([0xD0, 0])


def a_packet(first: int, size: int) -> bytes:
    """Give a packet with so many bytes after its length."""
    length, left = bytearray(), size
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([first, *length, left]) + bytes(place % 251 for place in range(size))


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
    other.sendall(CONNACK + PINGRESP)

    assert [buffered.recv(1), buffered.recv(2)] == [CONNACK[:1], CONNACK[1:3]]
    assert buffered.pending()
    assert [buffered.recv(100), buffered.recv(100)] == [CONNACK[3:], PINGRESP]
    assert not buffered.pending()
    with pytest.raises(BlockingIOError):
        buffered.recv(1)


def test_end_of_the_other_side_is_no_bytes(pair: Pair) -> None:
    """As a socket says it; the part of a packet that had come is of no use."""
    buffered, other = pair
    other.sendall(CONNACK + PINGRESP[:1])
    other.shutdown(socket.SHUT_WR)

    assert [buffered.recv(9), buffered.recv(9)] == [CONNACK, b""]


@given(
    packets=st.lists(
        st.tuples(st.integers(1, 255), st.sampled_from([0, 1, 2, 127, 128, 1_000, 4_093, 4_094, 9_000])),
        max_size=6,
    ),
    pieces=st.lists(st.sampled_from([1, 2, 100, 1_000, 4_096]), min_size=1, max_size=9),
    asked=st.sampled_from([1, 7, 5_000]),
)
@settings(deadline=None)
def test_whole_packets_are_taken_and_the_rest_passes_in_order(
    packets: list[tuple[int, int]], pieces: list[int], asked: int
) -> None:
    """Wherever the network cuts them; but for those that are larger than the buffer, which pass."""
    whole = [a_packet(first, size) for first, size in packets]
    taken: list[tuple[int, bytes]] = []

    def take(first: int, content: memoryview) -> bool:
        if first % 2:
            taken.append((first, bytes(content)))
        return bool(first % 2)

    stream, passed = b"".join(whole), bytearray()
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    with (
        closing(ours),
        closing(theirs),
        patch("broker.mqttsocket._READ_BYTES", 4_096),
        patch("broker.mqttsocket._LEAST_ROOM_BYTES", 1_000),
    ):
        buffered = BufferedSocket(ours, lambda _: True, take)
        at = turn = 0
        while at < len(stream):
            at += theirs.send(stream[at : at + pieces[turn % len(pieces)]])
            turn += 1
            while buffered.pending() or select.select([ours], [], [], 0.0)[0]:
                with suppress(BlockingIOError):
                    passed += buffered.recv(asked)

    is_taken = [
        first % 2 == 1 and len(each) <= 4_096 for (first, _), each in zip(packets, whole, strict=True)
    ]
    assert passed == b"".join(each for each, gone in zip(whole, is_taken, strict=True) if not gone)
    wanted = [
        (first, each[-size:] if size else b"")
        for (first, size), each, gone in zip(packets, whole, is_taken, strict=True)
        if gone
    ]
    assert taken == wanted


def test_what_is_no_mqtt_passes(pair: Pair) -> None:
    """A length of five bytes: paho ends the connection about it."""
    buffered, other = pair
    other.sendall(b"\x30\xff\xff\xff\xff\x01and more")

    assert buffered.recv(100) == b"\x30\xff\xff\xff\xff\x01and more"


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
        theirs.sendall(CONNACK)

        with pytest.raises(BlockingIOError):
            buffered.recv(1)
        room.set()
        assert buffered.recv(9) == CONNACK


def test_something_is_received_now_and_then_without_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a broker would be taken for gone while a long queue is worked off."""
    monkeypatch.setattr("broker.mqttsocket._LONGEST_REST_S", 0.0)
    ours, theirs = socket.socketpair()
    ours.settimeout(0.0)
    with closing(ours), closing(theirs):
        buffered = BufferedSocket(ours, lambda _: False)
        theirs.sendall(CONNACK)

        assert buffered.recv(9) == CONNACK
