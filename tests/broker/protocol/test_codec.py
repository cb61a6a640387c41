"""From messages to bytes and back, and what the decoder does with bytes that are no message."""

from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import MalformedError, ProtocolError, SchemaError
from broker.protocol import wire
from broker.protocol.chunks import CHUNK_BYTES
from broker.protocol.messages import (
    MAX_REASON_BYTES,
    MAX_TRANSFER_BYTES,
    Chunk,
    Head,
    Message,
    Quality,
    Receipt,
    Status,
    Update,
    decode,
    encode,
)
from tests.broker.protocol.golden import GOLDEN, golden_bytes
from tests.broker.protocol.strategies import assert_same, cbor_values, messages

ALL = (Head, Chunk, Status, Update, Receipt, Quality)
NAMES = sorted(GOLDEN)


def assert_message_or_protocol_error(payload: bytes) -> None:
    """Decode `payload`; a refusal must fit a log line and the reason of a receipt."""
    try:
        message = decode(payload, *ALL)
    except ProtocolError as error:
        text = str(error)
        assert text.isascii(), text
        assert text.isprintable(), text
        assert 0 < len(text) <= MAX_REASON_BYTES
    else:
        assert isinstance(message, Message)


def content_of(name: str) -> dict[Any, Any]:
    """Give the map that travels for a golden message."""
    content = wire.loads(golden_bytes(name))
    assert isinstance(content, dict)
    return content


@given(messages())
@settings(deadline=None, max_examples=300)
def test_decode_undoes_encode(message: Message) -> None:
    """Every message survives the wire to the last bit and fits one MQTT message."""
    payload = encode(message)

    found = decode(payload, type(message))

    assert len(payload) <= wire.MAX_MESSAGE_BYTES
    assert_same(found, message)
    assert encode(found) == payload


def test_largest_chunk_fits_one_message() -> None:
    """The longest data with the longest numbers stays below the limit."""
    chunk = Chunk(
        digest=b"\xff" * 8,
        index=65_534,
        count=65_536,
        size=MAX_TRANSFER_BYTES,
        data=b"\xff" * CHUNK_BYTES,
    )

    assert_same(decode(encode(chunk), Chunk), chunk)


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_says_its_message(name: str) -> None:
    """A file from the first release is read as the message that it was."""
    assert_same(decode(golden_bytes(name), *ALL), GOLDEN[name])


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_is_encoded_identically(name: str) -> None:
    """Decoded and encoded again, and encoded from the message, it is the same file."""
    payload = golden_bytes(name)

    assert encode(decode(payload, *ALL)) == payload
    assert encode(GOLDEN[name]) == payload


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_begins_with_version_and_type(name: str) -> None:
    """Whoever reads a dump finds the version first."""
    assert list(content_of(name))[:2] == ["v", "type"]


@pytest.mark.parametrize("name", NAMES)
def test_truncated_message_is_malformed(name: str) -> None:
    """Cut anywhere, it is refused."""
    payload = golden_bytes(name)

    for length in range(len(payload)):
        with pytest.raises(MalformedError):
            decode(payload[:length], *ALL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [b"\x00", b"\xff", b"\xf6", b"\n", b"\x00" * 1000])
def test_message_with_tail_is_malformed(name: str, tail: bytes) -> None:
    """Nothing may follow."""
    with pytest.raises(MalformedError, match="follow the message"):
        decode(golden_bytes(name) + tail, *ALL)


@pytest.mark.parametrize("name", NAMES)
def test_message_after_itself_is_malformed(name: str) -> None:
    """Two messages are not one."""
    with pytest.raises(MalformedError, match="follow the message"):
        decode(golden_bytes(name) * 2, *ALL)


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits_give_a_message_or_an_error_of_ours(name: str) -> None:
    """Each byte with each of its bits flipped, and with all of them."""
    payload = golden_bytes(name)

    for at in range(len(payload)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            flipped = bytearray(payload)
            flipped[at] ^= mask
            assert_message_or_protocol_error(bytes(flipped))


@given(st.binary(max_size=200))
@settings(max_examples=10_000, deadline=None)
def test_any_bytes_give_a_message_or_an_error_of_ours(payload: bytes) -> None:
    """Noise never raises anything else."""
    assert_message_or_protocol_error(payload)


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=1000, deadline=None)
def test_bytes_put_into_a_message_give_a_message_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """Noise in the middle of a good message, longer or shorter than what it replaces."""
    payload = golden_bytes(name)
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, min(start + 8, len(payload))))

    assert_message_or_protocol_error(payload[:start] + data.draw(st.binary(max_size=8)) + payload[end:])


@given(cbor_values())
@settings(max_examples=1000, deadline=None)
def test_any_cbor_gives_a_message_or_an_error_of_ours(value: object) -> None:
    """Good CBOR of any kind: tags, big integers, odd keys, nesting."""
    assert_message_or_protocol_error(wire.dumps(value))


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=1000, deadline=None)
def test_any_cbor_in_a_field_gives_a_message_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """Good CBOR of any kind where a field's value or name should be."""
    content = content_of(name)
    part = data.draw(st.sampled_from([content] + [v for v in content.values() if isinstance(v, dict)]))
    field = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[field] = data.draw(cbor_values())
    else:
        name_of_field = data.draw(st.text(st.characters(codec="utf-8")) | st.integers() | st.binary())
        part[name_of_field] = part.pop(field)

    assert_message_or_protocol_error(wire.dumps(content))


@pytest.mark.parametrize(
    "version",
    [0, 2, -1, 2**64 - 1, 1.0, True, "1", b"1", None, [1], {}, np.ones(2, np.uint32), np.ones(0, np.int8)],
)
@pytest.mark.parametrize("name", NAMES)
def test_other_protocol_version_is_refused(name: str, version: object) -> None:
    """Only the integer 1 is this version."""
    content = content_of(name) | {"v": version}

    with pytest.raises(SchemaError, match="not a message of protocol version 1"):
        decode(wire.dumps(content), *ALL)


@pytest.mark.parametrize(
    "kind", ["", "Head", "heads", "delta", 1, None, b"head", ["head"], np.ones(2, np.int8)]
)
def test_unknown_type_is_refused(kind: object) -> None:
    """Only the five names are types."""
    with pytest.raises(
        SchemaError, match=r"the type is .*expected head or chunk or status or update or receipt"
    ):
        decode(wire.dumps(content_of("head") | {"type": kind}), *ALL)


@pytest.mark.parametrize("name", NAMES)
def test_message_of_a_type_that_is_not_expected_is_refused(name: str) -> None:
    """A head on the update topic is no update."""
    others = [kind for kind in ALL if not isinstance(GOLDEN[name], kind)]

    with pytest.raises(SchemaError, match=f"the type is str '{GOLDEN[name].TYPE}'; expected "):
        decode(golden_bytes(name), *others)


@pytest.mark.parametrize("value", [None, 1, 1.5, "head", b"head", [], ["v", 1], np.ones(3, np.float32)])
def test_what_is_no_map_is_refused(value: object) -> None:
    """A message is a map."""
    with pytest.raises(SchemaError, match="a message is a map, not "):
        decode(wire.dumps(value), *ALL)


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_unknown_fields_are_named(name: str) -> None:
    """The refusal tells which field is missing and which is too much."""
    content = content_of(name)
    field = list(content)[-1]
    content["colour"] = content.pop(field)

    with pytest.raises(SchemaError, match=f"without {field} and with the unknown field 'colour'"):
        decode(wire.dumps(content), *ALL)


def test_many_unknown_fields_give_a_short_refusal() -> None:
    """A sender cannot make the refusal longer than a receipt's reason."""
    content = content_of("status")
    content |= {chr(0x1F600 + n) * 300: n for n in range(60)}
    payload = wire.dumps(content)

    assert_message_or_protocol_error(payload[:])
    with pytest.raises(SchemaError, match="with the unknown field"):
        decode(wire.dumps({k: content[k] for k in list(content)[:12]}), Status)


@pytest.mark.parametrize("plan", [None, 1, [], "plan", {}, {"lr": 0.1}, np.ones(7, np.float32)])
def test_plan_that_is_no_plan_is_refused(plan: object) -> None:
    """A head's plan is a map with its own fields."""
    with pytest.raises(SchemaError, match="plan"):
        decode(wire.dumps(content_of("head") | {"plan": plan}), Head)


def step(version: int) -> dict[str, object]:
    """Give a step as it travels."""
    return {"version": version, "size": 12, "digest": b"8 bytes."}


@pytest.mark.parametrize(
    "deltas",
    [
        *(None, 1, {}, "1", b"\x01", [-1], [1.0], [True], [[1]]),
        *([step(40)], [step(42)], [step(41), step(40)], [step(41), step(41)], [step(39), step(41)]),
        [step(version) for version in range(33, 42)],
    ],
)
def test_deltas_that_are_not_the_newest_steps_are_refused(deltas: object) -> None:
    """A head's deltas are at most eight, in order, and lead to its version."""
    with pytest.raises(SchemaError, match="deltas must be "):
        decode(wire.dumps(content_of("head") | {"deltas": deltas}), Head)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"size": 1.0}, {"digest": b"7 bytes"}, {"version": 2**60}, {"x": 1}]
)
def test_step_with_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    """As any message is."""
    with pytest.raises(SchemaError):
        decode(wire.dumps(content_of("head") | {"deltas": [step(41) | wrong]}), Head)


@pytest.mark.parametrize(("version", "steps"), [(41, 0), (40, 1), (39, 2), (38, 0), (0, 0), (42, 0), (60, 0)])
def test_deltas_from_a_version(version: int, steps: int) -> None:
    """All steps from there, or none."""
    head = decode(wire.dumps(content_of("head") | {"deltas": [step(40), step(41)]}), Head)

    assert [delta.version for delta in head.deltas_from(version)] == [41, 40][:steps][::-1]


@pytest.mark.parametrize("verdict", ["Accepted", "", None, 0, ["accepted"], b"accepted", np.ones(2, np.int8)])
def test_unknown_verdict_is_refused(verdict: object) -> None:
    """Only the four verdicts are verdicts, whatever its type."""
    with pytest.raises(SchemaError, match="verdict must be one of accepted, duplicate, stale, rejected"):
        decode(wire.dumps(content_of("receipt") | {"verdict": verdict}), Receipt)


@pytest.mark.parametrize("name", NAMES)
def test_repeated_field_is_refused(name: str) -> None:
    """Two readers could take different ones of two values."""
    payload = golden_bytes(name)
    count = payload[0] & 31
    pair = cbor2.dumps("v") + cbor2.dumps(1)

    with pytest.raises(MalformedError, match="repeated key"):
        decode(bytes([0xA0 | (count + 1)]) + payload[1:] + pair, *ALL)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_fields_does_not_matter(name: str) -> None:
    """Another encoder may sort its keys."""
    content = content_of(name)

    shuffled = wire.dumps(dict(sorted(content.items(), reverse=True)))

    assert_same(decode(shuffled, *ALL), GOLDEN[name])


def test_single_precision_float_is_read() -> None:
    """A microcontroller may send its floats in four bytes."""
    payload = golden_bytes("receipt")
    double = cbor2.dumps(30.0)
    assert payload.count(double) == 1

    message = decode(payload.replace(double, bytes.fromhex("fa41f00000")), Receipt)

    assert message.check_in_s == 30.0


@pytest.mark.parametrize(
    "number", ["f97e00", "f97c00", "fa7f800000", "fb7ff0000000000000", "fbfff8000000000000"]
)
def test_float_that_is_not_finite_is_refused(number: str) -> None:
    """In every width, NaN and infinity."""
    payload = golden_bytes("receipt").replace(cbor2.dumps(30.0), bytes.fromhex(number))

    with pytest.raises(ProtocolError):
        decode(payload, Receipt)


def test_update_longer_than_one_message_needs_the_larger_limit() -> None:
    """Only who put an update together from chunks looks at more bytes."""
    update = Update(
        instance=1,
        incarnation=2,
        seq=3,
        base_version=4,
        encoding="float32",
        body={"rows": np.zeros(10, np.uint32), "values": np.zeros(50_000, np.float32)},
    )
    payload = encode(update)

    with pytest.raises(MalformedError, match=f"{len(payload)} bytes; at most 131072"):
        decode(payload, Update)
    with pytest.raises(MalformedError, match=f"at most {len(payload) - 1}"):
        decode(payload, Update, max_bytes=len(payload) - 1)
    assert_same(decode(payload, Update, max_bytes=len(payload)), update)


def test_decoded_arrays_are_read_only() -> None:
    """What came from the wire is never changed in place."""
    head = decode(golden_bytes("head"), Head)

    assert not head.w.flags.writeable
