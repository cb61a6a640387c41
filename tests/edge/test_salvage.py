"""Interactions read from a file's pages: all of a sound one, and of a damaged one nothing that never was."""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.erasure import Selection
from edge.retention import Retention
from edge.salvage import PAGE_SIZES, Interaction, salvage
from tests.edge import old_database
from tests.edge.builders import a_store

KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60)
TIMES = st.one_of(st.floats(0.0, 2.5e11), st.integers(0, 2**35).map(float), st.sampled_from([0.0, 1.0]))


def rows_by_sqlite(path: Path) -> list[Interaction]:
    """Give what SQLite finds."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, item, at FROM interactions ORDER BY id").fetchall()
    return [Interaction(*row) for row in found]


def filled(path: Path, events: Sequence[tuple[str, float]], *, close: bool = True) -> None:
    """Make a database with something in each table, and these interactions too.

    Without being closed its log has everything: the process that had it open was killed.
    """
    with closing(a_store(path)) as store:
        old_database.fill(store)
        for start in range(0, len(events), 7):
            store.record(events[start : start + 7])
        if not close:
            for name in (path.name, f"{path.name}-wal"):
                shutil.copy(path.with_name(name), path.with_name(f"killed-{name}"))


@settings(max_examples=40, deadline=None)
@given(events=st.lists(st.tuples(KEYS, TIMES), max_size=60))
def test_salvage_of_a_sound_database_is_everything(events: list[tuple[str, float]]) -> None:
    """And no row of another table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "device.sqlite3"
        filled(path, events)
        assert salvage(path) == rows_by_sqlite(path)
        assert len(salvage(path)) == len(old_database.INTERACTIONS) + len(events)


def many(count: int = 3000) -> list[tuple[str, float]]:
    """Give enough interactions for a tree of pages."""
    return [(f"item-{number % 500:04d}", 1e9 + number) for number in range(count)]


def test_salvage_takes_what_only_the_log_has(tmp_path: Path) -> None:
    """As after a kill: committed transactions, in the order in which they were."""
    path = tmp_path / "device.sqlite3"
    filled(path, many(), close=False)
    killed = tmp_path / f"killed-{path.name}"
    found = salvage(killed)
    assert found == rows_by_sqlite(path)
    log = tmp_path / f"{killed.name}-wal"
    content = log.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 5000, 31, 0):
        log.write_bytes(content[:length])
        part = salvage(killed)
        assert part == found[: len(part)], "older states, none of them torn"
    log.write_bytes(content[:64] + bytes([content[64] ^ 1]) + content[65:])
    assert salvage(killed) == [], "nothing after a frame that is not what was written"


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_salvage_of_other_page_sizes(tmp_path: Path, size: int) -> None:
    """The file says which it has."""
    assert size in PAGE_SIZES
    path = tmp_path / "device.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {size}")
        connection.execute("CREATE TABLE interactions (id INTEGER PRIMARY KEY, item TEXT, at REAL)")
        connection.executemany("INSERT INTO interactions (item, at) VALUES (?, ?)", many(700))
    assert salvage(path) == rows_by_sqlite(path)


def test_salvage_finds_nothing_that_was_removed(tmp_path: Path) -> None:
    """Neither what was forgotten nor what the rule does not keep, in the file or its log."""
    path = tmp_path / "device.sqlite3"
    filled(path, many(1000))
    with closing(a_store(path)) as store:
        store.forget(Selection(items=("item-0007", "bread")))
        store.compact(Retention(most=300), 2e9)
        kept = rows_by_sqlite(path)
        assert len(kept) < 900
        assert salvage(path) == kept
        store.scrub()
        assert salvage(path) == kept


@pytest.mark.parametrize("seed", range(6))
def test_salvage_of_a_damaged_database_invents_nothing(tmp_path: Path, seed: int) -> None:
    """Pages are lost with their rows; all others are there."""
    path = tmp_path / "device.sqlite3"
    filled(path, many())
    everything = set(rows_by_sqlite(path))
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    lost = rng.sample(range(len(content) // 4096), 5)
    for page in lost:
        content[page * 4096 : (page + 1) * 4096] = rng.choice([bytes(4096), rng.randbytes(4096)])
    path.write_bytes(content)
    found = salvage(path)
    assert set(found) <= everything
    assert len(everything) - len(found) <= 5 * 200, "about 150 rows are in a page"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_salvage_of_anything_ends_without_an_error(tmp_path: Path, seed: int) -> None:
    """Bits flipped anywhere in file and log, or no database at all."""
    rng = random.Random(seed)
    path = tmp_path / "device.sqlite3"
    killed = tmp_path / f"killed-{path.name}"
    if not killed.exists():
        filled(path, many(200), close=False)
    for name in (killed.name, f"{killed.name}-wal"):
        content = bytearray((tmp_path / name).read_bytes() if rng.random() < 0.8 else rng.randbytes(9000))
        for _ in range(rng.randint(1, 300)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / f"bad-{name}").write_bytes(content)
    for row in salvage(tmp_path / f"bad-{killed.name}"):
        assert row.id > 0
        assert row.item
        assert row.at >= 0.0


def test_salvage_of_nothing_is_nothing(tmp_path: Path) -> None:
    """A missing file, an empty one."""
    path = tmp_path / "device.sqlite3"
    assert salvage(path) == []
    path.touch()
    assert salvage(path) == []
