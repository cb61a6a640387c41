"""What the aggregator's tests build again and again: updates, cores, stores' contents."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import ClosedRound, CoreState, JournalEntry, RoundSettings
from broker.aggregator.store.interface import Genesis
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import MAX_TRANSFER_BYTES, Update, Verdict, decode, encode
from trainer.aggregation import FedBuff, Strategy
from trainer.params import Floats, ScoreFunction

INSTANCE = 4_711
N_ITEMS = 6
DIM = 3


def a_table(seed: int = 0, n_items: int = N_ITEMS, dim: int = DIM) -> Floats:
    """Give a table of shape (n_items, dim), float32."""
    return np.random.default_rng(seed).standard_normal((n_items, dim), dtype=np.float32)


def a_change(
    seed: int = 0, *, n_items: int = N_ITEMS, dim: int = DIM, scale: float = 1.0, n_rows: int | None = None
) -> SparseChange:
    """Give changes of some rows of a table of shape (n_items, dim)."""
    rng = np.random.default_rng(seed)
    n_rows = int(rng.integers(1, n_items + 1)) if n_rows is None else n_rows
    rows = np.sort(rng.choice(n_items, n_rows, replace=False))
    change = rng.standard_normal((n_rows, dim), dtype=np.float32) * np.float32(scale)
    return SparseChange(rows=rows, change=change)


def an_update(
    *,
    seq: int = 1,
    incarnation: int = 1,
    base_version: int = 0,
    instance: int = INSTANCE,
    encoding: str = "float32",
    change: SparseChange | None = None,
) -> Update:
    """Give an update whose body its encoding made."""
    body = ENCODINGS[encoding].encode(change or a_change(seq))
    return Update(
        instance=instance,
        incarnation=incarnation,
        seq=seq,
        base_version=base_version,
        encoding=encoding,
        body=body,
    )


def decoded(body: bytes) -> Update:
    """Read an update of any size."""
    return decode(body, Update, max_bytes=MAX_TRANSFER_BYTES)


def a_core(
    settings: RoundSettings | None = None,
    strategy: Strategy | None = None,
    *,
    table: Floats | None = None,
    version: int = 0,
    pending: Sequence[tuple[Update, int, int]] = (),
    seen: set[str] | None = None,
) -> AggregatorCore:
    """Give a core; its rounds close with two updates unless told otherwise."""
    state = CoreState(
        instance=INSTANCE,
        version=version,
        table=a_table() if table is None else table,
        seen=set() if seen is None else seen,
    )
    return AggregatorCore(settings or RoundSettings(buffer=2), strategy or FedBuff(), state, pending)


def an_entry(
    *,
    device: str = "pi",
    seq: int = 1,
    incarnation: int = 1,
    verdict: Verdict = "accepted",
    staleness: int = 0,
    base_version: int = 0,
) -> JournalEntry:
    """Give a journal entry; an accepted one has the body of `an_update` with the same numbers."""
    update = an_update(seq=seq, incarnation=incarnation, base_version=base_version)
    return JournalEntry(
        device=device,
        incarnation=incarnation,
        seq=seq,
        verdict=verdict,
        staleness=staleness,
        base_version=base_version,
        body=encode(update) if verdict == "accepted" else None,
    )


def a_round(version: int, **changes: int | bool) -> ClosedRound:
    """Give the outcome of a round that made `version`, with a table and a strategy's state of its own."""
    closed = ClosedRound(
        version=version,
        table=a_table(version),
        updates=2,
        staleness_sum=3,
        bytes_up=200,
        by_deadline=False,
        strategy_state={"m": a_table(version + 100), "scale": a_table(version + 200, 1, 1)},
    )
    return replace(closed, **changes)  # type: ignore[arg-type] # every field but the table is a number


def a_genesis(n_items: int = N_ITEMS, dim: int = DIM) -> Genesis:
    """Give a fleet's beginning."""
    rng = np.random.default_rng(99)
    return Genesis(
        instance=INSTANCE,
        item_keys=[f"item {number} · 映画" for number in range(n_items)],
        table=a_table(n_items=n_items, dim=dim),
        start=ScoreFunction(w=rng.standard_normal(dim).astype(np.float32), b=0.25),
        created_at=1_700_000_000.5,
    )
