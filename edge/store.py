"""The device's memory: one SQLite file that survives a crash at any point.

Whatever belongs together is written in one transaction: a pass's personal state with the update it made and
that update's number; a table with its head and catalogue. ``edge-client record`` writes to the same
file while the agent runs; the agent notices by `changes`.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import CorruptError, NewerVersionError, ProtocolError
from broker.protocol.messages import Head, Verdict, decode, encode
from broker.protocol.versions import sha256, table_bytes
from broker.storage import connect_sqlite, named_failures
from edge.personal import Personal
from edge.scheduler import Progress
from edge.session import Remembered
from trainer.params import Floats, Rows, ScoreFunction

_FIRST_LIGHT = (
    # Ids are never given twice, so that the newest id tells the state of the interactions.
    """CREATE TABLE interactions (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL,
         at REAL NOT NULL)""",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE model (id INTEGER PRIMARY KEY CHECK (id = 1), head BLOB NOT NULL,
         item_table BLOB NOT NULL)""",
    "CREATE TABLE catalogue (row INTEGER PRIMARY KEY, item TEXT NOT NULL UNIQUE)",
    """CREATE TABLE personal (id INTEGER PRIMARY KEY CHECK (id = 1), w BLOB NOT NULL, b REAL NOT NULL,
         own_rows BLOB NOT NULL, own_values BLOB NOT NULL)""",
    "CREATE TABLE outbox (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
    "CREATE TABLE receipts (verdict TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
)
_COUNTED_ONCE = (
    # What a sender may send twice. An identity is forgotten with its interaction.
    """CREATE TABLE identities (identity BLOB PRIMARY KEY, interaction INTEGER NOT NULL UNIQUE
         REFERENCES interactions (id) ON DELETE CASCADE) WITHOUT ROWID""",
)
MIGRATIONS: Sequence[Sequence[str]] = (_FIRST_LIGHT, _COUNTED_ONCE)
"""Step n brings a database from ``user_version`` n to n + 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """The newest table on the device, shape (rows, dim) float32, and the head that announced it."""

    head: Head
    table: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interacted:
    """The user's interactions as training sees them.

    Attributes
    ----------
    revision : int
        Grows with each interaction.
    rows : ndarray, shape (n_known,), int64
        Distinct rows of the catalogue, in the order of the first interaction with each.
    newest : ndarray, shape (n_known,), int64
        The same rows in the order of the last interaction with each, the newest last.
    unknown : int
        Distinct items that the catalogue does not have (yet).
    total : int
        All interactions.
    """

    revision: int
    rows: Rows
    newest: Rows
    unknown: int
    total: int


class DeviceStore:
    """One device's database.

    Every method raises CorruptError, DiskFullError, InUseError or NotWritableError for what it says;
    a failed call changes nothing.

    Raises
    ------
    NewerVersionError
        When a later release wrote it; it is left untouched.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect_sqlite(path)
        try:
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with named_failures(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself, for example when the disk is full.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *parameters: Any) -> list[Any]:
        with named_failures(self._path):
            return self._connection.execute(query, parameters).fetchall()

    def _migrate(self) -> None:
        found = int(self._rows("PRAGMA user_version")[0][0])
        if found > len(MIGRATIONS):
            raise NewerVersionError(
                f"{self._path} was written by a later release (format {found}, this one knows up to "
                f"{len(MIGRATIONS)}); upgrade pfedrec-edge, or use another directory; nothing was changed"
            )
        if found == len(MIGRATIONS):
            return
        with self._transaction() as connection:
            for step in MIGRATIONS[found:]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    # -- facts -------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """Give a fact's value, None if it was never set."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set_facts(self, **facts: object) -> None:
        """Set facts by name."""
        with self._transaction() as connection:
            _set_facts(connection, facts)

    def changes(self) -> int:
        """Give a number that changes when another process has written."""
        return int(self._rows("PRAGMA data_version")[0][0])

    def remembered(self) -> Remembered:
        """Give what a session must know after a restart."""
        facts = dict(self._rows("SELECT name, value FROM facts"))
        outbox = self._rows("SELECT seq FROM outbox ORDER BY seq LIMIT 1")
        model = self.model_head()
        if "incarnation" not in facts:
            raise self._damaged("the device's own number is missing")
        return Remembered(
            incarnation=int(facts["incarnation"]),
            instance=None if model is None else model.instance,
            version=None if model is None else model.version,
            table_sha256=None if model is None else model.sha256,
            catalogue_sha256=None if model is None else model.catalogue_sha256,
            last_seq=int(facts.get("seq", 0)),
            outbox_seq=outbox[0][0] if outbox else None,
            progress=self._progress(),
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
        rows = self._rows(
            "SELECT c.row, max(i.at), max(i.id) FROM interactions i JOIN catalogue c ON c.item = i.item "
            "GROUP BY c.row ORDER BY min(i.at), min(i.id)"
        )
        newest = sorted(rows, key=lambda row: row[1:])
        total, revision, distinct = self._rows(
            "SELECT count(*), coalesce(max(id), 0), count(DISTINCT item) FROM interactions"
        )[0]
        return Interacted(
            revision=revision,
            rows=np.array([row for row, *_ in rows], dtype=np.int64),
            newest=np.array([row for row, *_ in newest], dtype=np.int64),
            unknown=distinct - len(rows),
            total=total,
        )

    def newest_interaction_at(self) -> float | None:
        """Give the latest time of an interaction, in seconds since the epoch."""
        return self._rows("SELECT max(at) FROM interactions")[0][0]  # type: ignore[no-any-return]

    # -- model -------------------------------------------------------------------------------------

    def replace_model(self, head: Head, table: Floats, item_keys: Sequence[str] | None) -> None:
        """Put a checked table, its head and (if given) its catalogue in the place of those before.

        The personal state of another aggregator's table means nothing for this one and is dropped.
        """
        with self._transaction() as connection:
            before = self.model_head()
            same = before is not None and (before.instance, before.dim) == (head.instance, head.dim)
            if not same:
                connection.execute("DELETE FROM personal")
            progress = self._progress().with_table(head.version, same_aggregator=same)
            _set_facts(connection, asdict(progress))
            connection.execute(
                "INSERT INTO model (id, head, item_table) VALUES (1, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET head = excluded.head, item_table = excluded.item_table",
                (encode(head), table_bytes(table)),
            )
            if item_keys is not None:
                connection.execute("DELETE FROM catalogue")
                connection.executemany(
                    "INSERT INTO catalogue (row, item) VALUES (?, ?)", enumerate(item_keys)
                )

    def model_head(self) -> Head | None:
        """Give the head of the table on the device."""
        rows = self._rows("SELECT head FROM model")
        return self._head(rows[0][0]) if rows else None

    def _head(self, content: bytes) -> Head:
        try:
            return decode(content, Head)
        except ProtocolError as error:
            raise self._damaged(f"the head of the item table cannot be read: {error}") from error

    def _damaged(self, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path} is damaged: {what}; restore it from a backup or init a new directory"
        )

    def model(self) -> Model | None:
        """Give the table on the device.

        Raises
        ------
        CorruptError
            When it does not have its hash any more.
        """
        rows = self._rows("SELECT head, item_table FROM model")
        if not rows:
            return None
        head = self._head(rows[0][0])
        if sha256(rows[0][1]) != head.sha256:
            raise self._damaged("the item table does not have its SHA-256")
        return Model(head=head, table=np.frombuffer(rows[0][1], dtype="<f4").reshape(head.rows, head.dim))

    def has_catalogue(self) -> bool:
        """Tell whether item keys can be checked."""
        return bool(self._rows("SELECT 1 FROM catalogue LIMIT 1"))

    def unknown_items(self, keys: Sequence[str]) -> list[str]:
        """Give those of `keys` that the catalogue does not have."""
        return [key for key in keys if not self._rows("SELECT 1 FROM catalogue WHERE item = ?", key)]

    def item_rows(self, keys: Sequence[str]) -> Rows:
        """Give the rows of those of `keys` that the catalogue has; shape (n,), int64."""
        found = (self._rows("SELECT row FROM catalogue WHERE item = ?", key) for key in keys)
        return np.array([rows[0][0] for rows in found if rows], dtype=np.int64)

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
        w, b, own_rows, own_values = rows[0]
        try:
            w = np.frombuffer(w, dtype="<f4").astype(np.float32)
            return Personal(
                score_function=ScoreFunction(w=w, b=b),
                own_rows=np.frombuffer(own_rows, dtype="<i8").astype(np.int64),
                own_values=np.frombuffer(own_values, dtype="<f4").reshape(-1, w.size).astype(np.float32),
            )
        except ValueError as error:
            raise self._damaged("the personal state cannot be read") from error

    def save_pass(
        self,
        personal: Personal,
        progress: Progress,
        update: tuple[int, bytes] | None,
        *,
        at: float | None = None,
    ) -> None:
        """Store a pass's results: the personal state, and the update that it made, if any.

        `at` is when it was made, in seconds since the epoch.
        """
        facts: dict[str, object] = asdict(progress)
        if at is not None:
            facts["trained_at"] = at
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO personal (id, w, b, own_rows, own_values) VALUES (1, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET w = excluded.w, b = excluded.b, "
                "own_rows = excluded.own_rows, own_values = excluded.own_values",
                (
                    personal.score_function.w.astype("<f4").tobytes(),
                    personal.score_function.b,
                    personal.own_rows.astype("<i8").tobytes(),
                    personal.own_values.astype("<f4").tobytes(),
                ),
            )
            if update is not None:
                seq, payload = update
                connection.execute("INSERT INTO outbox (seq, payload) VALUES (?, ?)", (seq, payload))
                facts["seq"] = seq
            _set_facts(connection, facts)

    def outbox(self, seq: int) -> bytes:
        """Give the encoded update `seq` that waits for its receipt."""
        return bytes(self._rows("SELECT payload FROM outbox WHERE seq = ?", seq)[0][0])

    def settle(self, seq: int, verdict: Verdict) -> None:
        """Take an answered update out of the outbox and count its verdict."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            connection.execute(
                "INSERT INTO receipts (verdict, count) VALUES (?, 1) "
                "ON CONFLICT (verdict) DO UPDATE SET count = count + 1",
                (verdict,),
            )

    def receipts(self) -> dict[str, int]:
        """Give how many receipts of each verdict came."""
        return dict(self._rows("SELECT verdict, count FROM receipts"))

    def outbox_size(self) -> int:
        """Give how many updates wait."""
        return int(self._rows("SELECT count(*) FROM outbox")[0][0])


def _set_facts(connection: sqlite3.Connection, facts: dict[str, object]) -> None:
    connection.executemany(
        "INSERT INTO facts (name, value) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        list(facts.items()),
    )
