"""Statements that SQLAlchemy's Core has no words for, or only slow ones."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from broker.aggregator.store.schema import FACTS


def upsert(connection: Connection, table: Table) -> Any:
    """Give an INSERT that may say what to do about a row that is there, in the database's dialect."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def insert_rows(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert many rows of integers, texts and bytes, each with its values in the order of `columns`.

    As Core it would go through each row's values by name, which takes longer than to store them.
    """
    if not rows:
        return
    dialect = connection.dialect
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(dialect.identifier_preparer.format_column(table.c[each]) for each in columns)
    marks = ", ".join([mark] * len(columns))
    name = dialect.identifier_preparer.format_table(table)
    connection.exec_driver_sql(f"INSERT INTO {name} ({names}) VALUES ({marks})", list(rows))  # noqa: S608


def fact(connection: Connection, name: str) -> int:
    """Give one of the numbers that a store keeps by name."""
    return int(connection.execute(select(FACTS.c.value).where(FACTS.c.name == name)).scalar_one())


def add_to_fact(connection: Connection, name: str, amount: int) -> None:
    """Add to one of them."""
    connection.execute(update(FACTS).where(FACTS.c.name == name).values(value=FACTS.c.value + amount))
