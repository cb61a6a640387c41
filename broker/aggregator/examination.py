"""Whether the store's versions are what its journal says: each is made anew, and the hashes are compared.

A round is made anew by the round-closing core itself, from the table before it, the updates that it counted,
and the strategy and population that it was closed with; what the configuration says today does not matter.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, CoreState, RoundSettings
from broker.aggregator.store.interface import AggregatorStore, KeptTable, RoundRecord
from broker.errors import CorruptError, PFedRecError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Update
from broker.protocol.versions import sha256, table_bytes
from trainer.aggregation import AggregationSettings
from trainer.params import Floats

_PAGE = 1_000_000

Judgement = Literal["proved", "kept", "forgotten", "wrong"]
"""Made anew; its hash is right, but nothing is left to make it from; only its figures are left; not so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What was found of a version; `why` is empty for one that was proved."""

    version: int
    judgement: Judgement
    why: str = ""


def examine(store: AggregatorStore) -> Iterator[Examined]:
    """Judge all versions, oldest first; a running aggregator may go on, and close rounds meanwhile."""
    before: tuple[int, KeptTable | None] = (0, _kept(store, 0))
    for record in reversed(store.rounds(_PAGE)):
        kept = _kept(store, record.version)
        yield _judge(store, record, before, kept)
        before = (record.version, kept)


def ledger_agrees(store: AggregatorStore) -> bool:
    """Tell whether versions count as many updates as the journal; for a store that is not served."""
    return store.ledger().counted == store.updates_counted()


def _kept(store: AggregatorStore, version: int) -> KeptTable | None:
    try:
        return store.kept_table(version)
    except CorruptError:
        return KeptTable(table=np.zeros((0, 0), dtype=np.float32), strategy_state={})


def _judge(
    store: AggregatorStore, record: RoundRecord, before: tuple[int, KeptTable | None], kept: KeptTable | None
) -> Examined:
    if kept is None:
        return _judged(record, "forgotten", "it has left the window")
    if sha256(table_bytes(kept.table)) != record.sha256:
        return _judged(record, "wrong", "its table does not have its SHA-256")
    if record.kind == "rollback":
        return _judge_rollback(store, record, kept)
    if record.kind != "round":
        return _judged(record, "kept", f"made by {record.kind}, not from updates")
    version_before, table_before = before
    if table_before is None:
        return _judged(record, "kept", f"the table of version {version_before} before it has left the window")
    if record.population is None or record.strategy is None:
        return _judged(record, "kept", "closed by an earlier release, which did not keep what it was made of")
    updates = store.counted(record.version)
    if len(updates) == record.updates:
        return _unless_overflowed(_judge_round(record, table_before, updates, kept), record, kept)
    if _kept(store, version_before) is None:
        return _judged(record, "kept", "it left the window while we looked")
    return _judged(record, "wrong", f"of its {record.updates} updates {len(updates)} are there")


def _unless_overflowed(judged: Examined, record: RoundRecord, kept: KeptTable) -> Examined:
    finite = all(bool(np.isfinite(each).all()) for each in (kept.table, *kept.strategy_state.values()))
    if finite or judged.judgement == "proved":
        return judged
    return _judged(record, "kept", "its values overflowed in an earlier release, as none do in this one")


def _judged(record: RoundRecord, judgement: Judgement, why: str = "") -> Examined:
    return Examined(version=record.version, judgement=judgement, why=why)


def _judge_round(
    record: RoundRecord, before: KeptTable, updates: list[tuple[Update, int, int]], kept: KeptTable
) -> Examined:
    try:
        table, memory = _made_anew(record, before, updates)
    except (ValueError, TypeError, PFedRecError) as error:
        return _judged(record, "wrong", f"it cannot be made anew: {error}")
    # Rows that a change of the catalogue appended are as they were stored.
    anew = np.concatenate([table, kept.table[len(table) :]])
    if sha256(table_bytes(anew)) != record.sha256:
        return _judged(record, "wrong", "made anew from its updates, its table has another SHA-256")
    for name, values in memory.items():
        stored = kept.strategy_state.get(name)
        if stored is None or not np.array_equal(values, stored[: len(values)]):
            return _judged(record, "wrong", f"made anew, what the strategy remembers ({name}) is another")
    return _judged(record, "proved")


def _made_anew(
    record: RoundRecord, before: KeptTable, updates: list[tuple[Update, int, int]]
) -> tuple[Floats, Mapping[str, Floats]]:
    if not updates:
        return before.table, before.strategy_state
    rows = tuple(str(row) for row in range(len(before.table)))
    state = CoreState(
        instance=0,
        version=record.version - 1,
        table=before.table,
        strategy_state=before.strategy_state,
        catalogue=Catalogue(rows, before.retired),
    )
    rounds = RoundSettings(buffer=len(updates), deadline_s=None, population=record.population)
    strategy = AggregationSettings(**json.loads(record.strategy or "")).make()
    commands = AggregatorCore(rounds, strategy, state, updates).tick(0.0)
    closed = next(command.round for command in commands if isinstance(command, CloseRound))
    return closed.table, closed.strategy_state


def _judge_rollback(store: AggregatorStore, record: RoundRecord, kept: KeptTable) -> Examined:
    source = None if record.source is None else _kept(store, record.source)
    if source is None:
        return _judged(record, "kept", "the version it returned to has left")
    if np.array_equal(source.table, kept.table[: len(source.table)]):
        return _judged(record, "proved")
    return _judged(record, "wrong", f"it is not the table of version {record.source}")
