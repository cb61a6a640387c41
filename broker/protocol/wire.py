"""CBOR (RFC 8949) with typed arrays (RFC 8746), read as if every byte came from an enemy.

The reader knows what the protocol uses and nothing else: integers, text, bytes, arrays, maps, float32,
float64, true, false, null, and four typed arrays; no indefinite length, no other tag, a bounded depth and
number of items, and no length beyond the payload's end. Each is checked before anything is built of it, so
that what is built is never larger than a small multiple of the payload. A map that repeats a key is refused
too: two readers could understand it differently.

An aggregator reads each update with it: to walk through a message first and have a general decoder read it
again takes half as long again.
"""

import struct
from typing import Any, Final, TypeGuard

import cbor2
import numpy as np
from numpy.typing import NDArray

from broker.errors import MalformedError

MAX_MESSAGE_BYTES: Final = 128 * 1024
"""Largest message: a chunk of 120 KB with its envelope. The usual brokers accept it by default."""
MAX_DEPTH: Final = 4
MAX_ITEMS: Final = 512
"""Data items in one message; the largest, a head, has about a hundred."""

TypedArray = NDArray[np.uint32] | NDArray[np.int8] | NDArray[np.float16] | NDArray[np.float32]

_DTYPE_OF_TAG: Final[dict[int, np.dtype[Any]]] = {
    70: np.dtype("<u4"),  # uint32, little endian
    72: np.dtype("i1"),  # sint8
    84: np.dtype("<f2"),  # binary16, little endian
    85: np.dtype("<f4"),  # binary32, little endian
}
_TAG_OF_DTYPE: Final = {dtype: tag for tag, dtype in _DTYPE_OF_TAG.items()}
_SHORT_TEXT: Final = 0x60
_SIMPLE: Final = {20: False, 21: True, 22: None}
_REAL: Final = {26: struct.Struct(">f"), 27: struct.Struct(">d")}
_SIZE_OF_ADDITIONAL: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def dumps(value: object) -> bytes:
    """Encode maps, arrays, scalars and typed arrays; the shortest form of every length, keys as given."""
    return cbor2.dumps(value, default=_typed_array)


def _typed_array(encoder: cbor2.CBOREncoder, value: object) -> None:
    if not is_typed_array(value):
        raise TypeError(f"cannot encode {type(value).__name__} {getattr(value, 'dtype', '')}".rstrip())
    little_endian = value.dtype.newbyteorder("<")
    tag = _TAG_OF_DTYPE[little_endian]
    encoder.encode(cbor2.CBORTag(tag, value.astype(little_endian, copy=False).tobytes()))


def is_typed_array(value: object) -> TypeGuard[TypedArray]:
    """Tell whether `value` is a one-dimensional array of a dtype that a message can carry."""
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        return False
    return value.dtype in _TAG_OF_DTYPE or value.dtype.newbyteorder("<") in _TAG_OF_DTYPE


def loads(payload: bytes, max_bytes: int = MAX_MESSAGE_BYTES, max_items: int = MAX_ITEMS) -> object:
    """Decode one message.

    Parameters
    ----------
    max_bytes : int
        The largest payload to look at; larger than the default only for a message put together from
        chunks.
    max_items : int
        Data items at most; more than the default only for what is not a message.

    Returns
    -------
    object
        dict, list, int, float, str, bytes, bool, None, or a read-only one-dimensional array.

    Raises
    ------
    MalformedError
        When the payload is not exactly one item of the allowed subset.
    """
    if len(payload) > max_bytes:
        raise MalformedError(f"{len(payload)} bytes; at most {max_bytes} are allowed here")
    value, at, _ = _item(payload, 0, MAX_DEPTH, max_items - 1)
    if at != len(payload):
        raise MalformedError(f"{len(payload) - at} bytes follow the message")
    return value


def _item(payload: bytes, at: int, depth: int, room: int) -> tuple[Any, int, int]:
    """Read the item at `at`.

    Parameters
    ----------
    depth : int
        How many containers may still be opened.
    room : int
        Items that containers may still announce.

    Returns
    -------
    value, at, room
        `at` is where the next item begins.
    """
    if at >= len(payload):
        raise MalformedError("the message ends too early")
    first = payload[at]
    at += 1
    if first < 24:
        return first, at, room
    major, argument = first >> 5, first & 31
    if major == 7:
        value, at = _simple_or_real(payload, at, argument)
        return value, at, room
    if argument >= 24:
        argument, at = _long_argument(payload, at, argument)
    if major <= 1:
        return (-1 - argument if major else argument), at, room
    if major == 6:
        array, at = _array_of_tag(payload, at, argument)
        return array, at, room
    if major <= 3:
        after = at + argument
        content = _bytes(payload, at, after)
        return (content if major == 2 else _text(content)), after, room
    if depth == 0:
        raise MalformedError(f"nested deeper than {MAX_DEPTH}")
    # All that a container announces is counted before the first of it is built.
    room -= argument * (major - 3)
    if room < 0:
        raise MalformedError(f"{-room} data items too many; {MAX_ITEMS} are allowed in a message")
    return (_array if major == 4 else _map)(payload, at, argument, depth - 1, room)


def _array(payload: bytes, at: int, count: int, depth: int, room: int) -> tuple[list[Any], int, int]:
    values = []
    for _ in range(count):
        value, at, room = _item(payload, at, depth, room)
        values.append(value)
    return values, at, room


def _map(payload: bytes, at: int, count: int, depth: int, room: int) -> tuple[dict[Any, Any], int, int]:
    pairs: dict[Any, Any] = {}
    for _ in range(count):
        size = payload[at] - _SHORT_TEXT if at < len(payload) else -1
        if 0 <= size < 24:  # as nearly all keys are: without a call for each of their parts
            after = at + 1 + size
            key = _text(_bytes(payload, at + 1, after))
            at = after
        else:
            key, at, room = _item(payload, at, depth, room)
            if isinstance(key, list | dict | np.ndarray):
                raise MalformedError("a map with a container as a key")
        if key in pairs:
            raise MalformedError("a map with a repeated key")
        pairs[key], at, room = _item(payload, at, depth, room)
    return pairs, at, room


def _simple_or_real(payload: bytes, at: int, code: int) -> tuple[bool | float | None, int]:
    if code in _SIMPLE:
        return _SIMPLE[code], at
    layout = _REAL.get(code)
    if layout is None:
        raise MalformedError(f"the simple value or float with the code {code} is not used here")
    (value,) = layout.unpack(_bytes(payload, at, at + layout.size))
    return value, at + layout.size


def _long_argument(payload: bytes, at: int, code: int) -> tuple[int, int]:
    size = _SIZE_OF_ADDITIONAL.get(code)
    if size is None:
        raise MalformedError("an indefinite length or a reserved code")
    return int.from_bytes(_bytes(payload, at, at + size), "big"), at + size


def _bytes(payload: bytes, at: int, after: int) -> bytes:
    if after > len(payload):
        raise MalformedError(f"an item runs {after - len(payload)} bytes past the end")
    return payload[at:after]


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"a text is not UTF-8: {error.reason}") from error


def _array_of_tag(payload: bytes, at: int, tag: int) -> tuple[TypedArray, int]:
    dtype = _DTYPE_OF_TAG.get(tag)
    if dtype is None:
        raise MalformedError(f"the tag {tag} is not used here")
    if at >= len(payload) or payload[at] >> 5 != 2:
        raise MalformedError(f"the tag {tag} needs a byte string")
    length, at = payload[at] & 31, at + 1
    if length >= 24:
        length, at = _long_argument(payload, at, length)
    if length % dtype.itemsize:
        raise MalformedError(f"{length} bytes are no array of {dtype.itemsize}-byte values")
    content = _bytes(payload, at, at + length)
    array: TypedArray = np.frombuffer(content, dtype=dtype)
    return array, at + length
