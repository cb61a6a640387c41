"""The C core's frames: byte for byte those of the gateway, read and dropped alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.gateway.frames import FrameReader, encode_frame
from tests.edge.gateway.test_frames import MESSAGES, ROOM
from tests.firmware_tools import core
from tests.firmware_tools.core import needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]


@settings(max_examples=core.examples(200))
@given(message=MESSAGES)
def test_frame_is_the_gateways(message: bytes) -> None:
    """Written by either end."""
    assert core.frame_of(message) == (core.OK, encode_frame(message))


@settings(max_examples=core.examples(300))
@given(
    line=st.lists(
        st.one_of(MESSAGES.map(encode_frame), st.binary(max_size=40), st.just(b"\0")), max_size=8
    ).map(b"".join),
    room=st.sampled_from([1, 20, 253, 254, ROOM]),
)
def test_line_is_read_as_the_gateway_reads_it(line: bytes, room: int) -> None:
    """Sound frames, noise and what is too long."""
    reader = FrameReader(room)
    expected = reader.feed(line)
    assert core.messages_of(line, room) == (expected, reader.dropped)


def test_frame_that_cannot_be_is_refused() -> None:
    """An empty message; a sink that is full, at each byte."""
    assert core.frame_of(b"") == (core.ARGUMENT, b"")
    whole = encode_frame(b"abc\0def")
    for room in range(len(whole)):
        status, written = core.frame_of(b"abc\0def", room)
        assert status == core.SINK
        assert whole.startswith(written)
