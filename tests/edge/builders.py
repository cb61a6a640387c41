"""What the tests of the device are built from: heads, receipts, and passes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import chunk_count, cut
from broker.protocol.messages import Chunk, Head, Plan, Receipt, Verdict
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes
from edge.personal import Personal
from edge.store import DeviceStore
from trainer.params import Floats, ScoreFunction

ITEM_KEYS = ("apple", "bread", "cheese", "date", "egg", "fig")
DIM = 2
INSTANCE = 77
INCARNATION = 4711


def a_plan(**changes: Any) -> Plan:
    """Give a training plan."""
    values: dict[str, Any] = {
        "lr": 0.1,
        "item_lr": 1.0,
        "negatives": 2,
        "batch_size": 4,
        "encoding": "float32",
        "check_in_s": 30.0,
        "max_idle_passes": 3,
    }
    return Plan(**(values | changes))


def a_table(n_items: int = len(ITEM_KEYS), dim: int = DIM, seed: int = 0) -> Floats:
    """Give a table, read-only as one that was downloaded."""
    table = np.random.default_rng(seed).standard_normal((n_items, dim), dtype=np.float32)
    table.flags.writeable = False
    return table


def a_head(
    version: int = 0,
    *,
    instance: int = INSTANCE,
    session: int = 1,
    table: Floats | None = None,
    item_keys: Catalogue | Sequence[str] = ITEM_KEYS,
    plan: Plan | None = None,
) -> Head:
    """Give the head of a version."""
    table = a_table() if table is None else table
    content, catalogue = table_bytes(table), catalogue_bytes(item_keys)
    return Head(
        instance=instance,
        session=session,
        version=version,
        rows=len(table),
        dim=table.shape[1],
        sha256=sha256(content),
        slot=version % 2,
        chunks=chunk_count(len(content)),
        catalogue_rows=len(Catalogue.of(item_keys).keys),
        catalogue_chunks=chunk_count(len(catalogue)),
        catalogue_bytes=len(catalogue),
        catalogue_sha256=sha256(catalogue),
        plan=plan or a_plan(),
        w=np.full(table.shape[1], 0.5, dtype=np.float32),
        b=0.25,
    )


def table_chunks(table: Floats) -> list[Chunk]:
    """Cut a table."""
    content = table_bytes(table)
    return list(cut(content, sha256(content)))


def catalogue_chunks(item_keys: Catalogue | Sequence[str] = ITEM_KEYS) -> list[Chunk]:
    """Cut a catalogue."""
    content = catalogue_bytes(item_keys)
    return list(cut(content, sha256(content)))


def a_receipt(
    seq: int = 1,
    verdict: Verdict = "accepted",
    *,
    incarnation: int = INCARNATION,
    reason: str = "",
    check_in_s: float = 30.0,
) -> Receipt:
    """Give an answer to an update."""
    return Receipt(
        incarnation=incarnation,
        seq=seq,
        verdict=verdict,
        reason=reason,
        version=0,
        staleness=0,
        check_in_s=check_in_s,
    )


def a_personal_state(seed: int = 1, rows: Sequence[int] = (1, 4), dim: int = DIM) -> Personal:
    """Give a user's state after a pass."""
    rng = np.random.default_rng(seed)
    return Personal(
        score_function=ScoreFunction(w=rng.standard_normal(dim, dtype=np.float32), b=0.1 + seed),
        own_rows=np.array(rows, dtype=np.int64),
        own_values=rng.standard_normal((len(rows), dim), dtype=np.float32),
    )


def a_store(path: Path) -> DeviceStore:
    """Make a device's database as ``init`` does."""
    store = DeviceStore(path)
    store.set_facts(incarnation=INCARNATION, connection=0)
    return store
