"""CBOR (RFC 8949) with typed arrays (RFC 8746), read as if every byte came from an enemy.

The payload is walked once before anything is built from it. The walk allows what the protocol uses and
nothing else: integers, text, bytes, arrays, maps, float32/float64, true, false, null, and four typed
arrays; no indefinite length, no other tag, a bounded depth and number of items, and no length
beyond the payload's end. What is built afterwards is therefore never larger than a small multiple of the
payload. A map that repeats a key is refused too: two readers could understand it differently.
"""

from typing import Final, TypeGuard

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

_DTYPE_OF_TAG: Final[dict[int, np.dtype[np.generic]]] = {
    70: np.dtype("<u4"),  # uint32, little endian
    72: np.dtype("i1"),  # sint8
    84: np.dtype("<f2"),  # binary16, little endian
    85: np.dtype("<f4"),  # binary32, little endian
}
_TAG_OF_DTYPE: Final = {dtype: tag for tag, dtype in _DTYPE_OF_TAG.items()}
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
    return value.dtype.newbyteorder("<") in _TAG_OF_DTYPE


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
    items = _check_structure(payload, max_items)
    try:
        value = cbor2.loads(payload, tag_hook=_array_of_tag)
    except (cbor2.CBORDecodeError, ValueError, OverflowError, TypeError) as error:
        raise MalformedError(f"not valid CBOR: {error}") from error
    if _n_items(value) != items:
        raise MalformedError("a map with a repeated key, or with a container as a key")
    return value


def _n_items(value: object) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_n_items, value.values()))
    return 1 + sum(map(_n_items, value)) if isinstance(value, list) else 1


def _array_of_tag(*arguments: object) -> object:
    # cbor2 calls hook(decoder, tag) up to release 5 and hook(tag, immutable) from 6 on.
    tag = next(a for a in arguments if isinstance(a, cbor2.CBORTag))
    return np.frombuffer(tag.value, dtype=_DTYPE_OF_TAG[tag.tag])


def _check_structure(payload: bytes, max_items: int) -> int:
    """Walk the items of `payload` without building any; give their number."""
    end = len(payload)
    at = 0
    items = 0
    open_counts = [1]  # for each open container, how many items it still needs
    while open_counts:
        if open_counts[-1] == 0:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        items += 1
        if items > max_items:
            raise MalformedError(f"more than {max_items} data items")
        major, argument, at = _item_head(payload, at, end)
        if major in (2, 3):
            at += argument
            if at > end:
                raise MalformedError(f"a string runs {at - end} bytes past the end")
        elif major in (4, 5):
            if len(open_counts) > MAX_DEPTH:
                raise MalformedError(f"nested deeper than {MAX_DEPTH}")
            if argument > max_items:
                raise MalformedError(f"a container of {argument} items")
            open_counts.append(argument * (major - 3))
        elif major == 6:
            at = _check_typed_array(payload, at, end, argument)
    if at != end:
        raise MalformedError(f"{end - at} bytes follow the message")
    return items


def _item_head(payload: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Read an item's major type and argument; give them and where its content begins."""
    if at >= end:
        raise MalformedError("the message ends too early")
    initial = payload[at]
    at += 1
    major, additional = initial >> 5, initial & 31
    if major == 7:
        if additional in (20, 21, 22):
            return major, 0, at
        if additional not in (26, 27):
            raise MalformedError(f"the simple value or float with the code {additional} is not used here")
    if additional < 24:
        return major, additional, at
    size = _SIZE_OF_ADDITIONAL.get(additional)
    if size is None:
        raise MalformedError("an indefinite length or a reserved code")
    if at + size > end:
        raise MalformedError("the message ends too early")
    return major, int.from_bytes(payload[at : at + size], "big"), at + size


def _check_typed_array(payload: bytes, at: int, end: int, tag: int) -> int:
    dtype = _DTYPE_OF_TAG.get(tag)
    if dtype is None:
        raise MalformedError(f"the tag {tag} is not used here")
    major, length, at = _item_head(payload, at, end)
    if major != 2:
        raise MalformedError(f"the tag {tag} needs a byte string")
    if length % dtype.itemsize:
        raise MalformedError(f"{length} bytes are no array of {dtype.itemsize}-byte values")
    if at + length > end:
        raise MalformedError(f"a typed array runs {at + length - end} bytes past the end")
    return at + length
