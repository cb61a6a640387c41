"""What a board and its gateway tell each other, as bytes: fixed fields, little endian, as in docs/serial.md.

The board asks, the gateway answers: every message of the board's has one answer, and a board that gets none
asks again. What is read here another program wrote: whatever is not exactly such a message is refused.
"""

import struct
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

from broker.errors import SchemaError
from broker.protocol.messages import MAX_SEQ
from broker.protocol.wire import MAX_MESSAGE_BYTES

SERIAL_VERSION = 1
MOST_BYTES = 1100
"""Of a message from a board."""
LEAST_ROOM = 128
"""Of a board for a message of the gateway's."""
MOST_UPDATE_BYTES = MAX_MESSAGE_BYTES
MOST_ID_BYTES = 64
VERDICT_UNKNOWN = 4
"""The update was answered; the gateway no longer knows how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Who the board is and what it holds; sent when it starts, when something changed, and every second.

    Attributes
    ----------
    serial_version : int
    table_format : int
        What the board scores from: 0 float32, 1 integers.
    room : int
        Bytes of the longest message that it takes.
    package_room : int
        Bytes of the largest package that it can hold.
    incarnation, seq : int
        As in an update; the newest number used, 0 before the first.
    pending : int
        The update that waits for its receipt: `seq`, or 0.
    instance, version, crc, size : int
        Of the package that it holds; size 0: none.
    revision : int
        Grows with each interaction, and when the user forgets some.
    known : int
        Different items of the table that the user has interacted with.
    device : str
        The device's id.
    """

    CODE: ClassVar[int] = 0x01
    FORM: ClassVar[str] = "<BBHIQQQQQIIQI"

    serial_version: int = SERIAL_VERSION
    table_format: int
    room: int
    package_room: int
    incarnation: int
    seq: int
    pending: int
    instance: int
    version: int
    crc: int
    size: int
    revision: int
    known: int
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """A piece of the package with this CRC, please."""

    CODE: ClassVar[int] = 0x02
    FORM: ClassVar[str] = "<IIH"

    crc: int
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of the update that waits; `size` and `crc` are the whole's."""

    CODE: ClassVar[int] = 0x03
    FORM: ClassVar[str] = "<QQIII"

    incarnation: int
    seq: int
    size: int
    crc: int
    offset: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """The pass that was asked for came to no update; `status` is the core's, `pfr_status`."""

    CODE: ClassVar[int] = 0x04
    FORM: ClassVar[str] = "<QB"

    seq: int
    status: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """Nothing to do. `time`: seconds since the epoch; `online`: whether the fleet's broker is there."""

    CODE: ClassVar[int] = 0x81
    FORM: ClassVar[str] = "<QB"

    time: int
    online: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Another package is here: the model, the mask of retired rows, and the head, in so many bytes each."""

    CODE: ClassVar[int] = 0x82
    FORM: ClassVar[str] = "<QQIIII"

    instance: int
    version: int
    crc: int
    model: int
    mask: int
    head: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Bytes of a package, from `offset` on."""

    CODE: ClassVar[int] = 0x83
    FORM: ClassVar[str] = "<II"

    crc: int
    offset: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribute:
    """Make a pass from this version, and the update `seq` of it."""

    CODE: ClassVar[int] = 0x84
    FORM: ClassVar[str] = "<QQQ"

    instance: int
    version: int
    seq: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Give the update that waits from `offset` on."""

    CODE: ClassVar[int] = 0x85
    FORM: ClassVar[str] = "<QQI"

    incarnation: int
    seq: int
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The fleet has answered the update: its place in `VERDICTS`, or VERDICT_UNKNOWN. It need not be kept."""

    CODE: ClassVar[int] = 0x86
    FORM: ClassVar[str] = "<QQB"

    incarnation: int
    seq: int
    verdict: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Renumber:
    """Numbers under this incarnation are used up elsewhere: draw another one."""

    CODE: ClassVar[int] = 0x87
    FORM: ClassVar[str] = "<Q"

    incarnation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The board cannot take part, for one of the reasons below."""

    CODE: ClassVar[int] = 0x88
    FORM: ClassVar[str] = "<B"
    OTHER_PROTOCOL: ClassVar[int] = 1
    UNKNOWN_DEVICE: ClassVar[int] = 2
    NOT_NOW: ClassVar[int] = 3
    TOO_LARGE: ClassVar[int] = 4

    reason: int


FromBoard: TypeAlias = State | Want | Part | Passed
FromGateway: TypeAlias = Idle | Offer | Piece | Contribute | Send | Answered | Renumber | Refused
_ALL: tuple[type[FromBoard | FromGateway], ...] = (
    *(State, Want, Part, Passed),
    *(Idle, Offer, Piece, Contribute, Send, Answered, Renumber, Refused),
)
_BY_CODE = {kind.CODE: kind for kind in _ALL}
_PIECE_HEAD = 1 + struct.calcsize(Piece.FORM)


def encode(message: FromBoard | FromGateway) -> bytes:
    """Give a message's bytes."""
    names, tail = _names(type(message))
    content = bytes([message.CODE]) + struct.pack(message.FORM, *(getattr(message, name) for name in names))
    if tail is not None:
        rest = getattr(message, tail)
        content += rest.encode() if isinstance(rest, str) else rest
    return content


def decode(content: bytes) -> FromBoard | FromGateway:
    """Read a message.

    Raises
    ------
    SchemaError
        When it is none: another kind or length, a value out of its range.
    """
    kind = _BY_CODE.get(content[0]) if content else None
    if kind is None:
        raise SchemaError("not a kind of message on a serial line")
    names, tail = _names(kind)
    size = 1 + struct.calcsize(kind.FORM)
    if len(content) < size or (tail is None and len(content) > size):
        raise SchemaError(f"a message {kind.__name__} of {len(content)} bytes; expected {size}")
    values: dict[str, object] = dict(zip(names, struct.unpack(kind.FORM, content[1:size]), strict=True))
    if tail == "device":
        values[tail] = _read_id(content[size:])
    elif tail is not None:
        values[tail] = content[size:]
    message = kind(**values)  # type: ignore[arg-type]  # as its FORM says
    _check(message)
    return message


def decode_from_board(content: bytes) -> FromBoard:
    """Read a message of a board's.

    Raises
    ------
    SchemaError
    """
    message = decode(content)
    if not isinstance(message, FromBoard):
        raise SchemaError(f"a message {type(message).__name__} comes from gateways only")
    return message


def piece_bytes(room: int) -> int:
    """Give how many bytes of a package fit a message of `room` bytes."""
    return room - _PIECE_HEAD


def _names(kind: type[FromBoard | FromGateway]) -> tuple[list[str], str | None]:
    """Give the fixed fields, and the one behind them that takes what is left."""
    names = [each.name for each in fields(kind)]
    return (names[:-1], names[-1]) if names[-1] in ("data", "device") else (names, None)


def _read_id(content: bytes) -> str:
    if not 1 <= len(content) <= MOST_ID_BYTES or not content.isascii():
        raise SchemaError(f"a device's id of {len(content)} bytes; it is 1 to {MOST_ID_BYTES} of ASCII")
    return content.decode()


def _check(message: FromBoard | FromGateway) -> None:
    if isinstance(message, State):
        if message.serial_version != SERIAL_VERSION:
            raise SchemaError(
                f"the board speaks version {message.serial_version} of the serial protocol, this gateway "
                f"{SERIAL_VERSION}"
            )
        if message.table_format > 1 or message.room < LEAST_ROOM or message.seq > MAX_SEQ:
            raise SchemaError("a state with a value out of its range")
        if not 1 <= message.incarnation <= MAX_SEQ:
            raise SchemaError("an incarnation is 1 to 2^53")
        if message.pending not in (0, message.seq):
            raise SchemaError("the update that waits is not the newest one")
    elif isinstance(message, Part):
        ends = message.offset + len(message.data)
        if not (0 < message.size <= MOST_UPDATE_BYTES and message.data and ends <= message.size):
            raise SchemaError("a part of an update beyond its end")
