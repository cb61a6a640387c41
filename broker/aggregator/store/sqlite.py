"""The aggregator's store in one SQLite file: write-ahead log, full durability, one transaction a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, create_engine, delete, event, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.pool import StaticPool

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.core import Answered, ClosedRound, CloseRound, CoreState, JournalEntry
from broker.aggregator.store import catalogue_rows
from broker.aggregator.store.interface import Batch, Genesis, Ledger, RoundRecord
from broker.aggregator.store.migrations import migrate
from broker.aggregator.store.schema import (
    ANSWERED,
    CATALOGUE,
    CATALOGUE_CHANGES,
    DEVICES,
    FACTS,
    JOURNAL,
    START,
    STRATEGY_STATE,
    VERSIONS,
)
from broker.errors import CorruptError, ProtocolError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import MAX_TRANSFER_BYTES, Update, decode
from broker.protocol.versions import sha256, table_bytes
from broker.storage import connect_sqlite, named_failures
from trainer.params import Floats, ScoreFunction

KEPT_TABLES = 8
"""Versions whose whole table is kept; of older ones the figures and the hash remain."""


class SqliteStore:
    """See `AggregatorStore`.

    Parameters
    ----------
    path : Path
        The database; made where missing.

    Raises
    ------
    NewerVersionError
        When a later release wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine("sqlite://", creator=lambda: connect_sqlite(path), poolclass=StaticPool)
        event.listen(self._engine, "begin", _begin)
        try:
            with self._transaction() as connection:
                migrate(connection, path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `AggregatorStore.close`."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[Connection]:
        engine = self._engine.execution_options(reading=reading)
        with named_failures(self._path):
            try:
                with engine.begin() as connection:
                    yield connection
            except DBAPIError as error:
                # Through named_failures, which knows what SQLite's own errors mean.
                raise (error.orig or error) from error
            except NoResultFound as error:
                raise CorruptError(
                    f"{self._path} lacks what init stored; restore it from a backup or init a new directory"
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
        first = ClosedRound(
            version=0, table=genesis.table, updates=0, staleness_sum=0, bytes_up=0, by_deadline=False
        )
        with self._transaction() as connection:
            connection.execute(insert(FACTS), [{"name": n, "value": v} for n, v in facts.items()])
            connection.execute(insert(START), {"weights": weights.tobytes()})
            connection.execute(
                insert(CATALOGUE),
                [
                    {"row": row, "item_key": key, "retired": False}
                    for row, key in enumerate(genesis.item_keys)
                ],
            )
            _insert_version(connection, first, genesis.created_at)

    def commit(self, batch: Batch) -> None:
        """See `AggregatorStore.commit`."""
        with self._transaction() as connection:
            if batch.devices:
                connection.execute(
                    upsert(DEVICES).on_conflict_do_nothing(), [{"device": d} for d in batch.devices]
                )
            for name, amount in (("duplicates", batch.duplicates), ("refused", batch.refused)):
                if amount:
                    connection.execute(
                        update(FACTS).where(FACTS.c.name == name).values(value=FACTS.c.value + amount)
                    )
            entries: list[JournalEntry] = []
            for command in batch.commands:
                if isinstance(command, CloseRound):
                    _close_round(connection, command.round, entries, batch.closed_at)
                    entries = []
                else:
                    entries.append(command.entry)
            _insert_entries(connection, entries, None)

    def load(self) -> CoreState:
        """See `AggregatorStore.load`."""
        with self._transaction(reading=True) as connection:
            newest = connection.execute(
                select(VERSIONS).order_by(VERSIONS.c.version.desc()).limit(1)
            ).one_or_none()
            if newest is None or sha256(newest.item_table or b"") != newest.sha256:
                raise CorruptError(
                    f"{self._path}: the newest table is not there or does not have its SHA-256; "
                    "restore it from a backup or init a new directory"
                )
            answered = {
                (row.device, int(row.incarnation)): Answered(seq=row.seq, verdict=row.verdict)
                for row in connection.execute(select(ANSWERED))
            }
            return CoreState(
                instance=_fact(connection, "instance"),
                version=newest.version,
                table=np.frombuffer(newest.item_table, dtype="<f4").reshape(-1, _fact(connection, "dim")),
                answered=answered,
                seen=set(connection.execute(select(DEVICES.c.device)).scalars()),
                strategy_state=_strategy_state(connection, newest.version),
                catalogue=catalogue_rows.read(connection),
            )

    def pending(self) -> list[tuple[Update, int, int]]:
        """See `AggregatorStore.pending`."""
        with self._transaction(reading=True) as connection:
            rows = connection.execute(
                select(JOURNAL.c.body, JOURNAL.c.staleness)
                .where(JOURNAL.c.body.is_not(None))
                .order_by(JOURNAL.c.id)
            ).all()
        try:
            return [
                (decode(row.body, Update, max_bytes=MAX_TRANSFER_BYTES), row.staleness, len(row.body))
                for row in rows
            ]
        except ProtocolError as error:
            raise CorruptError(
                f"{self._path}: an update in the journal cannot be read ({error}); "
                "restore it from a backup or init a new directory"
            ) from error

    def start(self) -> ScoreFunction:
        """See `AggregatorStore.start`."""
        with self._transaction(reading=True) as connection:
            weights = np.frombuffer(connection.execute(select(START.c.weights)).scalar_one(), dtype="<f4")
        return ScoreFunction(w=weights[:-1].astype(np.float32), b=float(weights[-1]))

    def item_keys(self) -> tuple[str, ...]:
        """See `AggregatorStore.item_keys`."""
        with self._transaction(reading=True) as connection:
            keys = connection.execute(select(CATALOGUE.c.item_key).order_by(CATALOGUE.c.row)).scalars()
            return tuple(keys)

    def catalogue(self) -> Catalogue:
        """See `AggregatorStore.catalogue`."""
        with self._transaction(reading=True) as connection:
            return catalogue_rows.read(connection)

    def queue_change(self, change: CatalogueChange, queued_at: float) -> int:
        """See `AggregatorStore.queue_change`."""
        with self._transaction() as connection:
            return catalogue_rows.queue(connection, change, _fact(connection, "dim"), queued_at)

    def queued_changes(self) -> list[tuple[int, CatalogueChange]]:
        """See `AggregatorStore.queued_changes`."""
        try:
            with self._transaction(reading=True) as connection:
                return catalogue_rows.queued(connection)
        except ValueError as error:
            raise CorruptError(
                f"{self._path}: a change of the catalogue cannot be read; "
                "restore it from a backup or init a new directory"
            ) from error

    def refuse_change(self, number: int, reason: str) -> None:
        """See `AggregatorStore.refuse_change`."""
        with self._transaction() as connection:
            catalogue_rows.refuse(connection, number, reason)

    def change_outcome(self, number: int) -> int | str | None:
        """See `AggregatorStore.change_outcome`."""
        with self._transaction(reading=True) as connection:
            return catalogue_rows.outcome(connection, number)

    def next_session(self) -> int:
        """See `AggregatorStore.next_session`."""
        with self._transaction() as connection:
            connection.execute(update(FACTS).where(FACTS.c.name == "session").values(value=FACTS.c.value + 1))
            return _fact(connection, "session")

    def ledger(self, prefix: str = "") -> Ledger:
        """See `AggregatorStore.ledger`."""
        with self._transaction(reading=True) as connection:
            counts: dict[str, int] = {}
            for verdict, is_pending, count in connection.execute(
                select(JOURNAL.c.verdict, JOURNAL.c.version.is_(None), func.count())
                .where(func.substr(JOURNAL.c.device, 1, len(prefix)) == prefix)  # LIKE ignores case
                .group_by(JOURNAL.c.verdict, JOURNAL.c.version.is_(None))
            ):
                name = {True: "pending", False: "counted"}[bool(is_pending)]
                counts[name if verdict == "accepted" else verdict] = count
            return Ledger(
                counted=counts.get("counted", 0),
                pending=counts.get("pending", 0),
                stale=counts.get("stale", 0),
                rejected=counts.get("rejected", 0),
                duplicates=_fact(connection, "duplicates"),
                refused=_fact(connection, "refused"),
            )

    def rounds(self, limit: int) -> list[RoundRecord]:
        """See `AggregatorStore.rounds`."""
        columns = [column for column in VERSIONS.c if column.name != "item_table"]
        changed = VERSIONS.c.version.in_(select(CATALOGUE_CHANGES.c.version)).label("catalogue_changed")
        query = select(*columns, changed).where(VERSIONS.c.version > 0).order_by(VERSIONS.c.version.desc())
        with self._transaction(reading=True) as connection:
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
                )
                for row in connection.execute(query.limit(limit))
            ]


def _begin(connection: Connection) -> None:
    # The driver leaves transactions alone. A writing one takes the lock at once, so that it never fails
    # half-way because somebody else wrote in between.
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _fact(connection: Connection, name: str) -> int:
    return int(connection.execute(select(FACTS.c.value).where(FACTS.c.name == name)).scalar_one())


def _insert_entries(connection: Connection, entries: list[JournalEntry], version: int | None) -> None:
    """Journal the entries; `version` is the round that counts the accepted ones, None if none does yet."""
    if not entries:
        return
    rows: list[dict[str, Any]] = []
    for entry in entries:
        spent = version is not None and entry.body is not None
        rows.append(
            {
                "device": entry.device,
                "incarnation": str(entry.incarnation),
                "seq": entry.seq,
                "verdict": entry.verdict,
                "staleness": entry.staleness,
                "base_version": entry.base_version,
                "version": version if spent else None,
                "body": None if spent else entry.body,
            }
        )
    connection.execute(insert(JOURNAL), rows)
    newest = upsert(ANSWERED)
    connection.execute(
        newest.on_conflict_do_update(
            index_elements=["device", "incarnation"],
            set_={"seq": newest.excluded.seq, "verdict": newest.excluded.verdict},
        ),
        [{name: row[name] for name in ("device", "incarnation", "seq", "verdict")} for row in rows],
    )


def _close_round(
    connection: Connection, closed: ClosedRound, entries: list[JournalEntry], closed_at: float
) -> None:
    connection.execute(
        update(JOURNAL).where(JOURNAL.c.body.is_not(None)).values(version=closed.version, body=None)
    )
    _insert_entries(connection, entries, closed.version)
    _insert_version(connection, closed, closed_at)
    if closed.catalogue_step is not None:
        catalogue_rows.apply(connection, closed.catalogue_step, closed.version, closed.table)
    forgotten = closed.version - KEPT_TABLES
    connection.execute(update(VERSIONS).where(VERSIONS.c.version == forgotten).values(item_table=None))
    connection.execute(delete(STRATEGY_STATE).where(STRATEGY_STATE.c.version == forgotten))


def _insert_version(connection: Connection, closed: ClosedRound, closed_at: float) -> None:
    content = table_bytes(closed.table)
    connection.execute(
        insert(VERSIONS),
        {
            "version": closed.version,
            "item_table": content,
            "sha256": sha256(content),
            "updates": closed.updates,
            "staleness_sum": closed.staleness_sum,
            "bytes_up": closed.bytes_up,
            "by_deadline": closed.by_deadline,
            "closed_at": closed_at,
        },
    )
    if closed.strategy_state:
        connection.execute(
            insert(STRATEGY_STATE),
            [
                {
                    "version": closed.version,
                    "name": name,
                    "width": values.shape[1],
                    "content": values.astype("<f4").tobytes(),
                }
                for name, values in closed.strategy_state.items()
            ],
        )


def _strategy_state(connection: Connection, version: int) -> dict[str, Floats]:
    query = select(STRATEGY_STATE).where(STRATEGY_STATE.c.version == version).order_by(STRATEGY_STATE.c.name)
    return {
        row.name: np.frombuffer(row.content, dtype="<f4").reshape(-1, row.width)
        for row in connection.execute(query)
    }
