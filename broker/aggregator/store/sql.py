"""The aggregator's store in SQL, once for all databases: see `AggregatorStore`.

A subclass connects, and names what its database complains of. One transaction a batch; its cost is shared by
all updates in it (group commit).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, NoResultFound

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.decisions import (
    Answered,
    ClosedRound,
    CloseRound,
    CoreState,
    KeepQuality,
)
from broker.aggregator.guard import Restorable, VersionQuality
from broker.aggregator.store import catalogue_rows
from broker.aggregator.store.interface import (
    KEEP_VERSIONS,
    Batch,
    Decree,
    Genesis,
    KeptTable,
    Ledger,
    PlacedEntry,
    RoundRecord,
)
from broker.aggregator.store.migrations import migrate, require_newest
from broker.aggregator.store.schema import (
    ANSWERED,
    BODIES,
    CATALOGUE,
    CATALOGUE_CHANGES,
    DEVICES,
    FACTS,
    JOURNAL,
    QUALITY,
    START,
    STRATEGY_STATE,
    VERSIONS,
)
from broker.aggregator.store.statements import add_to_fact, fact, insert_rows, upsert
from broker.errors import CorruptError, ProtocolError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import MAX_TRANSFER_BYTES, Update, decode
from broker.protocol.versions import sha256, table_bytes
from trainer.params import Floats, ScoreFunction

_IS_ROLLBACK = VERSIONS.c.kind == "rollback"
GAVE_UP = VERSIONS.c.kind.in_(("rollback", "restore"))
"""Versions that were made of an earlier one: those between are not built upon."""
IS_PENDING = JOURNAL.c.version.is_(None) & (JOURNAL.c.verdict == "accepted")


class SqlStore(ABC):
    """See `AggregatorStore`.

    Parameters
    ----------
    name : str
        How messages call the database.
    keep_versions : int
        How many of the newest versions can be made anew.
    looking : bool
        Whether it is left in the shape that it has, as a process of an earlier release may serve from it.

    Raises
    ------
    NewerVersionError
        When a later release wrote it.
    EarlierVersionError
        When an earlier release did, and we are `looking`.
    InUseError
        When an earlier release did, and still serves from it, as far as the database can tell.
    """

    def __init__(
        self, engine: Engine, name: str, keep_versions: int = KEEP_VERSIONS, *, looking: bool = False
    ) -> None:
        self._engine = engine
        self._name = name
        self._keep_versions = keep_versions
        try:
            with self.transaction(reading=looking) as connection:
                if looking:
                    require_newest(connection, name)
                else:
                    migrate(connection, name, self._require_alone)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _failures(self) -> AbstractContextManager[None]:
        """Name what the driver raises within."""

    @abstractmethod
    def _require_alone(self, connection: Connection) -> None:
        """Raise `InUseError` when another process serves from the database, where it can tell."""

    @abstractmethod
    def _new_ids(self, connection: Connection, count: int) -> Sequence[int]:
        """Give ids above all that the journal has."""

    def close(self) -> None:
        """See `AggregatorStore.close`."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[Connection]:
        """Do what the block does whole or not at all; for this package."""
        engine = self._engine.execution_options(reading=reading)
        with self._failures():
            try:
                with engine.begin() as connection:
                    yield connection
            except DBAPIError as error:
                # Through _failures, which knows what the driver's own errors mean.
                raise (error.orig or error) from error
            except NoResultFound as error:
                raise CorruptError(
                    f"{self._name} lacks what init stored; restore it from a backup or init a new directory"
                ) from error

    def initialise(self, genesis: Genesis) -> None:
        """See `AggregatorStore.initialise`."""
        facts = {
            "instance": genesis.instance,
            "dim": genesis.table.shape[1],
            "session": 0,
            "duplicates": 0,
            "refused": 0,
        }
        weights = np.append(genesis.start.w, np.float32(genesis.start.b)).astype("<f4")
        with self.transaction() as connection:
            connection.execute(insert(FACTS), [{"name": n, "value": v} for n, v in facts.items()])
            connection.execute(insert(START), {"weights": weights.tobytes()})
            connection.execute(
                insert(CATALOGUE),
                [
                    {"row": row, "item_key": key, "retired": False}
                    for row, key in enumerate(genesis.item_keys)
                ],
            )
            _insert_version(connection, 0, genesis.table, {}, closed_at=genesis.created_at)

    def is_initialised(self) -> bool:
        """Tell whether a fleet's beginning was stored."""
        with self.transaction(reading=True) as connection:
            return connection.execute(select(FACTS.c.name).limit(1)).first() is not None

    def instance(self) -> int:
        """Give what the fleet's heads are known by."""
        with self.transaction(reading=True) as connection:
            return fact(connection, "instance")

    def commit(self, batch: Batch) -> None:
        """See `AggregatorStore.commit`."""
        with self.transaction() as connection:
            if batch.devices:
                connection.execute(
                    upsert(connection, DEVICES).on_conflict_do_nothing(),
                    # In one order for all who note devices: none waits for another who waits for it.
                    [{"device": device} for device in sorted(batch.devices)],
                )
            for name, amount in (("duplicates", batch.duplicates), ("refused", batch.refused)):
                if amount:
                    add_to_fact(connection, name, amount)
            rounds = [command for command in batch.commands if isinstance(command, CloseRound)]
            self._spend(connection, rounds)
            self._insert_entries(connection, batch.entries(self._keep_versions))
            for number, command in enumerate(rounds):
                # Of a batch with many rounds the first may have left the window already.
                kept = number >= len(rounds) - self._keep_versions - 1
                self._insert_round(connection, command.round, batch, kept=kept)
            # Each report tells all of its version again: the last is enough.
            found = {each.quality.version: each for each in batch.commands if isinstance(each, KeepQuality)}
            for each in found.values():
                _keep_quality(connection, each.quality)
            if rounds:
                self._forget(connection)

    def _insert_round(self, connection: Connection, closed: ClosedRound, batch: Batch, *, kept: bool) -> None:
        _insert_version(
            connection,
            closed.version,
            closed.table,
            closed.strategy_state,
            kept=kept,
            updates=closed.updates,
            staleness_sum=closed.staleness_sum,
            bytes_up=closed.bytes_up,
            by_deadline=closed.by_deadline,
            closed_at=batch.closed_at,
            population=closed.population,
            strategy=batch.strategy,
            dropped=closed.dropped,
            kind="round" if closed.restored is None else "rollback",
            source=closed.restored,
        )
        if closed.catalogue_step is not None:
            catalogue_rows.apply(connection, closed.catalogue_step, closed.version, closed.table)
            _note_retired(connection, closed.version)

    def _spend_pending(self, connection: Connection, version: int) -> int:
        """Mark what waits as a version's own, which counts it, or drops it as a rollback; give how many."""
        return connection.execute(update(JOURNAL).where(IS_PENDING).values(version=version)).rowcount

    def _spend(self, connection: Connection, rounds: Sequence[CloseRound]) -> None:
        """Mark as their own what rounds spend of earlier batches: the first of them all that waits."""
        for command in rounds:
            if command.spends is not None:
                self._spend_named(connection, command.spends, command.round.version)
        whole = next((command for command in rounds if command.spends is None), None)
        if whole is not None:
            self._spend_pending(connection, whole.round.version)

    def _spend_named(self, connection: Connection, ids: Sequence[int], version: int) -> None:
        """Mark entries as a version's own, in this order, which is kept: it may be another than the ids'."""
        if not ids:
            return
        mark = update(JOURNAL).where((JOURNAL.c.id == bindparam("spent")) & IS_PENDING)
        rows = [{"spent": number, "position": place} for place, number in enumerate(ids)]
        done = connection.execute(mark.values(version=version, place=bindparam("position")), rows)
        if done.rowcount != len(ids):
            raise CorruptError(
                f"{self._name}: {len(ids) - done.rowcount} updates of version {version} are not there, "
                "or were counted before; nothing was changed"
            )

    def insert_entries(self, connection: Connection, entries: Sequence[PlacedEntry]) -> None:
        """Journal entries in a transaction of the caller's, without noting them as answered."""
        if not entries:
            return
        ids = self._new_ids(connection, len(entries))
        columns = ("id", "device", "incarnation", "seq", "verdict", "staleness", "base_version", "version")
        insert_rows(
            connection,
            JOURNAL,
            columns,
            [
                (
                    number,
                    entry.device,
                    str(entry.incarnation),
                    entry.seq,
                    entry.verdict,
                    entry.staleness,
                    entry.base_version,
                    version,
                )
                for number, (entry, version, _) in zip(ids, entries, strict=True)
            ],
        )
        bodies = [(number, entry.body) for number, (entry, _, kept) in zip(ids, entries, strict=True) if kept]
        insert_rows(connection, BODIES, ("id", "body"), bodies)

    def _insert_entries(self, connection: Connection, entries: Sequence[PlacedEntry]) -> None:
        if not entries:
            return
        self.insert_entries(connection, entries)
        newest = {(entry.device, str(entry.incarnation)): entry for entry, _, _ in entries}
        noted = upsert(connection, ANSWERED)
        connection.execute(
            noted.on_conflict_do_update(
                index_elements=["device", "incarnation"],
                set_={"seq": noted.excluded.seq, "verdict": noted.excluded.verdict},
            ),
            [
                {"device": device, "incarnation": incarnation, "seq": entry.seq, "verdict": entry.verdict}
                for (device, incarnation), entry in newest.items()
            ],
        )

    def _forget(self, connection: Connection) -> None:
        """Drop what lies before the window; the oldest table that is left is the one it begins with."""
        oldest = connection.execute(
            select(VERSIONS.c.version)
            .order_by(VERSIONS.c.version.desc())
            .offset(self._keep_versions)
            .limit(1)
        ).scalar_one_or_none()
        if oldest is None:
            return
        before = (VERSIONS.c.version < oldest) & VERSIONS.c.item_table.is_not(None)
        # The base's own updates are of no use any more, though its table is.
        first = connection.execute(select(func.min(VERSIONS.c.version)).where(before)).scalar()
        spent = JOURNAL.c.version.between(oldest if first is None else first, oldest)
        connection.execute(delete(BODIES).where(BODIES.c.id.in_(select(JOURNAL.c.id).where(spent))))
        if first is not None:
            # Also of versions that a batch with many rounds made without a table.
            left = VERSIONS.c.version.between(first, oldest - 1)
            connection.execute(update(VERSIONS).where(left).values(item_table=None, retired=None))
        connection.execute(delete(STRATEGY_STATE).where(STRATEGY_STATE.c.version < oldest))

    def load(self, *, answers: bool = True) -> CoreState:
        """See `AggregatorStore.load`."""
        with self.transaction(reading=True) as connection:
            newest = connection.execute(
                select(VERSIONS.c.version).order_by(VERSIONS.c.version.desc()).limit(1)
            ).scalar_one_or_none()
            kept = None if newest is None else self._kept_table(connection, newest)
            if newest is None or kept is None:
                raise CorruptError(
                    f"{self._name}: the newest table is not there or does not have its SHA-256; "
                    "restore it from a backup or init a new directory"
                )
            answered = {
                (row.device, int(row.incarnation)): Answered(seq=row.seq, verdict=row.verdict)
                for row in (connection.execute(select(ANSWERED)) if answers else ())
            }
            before, quality = self._before(connection, newest)
            return CoreState(
                instance=fact(connection, "instance"),
                version=newest,
                table=kept.table,
                answered=answered,
                seen=set(connection.execute(select(DEVICES.c.device)).scalars()),
                strategy_state=kept.strategy_state,
                catalogue=catalogue_rows.read(connection),
                before=before,
                quality=quality,
                rolled_back=[
                    (row.source, row.version)
                    for row in connection.execute(
                        select(VERSIONS.c.version, VERSIONS.c.source).where(
                            GAVE_UP & VERSIONS.c.source.is_not(None)
                        )
                    )
                ],
            )

    def pending(self) -> list[tuple[Update, int, int]]:
        """See `AggregatorStore.pending`."""
        return self._updates(IS_PENDING)

    def counted(self, version: int) -> list[tuple[Update, int, int]]:
        """See `AggregatorStore.counted`."""
        return self._updates(JOURNAL.c.version == version)

    def _updates(self, which: ColumnElement[bool]) -> list[tuple[Update, int, int]]:
        query = (
            select(BODIES.c.body, JOURNAL.c.staleness)
            .join_from(JOURNAL, BODIES, JOURNAL.c.id == BODIES.c.id)
            .where(which)
            .order_by(JOURNAL.c.place, JOURNAL.c.id)
        )
        with self.transaction(reading=True) as connection:
            rows = connection.execute(query).all()
        try:
            return [
                (decode(row.body, Update, max_bytes=MAX_TRANSFER_BYTES), row.staleness, len(row.body))
                for row in rows
            ]
        except ProtocolError as error:
            raise CorruptError(
                f"{self._name}: an update in the journal cannot be read ({error}); "
                "restore it from a backup or init a new directory"
            ) from error

    def start(self) -> ScoreFunction:
        """See `AggregatorStore.start`."""
        with self.transaction(reading=True) as connection:
            weights = np.frombuffer(connection.execute(select(START.c.weights)).scalar_one(), dtype="<f4")
        return ScoreFunction(w=weights[:-1].astype(np.float32), b=float(weights[-1]))

    def item_keys(self) -> tuple[str, ...]:
        """See `AggregatorStore.item_keys`."""
        with self.transaction(reading=True) as connection:
            keys = connection.execute(select(CATALOGUE.c.item_key).order_by(CATALOGUE.c.row)).scalars()
            return tuple(keys)

    def catalogue(self) -> Catalogue:
        """See `AggregatorStore.catalogue`."""
        with self.transaction(reading=True) as connection:
            return catalogue_rows.read(connection)

    def queue_change(self, change: CatalogueChange, queued_at: float) -> int:
        """See `AggregatorStore.queue_change`."""
        with self.transaction() as connection:
            return catalogue_rows.queue(connection, change, fact(connection, "dim"), queued_at)

    def queued_changes(self) -> list[tuple[int, CatalogueChange]]:
        """See `AggregatorStore.queued_changes`."""
        try:
            with self.transaction(reading=True) as connection:
                return catalogue_rows.queued(connection)
        except ValueError as error:
            raise CorruptError(
                f"{self._name}: a change of the catalogue cannot be read; "
                "restore it from a backup or init a new directory"
            ) from error

    def refuse_change(self, number: int, reason: str) -> None:
        """See `AggregatorStore.refuse_change`."""
        with self.transaction() as connection:
            catalogue_rows.refuse(connection, number, reason)

    def change_outcome(self, number: int) -> int | str | None:
        """See `AggregatorStore.change_outcome`."""
        with self.transaction(reading=True) as connection:
            return catalogue_rows.outcome(connection, number)

    def next_session(self, least: int = 1) -> int:
        """See `AggregatorStore.next_session`."""
        with self.transaction() as connection:
            add_to_fact(connection, "session", 1)
            number = fact(connection, "session")
            if number < least:
                add_to_fact(connection, "session", least - number)
            return max(number, least)

    def ledger(self, prefix: str = "") -> Ledger:
        """See `AggregatorStore.ledger`."""
        with self.transaction(reading=True) as connection:
            became = case(
                (JOURNAL.c.verdict != "accepted", JOURNAL.c.verdict),
                (JOURNAL.c.version.is_(None), "pending"),
                (JOURNAL.c.version.in_(select(VERSIONS.c.version).where(_IS_ROLLBACK)), "dropped"),
                else_="counted",
            ).label("became")
            query = (
                select(became, func.count())
                .where(func.substr(JOURNAL.c.device, 1, len(prefix)) == prefix)  # LIKE ignores case
                .group_by(became)
            )
            counts: dict[str, int] = {row.became: row[1] for row in connection.execute(query)}
            return Ledger(
                counted=counts.get("counted", 0),
                pending=counts.get("pending", 0),
                stale=counts.get("stale", 0),
                rejected=counts.get("rejected", 0),
                duplicates=fact(connection, "duplicates"),
                refused=fact(connection, "refused"),
                dropped=counts.get("dropped", 0),
            )

    def updates_counted(self) -> int:
        """See `AggregatorStore.updates_counted`."""
        with self.transaction(reading=True) as connection:
            return int(connection.execute(select(func.sum(VERSIONS.c.updates))).scalar_one() or 0)

    def rounds(self, limit: int) -> list[RoundRecord]:
        """See `AggregatorStore.rounds`."""
        columns = [column for column in VERSIONS.c if column.name != "item_table"]
        changed = VERSIONS.c.version.in_(select(CATALOGUE_CHANGES.c.version)).label("catalogue_changed")
        query = select(*columns, changed).where(VERSIONS.c.version > 0).order_by(VERSIONS.c.version.desc())
        with self.transaction(reading=True) as connection:
            quality = {
                row.version: VersionQuality(**row._asdict())
                for row in connection.execute(select(QUALITY).order_by(QUALITY.c.version.desc()).limit(limit))
            }
            return [
                RoundRecord(
                    version=row.version,
                    updates=row.updates,
                    staleness_mean=row.staleness_sum / max(1, row.updates),
                    bytes_up=row.bytes_up,
                    by_deadline=row.by_deadline,
                    closed_at=row.closed_at,
                    sha256=row.sha256,
                    catalogue_changed=bool(row.catalogue_changed),
                    kind=row.kind,
                    source=row.source,
                    population=row.population,
                    strategy=row.strategy,
                    dropped=row.dropped,
                    quality=quality.get(row.version),
                )
                for row in connection.execute(query.limit(limit))
            ]

    def _before(self, connection: Connection, newest: int) -> tuple[Restorable | None, VersionQuality | None]:
        """Give the version before the newest one and what is known of that, if reports of it still matter."""
        row = connection.execute(select(QUALITY).where(QUALITY.c.version == newest)).one_or_none()
        kind = connection.execute(select(VERSIONS.c.kind).where(VERSIONS.c.version == newest)).scalar_one()
        if kind != "round" or (row is not None and row.finding not in ("trial", "unjudged")):
            return None, None
        kept = self._kept_table(connection, newest - 1)
        if kept is None:
            return None, None
        before = Restorable(version=newest - 1, table=kept.table, memory=kept.strategy_state)
        return before, None if row is None else VersionQuality(**row._asdict())

    def kept_table(self, version: int) -> KeptTable | None:
        """See `AggregatorStore.kept_table`."""
        with self.transaction(reading=True) as connection:
            return self._kept_table(connection, version)

    def _kept_table(self, connection: Connection, version: int) -> KeptTable | None:
        row = connection.execute(
            select(VERSIONS.c.item_table, VERSIONS.c.sha256, VERSIONS.c.retired).where(
                VERSIONS.c.version == version
            )
        ).one_or_none()
        if row is None or row.item_table is None:
            return None
        if sha256(row.item_table) != row.sha256:
            raise CorruptError(
                f"{self._name}: the table of version {version} does not have its SHA-256; "
                "restore it from a backup or init a new directory"
            )
        state = connection.execute(
            select(STRATEGY_STATE).where(STRATEGY_STATE.c.version == version).order_by(STRATEGY_STATE.c.name)
        )
        return KeptTable(
            table=np.frombuffer(row.item_table, dtype="<f4").reshape(-1, fact(connection, "dim")),
            strategy_state={
                each.name: np.frombuffer(each.content, dtype="<f4").reshape(-1, each.width) for each in state
            },
            retired=frozenset(np.frombuffer(row.retired or b"", dtype="<u4").tolist()),
        )

    def decree(self, decree: Decree) -> None:
        """See `AggregatorStore.decree`."""
        with self.transaction() as connection:
            self.decree_within(connection, decree)

    def decree_within(self, connection: Connection, decree: Decree) -> None:
        """Do it within a transaction of the caller."""
        dropped = self._spend_pending(connection, decree.version) if decree.kind == "rollback" else 0
        _insert_version(
            connection,
            decree.version,
            decree.kept.table,
            decree.kept.strategy_state,
            closed_at=decree.decreed_at,
            kind=decree.kind,
            source=decree.source,
            dropped=dropped,
        )
        _note_retired(connection, decree.version)
        if decree.sessions:
            add_to_fact(connection, "session", decree.sessions)
        self._forget(connection)


def _insert_version(
    connection: Connection,
    version: int,
    table: Floats,
    strategy_state: Mapping[str, Floats],
    *,
    kept: bool = True,
    **figures: Any,
) -> None:
    content = table_bytes(table)
    # Most versions leave the catalogue alone.
    retired = connection.execute(
        select(VERSIONS.c.retired).order_by(VERSIONS.c.version.desc()).limit(1)
    ).scalar_one_or_none()
    nothing = {
        "dropped": 0,
        "updates": 0,
        "staleness_sum": 0,
        "bytes_up": 0,
        "by_deadline": False,
        "kind": "round",
    }
    connection.execute(
        insert(VERSIONS),
        nothing
        | {
            "version": version,
            "item_table": content if kept else None,
            "sha256": sha256(content),
            "retired": retired,
        }
        | figures,
    )
    if strategy_state and kept:
        connection.execute(
            insert(STRATEGY_STATE),
            [
                {
                    "version": version,
                    "name": name,
                    "width": values.shape[1],
                    "content": values.astype("<f4").tobytes(),
                }
                for name, values in strategy_state.items()
            ],
        )


def _note_retired(connection: Connection, version: int) -> None:
    rows = np.array(sorted(catalogue_rows.read(connection).retired), dtype="<u4")
    connection.execute(
        update(VERSIONS).where(VERSIONS.c.version == version).values(retired=rows.tobytes() or None)
    )


def _keep_quality(connection: Connection, quality: VersionQuality) -> None:
    values = asdict(quality)
    kept = upsert(connection, QUALITY)
    connection.execute(
        kept.on_conflict_do_update(
            index_elements=["version"], set_={name: kept.excluded[name] for name in values}
        ),
        values,
    )
