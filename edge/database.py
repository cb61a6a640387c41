"""The device's database file: opened, brought to the newest format, and its transactions.

It does not know what the tables mean; `edge.store` does.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.errors import CorruptError, NewerVersionError
from broker.storage import connect_sqlite, make_private, named_failures

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
_SENDS = (
    # How often an update was sent: 0, 1, or 2 for more. One from before may have been sent.
    "ALTER TABLE outbox ADD COLUMN sends INTEGER NOT NULL DEFAULT 1",
)
_MARKS = (
    # Rows that are not recommended any more, and what rows were called before.
    # NULL or -1, which is no time: `edge.salvage` takes a text and a time for an interaction.
    "ALTER TABLE catalogue ADD COLUMN retired INTEGER CHECK (retired = -1)",
    "CREATE TABLE former_keys (item TEXT PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID",
)
MIGRATIONS: Sequence[Sequence[str]] = (_FIRST_LIGHT, _COUNTED_ONCE, _SENDS, _MARKS)
"""Step n brings a database from ``user_version`` n to n + 1."""


class Database:
    """A SQLite file that survives a crash at any point.

    Every method raises CorruptError, DiskFullError, InUseError or NotWritableError for what it says;
    a failed call changes nothing.

    Parameters
    ----------
    held : int, optional
        A handle that is closed with the store, or when that cannot be opened: the directory's lock.

    Raises
    ------
    NewerVersionError
        When a later release wrote it; it is left untouched.
    """

    def __init__(self, path: Path, held: int | None = None) -> None:
        self._path = path
        self._held = held
        try:
            with self._named():
                make_private(path)
                self._connection = connect_sqlite(path)
        except BaseException:
            self._release()
            raise
        try:
            with self._named():
                # Debian's SQLite has it on: each settled update's pages would be written once more, as zeros.
                # `edge.erasure` switches it on for what the user forgets.
                self._connection.execute("PRAGMA secure_delete = OFF")
            self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def close(self) -> None:
        """Release the file."""
        self._connection.close()
        self._release()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            with named_failures(self._path):
                yield
        except CorruptError as error:
            if not isinstance(error.__cause__, sqlite3.Error):  # our own, which says what to do
                raise
            raise self._damaged(str(error.__cause__)) from error.__cause__

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._named():
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
        with self._named():
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
            # Another process may have been faster.
            [(found,)] = connection.execute("PRAGMA user_version").fetchall()
            for step in MIGRATIONS[found:]:
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def changes(self) -> int:
        """Give a number that changes when another process has written."""
        return int(self._rows("PRAGMA data_version")[0][0])

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Let all questions within the block see one moment's state, whatever others write meanwhile."""
        with self._named():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _damaged(self, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path} is damaged: {what}; edge-client start --dir {self._path.parent} puts it aside and "
            "keeps what can be read"
        )
