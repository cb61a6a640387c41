"""The C core's decoders: they accept what broker/protocol accepts, and nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.protocol import messages
from broker.protocol.chunks import cut
from broker.protocol.deltas import delta_bytes, with_delta
from broker.protocol.messages import VERDICTS, Chunk, Head, Receipt
from broker.protocol.modelfile import Model, model_bytes
from tests.firmware_tools import core, decoding
from tests.firmware_tools.core import needs_compiler
from trainer.integers import quantise_table
from trainer.params import Floats

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]

HEADS, RECEIPTS, CHUNKS = decoding.heads(), decoding.receipts(), decoding.chunks()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.rows}x{head.dim}")
def test_head_is_read_field_by_field(head: Head) -> None:
    """With and without steps and signature, floats of both lengths."""
    payload = messages.encode(head)
    status, found = core.decode_head(payload)

    assert status == core.OK
    for name in ("instance", "session", "version", "rows", "dim", "slot", "chunks", "b"):
        assert getattr(found, name) == getattr(head, name)
    for name in ("catalogue_rows", "catalogue_chunks", "catalogue_bytes"):
        assert getattr(found, name) == getattr(head, name)
    for name in ("lr", "item_lr", "decay", "negatives", "batch_size"):
        assert getattr(found.plan.hyperparameters, name) == getattr(head.plan, name)
    for name in ("check_in_s", "max_idle_passes", "taste_recency", "taste_strength", "guard"):
        assert getattr(found.plan, name) == getattr(head.plan, name)
    assert found.plan.encoding.size == len(head.plan.encoding)
    assert [(d.version, d.size) for d in found.deltas[: found.n_deltas]] == [
        (d.version, d.size) for d in head.deltas
    ]
    assert bool(found.signature) == (head.signature is not None)
    if head.offer is None:
        assert found.offer.release == 0
    else:
        for name in ("release", "size", "percent"):
            assert getattr(found.offer, name) == getattr(head.offer, name)
        assert found.offer.n_groups == len(head.offer.groups)
    assert core.head_vector(payload, head.dim).tobytes() == head.w.tobytes()


@pytest.mark.parametrize("receipt", RECEIPTS, ids=lambda receipt: receipt.verdict)
def test_receipt_is_read_field_by_field(receipt: Receipt) -> None:
    """All verdicts; a reason in any language."""
    status, found = core.decode_receipt(messages.encode(receipt))
    assert status == core.OK
    for name in ("incarnation", "seq", "version", "staleness", "check_in_s"):
        assert getattr(found, name) == getattr(receipt, name)
    assert VERDICTS[found.verdict] == receipt.verdict
    assert found.reason.size == len(receipt.reason.encode())


def test_chunks_are_read_field_by_field() -> None:
    """Of a whole that takes three."""
    for chunk in cut(bytes(300_000), bytes(32)):
        status, found = core.decode_chunk(messages.encode(chunk))
        assert status == core.OK
        assert (found.index, found.count, found.size) == (chunk.index, chunk.count, chunk.size)
        assert found.data.size == len(chunk.data)


def _accepted_by_python(payload: bytes, kind: type[Head] | type[Receipt] | type[Chunk]) -> bool:
    try:
        messages.decode(payload, kind)
    except ProtocolError:
        return False
    return True


_DECODERS: dict[type, Callable[[bytes], tuple[int, object]]] = {
    Head: core.decode_head,
    Receipt: core.decode_receipt,
    Chunk: core.decode_chunk,
}


def _compare(payload: bytes, kind: type[Head] | type[Receipt] | type[Chunk]) -> bool:
    accepted = _DECODERS[kind](payload)[0] == core.OK
    assert accepted == _accepted_by_python(payload, kind), payload.hex()
    return accepted


def test_decoders_agree_with_the_protocols_on_damaged_messages() -> None:
    """Fields missing, doubled, unknown, of another type or out of range; bytes flipped, cut off and added."""
    rng = random.Random(1)
    counts = {True: 0, False: 0}
    every: list[Head | Receipt | Chunk] = [*HEADS, *RECEIPTS, *CHUNKS]
    for message in every:
        payload = messages.encode(message)
        for _ in range(core.examples(400)):
            counts[_compare(decoding.damaged(payload, rng), type(message))] += 1
    # The comparison is about both kinds.
    assert min(counts.values()) > core.examples(200)


def test_decoders_agree_on_every_length_of_a_message() -> None:
    """Cut off anywhere: refused by both."""
    for message in (HEADS[0], RECEIPTS[0], CHUNKS[0]):
        payload = messages.encode(message)
        for size in range(len(payload)):
            assert not _compare(payload[:size], type(message))
        assert not _compare(payload + b"\0", type(message))


@settings(max_examples=core.examples(300))
@given(st.binary(max_size=200), st.sampled_from([Head, Receipt, Chunk]))
def test_decoders_refuse_noise(payload: bytes, kind: type[Head] | type[Receipt] | type[Chunk]) -> None:
    """Any bytes at all."""
    assert not _compare(payload, kind)


@pytest.mark.parametrize("value", decoding.ODD_VALUES, ids=lambda value: ascii(value)[:24])
def test_decoders_agree_on_odd_values_of_every_field(value: object) -> None:
    """At the ends of ranges and of types, for each field and plan entry in turn."""
    for message in (HEADS[0], RECEIPTS[0], CHUNKS[0]):
        content = cbor2.loads(messages.encode(message))
        for name in content:
            _compare(cbor2.dumps({**content, name: value}), type(message))
        for name in [*content["plan"], "guard"] if "plan" in content else []:
            plan = {**content["plan"], name: value}
            _compare(cbor2.dumps({**content, "plan": plan}), type(message))
    content = cbor2.loads(messages.encode(HEADS[3]))
    for name in content["offer"]:
        offer = {**content["offer"], name: value}
        _compare(cbor2.dumps({**content, "offer": offer}), Head)
    for groups in ([value], ["beta"] * 17):
        _compare(cbor2.dumps({**content, "offer": {**content["offer"], "groups": groups}}), Head)


def _table(rows: int, dim: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


@settings(max_examples=core.examples(40))
@given(
    rows=st.integers(1, 30),
    new=st.integers(0, 4),
    dim=st.integers(1, 8),
    seed=st.integers(0, 99),
    damage=st.data(),
)
def test_step_is_applied_as_the_protocol_does(
    rows: int, new: int, dim: int, seed: int, damage: st.DataObject
) -> None:
    """Changed and new rows; and a damaged one is refused by both, or does the same."""
    before, after = _table(rows, dim, seed), _table(rows + new, dim, seed + 1)
    kept = np.random.default_rng(seed).random(rows) < 0.5
    after[:rows][kept] = before[kept]
    content = delta_bytes(before, after)
    found = np.zeros_like(after)
    found[:rows] = before
    assert core.apply_step(content, found) > 0
    assert found.tobytes() == after.tobytes()

    place = damage.draw(st.integers(0, len(content) - 1))
    bad = content[:place] + bytes([damage.draw(st.integers(0, 255))]) + content[place + 1 :]
    try:
        expected = with_delta(before, bad, rows + new)
    except ProtocolError:
        expected = None
    found[:] = 0
    found[:rows] = before
    status = core.apply_step(bad, found)
    if expected is None or not np.isfinite(expected).all():
        assert status < 0
    else:
        assert found.tobytes() == expected.tobytes()
    assert core.apply_step(content[:-1], found) == -core.SCHEMA
    assert core.apply_step(b"", found) == -core.SCHEMA


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_model_file_is_read_where_it_lies(form: str) -> None:
    """An odd number of rows, so that multipliers are filled up."""
    model = decoding.model(9, 5, integers=form == "int8")
    content = model_bytes(model)
    status, logits = core.decode_model(content)
    assert status == core.OK
    assert logits.tobytes() == core.logits(model.table, model.w, model.b).tobytes()
    assert core.library().shim_model_misaligned(content, len(content)) == core.ARGUMENT


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_damaged_model_file_is_refused(form: str) -> None:
    """Cut off, longer, and with any one bit changed but those of the zeros that nothing reads."""
    content = model_bytes(decoding.model(3, 2, integers=form == "int8"))
    for size in range(len(content)):
        assert core.decode_model(content[:size])[0] == core.FORMAT
    assert core.decode_model(content + b"\0")[0] == core.FORMAT
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert core.decode_model(bytes(changed))[0] in (core.FORMAT, core.CHECKSUM)


def test_model_with_values_that_cannot_be_is_refused() -> None:
    """The checksum is right; an integer is -128, a value is not finite."""
    bad = quantise_table(_table(4, 4, 0))
    bad.values[2, 1] = -128
    vectors = np.zeros(4, dtype=np.float32)
    assert core.decode_model(model_bytes(Model(table=bad, w=vectors, b=0.0, mean=vectors)))[0] == core.FORMAT
    for place in range(3):
        table, w, mean = _table(4, 4, 0), vectors.copy(), vectors.copy()
        (table[1], w, mean)[place][2] = np.nan
        assert core.decode_model(model_bytes(Model(table=table, w=w, b=0.0, mean=mean)))[0] == core.FORMAT


def test_golden_messages_of_the_protocol_are_read() -> None:
    """The bytes that the protocol's own tests keep."""
    folder = Path(__file__).parents[1] / "data" / "protocol"
    heads = [path for path in folder.glob("head*") if path.is_file()]
    assert heads
    for path in heads:
        assert core.decode_head(path.read_bytes())[0] == core.OK
