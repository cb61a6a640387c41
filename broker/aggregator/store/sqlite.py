"""The aggregator's store in one SQLite file: write-ahead log, full durability."""

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import Connection, create_engine, event, func, select
from sqlalchemy.pool import StaticPool

from broker.aggregator.store.interface import KEEP_VERSIONS
from broker.aggregator.store.schema import JOURNAL
from broker.aggregator.store.sql import SqlStore
from broker.storage import connect_sqlite, make_private, named_failures

_CACHE_KB = 32_768
"""A transaction of a full batch fits: what does not is written twice."""
_PAGE_BYTES = 8_192
"""An update takes half as many calls to write as with SQLite's 4,096; one alone, hardly more bytes."""
_LOG_PAGES = 4_096
"""Pages in the log before they are written into the database: those of updates are used again and again."""


class SqliteStore(SqlStore):
    """See `SqlStore`.

    Parameters
    ----------
    path : Path
        The database; made where missing, unless `looking`.
    """

    def __init__(
        self,
        path: Path,
        keep_versions: int = KEEP_VERSIONS,
        *,
        looking: bool = False,
        name: str | None = None,
    ) -> None:
        self.path = path
        make_private(path)  # what devices sent is nobody else's
        engine = create_engine("sqlite://", creator=lambda: _connect(path), poolclass=StaticPool)
        event.listen(engine, "begin", _begin)
        super().__init__(engine, name or str(path), keep_versions, looking=looking)

    def _failures(self) -> AbstractContextManager[None]:
        return named_failures(self.path)

    def _require_alone(self, connection: Connection) -> None:
        pass  # who is not `looking` holds the directory's lock

    def _new_ids(self, connection: Connection, count: int) -> Sequence[int]:
        newest = connection.execute(select(func.max(JOURNAL.c.id))).scalar() or 0
        return range(newest + 1, newest + 1 + count)


def _connect(path: Path) -> sqlite3.Connection:
    connection = connect_sqlite(path, _PAGE_BYTES)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    return connection


def _begin(connection: Connection) -> None:
    # The driver leaves transactions alone. A writing one takes the lock at once, so that it never fails
    # half-way because somebody else wrote in between.
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
