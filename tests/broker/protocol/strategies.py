"""Hypothesis strategies for everything that travels, and the comparison of two messages.

Every strategy gives only what the project's own ends could send: valid messages of all sizes and extremes
that fit one MQTT message. `wire_values` and `cbor_values` give the rest.
"""

from dataclasses import fields

import cbor2
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker.protocol.chunks import CHUNK_BYTES, chunk_count
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import (
    MAX_CHUNKS,
    MAX_DELTAS,
    MAX_GROUPS,
    MAX_ITEMS_IN_CATALOGUE,
    MAX_LOSS,
    MAX_REASON_BYTES,
    MAX_SEQ,
    MAX_TRANSFER_BYTES,
    MAX_U64,
    VERDICTS,
    Chunk,
    Delta,
    Head,
    Message,
    Offer,
    Plan,
    Quality,
    Receipt,
    Status,
    Update,
)
from broker.protocol.wire import TypedArray
from trainer.params import MAX_DIM

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

u64s = st.integers(0, MAX_U64)
counters = st.integers(0, MAX_SEQ)
seconds = st.floats(0.0, 604800.0)
identifiers = st.from_regex(ID_PATTERN, fullmatch=True)
digests = st.binary(min_size=32, max_size=32)


def texts(max_bytes: int) -> st.SearchStrategy[str]:
    """Text of at most `max_bytes` in UTF-8."""
    return st.text(st.characters(codec="utf-8"), max_size=max_bytes).filter(
        lambda text: len(text.encode()) <= max_bytes
    )


def float_arrays(size: int, limit: float = 3e38) -> st.SearchStrategy[NDArray[np.float32]]:
    """Finite float32 arrays of shape (size,); large ones are drawn from a seed."""
    if size > 64:
        return st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
        )
    bound = float(np.nextafter(np.float32(limit), np.float32(0)))
    values = st.floats(-bound, bound, width=32)
    return st.lists(values, min_size=size, max_size=size).map(lambda v: np.array(v, dtype=np.float32))


def typed_arrays() -> st.SearchStrategy[TypedArray]:
    """Any typed array, also with NaN and infinity."""

    def of(dtype: str, width: int) -> st.SearchStrategy[TypedArray]:
        return st.binary(max_size=32).map(
            lambda content: np.frombuffer(content[: len(content) // width * width], dtype=dtype)
        )

    return of("<u4", 4) | of("i1", 1) | of("<f2", 2) | of("<f4", 4)


@st.composite
def sparse_changes(
    draw: st.DrawFn, n_items: int = 50, dim: int = 4, limit: float = 1e30, min_rows: int = 1
) -> SparseChange:
    """Changes that every encoding takes: some rows of a table of shape (n_items, dim)."""
    rows = draw(st.sets(st.integers(0, n_items - 1), min_size=min_rows, max_size=min(n_items, 12)))
    values = draw(float_arrays(len(rows) * dim, limit))
    return SparseChange(rows=np.array(sorted(rows), dtype=np.int64), change=values.reshape(len(rows), dim))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Training plans."""
    lr = draw(st.floats(0.0, 1e9))
    return Plan(
        lr=lr,
        decay=draw(st.floats(0.0, 1e9).filter(lambda decay: lr * decay <= 1.0) | st.just(0.0)),
        taste_recency=draw(st.floats(0.0, 1e6)),
        taste_strength=draw(st.floats(0.0, 100.0)),
        item_lr=draw(st.floats(0.0, 1e9)),
        negatives=draw(st.integers(1, 1000)),
        batch_size=draw(st.integers(1, 65536)),
        encoding=draw(st.sampled_from(sorted(ENCODINGS)) | identifiers),
        check_in_s=draw(seconds),
        max_idle_passes=draw(st.integers(1, 1_000_000)),
        guard=draw(st.floats(0.0, 1.0)),
    )


def offers() -> st.SearchStrategy[Offer]:
    """Releases on offer."""
    return st.builds(
        Offer,
        release=st.integers(1, MAX_SEQ),
        size=st.integers(1, MAX_TRANSFER_BYTES),
        sha256=digests,
        percent=st.integers(0, 100),
        groups=st.lists(identifiers, max_size=MAX_GROUPS).map(tuple),
    )


@st.composite
def heads(draw: st.DrawFn) -> Head:
    """Heads."""
    dim = draw(st.integers(1, 40) | st.just(MAX_DIM))
    rows = draw(st.integers(1, min(MAX_ITEMS_IN_CATALOGUE, MAX_TRANSFER_BYTES // 4 // dim)))
    version = draw(counters)
    n_deltas = draw(st.integers(0, min(version, MAX_DELTAS)))
    catalogue_bytes = draw(st.integers(1, MAX_TRANSFER_BYTES))
    return Head(
        instance=draw(u64s),
        session=draw(counters),
        version=version,
        rows=rows,
        dim=dim,
        sha256=draw(digests),
        slot=draw(st.integers(0, 1)),
        chunks=chunk_count(4 * rows * dim),
        catalogue_rows=draw(st.integers(rows, MAX_ITEMS_IN_CATALOGUE)),
        catalogue_chunks=chunk_count(catalogue_bytes),
        catalogue_bytes=catalogue_bytes,
        catalogue_sha256=draw(digests),
        plan=draw(plans()),
        w=draw(float_arrays(dim)),
        b=draw(st.floats(-1e30, 1e30)),
        deltas=tuple(
            Delta(
                version=version - n_deltas + 1 + number,
                size=draw(st.integers(1, MAX_TRANSFER_BYTES)),
                digest=draw(st.binary(min_size=8, max_size=8)),
            )
            for number in range(n_deltas)
        ),
        offer=draw(st.none() | offers()),
        signature=draw(st.none() | st.binary(min_size=64, max_size=64)),
    )


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Chunks, most of them small; one size is the largest."""
    count = draw(st.integers(1, MAX_CHUNKS))
    return Chunk(
        digest=draw(st.binary(min_size=8, max_size=8)),
        index=draw(st.integers(0, count - 1)),
        count=count,
        size=draw(st.integers(1, MAX_TRANSFER_BYTES)),
        data=draw(st.binary(min_size=1, max_size=100) | st.just(b"\xff" * CHUNK_BYTES)),
    )


@st.composite
def statuses(draw: st.DrawFn) -> Status:
    """Statuses."""
    return Status(
        online=draw(st.booleans()),
        session=draw(counters),
        incarnation=draw(u64s),
        version=draw(st.none() | counters),
        scorer=draw(texts(32)),
        software=draw(texts(64)),
    )


@st.composite
def known_updates(draw: st.DrawFn) -> Update:
    """Updates in one of the project's encodings, for a table of shape (50, 4)."""
    encoding = ENCODINGS[draw(st.sampled_from(sorted(ENCODINGS)))]
    return Update(
        instance=draw(u64s),
        incarnation=draw(u64s),
        seq=draw(st.integers(1, MAX_SEQ)),
        base_version=draw(counters),
        encoding=encoding.name,
        body=encoding.encode(draw(sparse_changes())),
    )


@st.composite
def foreign_updates(draw: st.DrawFn) -> Update:
    """Updates with any name of an encoding and any typed arrays."""
    return Update(
        instance=draw(u64s),
        incarnation=draw(u64s),
        seq=draw(st.integers(1, MAX_SEQ)),
        base_version=draw(counters),
        encoding=draw(identifiers),
        body=draw(st.dictionaries(texts(40), typed_arrays(), min_size=1, max_size=8)),
    )


def updates() -> st.SearchStrategy[Update]:
    """Updates, those that an aggregator rejects among them."""
    return known_updates() | foreign_updates()


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    """Receipts."""
    return Receipt(
        incarnation=draw(u64s),
        seq=draw(counters),
        verdict=draw(st.sampled_from(VERDICTS)),
        reason=draw(texts(MAX_REASON_BYTES)),
        version=draw(counters),
        staleness=draw(counters),
        check_in_s=draw(seconds),
    )


@st.composite
def qualities(draw: st.DrawFn) -> Quality:
    """Reports of a version's quality."""
    candidates = draw(st.integers(1, 10_000))
    version = draw(st.integers(1, MAX_SEQ))
    return Quality(
        instance=draw(u64s),
        version=version,
        version_before=draw(st.integers(0, version - 1)),
        candidates=candidates,
        hits=draw(st.integers(0, 1)),
        hits_before=draw(st.integers(0, 1)),
        beaten=draw(st.integers(0, candidates)),
        beaten_before=draw(st.integers(0, candidates)),
        ndcg=draw(st.floats(0.0, 1.0)),
        ndcg_before=draw(st.floats(0.0, 1.0)),
        loss=draw(st.floats(0.0, MAX_LOSS)),
        loss_before=draw(st.floats(0.0, MAX_LOSS)),
    )


def messages() -> st.SearchStrategy[Message]:
    """Messages of all six types."""
    return st.one_of(heads(), chunks(), statuses(), updates(), receipts(), qualities())


def wire_values() -> st.SearchStrategy[object]:
    """Values that `broker.protocol.wire` carries, of no particular message."""
    scalars: st.SearchStrategy[object] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),  # cbor2 writes the others in two bytes
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.binary(max_size=20),
        typed_arrays(),
    )
    keys = st.text(st.characters(codec="utf-8"), max_size=10)
    return scalars | st.lists(scalars, max_size=4) | st.dictionaries(keys, scalars, max_size=4)


def cbor_values() -> st.SearchStrategy[object]:
    """Values that CBOR carries, most of them not allowed here: tags, big integers, nesting, odd keys."""
    numbers = st.integers() | st.floats() | st.sampled_from([2**64, -(2**64) - 1, 1.5, -0.0])
    scalars: st.SearchStrategy[object] = st.one_of(
        st.none(),
        st.booleans(),
        numbers,
        st.just(cbor2.undefined),
        st.integers(32, 255).map(cbor2.CBORSimpleValue),
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.binary(max_size=20),
        st.sampled_from(VERDICTS),
    )
    keys = st.text(st.characters(codec="utf-8"), max_size=10) | st.integers() | st.binary(max_size=4)
    tags = st.sampled_from([0, 1, 2, 4, 21, 24, 28, 29, 30, 64, 70, 72, 85, 86, 256, 258, 55799])

    def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        return st.one_of(
            st.lists(inner, max_size=5),
            st.dictionaries(keys | st.tuples(keys), inner, max_size=5),
            st.builds(cbor2.CBORTag, tags, inner),
        )

    return st.recursive(scalars | typed_arrays(), nested, max_leaves=20)


def assert_same(found: object, expected: object) -> None:
    """Assert that two messages, or parts of them, are equal to the last bit."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Message):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, float):
        assert isinstance(found, float)
        # NaN equals itself here, and zero is not minus zero.
        assert np.float64(found).tobytes() == np.float64(expected).tobytes()
    else:
        assert found == expected
