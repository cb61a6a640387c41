"""The bounded CBOR reader and writer."""

import tracemalloc

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import MalformedError
from broker.protocol import wire
from tests.broker.protocol.strategies import assert_same, wire_values

BIG = 2**63

BOMBS = {
    "deep arrays": b"\x81" * wire.MAX_MESSAGE_BYTES,
    "deep maps": b"\xa1\x00" * (wire.MAX_MESSAGE_BYTES // 2),
    "deep keys": b"\xa1" * wire.MAX_MESSAGE_BYTES,
    "deep known tags": b"\xd8\x46" * (wire.MAX_MESSAGE_BYTES // 2),
    "deep unknown tags": b"\xc6" * wire.MAX_MESSAGE_BYTES,
    "long byte string": b"\x5b" + BIG.to_bytes(8, "big"),
    "longest byte string": b"\x5b" + b"\xff" * 8,
    "long text": b"\x7b" + BIG.to_bytes(8, "big"),
    "long array": b"\x9b" + BIG.to_bytes(8, "big"),
    "array of 2^32": b"\x9a" + b"\xff" * 4,
    "long map": b"\xbb" + BIG.to_bytes(8, "big"),
    "long typed array": b"\xd8\x46\x5b" + BIG.to_bytes(8, "big"),
    "longest typed array": b"\xd8\x48\x5b" + b"\xff" * 8,
    "big integer": b"\xc2\x5a\x00\x01\x00\x00" + b"\xff" * 65536,
    "decimal fraction": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "many integers": b"\x99\xff\xff" + b"\x00" * 65535,
    "one item too many": b"\x99\x02\x00" + b"\x00" * 512,
    "many empty maps": b"\x99\x02\x00" + b"\xa0" * 512,
    "many pairs": b"\xb9\x02\x00" + b"".join(cbor2.dumps(n) * 2 for n in range(512)),
    "wide and deep": (b"\x99\x01\xff" + b"\x82\x80\x80" * 511),
    "indefinite array": b"\x9f" * wire.MAX_MESSAGE_BYTES,
    "indefinite map": b"\xbf" * wire.MAX_MESSAGE_BYTES,
    "indefinite text": b"\x7f" + b"\x61a" * 60_000 + b"\xff",
    "indefinite bytes": b"\x5f" + b"\x41a" * 60_000 + b"\xff",
    "shared references": b"\xd8\x1c\x81\xd8\x1d\x00",
    "string references": b"\xd9\x01\x00\x82\x62aa\xd8\x19\x00",
    "longer than a message": b"\x00" * (wire.MAX_MESSAGE_BYTES + 1),
}

REFUSED = {
    "nothing": "",
    "undefined": "f7",
    "simple value 0": "e0",
    "simple value in a byte": "f8ff",
    "half-precision float": "f93c00",
    "break alone": "ff",
    "reserved codes": "1c 1d 1e",
    "reserved text length": "7c",
    "reserved tag": "dc00",
    "indefinite array": "9fff",
    "indefinite map": "bfff",
    "indefinite bytes": "5f4161ff",
    "indefinite text": "7f6161ff",
    "date": "c074323031332d30332d32315432303a30343a30305a",
    "big integer": "c249010000000000000000",
    "self-described": "d9d9f700",
    "set": "d9010280",
    "uint32 array, big endian": "d84244 00000001",
    "float64 array": "d85648 0000000000000000",
    "typed array of text": "d84664 61616161",
    "typed array of an integer": "d84600",
    "typed array of an array": "d84680",
    "typed array of a typed array": "d846d84640",
    "typed array of indefinite bytes": "d8465f4161ff",
    "typed array that ends in an item": "d84643 000000",
    "typed array past the end": "d85544 000000",
    "typed array without bytes": "d846",
    "integer cut": "19 00",
    "float cut": "fb 0000",
    "text past the end": "62 61",
    "array cut": "82 00",
    "map cut": "a1 00",
    "map without a value at the end": "a2 00 00 01",
    "tail": "00 00",
    "text that is not UTF-8": "61 ff",
    "text with a surrogate": "63 eda080",
    "key that is not UTF-8": "a1 61 ff 00",
    "repeated key": "a2 6161 00 6161 00",
    "repeated key in another length": "a2 6161 00 780161 00",
    "repeated key within": "81 a1 00 a2 6161 00 6161 00",
    "keys that are equal numbers": "a2 01 00 fb3ff0000000000000 00",
    "array as key": "a1 8101 00",
    "map as key": "a1 a10101 00",
    "typed array as key": "a1 d84640 00",
    "five containers": "81 81 81 81 80",
}


@given(wire_values())
@settings(deadline=None)
def test_loads_undoes_dumps(value: object) -> None:
    """Every kind of value survives, arrays with dtype and bits."""
    assert_same(wire.loads(wire.dumps(value)), value)


@pytest.mark.parametrize("dtype", ["<u4", ">u4", "<f4", ">f4", "i1"])
def test_typed_array_is_little_endian_on_the_wire(dtype: str) -> None:
    """An array of the other byte order arrives with the same values."""
    array = np.array([1, 2, 100], dtype=dtype)

    found = wire.loads(wire.dumps(array))

    assert isinstance(found, np.ndarray)
    assert found.dtype == np.dtype(dtype).newbyteorder("<")
    assert found.tolist() == [1, 2, 100]
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([1, 258], np.uint32), "d846480100000002010000"),
        (np.array([-1, 127], np.int8), "d84842ff7f"),
        (np.array([1.5], np.float32), "d855440000c03f"),
        (np.array([], np.float32), "d85540"),
        (np.arange(6, dtype=np.int8)[::2], "d84843000204"),
    ],
)
def test_typed_array_has_the_bytes_of_rfc_8746(array: wire.TypedArray, expected: str) -> None:
    """Tag, byte string, little-endian values without gaps."""
    assert wire.dumps(array).hex() == expected


@pytest.mark.parametrize("dtype", ["i4", "i8", "u1", "u2", "u8", "f8", "?", "c8", "U1", "O"])
def test_array_of_another_dtype_is_not_encoded(dtype: str) -> None:
    """Nothing is converted silently, as that could lose values."""
    array = np.zeros(2, dtype=dtype)

    assert not wire.is_typed_array(array)
    with pytest.raises(TypeError, match="cannot encode ndarray"):
        wire.dumps({"a": array})


@pytest.mark.parametrize("shape", [(), (2, 2), (0, 3)])
def test_array_that_is_not_one_dimensional_is_not_encoded(shape: tuple[int, ...]) -> None:
    """A typed array has one dimension."""
    with pytest.raises(TypeError, match="cannot encode ndarray"):
        wire.dumps(np.zeros(shape, dtype=np.float32))


def test_value_of_another_type_is_not_encoded() -> None:
    """What the wire does not know is a mistake of the caller."""
    with pytest.raises(TypeError, match="cannot encode object"):
        wire.dumps([object()])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_cbor_outside_the_subset_is_malformed(name: str) -> None:
    """What the protocol does not use is refused."""
    with pytest.raises(MalformedError):
        wire.loads(bytes.fromhex(REFUSED[name]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18 01", 1),
        ("1b 0000000000000001", 1),
        ("1b ffffffffffffffff", 2**64 - 1),
        ("3b ffffffffffffffff", -(2**64)),
        ("fa 3fc00000", 1.5),
        ("fb 3ff8000000000000", 1.5),
        ("78 01 61", "a"),
        ("59 0001 61", b"a"),
        ("98 01 f6", [None]),
        ("b8 01 61 61 f5", {"a": True}),
        ("81 81 81 80", [[[[]]]]),
    ],
)
def test_cbor_of_the_subset_is_read_in_any_length_form(text: str, expected: object) -> None:
    """An encoder need not choose the shortest form."""
    assert wire.loads(bytes.fromhex(text)) == expected


def test_payload_at_the_limits_is_read() -> None:
    """The limits themselves are allowed: bytes, and items."""
    largest = cbor2.dumps(b"\x00" * (wire.MAX_MESSAGE_BYTES - 5))
    most = cbor2.dumps([0] * (wire.MAX_ITEMS - 1))

    assert len(largest) == wire.MAX_MESSAGE_BYTES
    assert wire.loads(largest) == b"\x00" * (wire.MAX_MESSAGE_BYTES - 5)
    assert wire.loads(most) == [0] * (wire.MAX_ITEMS - 1)


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bomb_is_refused_without_allocation(name: str) -> None:
    """A message that announces or nests more than it may is refused before anything is built of it."""
    payload = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError):
            wire.loads(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 32 * 1024


@given(st.one_of(wire_values().map(wire.dumps), st.binary(max_size=40)), st.data())
@settings(deadline=None)
def test_what_is_read_is_what_another_reader_reads(payload: bytes, data: st.DataObject) -> None:
    """Of messages, those with a byte changed, and any bytes: what is not refused means the same to cbor2."""
    if payload and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload = payload[:at] + data.draw(st.binary(min_size=1, max_size=1)) + payload[at + 1 :]
    try:
        found = wire.loads(payload)
    except MalformedError:
        return

    assert_same(found, cbor2.loads(payload, tag_hook=_as_array))


def _as_array(*arguments: object) -> wire.TypedArray:
    # cbor2 calls hook(decoder, tag) up to release 5 and hook(tag, immutable) from 6 on.
    tag = next(a for a in arguments if isinstance(a, cbor2.CBORTag))
    array: wire.TypedArray = np.frombuffer(tag.value, {70: "<u4", 72: "i1", 84: "<f2", 85: "<f4"}[tag.tag])
    return array
