"""Messages on a serial line: there and back, and refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import SchemaError
from edge.gateway.messages import (
    MOST_BYTES,
    FromBoard,
    FromGateway,
    Idle,
    Part,
    Want,
    decode,
    decode_from_board,
    encode,
)
from tests.edge.gateway.builders import FROM_BOARD, FROM_GATEWAY, a_state


@given(message=st.one_of(FROM_BOARD, FROM_GATEWAY))
def test_message_is_read_as_it_was_written(message: FromBoard | FromGateway) -> None:
    """All kinds."""
    assert decode(encode(message)) == message


@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=80).map(lambda tail: b"\x01" + tail)))
def test_anything_else_is_refused_by_name(content: bytes) -> None:
    """Noise is no message, or one that has just these bytes."""
    try:
        message = decode(content)
    except SchemaError:
        return
    assert encode(message) == content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serial_version": 2}, "version 2 of the serial protocol"),
        ({"table_format": 2}, "out of its range"),
        ({"room": 100}, "out of its range"),
        ({"seq": 2**53 + 1}, "out of its range"),
        ({"incarnation": 0}, "incarnation"),
        ({"incarnation": 2**53 + 1}, "incarnation"),
        ({"seq": 5, "pending": 4}, "not the newest"),
        ({"device": ""}, "id of 0 bytes"),
        ({"device": "x" * 65}, "id of 65 bytes"),
        ({"device": "k\u00fcche"}, "ASCII"),
    ],
    ids=str,
)
def test_state_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    """With what is wrong."""
    with pytest.raises(SchemaError, match=words):
        decode(encode(a_state(**changes)))


@pytest.mark.parametrize("changes", [{"size": 0}, {"offset": 98}, {"data": b""}, {"size": 1 << 20}], ids=str)
def test_part_beyond_its_update_is_refused(changes: dict[str, object]) -> None:
    """Nothing is kept of it."""
    values = {
        "incarnation": 1,
        "seq": 1,
        "size": 100,
        "crc": 0,
        "offset": 90,
        "data": b"0123456789",
    } | changes
    with pytest.raises(SchemaError, match="beyond its end"):
        decode(encode(Part(**values)))  # type: ignore[arg-type]


def test_gateway_takes_messages_of_boards_only() -> None:
    """One gateway on another's line."""
    with pytest.raises(SchemaError, match="from gateways only"):
        decode_from_board(encode(Idle(time=0, online=1)))
    assert decode_from_board(encode(Want(crc=1, offset=2, size=3))) == Want(crc=1, offset=2, size=3)


def test_longest_message_of_a_board_has_room() -> None:
    """A state with the longest id, and a part as the firmware sends it."""
    part = Part(incarnation=1, seq=1, size=1000, crc=0, offset=0, data=bytes(512))
    assert len(encode(a_state(device="x" * 64))) == 133
    assert len(encode(part)) == 29 + 512 < MOST_BYTES
