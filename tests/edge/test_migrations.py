"""Databases of all releases, brought to the newest format: whole or not at all, by one process or by two."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import edge.database
from broker.errors import NotWritableError
from broker.storage import connect_sqlite
from edge.database import MIGRATIONS
from edge.store import DeviceStore
from tests.edge import old_database
from tests.edge.old_database import dump
from tests.edge.test_store import FailingConnection

OLD = range(1, len(MIGRATIONS))
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give where the database is."""
    return tmp_path / "device.sqlite3"


def load(version: int, path: Path) -> None:
    """Make the database that a release left."""
    old_database.load((old_database.FOLDER / f"{version}.sql").read_text(encoding="utf-8"), path)


def schema(path: Path) -> list[Any]:
    """Give all tables and indexes as SQLite has them."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("version", [0, *OLD])
def test_migration_that_fails_at_any_statement_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Begin and commit among them; then it can be done."""
    if version:
        load(version, path)
    before = dump(path)
    failures = 0
    while True:

        def connect(where: Path, fails_at: int = failures + 1) -> Any:
            return FailingConnection(connect_sqlite(where), fails_at)

        monkeypatch.setattr(edge.database, "connect_sqlite", connect)
        try:
            DeviceStore(path).close()
        except NotWritableError:
            failures += 1
        else:
            break
        finally:
            monkeypatch.undo()
        assert dump(path) == before
    statements = sum(map(len, MIGRATIONS[version:]))
    assert failures >= statements + 3, "and begin, the number of the format, commit"
    assert dump(path) != before


@pytest.mark.parametrize("version", OLD)
def test_migrated_database_has_the_tables_of_a_new_one(path: Path, tmp_path: Path, version: int) -> None:
    """However it came to them, and nothing changes when it is opened once more."""
    load(version, path)
    DeviceStore(path).close()
    fresh = tmp_path / "fresh.sqlite3"
    DeviceStore(fresh).close()
    assert schema(path) == schema(fresh)
    before = dump(path)
    DeviceStore(path).close()
    assert dump(path) == before


@pytest.mark.parametrize("version", OLD)
def test_migrated_database_keeps_every_row(path: Path, version: int) -> None:
    """Of each table that the release had, in the columns that it had."""
    load(version, path)
    before = rows(path)
    DeviceStore(path).close()
    after = rows(path)
    for table, columns_and_rows in before.items():
        columns, old = columns_and_rows
        new_columns, new = after[table]
        places = [new_columns.index(column) for column in columns]
        assert [tuple(row[place] for place in places) for row in new] == old, table


def rows(path: Path) -> dict[str, tuple[list[str], list[Any]]]:
    """Give each table's columns and rows."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found: dict[str, tuple[list[str], list[Any]]] = {}
        for (table,) in tables:
            cursor = connection.execute(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608 - from the schema
            found[table] = ([column[0] for column in cursor.description], cursor.fetchall())
        return found


OPENER = """
import sys
from pathlib import Path
from edge.store import DeviceStore
print("ready", flush=True)
sys.stdin.readline()
store = DeviceStore(Path(sys.argv[1]))
print(store.interacted().total)
store.close()
"""


@pytest.mark.parametrize("version", OLD)
def test_two_processes_that_open_an_old_database_migrate_it_once(path: Path, version: int) -> None:
    """``record`` while ``start`` comes up after an upgrade."""
    load(version, path)
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    outputs = [opener.communicate(timeout=60) for opener in openers]
    assert [out for out, _ in outputs] == [f"{len(old_database.INTERACTIONS)}\n"] * 3, outputs
