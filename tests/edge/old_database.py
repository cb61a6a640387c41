"""A database that a release has left on a device, and the file that keeps it.

The files ``tests/data/device/N.sql`` hold a database of every format that a release has written, with
something in each table. They are never written again: a device that is upgraded must open them. That of the
newest format is made, once, by::

    python -m tests.edge.old_database
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from edge.database import MIGRATIONS
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state, a_store, a_table

FOLDER = Path(__file__).parents[1] / "data" / "device"

VERSION = 3
PROGRESS = Progress(contributed_version=3, trained_revision=4, contributed_revision=3, idle_passes=1)
INTERACTIONS = [("bread", 1000.0), ("egg", 1001.5), ("nothing we know", 1002.0), ("bread", 1003.0)]
OUTBOX = (2, b"an encoded update")


def fill(store: DeviceStore) -> None:
    """Give every table something to hold."""
    store.replace_model(a_head(VERSION), a_table(), ITEM_KEYS)
    store.record(INTERACTIONS[:-1])
    store.record_once([(*INTERACTIONS[-1], b"an identity")])
    store.save_pass(a_personal_state(1), PROGRESS, (1, b"answered"))
    store.settle(1, "accepted")
    store.save_pass(a_personal_state(2), PROGRESS, OUTBOX)


def dump(path: Path) -> str:
    """Give a database as the SQL that makes it again."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        return "\n".join([*connection.iterdump(), f"PRAGMA user_version = {found};\n"])


def load(sql: str, path: Path) -> None:
    """Make a database from such SQL."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)
        connection.execute("PRAGMA journal_mode = WAL")  # as every release leaves it


def write(path: Path) -> None:
    """Write the file of the newest format; `path` is for the database that it is made from."""
    store = a_store(path)
    fill(store)
    store.close()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{len(MIGRATIONS)}.sql").write_text(dump(path), encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "device.sqlite3")
