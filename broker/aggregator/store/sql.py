"""The aggregator's store in SQL, once for all databases: see `AggregatorStore`.

A subclass connects, and names what its database complains of. One transaction a batch; its cost is shared by
all updates in it (group commit).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    func,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, NoResultFound

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.decisions import (
    Answered,
    CloseRound,
    CoreState,
    KeepQuality,
)
from broker.aggregator.store import catalogue_rows, journal_rows, version_rows
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
    CATALOGUE,
    DEVICES,
    FACTS,
    JOURNAL,
    START,
    VERSIONS,
)
from broker.aggregator.store.statements import add_to_fact, fact, upsert
from broker.errors import CorruptError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Update
from trainer.params import ScoreFunction


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
        with self.named_failures(), engine.begin() as connection:
            yield connection

    @contextmanager
    def named_failures(self) -> Iterator[None]:
        """Take what the database complains of within for this store's; for this package."""
        with self._failures():
            try:
                yield
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
            version_rows.add(connection, 0, genesis.table, {}, closed_at=genesis.created_at)

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
            journal_rows.spend(connection, rounds, self._name)
            entries = batch.entries(self._keep_versions)
            self.insert_entries(connection, entries)
            journal_rows.note_answered(connection, entries)
            for number, command in enumerate(rounds):
                # Of a batch with many rounds the first may have left the window already.
                kept = number >= len(rounds) - self._keep_versions - 1
                version_rows.add_round(connection, command.round, batch, kept=kept)
            # Each report tells all of its version again: the last is enough.
            found = {each.quality.version: each for each in batch.commands if isinstance(each, KeepQuality)}
            for each in found.values():
                version_rows.keep_quality(connection, each.quality)
            if rounds:
                version_rows.forget(connection, self._keep_versions)

    def load(self, *, answers: bool = True) -> CoreState:
        """See `AggregatorStore.load`."""
        with self.transaction(reading=True) as connection:
            newest = version_rows.newest(connection)
            kept = None if newest is None else version_rows.kept_table(connection, newest, self._name)
            if newest is None or kept is None:
                raise CorruptError(
                    f"{self._name}: the newest table is not there or does not have its SHA-256; "
                    "restore it from a backup or init a new directory"
                )
            answered = {
                (row.device, int(row.incarnation)): Answered(seq=row.seq, verdict=row.verdict)
                for row in (connection.execute(select(ANSWERED)) if answers else ())
            }
            before, quality = version_rows.before(connection, newest, self._name)
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
                rolled_back=version_rows.given_up(connection),
            )

    def insert_entries(self, connection: Connection, entries: Sequence[PlacedEntry]) -> None:
        """Journal entries in a transaction of the caller's, without noting them as answered."""
        if entries:
            journal_rows.add(connection, self._new_ids(connection, len(entries)), entries)

    def pending(self) -> list[tuple[Update, int, int]]:
        """See `AggregatorStore.pending`."""
        with self.transaction(reading=True) as connection:
            return journal_rows.updates(connection, journal_rows.IS_PENDING, self._name)

    def counted(self, version: int) -> list[tuple[Update, int, int]]:
        """See `AggregatorStore.counted`."""
        with self.transaction(reading=True) as connection:
            return journal_rows.updates(connection, JOURNAL.c.version == version, self._name)

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
            return journal_rows.ledger(connection, prefix)

    def updates_counted(self) -> int:
        """See `AggregatorStore.updates_counted`."""
        with self.transaction(reading=True) as connection:
            return int(connection.execute(select(func.sum(VERSIONS.c.updates))).scalar_one() or 0)

    def rounds(self, limit: int) -> list[RoundRecord]:
        """See `AggregatorStore.rounds`."""
        with self.transaction(reading=True) as connection:
            return version_rows.records(connection, limit)

    def kept_table(self, version: int) -> KeptTable | None:
        """See `AggregatorStore.kept_table`."""
        with self.transaction(reading=True) as connection:
            return version_rows.kept_table(connection, version, self._name)

    def decree(self, decree: Decree) -> None:
        """See `AggregatorStore.decree`."""
        with self.transaction() as connection:
            self.decree_within(connection, decree)

    def decree_within(self, connection: Connection, decree: Decree) -> None:
        """Do it within a transaction of the caller."""
        dropped = journal_rows.spend_pending(connection, decree.version) if decree.kind == "rollback" else 0
        version_rows.add(
            connection,
            decree.version,
            decree.kept.table,
            decree.kept.strategy_state,
            closed_at=decree.decreed_at,
            kind=decree.kind,
            source=decree.source,
            dropped=dropped,
        )
        version_rows.note_retired(connection, decree.version)
        if decree.sessions:
            add_to_fact(connection, "session", decree.sessions)
        version_rows.forget(connection, self._keep_versions)
