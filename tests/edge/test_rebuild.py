"""A damaged database: put aside, and a new one made from what can be read."""

import json
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from broker.errors import DiskFullError, InUseError, NewerVersionError
from broker.storage import exclusive
from edge.config import DATABASE_NAME, alone
from edge.homelink import left_behind
from edge.putaside import damaged_files
from edge.rebuild import open_sound_store, read, rebuild
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state, a_table
from tests.edge.calling import NOBODY
from tests.edge.disks import fill_disk
from tests.edge.running import RunningCommand, a_directory, looking_at, record
from trainer.params import ScoreFunction

N_INTERACTIONS = 500
PAGE = 4096


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device with interactions, a table, a personal state and an update that waits."""
    path = a_directory(tmp_path / "me", "shop", NOBODY)
    with looking_at(path) as store:
        store.replace_model(a_head(7), a_table(), ITEM_KEYS)
        for number in range(N_INTERACTIONS):
            store.record_once([(ITEM_KEYS[number % 6], 1000.0 + number, b"identity %d" % number)])
        store.save_pass(a_personal_state(), Progress(trained_revision=N_INTERACTIONS), (1, b"an update"))
    with closing(sqlite3.connect(path / DATABASE_NAME)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def opened(directory: Path) -> tuple[DeviceStore, list[str]]:
    """Open it as ``start`` does; give the store and what was said."""
    said: list[str] = []
    with exclusive(directory):
        return open_sound_store(directory, said.append), said


def truncated(path: Path) -> None:
    """Cut the file in the middle of a page; the newest rows are at its end."""
    content = path.read_bytes()
    path.write_bytes(content[: -PAGE * 3 // 2])


def zeroed(path: Path) -> None:
    """Lose some pages in the middle."""
    content = bytearray(path.read_bytes())
    content[5 * PAGE : 8 * PAGE] = bytes(3 * PAGE)
    path.write_bytes(content)


def headless(path: Path) -> None:
    """Lose the first page, which says what the file is."""
    content = bytearray(path.read_bytes())
    content[:PAGE] = bytes(PAGE)
    path.write_bytes(content)


def emptied(path: Path) -> None:
    """Lose everything."""
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    """Another file."""
    path.write_bytes(b"oops" * 5000)


def test_sound_database_is_left_alone(directory: Path) -> None:
    """Nothing is said, nothing put aside."""
    store, said = opened(directory)
    with closing(store):
        assert (store.interacted().total, store.remembered().outbox_seq) == (N_INTERACTIONS, 1)
    assert said == []
    assert damaged_files(directory / DATABASE_NAME) == []


@pytest.mark.parametrize(
    ("damage", "at_least"),
    [(truncated, 100), (zeroed, 100), (headless, N_INTERACTIONS), (emptied, 0), (overwritten, 0)],
)
def test_damaged_database_is_made_anew(
    directory: Path, damage: Callable[[Path], None], at_least: int
) -> None:
    """Of what can be read; one sentence, the old file is kept as it was, and numbers begin anew."""
    path = directory / DATABASE_NAME
    with looking_at(directory) as store:
        before = store.remembered().incarnation
    damage(path)
    content = path.read_bytes()

    store, said = opened(directory)

    with closing(store):
        assert at_least <= store.interacted().total <= N_INTERACTIONS
        remembered = store.remembered()
        assert remembered.incarnation != before
        assert remembered.outbox_seq is None
        store.record([("bread", 1.0)])
    (sentence,) = said
    assert "a new database was made: kept" in sentence
    (aside,) = [each for each in damaged_files(path) if not each.name.endswith("-wal")]
    assert aside.read_bytes() == content
    store, said = opened(directory)
    store.close()
    assert said == []


def test_key_that_was_met_is_remembered(directory: Path) -> None:
    """Or an earlier one, which may have been stolen, would count again."""
    with looking_at(directory) as store:
        store.set_facts(head_key="ab" * 32)
    zeroed(directory / DATABASE_NAME)
    store, _ = opened(directory)
    with closing(store):
        assert store.fact("head_key") == "ab" * 32
        store.reset(5, keep_interactions=False)
        assert store.fact("head_key") == "ab" * 32


def test_listens_that_are_sent_again_still_count_once(directory: Path) -> None:
    """What tells them is carried over with them."""
    path = directory / DATABASE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE model SET item_table = zeroblob(48)")
        connection.commit()

    store, said = opened(directory)

    with closing(store):
        total = store.interacted().total
        assert total == N_INTERACTIONS
        assert store.record_once([("bread", 1.0, b"identity 3"), ("bread", 2.0, b"another")]) == 1
    assert "lost the item table" in said[0]


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ('{"house:1883": ["homeassistant/sensor/x/version/config"]}', True),
        ('{"house:1883": ["homeassistant/sens', False),
        ('{"house:1883": "homeassistant"}', False),
        ('{"house:1883": ["a topic/#"]}', False),
        ('["house:1883"]', False),
        ("[" * 100_000, False),
        (b"\xff", False),
        (5, False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_sensors_that_are_left_on_a_broker_can_still_be_taken_away(
    directory: Path, told: object, *, kept: bool
) -> None:
    """What says where is carried over if it can be read; if not, that keeps no device from starting."""
    with looking_at(directory) as store:
        store.set_facts(home_topics=told)
        # The sound database knows them, too, or knows of none.
        assert bool(left_behind(store)) == kept
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.execute("UPDATE model SET item_table = zeroblob(48)")
        connection.commit()

    store, _ = opened(directory)

    with closing(store):
        assert left_behind(store) == (json.loads(str(told)) if kept else {})


def test_values_that_are_not_finite_are_not_kept(directory: Path) -> None:
    """A personal state with a NaN is gone, the interactions are not."""
    with looking_at(directory) as store:
        personal = a_personal_state()
        wrong = ScoreFunction(w=np.full_like(personal.score_function.w, np.nan), b=0.0)
        store.save_pass(
            type(personal)(score_function=wrong, own_rows=personal.own_rows, own_values=personal.own_values),
            Progress(),
            None,
        )

    store, said = opened(directory)

    with closing(store):
        assert store.personal() is None
        assert store.interacted().total == N_INTERACTIONS
    assert "lost the personal state" in said[0]


def test_item_table_with_values_that_are_none_is_fetched_again(directory: Path) -> None:
    """SQLite does not see them; the hash does. The personal state waits for the same fleet's next table."""
    nan = np.full((6, 2), np.nan, dtype="<f4").tobytes()
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.execute("UPDATE model SET item_table = ?", (nan,))
        connection.commit()

    store, said = opened(directory)

    with closing(store):
        assert store.model() is None
        assert store.remembered().version is None
        assert store.interacted().rows.size == 6, "the catalogue is still there"
        assert store.personal() is not None
        store.replace_model(a_head(8), a_table(), ITEM_KEYS)
        assert store.personal() is not None
    assert "kept 500 interactions and the personal state, lost the item table" in said[0]


def test_personal_state_is_dropped_where_another_fleets_table_comes(directory: Path) -> None:
    """As it is where nothing was damaged."""
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.execute("UPDATE model SET item_table = zeroblob(48)")
        connection.commit()
    store, _ = opened(directory)
    with closing(store):
        store.replace_model(a_head(8, instance=5), a_table(), ITEM_KEYS)
        assert store.personal() is None


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE catalogue SET item = 'appel' WHERE item = 'apple'",
        "DELETE FROM catalogue WHERE row = 3",
        "UPDATE personal SET own_rows = x'ff000000000000000100000000000000'",
        "UPDATE model SET head = x'00'",
        "UPDATE facts SET value = 'many' WHERE name = 'trained_revision'",
        "DELETE FROM facts WHERE name = 'incarnation'",
    ],
)
def test_damage_that_sqlite_does_not_see_is_mended(directory: Path, damage: str) -> None:
    """Interactions stay, and what can be held against them; it is said, once."""
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as connection:
        connection.execute(damage)
        connection.commit()
    store, said = opened(directory)
    with closing(store):
        store.check()
        assert store.interacted().total == N_INTERACTIONS
    assert len(said) == 1
    store, said = opened(directory)
    store.close()
    assert said == []


def killed(directory: Path) -> Path:
    """Give a copy of a device whose last interaction is only in the log, as after a kill."""
    copy = directory.with_name("killed")
    with looking_at(directory) as store:
        store.record([("fig", 9999.0)])
        copytree(directory, copy)
    return copy


def test_log_of_a_device_that_was_killed_is_played(directory: Path) -> None:
    """Nothing is said: nothing is wrong."""
    store, said = opened(killed(directory))
    with closing(store):
        assert store.interacted().total == N_INTERACTIONS + 1
    assert said == []


def test_missing_log_is_told(directory: Path) -> None:
    """Somebody has taken it away: what only it had is lost, and that much can be known."""
    copy = killed(directory)
    (copy / f"{DATABASE_NAME}-wal").unlink()
    store, said = opened(copy)
    with closing(store):
        assert store.interacted().total == N_INTERACTIONS
    (sentence,) = said
    assert "the write-ahead log of" in sentence
    assert "may be lost" in sentence


def test_log_without_its_database_is_not_lost(directory: Path) -> None:
    """What is in it is kept, in a new database."""
    copy = killed(directory)
    (copy / DATABASE_NAME).unlink()
    store, said = opened(copy)
    with closing(store):
        assert ("fig", 9999.0) in store.interactions()
    assert "a new database was made" in said[0]


def test_database_of_a_later_release_is_never_put_aside(directory: Path) -> None:
    """Nor if something in it could not be read."""
    path = directory / DATABASE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("UPDATE model SET item_table = zeroblob(48)")
        connection.commit()
    with pytest.raises(NewerVersionError):
        opened(directory)
    assert damaged_files(path) == []


def test_second_damage_is_put_aside_beside_the_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the same second, or where the clock was set back."""
    monkeypatch.setattr("edge.rebuild.time.time", lambda: 1e9)
    path = directory / DATABASE_NAME
    for content in (b"first", b"second", b"third"):
        path.write_bytes(content)
        opened(directory)[0].close()
    assert [each.read_bytes() for each in damaged_files(path)] == [b"first", b"second", b"third"]


def test_commands_wait_while_a_database_is_made_anew(directory: Path) -> None:
    """What they record is in the new one."""
    path = directory / DATABASE_NAME
    with alone(directory):
        recording = threading.Thread(target=lambda: record(directory, "fig"))
        recording.start()
        content = read(path)
        rebuild(path, content, 1e9)
    recording.join()
    with looking_at(directory) as store:
        assert store.interacted().total == N_INTERACTIONS + 1
    assert len(damaged_files(path)) == 1


def test_database_that_somebody_has_open_is_not_put_aside(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody could go on to write to it. Shortened here."""
    monkeypatch.setattr("edge.config._REBUILD_WAIT_S", 0.1)
    path = directory / DATABASE_NAME
    with looking_at(directory):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM facts WHERE name = 'incarnation'")
            connection.commit()
        with pytest.raises(InUseError):
            opened(directory)
    assert damaged_files(path) == []
    opened(directory)[0].close()
    assert len(damaged_files(path)) == 1


@pytest.mark.root
def test_rebuild_on_a_full_disk_changes_nothing(small_disk: Path) -> None:
    """With room again it is done, and nothing is lost."""
    directory = a_directory(small_disk / "me", "shop", NOBODY)
    with looking_at(directory) as store:
        store.record([(f"item-{number}", float(number)) for number in range(3000)])
    path = directory / DATABASE_NAME
    headless(path)
    content = path.read_bytes()
    filler = fill_disk(small_disk)
    with pytest.raises(DiskFullError, match="no space is left"):
        opened(directory)
    assert path.read_bytes() == content
    assert sorted(each.name for each in directory.glob(f"{DATABASE_NAME}*")) == [DATABASE_NAME]
    filler.unlink()
    store, _ = opened(directory)
    with closing(store):
        assert store.interacted().total == 3000


@pytest.mark.process
def test_start_makes_a_damaged_database_anew(directory: Path) -> None:
    """And goes on; the other commands work again."""
    truncated(directory / DATABASE_NAME)
    with RunningCommand("edge-client", "start", "--dir", str(directory)) as device:
        device.hear("a new database was made")
        with looking_at(directory) as store:
            store.record([("egg", 5.0)])
        assert device.end(signal.SIGTERM) == 0
