"""Databases of other releases, damaged ones, and migrations that fail half-way."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import Answered, CloseRound, Journal, RoundSettings
from broker.aggregator.store import migrations
from broker.aggregator.store.interface import Batch, Ledger
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import CorruptError, NewerVersionError, NotWritableError, PFedRecError
from broker.protocol.messages import MAX_U64
from broker.protocol.versions import sha256, table_bytes
from tests.broker.aggregator.builders import INSTANCE, a_genesis, a_round, a_table, an_entry
from tests.broker.aggregator.old_database import DUMPS, dump, fill, restore
from trainer.aggregation import FedBuff

PAGE_BYTES = 4096
NEWEST = migrations.MIGRATIONS[-1][0].split()[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give where a database may be."""
    return tmp_path / "state.sqlite3"


@pytest.fixture
def full(path: Path) -> Path:
    """Give a database with a little of everything in it."""
    store = SqliteStore(path)
    fill(store)
    store.close()
    return path


def run_sql(path: Path, statement: str) -> None:
    """Change a database behind the store's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_every_migration_has_a_saved_database() -> None:
    """A release that changes the shape also saves a database of that shape."""
    assert [dump_path.stem for dump_path in DUMPS] == [name.split()[0] for name, _ in migrations.MIGRATIONS]


@pytest.mark.parametrize("saved", DUMPS, ids=lambda saved: saved.stem)
def test_saved_database_opens_with_all_that_it_held(saved: Path, path: Path) -> None:
    """An old release's database loads: version, answers, devices, what waits, the sums."""
    restore(saved.read_text(), path)

    store = SqliteStore(path)
    try:
        state = store.load()
        assert (state.instance, state.version) == (INSTANCE, 2)
        assert state.table.tobytes() == a_table(2).tobytes()
        assert state.seen == {"a", "b", "c"}
        assert state.answered == {
            ("a", 1): Answered(seq=5, verdict="accepted"),
            ("b", MAX_U64): Answered(seq=6, verdict="accepted"),
        }
        assert store.ledger() == Ledger(counted=3, pending=1, stale=1, rejected=1, duplicates=2, refused=1)
        assert store.item_keys() == tuple(a_genesis().item_keys)
        assert store.start().b == a_genesis().start.b
        assert [record.sha256 for record in store.rounds(9)] == [
            sha256(table_bytes(a_table(version))) for version in (2, 1)
        ]
        core = AggregatorCore(RoundSettings(), FedBuff(), state, store.pending())
        assert core.buffered == 1
    finally:
        store.close()


@pytest.mark.parametrize("saved", DUMPS, ids=lambda saved: saved.stem)
def test_saved_database_goes_on(saved: Path, path: Path) -> None:
    """An old release's database takes new updates and rounds."""
    restore(saved.read_text(), path)
    store = SqliteStore(path)
    try:
        assert store.next_session() == 3
        commands = (Journal(an_entry(device="c")), CloseRound(a_round(3)))
        store.commit(Batch(commands=commands, closed_at=0.0))
        assert store.load().version == 3
        assert store.pending() == []
    finally:
        store.close()


@pytest.mark.parametrize("saved", DUMPS, ids=lambda saved: saved.stem)
def test_saved_database_gets_the_newest_shape_once(saved: Path, path: Path, full: Path) -> None:
    """Opening twice changes nothing more, and the shape is that of a new database."""
    restored = path.with_name("restored.sqlite3")
    restore(saved.read_text(), restored)
    SqliteStore(restored).close()
    first = dump(restored)
    SqliteStore(restored).close()

    assert dump(restored) == first
    assert schema_of(restored) == schema_of(full)


def test_reports_of_an_earlier_release_are_judged_by_their_sums(path: Path) -> None:
    """How they scatter was not kept: as much as in a young fleet."""
    restore(next(saved for saved in DUMPS if saved.stem == "0005").read_text(), path)
    run_sql(path, "INSERT INTO quality VALUES (2, 'trial', 4, 400, 1, 1, 200, 300, 0.5, 0.5, 1.0, 1.0)")
    run_sql(path, "INSERT INTO quality VALUES (1, 'unjudged', 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)")
    store = SqliteStore(path)
    quality = store.load().quality
    store.close()
    assert quality is not None
    assert (quality.finding, quality.reports, quality.differences) == ("trial", 4, -1.0)
    assert quality.squares == pytest.approx(4 * (0.25**2 + 0.2**2))


def schema_of(path: Path) -> list[tuple[str, str]]:
    """Give the names and definitions of all tables and indices."""
    query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
    with closing(sqlite3.connect(path)) as connection:
        return [(name, " ".join(sql.split())) for name, sql in connection.execute(query)]


def test_saved_database_of_this_release_is_what_it_writes_today(full: Path) -> None:
    """Whoever changes the shape without a migration, or what is stored in it, is told."""
    restored = full.with_name("restored.sqlite3")
    restore(next(saved for saved in DUMPS if saved.stem == NEWEST).read_text(), restored)

    assert dump(full) == dump(restored)


def test_newer_database_is_refused_and_left_byte_identical(full: Path) -> None:
    """A database with a step that this release does not know is not touched."""
    run_sql(full, "INSERT INTO migrations (name) VALUES ('0999 from the future')")
    before = full.read_bytes()

    with pytest.raises(NewerVersionError, match=r"later release \(0999 from the future\).*upgrade"):
        SqliteStore(full)

    assert full.read_bytes() == before
    assert sorted(full.parent.iterdir()) == [full]


def with_steps(monkeypatch: pytest.MonkeyPatch, *steps: tuple[str, Sequence[str]]) -> None:
    """Let this release have these migrations."""
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)


def test_new_step_is_applied_to_an_old_database(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not recorded yet is carried out and recorded, once."""
    step = ("0002 notes", ("CREATE TABLE notes (text VARCHAR)", "INSERT INTO notes VALUES ('once')"))
    with_steps(monkeypatch, *migrations.MIGRATIONS, step)

    SqliteStore(full).close()
    SqliteStore(full).close()

    assert dump(full).count("'once'") == 1
    assert "'0002 notes'" in dump(full)


def test_failure_in_the_middle_of_a_step_leaves_the_database_as_before(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All waiting steps are one transaction: a failure in a later one undoes the earlier one, too."""
    before = dump(full)
    with_steps(
        monkeypatch,
        *migrations.MIGRATIONS,
        ("0002 good", ("ALTER TABLE devices ADD COLUMN note VARCHAR", "DELETE FROM journal")),
        ("0003 bad", ("DROP TABLE answered", "UPDATE no_such_table SET x = 1")),
    )

    with pytest.raises(PFedRecError, match="no_such_table"):
        SqliteStore(full)

    assert dump(full) == before


@pytest.mark.parametrize("n_good", range(len(migrations.MIGRATIONS[0][1])))
def test_failure_while_a_database_is_made_leaves_it_empty(
    path: Path, n_good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever statement fails, no half a database is left."""
    name, statements = migrations.MIGRATIONS[0]
    with_steps(monkeypatch, (name, (*statements[:n_good], "THIS IS NO SQL")))

    with pytest.raises(PFedRecError):
        SqliteStore(path)

    assert schema_of(path) == []


@pytest.mark.parametrize("content", [b"no database at all, but longer than its header would be " * 4])
def test_file_that_is_no_database_is_corrupt(path: Path, content: bytes) -> None:
    """Another file in the database's place is named and kept."""
    path.write_bytes(content)

    with pytest.raises(CorruptError, match=r"state\.sqlite3 is damaged"):
        SqliteStore(path)

    assert path.read_bytes() == content


@pytest.mark.parametrize("fill_byte", [b"\x00", b"\xff"])
def test_database_with_overwritten_pages_is_corrupt(full: Path, fill_byte: bytes) -> None:
    """Damage inside the file is found at the latest when the state is loaded."""
    content = full.read_bytes()
    full.write_bytes(content[:PAGE_BYTES] + fill_byte * (len(content) - PAGE_BYTES))

    with pytest.raises(CorruptError):
        load(full)


def test_database_that_was_cut_off_is_corrupt(full: Path) -> None:
    """A copy that did not become whole is found out."""
    full.write_bytes(full.read_bytes()[: 3 * PAGE_BYTES])

    with pytest.raises(CorruptError):
        load(full)


def test_empty_file_is_corrupt(full: Path) -> None:
    """A database that lost everything is not taken for a new fleet."""
    full.write_bytes(b"")

    with pytest.raises(CorruptError):
        load(full)


def load(path: Path) -> None:
    """Open a database and load all of it, as a start does."""
    store = SqliteStore(path)
    try:
        store.load()
        store.pending()
    finally:
        store.close()


def test_table_that_is_not_what_was_stored_is_corrupt(full: Path) -> None:
    """A bit that flipped in the newest table does not reach the fleet."""
    run_sql(full, "UPDATE versions SET item_table = zeroblob(length(item_table)) WHERE version = 2")

    with pytest.raises(CorruptError, match="SHA-256"):
        load(full)


def test_database_without_its_newest_table_is_corrupt(full: Path) -> None:
    """A version without a table cannot be published."""
    run_sql(full, "UPDATE versions SET item_table = NULL")

    with pytest.raises(CorruptError, match="SHA-256"):
        load(full)


def test_waiting_update_that_cannot_be_read_is_corrupt(full: Path) -> None:
    """An accepted update was whole when it was journalled: what is none now was damaged since."""
    run_sql(full, "UPDATE bodies SET body = x'00'")

    with pytest.raises(CorruptError, match="journal"):
        load(full)


def test_path_below_a_file_cannot_be_used(tmp_path: Path) -> None:
    """A database where none can be is one sentence about the path."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NotWritableError, match="not a directory; choose another directory"):
        SqliteStore(tmp_path / "file" / "state.sqlite3")


def test_path_in_a_missing_directory_cannot_be_used(tmp_path: Path) -> None:
    """The store makes its file, not directories."""
    with pytest.raises(NotWritableError):
        SqliteStore(tmp_path / "missing" / "state.sqlite3")

    assert list(tmp_path.iterdir()) == []
