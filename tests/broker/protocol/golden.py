"""The golden messages: what they say, and the files that keep their bytes.

The files are the protocol's memory: a change of code that would change a byte on the wire fails the
tests. They are written once for a protocol version, by::

    python -m tests.broker.protocol.golden

and again only when `broker.protocol.topics.PROTOCOL_VERSION` grows.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.protocol.chunks import cut
from broker.protocol.deltas import delta_bytes
from broker.protocol.encodings import ENCODINGS, Change, FactoredChange, SparseChange
from broker.protocol.messages import (
    Delta,
    Head,
    Message,
    Offer,
    Plan,
    Quality,
    Receipt,
    Status,
    Update,
    encode,
)
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes

FOLDER = Path(__file__).parents[2] / "data" / "protocol"

TABLE = np.array([[0.5, -1.0], [0.25, 2.0], [1e-3, -3.5]], dtype=np.float32)
ITEM_KEYS = ("item-1", "Amélie (2001)", "映画")
_CHANGE = SparseChange(
    rows=np.array([0, 2], dtype=np.int64), change=np.array([[1.0, -0.5], [0.1, 1e-7]], dtype=np.float32)
)
_FACTORS = FactoredChange(
    rows=np.array([0, 2, 5, 6, 9, 400], dtype=np.int64),
    coefficients=np.array(
        [[1.0, -0.5, 0.25, 0.0, 0.0, 0.0], [0.0, 0.0, -2.0, 3.0, 0.0, 0.1]], dtype=np.float32
    ),
    directions=np.array([[0.5, -0.25, 1.0, 2.0], [0.1, 1e-3, -1.0, 0.0]], dtype=np.float32),
)
"""A mini-batch of three rows and one of three, one of them the same; a row that did not move."""
_STEP = delta_bytes(np.zeros_like(TABLE), TABLE)
_TABLE_BYTES = table_bytes(TABLE)
_CATALOGUE_BYTES = catalogue_bytes(ITEM_KEYS)

HEAD = Head(
    instance=0xFEDC_BA98_7654_3210,
    session=3,
    version=41,
    rows=3,
    dim=2,
    sha256=sha256(_TABLE_BYTES),
    slot=1,
    chunks=1,
    catalogue_rows=3,
    catalogue_chunks=1,
    catalogue_bytes=len(_CATALOGUE_BYTES),
    catalogue_sha256=sha256(_CATALOGUE_BYTES),
    plan=Plan(
        lr=0.1,
        item_lr=1.0,
        negatives=4,
        batch_size=256,
        encoding="int8",
        check_in_s=30.0,
        max_idle_passes=20,
        decay=0.1,
        taste_recency=2.0,
        taste_strength=1.0,
    ),
    w=np.array([0.7, -0.7], dtype=np.float32),
    b=0.125,
    deltas=tuple(
        Delta(version=version, size=len(step), digest=sha256(step)[:8])
        for version, step in ((40, _STEP + _STEP), (41, _STEP))
    ),
)


def _update(encoding: str, seq: int, change: Change = _CHANGE) -> Update:
    return Update(
        instance=HEAD.instance,
        incarnation=0x0123_4567_89AB_CDEF,
        seq=seq,
        base_version=40,
        encoding=encoding,
        body=ENCODINGS[encoding].encode(change),
    )


OFFER = Offer(release=7, size=300_000, sha256=sha256(b"a bundle"), percent=10, groups=("beta", "lab"))

GOLDEN: dict[str, Message] = {
    "head": HEAD,
    "head-offer": replace(HEAD, offer=OFFER),
    "chunk": next(cut(_TABLE_BYTES, sha256(_TABLE_BYTES))),
    "status": Status(
        online=True,
        session=12,
        incarnation=0x0123_4567_89AB_CDEF,
        version=40,
        scorer="tflite",
        software="0.1.0",
    ),
    "update-float32": _update("float32", 7),
    "update-int8": _update("int8", 8),
    "update-int4": _update("int4", 9),
    "update-float16": _update("float16", 10),
    "update-factored": _update("factored", 11, _FACTORS),
    "update-factored-int8": _update("factored-int8", 12, _FACTORS),
    "receipt": Receipt(
        incarnation=0x0123_4567_89AB_CDEF,
        seq=7,
        verdict="duplicate",
        reason="answered before: accepted",
        version=41,
        staleness=1,
        check_in_s=30.0,
    ),
    "quality": Quality(
        instance=HEAD.instance,
        version=41,
        version_before=39,
        candidates=99,
        hits=1,
        hits_before=0,
        beaten=97,
        beaten_before=88,
        ndcg=0.5,
        ndcg_before=0.0,
        loss=0.25,
        loss_before=0.75,
    ),
}


def golden_bytes(name: str) -> bytes:
    """Give what the file of the golden message `name` holds."""
    return (FOLDER / f"{name}.cbor").read_bytes()


def write() -> None:
    """Write all files anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, message in GOLDEN.items():
        (FOLDER / f"{name}.cbor").write_bytes(encode(message))


if __name__ == "__main__":
    write()
