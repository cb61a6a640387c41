"""A damaged database: put aside, and a new one made from what can be read."""

import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker.storage import exclusive
from edge.config import DATABASE_NAME
from edge.homelink import left_behind
from edge.putaside import damaged_files
from edge.rebuild import open_sound_store
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state, a_table
from tests.edge.calling import NOBODY
from tests.edge.running import RunningCommand, a_directory, looking_at
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


@pytest.mark.process
def test_start_makes_a_damaged_database_anew(directory: Path) -> None:
    """And goes on; the other commands work again."""
    truncated(directory / DATABASE_NAME)
    with RunningCommand("edge-client", "start", "--dir", str(directory)) as device:
        device.hear("a new database was made")
        with looking_at(directory) as store:
            store.record([("egg", 5.0)])
        assert device.end(signal.SIGTERM) == 0
