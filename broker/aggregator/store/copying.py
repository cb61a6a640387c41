"""A store copied into another, whatever their databases: what a backup is made of.

All of it is read in one transaction, and so is as it was at one moment, while the aggregator goes on; all of
it is written in one, too.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select

from broker.aggregator.store.schema import APPLIED, JOURNAL, METADATA
from broker.aggregator.store.sql import SqlStore

_ROWS = 200
"""At once: updates of 16 KB are a few megabytes."""


def copy(source: SqlStore, target: SqlStore) -> None:
    """Replace all that `target` holds by what `source` holds.

    Raises
    ------
    CorruptError, DiskFullError, InUseError, NotWritableError, StoreLostError
        `target` is as before.
    """
    with source.transaction(reading=True) as reading, target.transaction() as writing:
        replace_all(source, reading, writing)


def replace_all(source: SqlStore, reading: Connection, writing: Connection) -> None:
    """Do it within transactions of the caller, `reading` one of `source`."""
    for table in reversed(METADATA.sorted_tables):
        if table is not APPLIED:
            writing.execute(delete(table))
    for table in METADATA.sorted_tables:
        if table is not APPLIED:
            for values in _rows(source, reading, table):
                writing.execute(insert(table), values)
    if writing.dialect.name == "postgresql":
        newest = writing.execute(select(func.max(JOURNAL.c.id))).scalar() or 0
        writing.exec_driver_sql("SELECT setval('journal_id_seq', %(next)s, false)", {"next": newest + 1})


def _rows(source: SqlStore, reading: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    # What fails in here is the source's, though the target's transaction is around it, too.
    with source.named_failures():
        result = reading.execution_options(yield_per=_ROWS).execute(select(table))
        for rows in result.mappings().partitions():
            yield [dict(row) for row in rows]
