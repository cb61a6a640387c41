"""The C core's end of the serial protocol: byte for byte the gateway's messages, and read alike."""

import ctypes
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import SchemaError
from edge.gateway.messages import FromBoard, FromGateway, Part, Passed, State, Want, decode, encode
from tests.edge.gateway.builders import FROM_BOARD, FROM_GATEWAY
from tests.firmware_tools import core
from tests.firmware_tools.core import needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]


def written(message: FromBoard) -> bytes:
    """Let the core write a message."""
    match message:
        case State():
            names = [name for name, *_ in core.CSerialState._fields_]
            state = core.CSerialState(*(getattr(message, name) for name in names))
            return core.serial_message("state", ctypes.byref(state), message.device.encode())
        case Want():
            numbers = (ctypes.c_uint32(message.crc), ctypes.c_uint32(message.offset))
            return core.serial_message("want", *numbers, ctypes.c_uint16(message.size))
        case Passed():
            return core.serial_message("passed", ctypes.c_uint64(message.seq), ctypes.c_int(message.status))
        case Part():
            name = (ctypes.c_uint64(message.incarnation), ctypes.c_uint64(message.seq))
            rest = map(ctypes.c_uint32, (message.size, message.crc, message.offset))
            return core.serial_message("part", *name, *rest) + message.data


@settings(max_examples=core.examples(200))
@given(message=FROM_BOARD)
def test_board_writes_what_the_gateway_reads(message: FromBoard) -> None:
    """All kinds."""
    assert written(message) == encode(message)


@settings(max_examples=core.examples(200))
@given(message=FROM_GATEWAY)
def test_board_reads_what_the_gateway_writes(message: FromGateway) -> None:
    """Field by field; what a kind does not have is 0."""
    status, found, data = core.read_serial(encode(message))
    assert status == core.OK
    assert found.kind == message.CODE
    told = {field.name: getattr(message, field.name) for field in fields(message)}
    assert data == told.pop("data", b"")
    for name, *_ in core.CSerialAnswer._fields_:
        if name not in ("kind", "data"):
            assert getattr(found, name) == told.get(name, 0)


@settings(max_examples=core.examples(300))
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.tuples(st.integers(0x80, 0x89), st.binary(max_size=40)).map(
            lambda both: bytes([both[0]]) + both[1]
        ),
    )
)
def test_board_refuses_what_the_gateway_would_not_write(content: bytes) -> None:
    """By its kind and its length."""
    try:
        is_answer = decode(content).CODE > 0x80
    except SchemaError:
        is_answer = False
    assert (core.read_serial(content)[0] == core.OK) == is_answer


def test_board_without_an_id_has_no_state() -> None:
    """None, an empty one, one that is too long."""
    state = ctypes.byref(core.CSerialState())
    for device in (None, b"", b"x" * 65):
        assert core.serial_message("state", state, device) == b""
