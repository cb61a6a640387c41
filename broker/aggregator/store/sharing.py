"""The journal as several workers of one fleet share it, in a PostgreSQL store.

Whether an update was answered before is what the database says, never a worker's memory: its row in
``answered`` moves forward only, in the transaction that journals the update, so that of two workers with the
same update one finds the row moved, stores nothing, and judges again. Numbers in the journal say nothing
about the order in which transactions ended; so the leader takes whatever waits that it has not taken, and
``place`` keeps the order in which it counted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select, update

from broker.aggregator.decisions import Answered, CoreState, JournalEntry
from broker.aggregator.store import version_rows
from broker.aggregator.store.interface import PlacedEntry
from broker.aggregator.store.journal_rows import IS_PENDING
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.schema import ANSWERED, BODIES, CATALOGUE, DEVICES, JOURNAL, VERSIONS
from broker.aggregator.store.statements import fact, upsert
from broker.errors import CorruptError, PFedRecError, ProtocolError
from broker.protocol.messages import MAX_TRANSFER_BYTES, Update, decode
from trainer.params import Floats

_CONTESTED = ("23505", "40001", "40P01")
"""unique_violation, serialization_failure, deadlock_detected."""


class ContestedError(Exception):
    """Another worker has answered one of the updates meanwhile; nothing was stored, judge again."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Waiting:
    """An accepted update that no round has counted; `id` is its number in the journal, `size` in bytes."""

    id: int
    device: str
    update: Update
    staleness: int
    size: int


class SharedJournal:
    """One worker's access to what all share."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._instance = -1
        self._dim = 0
        self._known_version = -1
        self._rolled_back: list[tuple[int, int]] = []

    def state_for(self, devices: Collection[str]) -> CoreState:
        """Give what is needed to judge updates of some devices, as of now.

        The newest version, what was answered, which of the devices are known; the table has its shape alone.
        """
        with self._store.transaction(reading=True) as connection:
            if self._instance < 0:
                self._instance, self._dim = fact(connection, "instance"), fact(connection, "dim")
            version = version_rows.newest(connection) or 0
            if version != self._known_version:
                self._rolled_back += version_rows.given_up(connection, self._known_version)
                self._known_version = version
            rows = connection.execute(select(func.max(CATALOGUE.c.row))).scalar_one() + 1
            answered = connection.execute(select(ANSWERED).where(ANSWERED.c.device.in_(devices)))
            known = connection.execute(select(DEVICES.c.device).where(DEVICES.c.device.in_(devices)))
            return CoreState(
                instance=self._instance,
                version=version,
                table=_shape_alone(rows, self._dim),
                answered={
                    (row.device, int(row.incarnation)): Answered(seq=row.seq, verdict=row.verdict)
                    for row in answered
                },
                seen=set(known.scalars()),
                rolled_back=list(self._rolled_back),
            )

    def record(self, entries: Sequence[JournalEntry], devices: Collection[str]) -> None:
        """Journal verdicts, durably and in one transaction; note `devices`, known or not.

        Raises
        ------
        ContestedError
            When one of the updates was answered since it was judged; nothing was stored.
        """
        try:
            self._record(entries, devices)
        except PFedRecError as error:
            if getattr(error.__cause__, "sqlstate", None) in _CONTESTED:
                raise ContestedError from error
            raise

    def _record(self, entries: Sequence[JournalEntry], devices: Collection[str]) -> None:
        newest = {(entry.device, str(entry.incarnation)): entry for entry in entries}
        with self._store.transaction() as connection:
            if newest:
                noted = upsert(connection, ANSWERED)
                # In one order for all workers: none waits for a row while another waits for one of its own.
                values = [
                    {"device": key[0], "incarnation": key[1], "seq": entry.seq, "verdict": entry.verdict}
                    for key, entry in sorted(newest.items())
                ]
                moved = connection.execute(
                    noted.values(values)
                    .on_conflict_do_update(
                        index_elements=["device", "incarnation"],
                        set_={"seq": noted.excluded.seq, "verdict": noted.excluded.verdict},
                        where=ANSWERED.c.seq < noted.excluded.seq,
                    )
                    .returning(ANSWERED.c.device)
                ).all()
                if len(moved) != len(newest):
                    raise ContestedError
                self._store.insert_entries(
                    connection, [PlacedEntry(entry, None, entry.body is not None) for entry in entries]
                )
            if devices:
                connection.execute(
                    upsert(connection, DEVICES).on_conflict_do_nothing(),
                    [{"device": device} for device in sorted(devices)],
                )

    def waiting(self, taken: Collection[int], most: int) -> list[Waiting]:
        """Give accepted updates that no round has counted, but those `taken` already; at most `most`."""
        query = (
            select(JOURNAL.c.id, JOURNAL.c.device, JOURNAL.c.staleness, BODIES.c.body)
            .join_from(JOURNAL, BODIES, JOURNAL.c.id == BODIES.c.id)
            .where(IS_PENDING & (JOURNAL.c.id != func.all(list(taken))))
            .order_by(JOURNAL.c.id)
            .limit(most)
        )
        with self._store.transaction(reading=True) as connection:
            rows = connection.execute(query).all()
        try:
            return [
                Waiting(
                    id=row.id,
                    device=row.device,
                    update=decode(row.body, Update, max_bytes=MAX_TRANSFER_BYTES),
                    staleness=row.staleness,
                    size=len(row.body),
                )
                for row in rows
            ]
        except ProtocolError as error:
            raise CorruptError(
                f"an update in the journal cannot be read ({error}); restore it from a backup"
            ) from error

    def backlog(self, most: int) -> int:
        """Give how many accepted updates no round has counted; counted up to `most`."""
        some = select(JOURNAL.c.id).where(IS_PENDING).limit(most).subquery()
        with self._store.transaction(reading=True) as connection:
            return connection.execute(select(func.count()).select_from(some)).scalar_one()

    def drop(self, number: int, version: int) -> None:
        """Let the rollback that made `version` drop an update, too, that was accepted meanwhile."""
        with self._store.transaction() as connection:
            dropped = connection.execute(
                update(JOURNAL).where(IS_PENDING & (JOURNAL.c.id == number)).values(version=version)
            ).rowcount
            connection.execute(
                update(VERSIONS)
                .where(VERSIONS.c.version == version)
                .values(dropped=VERSIONS.c.dropped + dropped)
            )

    def n_devices(self) -> int:
        """Give how many devices ever came."""
        with self._store.transaction(reading=True) as connection:
            return connection.execute(select(func.count()).select_from(DEVICES)).scalar_one()

    def knows(self, device: str) -> bool:
        """Tell whether a device has come before."""
        with self._store.transaction(reading=True) as connection:
            found = connection.execute(select(DEVICES.c.device).where(DEVICES.c.device == device))
            return found.first() is not None


def _shape_alone(rows: int, dim: int) -> Floats:
    return np.broadcast_to(np.float32(0.0), (rows, dim))
