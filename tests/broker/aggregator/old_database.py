"""A small real database, and the dumps of it that releases left behind.

`tests/data/aggregator/NNNN.sql` was written once, by the release whose newest migration was NNNN::

    python -m tests.broker.aggregator.old_database

A new migration gets a dump of its own beside the old ones, which stay as they are.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.aggregator.decisions import CloseRound, Journal
from broker.aggregator.store.interface import AggregatorStore, Batch
from broker.aggregator.store.migrations import MIGRATIONS
from broker.aggregator.store.sqlite import SqliteStore
from broker.protocol.messages import MAX_U64
from tests.broker.aggregator.builders import a_genesis, a_round, an_entry

FOLDER = Path(__file__).parents[2] / "data" / "aggregator"
DUMPS = sorted(FOLDER.glob("*.sql"))


def fill(store: AggregatorStore) -> None:
    """Do a little of everything: two rounds, all verdicts, two devices, an update that waits."""
    store.initialise(a_genesis())
    store.next_session()
    store.commit(
        Batch(
            commands=(
                Journal(an_entry(device="a", seq=1)),
                Journal(an_entry(device="b", seq=1, incarnation=MAX_U64)),
                CloseRound(a_round(1)),
                Journal(an_entry(device="a", seq=2, verdict="stale", staleness=11)),
            ),
            devices=("a", "b"),
            duplicates=2,
            refused=1,
            closed_at=1_700_000_100.25,
        )
    )
    store.next_session()
    store.commit(
        Batch(
            commands=(
                Journal(an_entry(device="a", seq=4, verdict="rejected", base_version=9)),
                Journal(an_entry(device="a", seq=5, staleness=1)),
                CloseRound(a_round(2, by_deadline=True, updates=1)),
                Journal(an_entry(device="b", seq=6, incarnation=MAX_U64, staleness=2)),
            ),
            devices=("c",),
            closed_at=1_700_000_200.5,
        )
    )


def dump(path: Path) -> str:
    """Give a database as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def restore(content: str, path: Path) -> None:
    """Make a database from SQL, with a write-ahead log as all releases' have it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(content)
        connection.execute("PRAGMA journal_mode = WAL")


def main() -> None:
    """Write the dump of the newest migration."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.sqlite3"
        store = SqliteStore(path)
        fill(store)
        store.close()
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{MIGRATIONS[-1][0].split()[0]}.sql").write_text(dump(path))


if __name__ == "__main__":
    main()
