"""The device's memory: round trips, and what crashes, full disks, other processes and damage may not do."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import broker.storage
from broker.errors import CorruptError, DiskFullError, InUseError, NewerVersionError, NotWritableError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head, encode
from edge.database import MIGRATIONS
from edge.erasure import Selection
from edge.personal import Personal
from edge.retention import Retention
from edge.scheduler import Progress
from edge.session import Remembered
from edge.store import DeviceStore
from tests.edge import old_database
from tests.edge.builders import (
    INCARNATION,
    INSTANCE,
    ITEM_KEYS,
    a_head,
    a_personal_state,
    a_store,
    a_table,
)
from tests.edge.disks import fill_disk
from tests.edge.old_database import dump
from trainer.params import ScoreFunction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give where the database is."""
    return tmp_path / "device.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[DeviceStore]:
    """Give a new device's store."""
    store = a_store(path)
    yield store
    store.close()


def assert_same_state(found: Personal | None, expected: Personal) -> None:
    """Compare two personal states to the last bit."""
    assert found is not None
    assert found.score_function.b == expected.score_function.b
    for name in ("own_rows", "own_values"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.score_function.w, expected.score_function.w)
    assert found.score_function.w.dtype == np.float32


# -- facts -----------------------------------------------------------------------------------------


def test_fact_never_set_is_none(store: DeviceStore) -> None:
    """Absence is no error."""
    assert store.fact("nothing") is None


def test_set_facts_keeps_the_newest_value(store: DeviceStore) -> None:
    """Numbers, text and nothing."""
    store.set_facts(one=1, two="a", three=None)
    store.set_facts(one=2**53, two="ü")
    assert [store.fact(name) for name in ("one", "two", "three")] == [2**53, "ü", None]


def test_changes_tells_of_others_only(store: DeviceStore, path: Path) -> None:
    """What this process writes it knows."""
    before = store.changes()
    store.set_facts(one=1)
    assert store.changes() == before
    with closing(DeviceStore(path)) as other:
        other.record([("bread", 1.0)])
    assert store.changes() != before


def test_remembered_of_new_device_is_its_incarnation(store: DeviceStore) -> None:
    """Everything else has its beginning."""
    assert store.remembered() == Remembered(incarnation=INCARNATION)


def test_remembered_is_what_a_session_must_know(store: DeviceStore) -> None:
    """Table, numbers, outbox and progress."""
    old_database.fill(store)
    head = a_head(old_database.VERSION)
    remembered = store.remembered()
    assert replace(remembered, held=None) == Remembered(
        incarnation=INCARNATION,
        instance=INSTANCE,
        version=old_database.VERSION,
        table_sha256=head.sha256,
        catalogue_sha256=head.catalogue_sha256,
        last_seq=2,
        outbox_seq=2,
        progress=old_database.PROGRESS,
    )
    assert remembered.held is not None
    assert encode(remembered.held) == encode(head)


# -- interactions ----------------------------------------------------------------------------------


def test_interacted_of_new_device_is_nothing(store: DeviceStore) -> None:
    """No rows, of the right type."""
    interacted = store.interacted()
    assert (interacted.revision, interacted.unknown, interacted.total) == (0, 0, 0)
    assert interacted.rows.dtype == np.int64
    assert interacted.rows.size == 0


def test_interacted_gives_known_rows_by_time(store: DeviceStore) -> None:
    """Each once, at its first time; those that the catalogue does not have are counted."""
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    store.record([("fig", 30.0), ("apple", 20.0), ("?", 1.0), ("!", 1.0), ("?", 2.0)])
    store.record([("egg", 20.0), ("fig", 10.0)])
    interacted = store.interacted()
    assert interacted.rows.tolist() == [5, 0, 4]
    assert (interacted.revision, interacted.unknown, interacted.total) == (7, 2, 7)


def test_interacted_knows_items_once_their_catalogue_is_there(store: DeviceStore) -> None:
    """What was recorded before the first table is not lost."""
    store.record([("bread", 1.0)])
    assert store.interacted().unknown == 1
    assert not store.has_catalogue()
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    assert store.has_catalogue()
    assert store.interacted().rows.tolist() == [1]


@settings(max_examples=50, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from([*ITEM_KEYS, "?", "!"]), st.floats(0.0, 1e10)), min_size=1, max_size=20
    )
)
def test_interacted_agrees_with_plain_python(events: list[tuple[str, float]]) -> None:
    """For any events, recorded in any order."""
    with closing(a_store(Path(":memory:"))) as store:
        store.replace_model(a_head(), a_table(), ITEM_KEYS)
        store.record(events)
        interacted = store.interacted()
    first: dict[str, tuple[float, int]] = {}
    for number, (item, at) in enumerate(events):
        first[item] = min(first.get(item, (at, number)), (at, first.get(item, (at, number))[1]))
    order = sorted(first, key=lambda item: first[item])
    assert interacted.rows.tolist() == [ITEM_KEYS.index(item) for item in order if item in ITEM_KEYS]
    assert interacted.unknown == len(first.keys() - set(ITEM_KEYS))
    assert interacted.total == interacted.revision == len(events)


def test_record_once_counts_an_identity_once(store: DeviceStore) -> None:
    """In one call and in the next; what has none always counts."""
    assert store.record_once([("bread", 1.0, b"a"), ("egg", 2.0, b"a"), ("fig", 3.0, None)]) == 2
    assert store.record_once([("bread", 1.0, b"a"), ("egg", 2.0, b"b"), ("fig", 3.0, None)]) == 2
    assert store.interacted().total == 4


def test_record_once_is_all_or_nothing(store: DeviceStore) -> None:
    """An identity is kept only together with its interaction."""
    with pytest.raises(NotWritableError):
        store.record_once([("bread", 1.0, b"a"), (cast("str", None), 2.0, b"b")])
    assert store.interacted().total == 0
    assert store.record_once([("bread", 1.0, b"a")]) == 1


def test_identity_goes_with_its_interaction(store: DeviceStore) -> None:
    """What is forgotten leaves no trace, and is new when it comes again."""
    store.record_once([("bread", 1.0, b"a"), ("egg", 1.0, b"b")])
    with store._transaction() as connection:
        connection.execute("DELETE FROM interactions WHERE item = 'bread'")
    assert store._rows("SELECT identity FROM identities") == [(b"b",)]
    assert store.record_once([("bread", 1.0, b"a"), ("egg", 1.0, b"b")]) == 1


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.lists(st.sampled_from([None, b"a", b"b", b"c", b"d"]), max_size=6), max_size=6))
def test_record_once_agrees_with_plain_python(calls: list[list[bytes | None]]) -> None:
    """For any calls."""
    seen: set[bytes] = set()
    total = 0
    with closing(a_store(Path(":memory:"))) as store:
        for identities in calls:
            expected = 0
            for identity in identities:
                expected += identity is None or identity not in seen
                seen |= {identity} if identity is not None else set()
            assert store.record_once([("bread", 1.0, identity) for identity in identities]) == expected
            total += expected
        assert store.interacted().total == total


def test_unknown_items_are_those_outside_the_catalogue(store: DeviceStore) -> None:
    """In the order asked."""
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    assert store.unknown_items(["x", "bread", "Bread", "a'; --"]) == ["x", "Bread", "a'; --"]


def test_item_keys_are_those_of_the_rows(store: DeviceStore) -> None:
    """In the order asked."""
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    assert store.item_keys(np.array([5, 0], dtype=np.int64)) == ["fig", "apple"]


# -- model -----------------------------------------------------------------------------------------


def test_model_of_new_device_is_none(store: DeviceStore) -> None:
    """Neither table nor head."""
    assert store.model() is None
    assert store.model_head() is None


def test_model_is_the_newest(store: DeviceStore) -> None:
    """Table to the last bit, and the head that announced it."""
    store.replace_model(a_head(0), a_table(), ITEM_KEYS)
    table = a_table(seed=9)
    head = a_head(1, table=table)
    store.replace_model(head, table, None)
    model = store.model()
    assert model is not None
    assert model.table.tobytes() == table.tobytes()
    assert not model.table.flags.writeable
    assert encode(model.head) == encode(head)
    found = store.model_head()
    assert found is not None
    assert encode(found) == encode(head)
    assert store.item_keys(np.arange(6)) == list(ITEM_KEYS)


def test_replace_model_of_same_aggregator_keeps_the_personal_state(store: DeviceStore) -> None:
    """It is renewed by the next pass."""
    old_database.fill(store)
    store.replace_model(a_head(4), a_table(), None)
    assert_same_state(store.personal(), a_personal_state(2))
    assert store.remembered().progress == old_database.PROGRESS


def test_replace_model_of_other_aggregator_forgets_the_personal_state(store: DeviceStore) -> None:
    """It means nothing for another table; the interactions are all news there."""
    old_database.fill(store)
    store.replace_model(a_head(8, instance=INSTANCE + 1), a_table(), ITEM_KEYS)
    assert store.personal() is None
    assert store.remembered().progress == Progress()
    assert store.remembered().outbox_seq == 2
    assert store.interacted().total == len(old_database.INTERACTIONS)


def test_replace_model_of_other_width_forgets_the_personal_state(store: DeviceStore) -> None:
    """Its rows do not fit."""
    old_database.fill(store)
    table = a_table(dim=4)
    store.replace_model(a_head(8, table=table), table, ITEM_KEYS)
    assert store.personal() is None


def test_replace_model_by_an_older_version_allows_to_contribute_again(store: DeviceStore) -> None:
    """Also after a restart: the aggregator was set back, and has lost what was contributed since."""
    old_database.fill(store)
    store.replace_model(a_head(1), a_table(), None)
    assert store.remembered().progress.contributed_version == 0


def test_replace_model_renews_the_catalogue(store: DeviceStore) -> None:
    """All of it."""
    store.replace_model(a_head(0), a_table(), ITEM_KEYS)
    keys = ("fig", "grape", "bread", "date", "egg", "honey")
    store.replace_model(a_head(1, item_keys=keys), a_table(), keys)
    assert store.item_keys(np.arange(6)) == list(keys)
    assert store.unknown_items(["apple"]) == ["apple"]


def test_model_with_a_changed_byte_is_corrupt(store: DeviceStore, path: Path) -> None:
    """SQLite does not notice; the hash does."""
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE model SET item_table = zeroblob(length(item_table))")
    with pytest.raises(CorruptError, match="SHA-256"):
        store.model()


@pytest.mark.parametrize("ask", [DeviceStore.model_head, DeviceStore.model, DeviceStore.remembered])
def test_head_that_cannot_be_read_is_corrupt(
    store: DeviceStore, path: Path, ask: Callable[[DeviceStore], Any]
) -> None:
    """Damage is no fault of the aggregator."""
    store.replace_model(a_head(), a_table(), ITEM_KEYS)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE model SET head = substr(head, 1, 40)")
    with pytest.raises(CorruptError, match="head of the item table"):
        ask(store)


# -- passes and updates ----------------------------------------------------------------------------


def test_personal_before_the_first_pass_is_none(store: DeviceStore) -> None:
    """The fleet's first score function serves until then."""
    assert store.personal() is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.sets(st.integers(0, 2**40), max_size=8), dim=st.integers(1, 40))
def test_personal_is_what_the_newest_pass_left(seed: int, rows: set[int], dim: int) -> None:
    """Of any size, to the last bit."""
    expected = a_personal_state(seed, sorted(rows), dim)
    with closing(a_store(Path(":memory:"))) as store:
        store.save_pass(a_personal_state(), Progress(), None)
        store.save_pass(expected, Progress(), None)
        assert_same_state(store.personal(), expected)


@pytest.mark.parametrize(
    "damage", ["own_values = x'00000000'", "own_rows = x'00'", "w = x'000000'", "w = x''"]
)
def test_personal_that_cannot_be_read_is_corrupt(store: DeviceStore, path: Path, damage: str) -> None:
    """One sentence, not a traceback."""
    store.save_pass(a_personal_state(), Progress(), None)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(f"UPDATE personal SET {damage}")  # noqa: S608 - from the list above
    with pytest.raises(CorruptError, match="personal state"):
        store.personal()


def test_save_pass_keeps_update_and_number_with_the_state(store: DeviceStore) -> None:
    """A local pass changes neither."""
    progress = Progress(contributed_version=1, trained_revision=2, contributed_revision=2, idle_passes=1)
    store.save_pass(a_personal_state(1), progress, (1, b"payload"))
    later = Progress(contributed_version=1, trained_revision=3, contributed_revision=2, idle_passes=1)
    store.save_pass(a_personal_state(2), later, None)
    assert store.outbox(1) == b"payload"
    assert store.outbox_size() == 1
    remembered = store.remembered()
    assert (remembered.last_seq, remembered.outbox_seq, remembered.progress) == (1, 1, later)


def test_settle_empties_the_outbox_and_counts(store: DeviceStore) -> None:
    """The number stays used."""
    for seq, verdict in ((1, "accepted"), (2, "stale"), (3, "accepted")):
        store.save_pass(a_personal_state(), Progress(), (seq, b"x"))
        store.settle(seq, cast("Any", verdict))
    assert store.outbox_size() == 0
    assert store.receipts() == {"accepted": 2, "stale": 1}
    assert store.remembered().last_seq == 3
    assert store.remembered().outbox_seq is None


def test_settle_writes_little(store: DeviceStore, path: Path) -> None:
    """An update's pages are given back, not written once more as zeros: a flash card has to last."""
    log = path.with_name(f"{path.name}-wal")
    for seq in (1, 2):
        store.save_pass(a_personal_state(), Progress(), (seq, b"x" * 100_000))
        before = log.stat().st_size
        store.settle(seq, "accepted")
        assert log.stat().st_size - before < 40_000


# -- all or nothing --------------------------------------------------------------------------------

WRITES: dict[str, Callable[[DeviceStore], object]] = {
    "set_facts": lambda store: store.set_facts(one=1, two=2),
    "record": lambda store: store.record([("apple", 1.0), ("date", 2.0)]),
    "replace_model": lambda store: store.replace_model(
        a_head(9, instance=5), a_table(seed=3), ITEM_KEYS[::-1]
    ),
    "save_pass": lambda store: store.save_pass(a_personal_state(7), Progress(), (9, b"more")),
    "settle": lambda store: store.settle(2, "accepted"),
    "sending": lambda store: store.sending(2),
    "record_once": lambda store: store.record_once([("fig", 3.0, b"identity"), ("egg", 4.0, None)]),
    "compact": lambda store: store.compact(Retention(most=2), 2000.0),
    "forget": lambda store: store.forget(Selection(items=("bread",))),
    "reset": lambda store: store.reset(4712, keep_interactions=False),
}


class FailingConnection:
    """A connection whose n-th statement fails, as on a disk that breaks."""

    def __init__(self, connection: sqlite3.Connection, statements: int) -> None:
        self._connection = connection
        self._left = statements

    def __getattr__(self, name: str) -> Any:
        if name in ("execute", "executemany"):
            self._left -= 1
            if self._left == 0:
                raise sqlite3.OperationalError("disk I/O error")
        return getattr(self._connection, name)


@pytest.mark.parametrize("write", WRITES)
def test_write_that_fails_anywhere_changes_nothing(store: DeviceStore, path: Path, write: str) -> None:
    """At each of its statements, the commit among them; afterwards it can be done again."""
    old_database.fill(store)
    before = dump(path)
    connection = store._connection
    failures = 0
    while True:
        store._connection = cast("Any", FailingConnection(connection, failures + 1))
        try:
            WRITES[write](store)
        except NotWritableError:
            failures += 1
        else:
            break
        finally:
            store._connection = connection
        assert dump(path) == before
    assert failures >= 3
    assert dump(path) != before


def test_record_with_one_bad_interaction_records_none(store: DeviceStore) -> None:
    """The database refuses an item without a key, and with it the whole call."""
    with pytest.raises(NotWritableError, match="NOT NULL"):
        store.record([("bread", 1.0), cast("Any", (None, 2.0))])
    assert store.interacted().total == 0
    store.record([("bread", 1.0)])
    assert store.interacted().total == 1


def test_save_pass_with_a_used_number_keeps_the_state_before(store: DeviceStore) -> None:
    """Neither the state without its update nor the update without its state."""
    store.save_pass(a_personal_state(1), Progress(), (1, b"first"))
    with pytest.raises(NotWritableError, match="UNIQUE"):
        store.save_pass(a_personal_state(2), Progress(idle_passes=5), (1, b"second"))
    assert_same_state(store.personal(), a_personal_state(1))
    assert store.outbox(1) == b"first"
    assert store.remembered().progress == Progress()


def test_replace_model_with_a_repeated_key_keeps_the_model_before(store: DeviceStore) -> None:
    """Table, head and catalogue belong together."""
    store.replace_model(a_head(0), a_table(), ITEM_KEYS)
    with pytest.raises(NotWritableError, match="UNIQUE"):
        store.replace_model(a_head(1), a_table(seed=4), ["fig", "fig"])
    model = store.model()
    assert model is not None
    assert model.head.version == 0
    assert store.item_keys(np.arange(6)) == list(ITEM_KEYS)


# -- crashes ---------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from edge.retention import Retention
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import a_personal_state

for _ in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    store = DeviceStore(Path(sys.argv[1]))
    seq = store.remembered().last_seq
    print("pid", os.getpid(), flush=True)
    number = 0
    while True:
        number += 1
        store.record([(f"{os.getpid()}-{number}", float(number))])
        print("recorded", number, flush=True)
        if number % 3 == 0:
            progress = Progress(contributed_version=seq, trained_revision=number, idle_passes=seq + 1)
            if store.outbox_size():
                store.settle(seq, "accepted")
            seq += 1
            store.save_pass(a_personal_state(seq), progress, (seq, b"%d" % seq))
"""
"""For each line on stdin: a process that writes until it is killed, and says what is recorded."""

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def writer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Give what starts a process that writes, again and again."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        # Without a reader the process that writes ends by itself, if a failed test has left one.
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait(timeout=20)


def next_line(writer: "subprocess.Popen[str]") -> tuple[str, int]:
    """Read what a process says: its pid first, then what it has recorded."""
    assert writer.stdout is not None
    word, number = writer.stdout.readline().split()
    return word, int(number)


def test_kill_loses_nothing_that_was_recorded(path: Path, writer: "subprocess.Popen[str]") -> None:
    """SIGKILL at twenty moments: what `record` returned for is there, and passes are whole or absent."""
    a_store(path).close()
    assert writer.stdin is not None
    choice = random.Random(5)
    recorded: dict[int, int] = {}
    pid = 0
    for _ in range(20):
        writer.stdin.write("go\n")
        writer.stdin.flush()
        word, number = next_line(writer)
        while word != "pid":  # the process before has said so before it died
            recorded[pid] = number
            word, number = next_line(writer)
        pid = number
        for _ in range(choice.randrange(1, 25)):
            word, recorded[pid] = next_line(writer)
            assert word == "recorded"
        os.kill(pid, signal.SIGKILL)
    with closing(DeviceStore(path)) as store:
        check_after_kills(store, path, recorded)


def check_after_kills(store: DeviceStore, path: Path, expected: dict[int, int]) -> None:
    """Check what the killed processes have left."""
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        recorded = [item for (item,) in other.execute("SELECT item FROM interactions ORDER BY id")]
    numbers: dict[int, list[int]] = {}
    for item in recorded:
        pid, number = item.split("-")
        numbers.setdefault(int(pid), []).append(int(number))
    assert numbers.keys() == expected.keys()
    for pid, said in expected.items():
        assert numbers[pid] == list(range(1, len(numbers[pid]) + 1))
        assert len(numbers[pid]) >= said
    remembered = store.remembered()
    assert remembered.last_seq > 0
    assert_same_state(store.personal(), a_personal_state(remembered.last_seq))
    assert remembered.progress.idle_passes == remembered.last_seq
    assert store.outbox_size() <= 1
    if remembered.outbox_seq is not None:
        assert remembered.outbox_seq == remembered.last_seq
        assert store.outbox(remembered.last_seq) == b"%d" % remembered.last_seq
    assert store.receipts().get("accepted", 0) == remembered.last_seq - store.outbox_size()


TOGETHER = """
import sys
from pathlib import Path
from edge.store import DeviceStore

store = DeviceStore(Path(sys.argv[1]))
for number in range(100):
    store.record([(f"{sys.argv[2]}-{number}", float(number)), ("both", 0.0)])
"""


def test_two_processes_that_write_at_once_lose_nothing(store: DeviceStore, path: Path) -> None:
    """`record` beside a running agent."""
    processes = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(path), name], cwd=REPOSITORY) for name in "ab"
    ]
    for number in range(100):
        store.set_facts(number=number)
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert store.interacted().total == 400
    assert store.fact("number") == 99


# -- what others have left -------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_database_of_every_release_opens(path: Path, version: int) -> None:
    """With everything that was in it; and a second time."""
    old_database.load((old_database.FOLDER / f"{version}.sql").read_text(encoding="utf-8"), path)
    for _ in range(2):
        with closing(DeviceStore(path)) as store:
            remembered = store.remembered()
            assert (remembered.last_seq, remembered.outbox_seq, remembered.version) == (2, 2, 3)
            assert remembered.progress == old_database.PROGRESS
            assert remembered.incarnation == INCARNATION
            assert_same_state(store.personal(), a_personal_state(2))
            model = store.model()
            assert model is not None
            assert model.table.tobytes() == a_table().tobytes()
            interacted = store.interacted()
            assert interacted.rows.tolist() == [1, 4]
            assert (interacted.revision, interacted.unknown, interacted.total) == (4, 1, 4)
            assert store.outbox(2) == old_database.OUTBOX[1]
            assert store.receipts() == {"accepted": 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_newest_old_database_is_what_this_release_writes(store: DeviceStore, path: Path) -> None:
    """A change of the format needs a migration, and a file of its own."""
    old_database.fill(store)
    newest = (old_database.FOLDER / f"{len(MIGRATIONS)}.sql").read_text(encoding="utf-8")
    assert dump(path) == newest


def test_database_of_a_later_release_is_refused_untouched(store: DeviceStore, path: Path) -> None:
    """The sentence says what to do, and not a byte has changed."""
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(NewerVersionError, match=r"later release.*upgrade pfedrec-edge.*nothing was changed"):
        DeviceStore(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_migration_that_fails_leaves_no_half_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start begins it again."""
    monkeypatch.setattr("edge.database.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE x (y)", "no SQL")))
    with pytest.raises(NotWritableError):
        DeviceStore(path)
    monkeypatch.undo()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    a_store(path).close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_file_that_is_no_database_is_corrupt(path: Path, content: bytes) -> None:
    """And is left as it is."""
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="is damaged"):
        DeviceStore(path)
    assert path.read_bytes() == content


def test_database_with_overwritten_pages_is_corrupt(store: DeviceStore, path: Path) -> None:
    """When what is asked for lies in them."""
    old_database.fill(store)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with closing(DeviceStore(path)) as damaged, pytest.raises(CorruptError, match="is damaged"):
        damaged.interacted()


def test_database_that_was_emptied_is_corrupt(path: Path) -> None:
    """After a crash of the file system; without its number the device would be another one."""
    path.touch()
    with closing(DeviceStore(path)) as store, pytest.raises(CorruptError, match="own number is missing"):
        store.remembered()


def test_database_that_another_process_holds_is_in_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wait; shortened here."""
    monkeypatch.setattr(broker.storage, "_BUSY_TIMEOUT_S", 0.01)
    with closing(a_store(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InUseError, match="locked by another process"):
            store.record([("bread", 1.0)])
        other.execute("ROLLBACK")
        store.record([("bread", 1.0)])
        assert store.interacted().total == 1


def test_database_in_a_missing_folder_is_not_writable(tmp_path: Path) -> None:
    """The sentence names the path."""
    with pytest.raises(NotWritableError, match="nowhere"):
        DeviceStore(tmp_path / "nowhere" / "device.sqlite3")


# -- a full disk -----------------------------------------------------------------------------------


def big_head_and_table() -> tuple[Head, Any]:
    """Give a model that does not fit what is left."""
    table = a_table(40, 1000)
    return a_head(7, table=table, item_keys=[f"item-{row}" for row in range(40)]), table


@pytest.mark.root
@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.record([("x" * 250, 1.0)] * 2000),
        lambda store: store.replace_model(*big_head_and_table(), None),
        lambda store: store.save_pass(a_personal_state(5), Progress(), (9, b"x" * 200_000)),
    ],
    ids=["record", "replace_model", "save_pass"],
)
def test_full_disk_is_named_and_changes_nothing(
    small_disk: Path, write: Callable[[DeviceStore], object]
) -> None:
    """With room again, the same call succeeds."""
    path = small_disk / "device.sqlite3"
    with closing(a_store(path)) as store:
        old_database.fill(store)
        filler = fill_disk(small_disk)
        before = dump_inside(store)
        with pytest.raises(DiskFullError, match="no space is left"):
            write(store)
        assert dump_inside(store) == before
        filler.unlink()
        write(store)
        assert dump_inside(store) != before
    with closing(DeviceStore(path)) as store:
        assert store.remembered().incarnation == INCARNATION


def dump_inside(store: DeviceStore) -> list[str]:
    """Give the database as SQL, over its own connection: a second one would need room."""
    return list(store._connection.iterdump())


@pytest.mark.root
def test_full_disk_at_the_first_start_is_named(small_disk: Path) -> None:
    """There is no room even for an empty database."""
    fill_disk(small_disk)
    with pytest.raises(DiskFullError, match="no space is left"):
        DeviceStore(small_disk / "device.sqlite3")


def test_personal_state_that_is_not_finite_is_damage(store: DeviceStore) -> None:
    """It never gets there by the agent, and is of no use; ``start`` makes a new database without it."""
    state = Personal(
        score_function=ScoreFunction(w=np.ones(2, dtype=np.float32), b=float("inf")),
        own_rows=np.empty(0, dtype=np.int64),
        own_values=np.empty((0, 2), dtype=np.float32),
    )
    store.save_pass(state, Progress(), None)
    with pytest.raises(CorruptError, match="the personal state cannot be read"):
        store.personal()


# -- a catalogue with marks ------------------------------------------------------------------------


def test_renamed_and_retired_items_are_followed(store: DeviceStore) -> None:
    """Interactions under a former key are the row's; a retired row is known as one."""
    keys = list(ITEM_KEYS)
    store.record([(keys[1], 1.0), (keys[2], 2.0), ("later", 3.0)])
    store.replace_model(a_head(0), a_table(), keys)
    store.save_pass(a_personal_state(1), Progress(), None)
    renamed = Catalogue(
        (keys[0], "new name", *keys[2:], "later"), frozenset({0, 2}), {keys[1]: 1, "older": 1}
    )
    table = a_table(n_items=len(keys) + 1)
    store.replace_model(a_head(1, table=table, item_keys=renamed), table, renamed)
    store.record([("older", 4.0), ("new name", 5.0)])

    found = store.interacted()

    assert found.rows.tolist() == [1, 2, len(keys)]
    assert found.newest.tolist() == [2, len(keys), 1]
    assert (found.retired.tolist(), found.unknown, found.total) == ([0, 2], 0, 5)
    assert store.marked_catalogue() == renamed
    assert store.item_rows([keys[1], "new name", "nobody"]).tolist() == [1, 1]
    assert store.unknown_items([keys[1], "nobody"]) == ["nobody"]
    assert store.personal() is not None, "rows keep their places, and so does what is the user's own"
    store.check()


def test_item_is_forgotten_under_all_of_its_names(store: DeviceStore) -> None:
    """Whichever of them the user gives."""
    keys = list(ITEM_KEYS)
    renamed = Catalogue((keys[0], "new name", *keys[2:]), frozenset(), {keys[1]: 1, "older": 1})
    store.replace_model(a_head(1, item_keys=renamed), a_table(), renamed)
    for name in (keys[1], "new name", "older"):
        store.record([(keys[1], 1.0), ("older", 2.0), ("new name", 3.0), (keys[2], 4.0), ("nobody", 5.0)])
        assert store.forget(Selection(items=("unheard", name), until=4.5)).interactions == 3
