"""The device's memory.

Whatever belongs together is written in one transaction: a pass's personal state with the update it made and
that update's number; a table with its head and catalogue. ``edge-client record`` and ``forget`` write to
the same file while the agent runs; the agent notices by `changes`.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np

from broker.errors import EncodingError, InUseError, ProtocolError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head, Verdict, decode, encode
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes
from broker.storage import sync_file
from edge import erasure, retention
from edge.database import Database
from edge.erasure import Erased, Selection
from edge.personal import Personal
from edge.retention import Retention
from edge.scheduler import Progress
from edge.session import Remembered
from trainer.params import Floats, Rows, ScoreFunction

_ROW_OF = (
    "coalesce((SELECT row FROM catalogue WHERE item = {0}), (SELECT row FROM former_keys WHERE item = {0}))"
)
"""The row of an item key: a row's own, or one that a row had before."""
_ALLOWANCE = ("table_allowance", "table_allowance_at")
"""Facts: see `DeviceStore.table_allowance`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """A table, shape (rows, dim) float32, and the head that announced it."""

    head: Head
    table: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interacted:
    """The user's interactions as training sees them.

    Attributes
    ----------
    revision : int
        Grows with each interaction, and when the user forgets some.
    rows : ndarray, shape (n_known,), int64
        Distinct rows of the catalogue, in the order of the first interaction with each.
    newest : ndarray, shape (n_known,), int64
        The same rows in the order of the last interaction with each, the newest last.
    retired : ndarray, shape (n_retired,), int64
        Rows of the catalogue that are neither recommended nor drawn as negatives, ascending.
    unknown : int
        Distinct items that the catalogue does not have (yet).
    total : int
        All interactions.
    erasures : int
        How often the user has forgotten something.
    """

    revision: int
    rows: Rows
    newest: Rows
    retired: Rows
    unknown: int
    total: int
    erasures: int


class DeviceStore(Database):
    """One device's database: what `edge.database` says, and what is in it.

    Every method raises CorruptError, DiskFullError, InUseError or NotWritableError for what it says;
    a failed call changes nothing.
    """

    # -- facts -------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """Give a fact's value, None if it was never set."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set_facts(self, **facts: object) -> None:
        """Set facts by name."""
        with self._transaction() as connection:
            _set_facts(connection, facts)

    def remembered(self) -> Remembered:
        """Give what a session must know after a restart."""
        facts = dict(self._rows("SELECT name, value FROM facts"))
        outbox = self._rows("SELECT seq FROM outbox ORDER BY seq LIMIT 1")
        model, held = self.model_head(), self.held_head()
        if "incarnation" not in facts:
            raise self._damaged("the device's own number is missing")
        try:
            incarnation, last_seq = int(facts["incarnation"]), int(facts.get("seq", 0))
            progress = self._progress()
        except (TypeError, ValueError) as error:
            raise self._damaged("a number of the device's own cannot be read") from error
        return Remembered(
            incarnation=incarnation,
            instance=None if model is None else model.instance,
            version=None if model is None else model.version,
            table_sha256=None if model is None else model.sha256,
            catalogue_sha256=None if model is None else model.catalogue_sha256,
            last_seq=last_seq,
            outbox_seq=outbox[0][0] if outbox else None,
            progress=progress,
            held=held,
        )

    def _progress(self) -> Progress:
        names = [field.name for field in fields(Progress)]
        facts = dict(self._rows("SELECT name, value FROM facts"))
        return Progress(**{name: int(facts[name]) for name in names if name in facts})

    # -- interactions ------------------------------------------------------------------------------

    def record(self, interactions: Sequence[tuple[str, float]]) -> None:
        """Add interactions, all or none: item key and time in seconds since the epoch. Durable on return."""
        with self._transaction() as connection:
            connection.executemany("INSERT INTO interactions (item, at) VALUES (?, ?)", interactions)

    def record_once(self, interactions: Sequence[tuple[str, float, bytes | None]]) -> int:
        """Add interactions that may have been sent before, all or none; give how many were new.

        Each is an item key, a time in seconds since the epoch, and an identity: of those with the same one
        only the first ever counts. Without an identity (None) it always counts. Durable on return.
        """
        n_new = 0
        with self._transaction() as connection:
            for item, at, identity in interactions:
                if (
                    identity is not None
                    and connection.execute(
                        "SELECT 1 FROM identities WHERE identity = ?", (identity,)
                    ).fetchone()
                ):
                    continue
                added = connection.execute("INSERT INTO interactions (item, at) VALUES (?, ?)", (item, at))
                if identity is not None:
                    connection.execute(
                        "INSERT INTO identities (identity, interaction) VALUES (?, ?)",
                        (identity, added.lastrowid),
                    )
                n_new += 1
        return n_new

    def interacted(self) -> Interacted:
        """Give the interactions as training sees them."""
        # First of all: if the user forgets something meanwhile, a pass with these rows is not stored.
        erasures = self.erasures()
        rows = self._rows(
            f"SELECT {_ROW_OF.format('i.item')} AS row, max(i.at), max(i.id) FROM interactions i "  # noqa: S608
            "WHERE row IS NOT NULL GROUP BY row ORDER BY min(i.at), min(i.id)"
        )
        newest = sorted(rows, key=lambda row: row[1:])
        [(total,)] = self._rows("SELECT count(*) FROM interactions")
        [(unknown,)] = self._rows(
            f"SELECT count(DISTINCT item) FROM interactions i WHERE {_ROW_OF.format('i.item')} IS NULL"  # noqa: S608
        )
        with self._named():
            revision = erasure.revision(self._connection)
        return Interacted(
            revision=revision,
            rows=np.array([row for row, *_ in rows], dtype=np.int64),
            newest=np.array([row for row, *_ in newest], dtype=np.int64),
            retired=self.retired_rows(),
            unknown=unknown,
            total=total,
            erasures=erasures,
        )

    def newest_interaction_at(self) -> float | None:
        """Give the latest time of an interaction, in seconds since the epoch."""
        return self._rows("SELECT max(at) FROM interactions")[0][0]  # type: ignore[no-any-return]

    def erasures(self) -> int:
        """Give how often the user has forgotten something."""
        return int(self.fact(erasure.ERASURES) or 0)

    def withdrawn(self) -> int:
        """Give how many updates left the outbox without an answer."""
        return int(self.fact(erasure.WITHDRAWN) or 0)

    def interactions(self) -> list[tuple[str, float]]:
        """Give all interactions by time: item key and time in seconds since the epoch."""
        return self._rows("SELECT item, at FROM interactions ORDER BY at, id")

    def compact(self, rule: Retention, now: float) -> int:
        """Remove some of the interactions that `rule` does not keep; give how many: a bounded number."""
        with self._transaction() as connection, erasure.overwriting(connection):
            return retention.compact(connection, rule, now)

    def forget(self, selection: Selection) -> Erased:
        """Forget interactions, the personal state and the outbox's update; then `scrub` the file."""
        with self._transaction() as connection, erasure.overwriting(connection):
            return erasure.forget(connection, selection)

    def reset(self, incarnation: int, *, keep_interactions: bool) -> Erased:
        """Forget everything but, if told, the interactions; then `scrub` the file."""
        with self._transaction() as connection, erasure.overwriting(connection):
            return erasure.reset(connection, incarnation, keep_interactions=keep_interactions)

    def scrub(self) -> None:
        """Leave no byte of what was forgotten in the file or its log.

        Raises
        ------
        DiskFullError, InUseError
            What was forgotten stays forgotten; the call can be made again.
        """
        with self._named():
            done = erasure.scrub(self._connection)
        # SQLite cuts its log to nothing, but does not wait until the disk knows.
        sync_file(self._path.with_name(f"{self._path.name}-wal"))
        if not done:
            raise InUseError(
                f"{self._path} is being read by another process, so that its log may still hold what was "
                "forgotten; call again"
            )

    # -- model -------------------------------------------------------------------------------------

    def replace_model(
        self,
        head: Head,
        table: Floats,
        catalogue: Catalogue | Sequence[str] | None,
        *,
        allowance: tuple[float, float] | None = None,
    ) -> None:
        """Put a checked table, its head and (if given) its catalogue in the place of those before.

        The personal state of another aggregator's table means nothing for this one and is dropped.

        Parameters
        ----------
        allowance : tuple of float, optional
            What `table_allowance` gives from then on.
        """
        with self._transaction() as connection:
            held = self.held_head()
            personal = self.personal()
            if not head.follows(held) or (personal is not None and not personal.fits(table)):
                connection.execute("DELETE FROM personal")
            _set_facts(connection, asdict(self._progress().with_table(head, held)))
            if allowance is not None:
                _set_facts(connection, dict(zip(_ALLOWANCE, allowance, strict=True)))
            connection.execute("DELETE FROM facts WHERE name = ?", (erasure.HELD_HEAD,))
            connection.execute(
                "INSERT INTO model (id, head, item_table) VALUES (1, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET head = excluded.head, item_table = excluded.item_table",
                (encode(head), table_bytes(table)),
            )
            if catalogue is not None:
                insert_catalogue(connection, Catalogue.of(catalogue))

    def hold(self, head: Head) -> None:
        """Remember the head of a table of the same aggregator's that is held in memory only."""
        with self._transaction() as connection:
            progress = self._progress().with_table(head, self.held_head())
            _set_facts(connection, asdict(progress) | {erasure.HELD_HEAD: encode(head)})

    def held_head(self) -> Head | None:
        """Give the head of the newest table that was on the device, in memory or in this file."""
        held = self.fact(erasure.HELD_HEAD)
        return self._kept_head() if held is None else self._head(held)

    def holds_newer(self) -> bool:
        """Tell whether the newest table is, or was, in the memory of ``start`` only."""
        return self.fact(erasure.HELD_HEAD) is not None

    def table_allowance(self) -> tuple[float, float] | None:
        """Give what was left to write for newer tables, in bytes, and when, in seconds since the epoch."""
        left, at = (self.fact(name) for name in _ALLOWANCE)
        return None if left is None or at is None else (float(left), float(at))

    def model_head(self) -> Head | None:
        """Give the head of the table in this file; `held_head` may be newer."""
        rows = self._rows("SELECT head FROM model WHERE length(item_table) > 0")
        return self._head(rows[0][0]) if rows else None

    def _kept_head(self) -> Head | None:
        """Give the head of the table that the personal state belongs to, even if that is lost."""
        rows = self._rows("SELECT head FROM model")
        return self._head(rows[0][0]) if rows else None

    def _head(self, content: bytes) -> Head:
        try:
            return decode(content, Head)
        except (ProtocolError, TypeError) as error:
            raise self._damaged(f"the head of the item table cannot be read: {error}") from error

    def model(self) -> Model | None:
        """Give the table in this file.

        Raises
        ------
        CorruptError
            When it does not have its hash any more.
        """
        rows = self._rows("SELECT head, item_table FROM model WHERE length(item_table) > 0")
        if not rows:
            return None
        head = self._head(rows[0][0])
        if sha256(rows[0][1]) != head.sha256:
            raise self._damaged("the item table does not have its SHA-256")
        return Model(head=head, table=np.frombuffer(rows[0][1], dtype="<f4").reshape(head.rows, head.dim))

    def check(self) -> None:
        """Read everything, and compare it with its hashes.

        Raises
        ------
        CorruptError
            For what is damaged first.
        """
        [(found,)] = self._rows("PRAGMA quick_check(1)")
        if found != "ok":
            raise self._damaged(str(found).replace("\n", " "))
        self.remembered()
        model, personal = self.model(), self.personal()
        if model is None:
            return
        if sha256(catalogue_bytes(self.marked_catalogue())) != model.head.catalogue_sha256:
            raise self._damaged("the catalogue does not have its SHA-256")
        if personal is not None and not personal.fits(model.table):
            raise self._damaged("the personal state is not one of the item table")

    def has_catalogue(self) -> bool:
        """Tell whether item keys can be checked."""
        return bool(self._rows("SELECT 1 FROM catalogue LIMIT 1"))

    def catalogue(self) -> list[str]:
        """Give all item keys in row order."""
        return [key for (key,) in self._rows("SELECT item FROM catalogue ORDER BY row")]

    def marked_catalogue(self) -> Catalogue:
        """Give the whole catalogue, with its retired rows and former keys."""
        former = self._rows("SELECT item, row FROM former_keys")
        return Catalogue(
            tuple(self.catalogue()), frozenset(int(row) for row in self.retired_rows()), dict(former)
        )

    def retired_rows(self) -> Rows:
        """Give the rows that are neither recommended nor drawn as negatives, ascending; int64."""
        rows = self._rows("SELECT row FROM catalogue WHERE retired ORDER BY row")
        return np.array([row for (row,) in rows], dtype=np.int64)

    def unknown_items(self, keys: Sequence[str]) -> list[str]:
        """Give those of `keys` that the catalogue does not have, under this or a former name."""
        return [key for key in keys if self._row(key) is None]

    def item_rows(self, keys: Sequence[str]) -> Rows:
        """Give the rows of those of `keys` that the catalogue has; shape (n,), int64."""
        found = [self._row(key) for key in keys]
        return np.array([row for row in found if row is not None], dtype=np.int64)

    def _row(self, key: str) -> int | None:
        return self._rows(f"SELECT {_ROW_OF.format('?1')}", key)[0][0]  # type: ignore[no-any-return]

    def item_keys(self, rows: Rows) -> list[str]:
        """Give the keys of catalogue rows."""
        query = "SELECT item FROM catalogue WHERE row = ?"
        return [self._rows(query, int(row))[0][0] for row in rows]

    # -- passes and updates ------------------------------------------------------------------------

    def personal(self) -> Personal | None:
        """Give the personal state, None before the first pass."""
        rows = self._rows("SELECT w, b, own_rows, own_values FROM personal")
        if not rows:
            return None
        try:
            return personal_from_bytes(*rows[0])
        except ValueError as error:
            raise self._damaged("the personal state cannot be read") from error

    def save_pass(
        self,
        personal: Personal | None,
        progress: Progress,
        update: tuple[int, bytes] | None,
        *,
        at: float | None = None,
        erasures: int | None = None,
    ) -> bool:
        """Store a pass's results: the personal state, and the update that it made, if any.

        The outbox holds one update at most: an older one that still waits is superseded.

        Parameters
        ----------
        personal : Personal or None
            None: it is kept elsewhere, and what is here stays as it is.
        at : float, optional
            When it was made, in seconds since the epoch.
        erasures : int, optional
            Of the interactions that the pass was made with. If the user has forgotten something since,
            nothing is stored, and the answer is False.
        """
        facts: dict[str, object] = asdict(progress)
        if at is not None:
            facts["trained_at"] = at
        with self._transaction() as connection:
            if erasures is not None and erasures != self.erasures():
                return False
            if personal is not None:
                connection.execute(
                    "INSERT INTO personal (id, w, b, own_rows, own_values) VALUES (1, ?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET w = excluded.w, b = excluded.b, "
                    "own_rows = excluded.own_rows, own_values = excluded.own_values",
                    personal_bytes(personal),
                )
            if update is not None:
                seq, payload = update
                superseded = connection.execute("DELETE FROM outbox WHERE seq < ?", (seq,)).rowcount
                erasure.count(connection, erasure.WITHDRAWN, superseded)
                connection.execute(
                    "INSERT INTO outbox (seq, payload, sends) VALUES (?, ?, 0)", (seq, payload)
                )
                facts["seq"] = seq
            _set_facts(connection, facts)
        return True

    def outbox(self, seq: int) -> bytes:
        """Give the encoded update `seq` that waits for its receipt."""
        return bytes(self._rows("SELECT payload FROM outbox WHERE seq = ?", seq)[0][0])

    def sending(self, seq: int) -> bytes | None:
        """Note that the update `seq` is about to be sent, and give it; None if it was taken back."""
        with self._transaction() as connection:
            connection.execute("UPDATE outbox SET sends = sends + 1 WHERE seq = ? AND sends < 2", (seq,))
            rows = connection.execute("SELECT payload FROM outbox WHERE seq = ?", (seq,)).fetchall()
        return bytes(rows[0][0]) if rows else None

    def settle(self, seq: int, verdict: Verdict) -> bool:
        """Take an answered update out of the outbox and count its verdict; nothing if it was taken back.

        Tell whether the answer shows that its number was used before: a `duplicate` that was sent only once.
        Then the database is older than what this device has sent, for example restored from a backup, and
        the caller must draw a new incarnation, or the fleet would take more updates for duplicates.
        """
        with self._transaction() as connection:
            waited = connection.execute("DELETE FROM outbox WHERE seq = ? RETURNING sends", (seq,)).fetchall()
            if not waited:
                return False
            connection.execute(
                "INSERT INTO receipts (verdict, count) VALUES (?, 1) "
                "ON CONFLICT (verdict) DO UPDATE SET count = count + 1",
                (verdict,),
            )
        return verdict == "duplicate" and waited[0][0] == 1

    def receipts(self) -> dict[str, int]:
        """Give how many receipts of each verdict came."""
        return dict(self._rows("SELECT verdict, count FROM receipts"))

    def outbox_size(self) -> int:
        """Give how many updates wait."""
        return int(self._rows("SELECT count(*) FROM outbox")[0][0])


def insert_catalogue(connection: sqlite3.Connection, catalogue: Catalogue) -> None:
    """Put a catalogue in the place of the one before, within a transaction; what stays is not written."""
    before = connection.execute("SELECT row, item, retired FROM catalogue ORDER BY row")
    wanted = ((row, key, -1 if row in catalogue.retired else None) for row, key in enumerate(catalogue.keys))
    # Both by row, without a gap.
    others = [new for old, new in zip_longest(before, wanted) if new is not None and new != old]
    # Two rows may have exchanged their keys: first they go, then they come.
    connection.executemany("DELETE FROM catalogue WHERE row = ?", [(row,) for row, *_ in others])
    connection.execute("DELETE FROM catalogue WHERE row >= ?", (len(catalogue.keys),))
    connection.executemany("INSERT INTO catalogue (row, item, retired) VALUES (?, ?, ?)", others)
    connection.execute("DELETE FROM former_keys")
    connection.executemany("INSERT INTO former_keys (item, row) VALUES (?, ?)", catalogue.former.items())


def personal_bytes(personal: Personal) -> tuple[bytes, float, bytes, bytes]:
    """Give a personal state as its table has it: w, b, own rows, own values."""
    return (
        personal.score_function.w.astype("<f4").tobytes(),
        personal.score_function.b,
        personal.own_rows.astype("<i8").tobytes(),
        personal.own_values.astype("<f4").tobytes(),
    )


def personal_from_bytes(w: bytes, b: float, own_rows: bytes, own_values: bytes) -> Personal:
    """Give the personal state that the table holds.

    Raises
    ------
    ValueError
        When it is damaged.
    """
    try:
        vector = np.frombuffer(w, dtype="<f4").astype(np.float32)
        personal = Personal(
            score_function=ScoreFunction(w=vector, b=b),
            own_rows=np.frombuffer(own_rows, dtype="<i8").astype(np.int64),
            own_values=np.frombuffer(own_values, dtype="<f4").reshape(-1, vector.size).astype(np.float32),
        )
        personal.require_finite()
    except (TypeError, EncodingError) as error:
        raise ValueError(str(error)) from error
    if len(personal.own_rows) != len(personal.own_values):
        raise ValueError("as many rows as values are needed")
    return personal


def _set_facts(connection: sqlite3.Connection, facts: dict[str, object]) -> None:
    connection.executemany(
        "INSERT INTO facts (name, value) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        list(facts.items()),
    )
