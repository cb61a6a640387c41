"""Frames on a serial line: messages arrive or are missed, none is changed, damage does not spread."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.gateway.frames import FrameReader, encode_frame

ROOM = 600
MESSAGES = st.one_of(
    st.binary(min_size=1, max_size=ROOM),
    # Long runs with and without zeros: where COBS begins another code byte.
    st.integers(250, 259).map(lambda size: b"\x07" * size),
    st.lists(st.sampled_from([b"\0", b"\x01", b"\xff" * 254, b"\xff" * 253]), min_size=1, max_size=2).map(
        b"".join
    ),
)


@given(messages=st.lists(MESSAGES, max_size=6), cuts=st.lists(st.integers(0, 4000), max_size=6))
def test_messages_arrive_however_the_line_cuts_them(messages: list[bytes], cuts: list[int]) -> None:
    """In pieces of any size, one by one, or all at once."""
    line = b"".join(map(encode_frame, messages))
    places = [0, *sorted(min(cut, len(line)) for cut in cuts), len(line)]
    reader = FrameReader(ROOM)
    found = [message for a, b in pairwise(places) for message in reader.feed(line[a:b])]
    assert (found, reader.dropped) == (messages, 0)
    one_by_one = FrameReader(ROOM)
    assert [message for byte in line for message in one_by_one.feed(bytes([byte]))] == messages


@given(message=MESSAGES)
def test_frame_has_zeros_at_its_ends_only(message: bytes) -> None:
    """And at most what the C header says of its size."""
    frame = encode_frame(message)
    assert frame[0] == frame[-1] == 0
    assert 0 not in frame[1:-1]
    assert len(frame) <= len(message) + 4 + (len(message) + 4) // 254 + 3


@given(
    messages=st.lists(MESSAGES, min_size=1, max_size=5),
    damage=st.lists(
        st.tuples(
            st.integers(0, 10_000), st.sampled_from(["flip", "drop", "double", "insert"]), st.integers(1, 255)
        ),
        min_size=1,
        max_size=4,
    ),
    after=MESSAGES,
)
def test_damage_changes_no_message_and_ends_with_the_frame(
    messages: list[bytes], damage: list[tuple[int, str, int]], after: bytes
) -> None:
    """What comes is what was sent, in order; the first sound frame behind the damage is read."""
    line = bytearray(b"".join(map(encode_frame, messages)))
    for place, kind, value in damage:
        at = place % len(line)
        if kind == "flip":
            line[at] ^= value
        elif kind == "drop":
            del line[at]
        else:
            line.insert(at, line[at] if kind == "double" else value)
    found = FrameReader(ROOM).feed(bytes(line) + encode_frame(after))
    assert found[-1] == after
    rest = iter(messages)
    assert all(message in rest for message in found[:-1])


@given(line=st.binary(max_size=3000), message=MESSAGES)
def test_noise_is_followed_by_a_sound_frame(line: bytes, message: bytes) -> None:
    """Whatever stood on the line before, and in bounded memory."""
    reader = FrameReader(ROOM)
    assert reader.feed(line) == []
    assert reader.feed(encode_frame(message)) == [message]


def test_too_long_message_is_dropped_and_counted() -> None:
    """The longest that there is room for is taken, the next longer one is not."""
    reader = FrameReader(300)
    assert reader.feed(encode_frame(b"\x01" * 300)) == [b"\x01" * 300]
    assert reader.feed(encode_frame(b"\x01" * 301)) == []
    assert reader.feed(encode_frame(b"\x01" * 100_000)) == []
    assert (reader.dropped, reader.feed(encode_frame(b"x"))) == (2, [b"x"])


def test_empty_message_has_no_frame() -> None:
    """Two zeros in a row are nothing."""
    with pytest.raises(ValueError, match="at least one byte"):
        encode_frame(b"")
    assert FrameReader(10).feed(bytes(100)) == []
