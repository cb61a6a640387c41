"""Messages to read, and ways to damage them; for tests and for the fuzzer."""

import math
import random

import cbor2
import numpy as np

from broker.protocol.messages import (
    CHUNK_BYTES,
    MAX_SEQ,
    MAX_U64,
    VERDICTS,
    Chunk,
    Delta,
    Head,
    Offer,
    Plan,
    Receipt,
    chunk_count,
)
from broker.protocol.modelfile import Model
from trainer.integers import quantise_table

ODD_VALUES: tuple[object, ...] = (
    *(0, 1, 2, 7, 8, 24, 255, 1000, 1001, 65535, 65536, 65537, 122880, 122881, 2**30, 2**30 + 1, 2**32 - 1),
    *(4_000_000, 4_000_001, 2**53, 2**53 + 1, 2**64 - 1, 2**64, -1, -(2**63)),
    *(0.0, -0.0, 1.0, 1e9, 1.0000001e9, 604800.0, 604801.0, 100.5, 1e30, -1e30, 1.1e30, 5e-324, -1.0),
    *(math.nan, math.inf, -math.inf, True, False, None, "", "int8", "Int8.", "-int8", "x" * 64, "x" * 65),
    *("accepted", "head", "receipt", "chunk", "a b", "é", "\ud7ff", "\U0010ffff", "r" * 400, "r" * 401),
    *(b"", b"x" * 8, b"x" * 32, b"x" * 64, b"x" * 9, [], [1], {}, {"lr": 1.0}, [{}], [[[[[1]]]]]),
    cbor2.CBORTag(85, b"\0\0\0\0"),
    cbor2.CBORTag(85, b"\0\0\x80\x7f"),
    cbor2.CBORTag(85, b"\0\0\0"),
    cbor2.CBORTag(70, b"\0\0\0\0"),
    cbor2.CBORTag(1, 5),
    cbor2.undefined,
)


def head(
    rows: int, dim: int, n_deltas: int, *, signed: bool, guard: float = 0.0, offer: Offer | None = None
) -> Head:
    """Give a head of a table of that shape."""
    rng = np.random.default_rng(rows)
    size = 9 * rows
    return Head(
        instance=2**64 - 1 - rows,
        session=rows,
        version=n_deltas + 70_000 * (rows > 5),
        rows=rows,
        dim=dim,
        sha256=rng.bytes(32),
        slot=rows % 2,
        chunks=chunk_count(4 * rows * dim),
        catalogue_rows=rows + rows % 3,
        catalogue_chunks=chunk_count(size),
        catalogue_bytes=size,
        catalogue_sha256=rng.bytes(32),
        plan=Plan(
            lr=0.1,
            item_lr=13455.9,
            negatives=8,
            batch_size=256,
            encoding="int8",
            check_in_s=60.0,
            max_idle_passes=30,
            decay=0.1,
            taste_recency=2.0,
            taste_strength=1.0,
            guard=guard,
        ),
        w=rng.standard_normal(dim, dtype=np.float32),
        b=float(rng.standard_normal()),
        deltas=tuple(
            Delta(version=nth + 1 + 70_000 * (rows > 5), size=100 + nth, digest=rng.bytes(8))
            for nth in range(n_deltas)
        ),
        signature=rng.bytes(64) if signed else None,
        offer=offer,
    )


def offer(n_groups: int) -> Offer:
    """Give a release on offer."""
    groups = tuple(f"group-{nth}" for nth in range(n_groups))
    return Offer(release=MAX_SEQ - n_groups, size=2**30, sha256=bytes(range(32)), percent=100, groups=groups)


def heads() -> list[Head]:
    """Give heads of all kinds."""
    return [
        head(3, 2, 2, signed=False),
        head(1, 1, 0, signed=True, offer=offer(0)),
        head(1682, 32, 8, signed=True, guard=0.75),
        head(200_000, 64, 1, signed=False, offer=offer(16)),
    ]


def receipts() -> list[Receipt]:
    """Give a receipt of each verdict."""
    return [
        Receipt(
            incarnation=MAX_U64 - nth,
            seq=MAX_SEQ - nth,
            verdict=verdict,
            reason=("", "counted before", "zu alt: €", "r" * 400)[nth],
            version=nth * 1000,
            staleness=nth,
            check_in_s=60.5 * nth,
        )
        for nth, verdict in enumerate(VERDICTS)
    ]


def chunks() -> list[Chunk]:
    """Give a small and a full chunk."""
    return [
        Chunk(digest=b"12345678", index=2, count=3, size=2 * CHUNK_BYTES + 5, data=b"abcde"),
        Chunk(digest=bytes(8), index=0, count=1, size=300, data=bytes(300)),
    ]


def model(rows: int, dim: int, *, integers: bool) -> Model:
    """Give a model of seeded values."""
    rng = np.random.default_rng(rows)
    table = rng.standard_normal((rows, dim), dtype=np.float32)
    return Model(
        table=quantise_table(table) if integers else table,
        w=rng.standard_normal(dim, dtype=np.float32),
        b=0.5,
        mean=table.mean(axis=0),
    )


def damaged(payload: bytes, rng: random.Random) -> bytes:
    """Change a message a little: its fields where that works, or its bytes."""
    if rng.random() < 0.5:
        return _other_bytes(payload, rng)
    content = cbor2.loads(payload)
    inner = content
    if rng.random() < 0.4:
        inner = content.get("plan", content)
        if content.get("deltas") and rng.random() < 0.5:
            inner = rng.choice(content["deltas"])
    name = rng.choice(list(inner))
    change = rng.randrange(5)
    if change == 0:
        del inner[name]
    elif change == 1:
        inner[rng.choice(["x", "lr", "V", 1, b"v", "b\0"])] = inner[name]
    elif change == 2:
        items = list(inner.items())
        rng.shuffle(items)  # another order is as good
        inner.clear()
        inner.update(items)
    else:
        inner[name] = rng.choice(ODD_VALUES)
    return cbor2.dumps(content)


def _other_bytes(payload: bytes, rng: random.Random) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = rng.choice([0, 0x18, 0x1B, 0x3B, 0x5B, 0x7B, 0x9F, 0xA1, 0xBF, 0xF6, 0xFB, 0xFF])
        elif kind == 2:
            del changed[place : place + rng.choice([1, 1, 4, 30])]
        else:
            changed[place:place] = changed[: rng.choice([1, 4, 30])]
        if not changed:
            break
    return bytes(changed)
