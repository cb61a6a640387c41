"""What every aggregator store must do; add a new one to `STORES`."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.aggregator.catalogue_changes import CatalogueChange, CatalogueStep, Kind, apply_change
from broker.aggregator.decisions import Answered, CloseRound, Journal, JournalEntry, KeepQuality
from broker.aggregator.guard import Finding, VersionQuality
from broker.aggregator.store.address import StoreAddress
from broker.aggregator.store.interface import KEEP_VERSIONS, AggregatorStore, Batch, Ledger
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import CorruptError, PFedRecError
from broker.protocol.catalogue import Catalogue
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import MAX_SEQ, MAX_U64, encode
from broker.protocol.versions import sha256, table_bytes
from tests.broker.aggregator.builders import (
    INSTANCE,
    a_genesis,
    a_round,
    a_table,
    an_entry,
    an_update,
)
from tests.broker.protocol.strategies import assert_same
from tests.postgres import Cluster, programs

Factory = Callable[[Path], AggregatorStore]

STORES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=STORES)
def factory(request: pytest.FixtureRequest) -> Factory:
    """Give what opens a store of one kind, the same one for the same folder."""
    if request.param == "sqlite":
        return lambda folder: SqliteStore(folder / "state.sqlite3")
    assert programs() is not None, "PostgreSQL is not installed: apt-get install postgresql"
    cluster: Cluster = request.getfixturevalue("cluster")
    urls: defaultdict[Path, str] = defaultdict(cluster.new_store)
    return lambda folder: PostgresStore(StoreAddress(urls[folder]))


class Opened:
    """A store of one kind that a test can close and open again."""

    def __init__(self, factory: Factory, folder: Path) -> None:
        self._factory = factory
        self._folder = folder
        self.store = factory(folder)

    def reopen(self) -> AggregatorStore:
        """Close the store and open it as the next process would."""
        self.store.close()
        self.store = self._factory(self._folder)
        return self.store


@pytest.fixture
def opened(factory: Factory, tmp_path: Path) -> Iterator[Opened]:
    """Give a store with a fleet's beginning in it."""
    result = Opened(factory, tmp_path)
    result.store.initialise(a_genesis())
    yield result
    result.store.close()


@pytest.fixture
def store(opened: Opened) -> AggregatorStore:
    """Give a store with a fleet's beginning in it that is not opened again."""
    return opened.store


def batch(
    *commands: Journal | CloseRound | KeepQuality,
    duplicates: int = 0,
    refused: int = 0,
    devices: tuple[str, ...] = (),
) -> Batch:
    """Give a batch that was made at a time that floats hold exactly."""
    return Batch(
        commands=commands, devices=devices, duplicates=duplicates, refused=refused, closed_at=1_700_000_100.25
    )


def accepted(seq: int, **fields: int) -> Journal:
    """Give the command to journal an accepted update of one device."""
    return Journal(an_entry(seq=seq, **fields))  # type: ignore[arg-type] # its other fields are texts


def other(seq: int, verdict: str, **fields: int) -> Journal:
    """Give the command to journal an update that was not accepted."""
    return Journal(an_entry(seq=seq, verdict=verdict, **fields))  # type: ignore[arg-type]


def closing(version: int, **fields: int | bool) -> CloseRound:
    """Give the command to close the round that makes `version`."""
    return CloseRound(a_round(version, **fields))


def pending_seqs(store: AggregatorStore) -> list[int]:
    """Give the sequence numbers of the updates that no round has counted yet."""
    return [update.seq for update, _, _ in store.pending()]


def contents(store: AggregatorStore) -> object:
    """Give everything that the store can be asked, comparable with ==."""
    state = store.load()
    return (
        (state.instance, state.version, state.table.tobytes(), state.table.shape),
        (state.answered, state.seen),
        [(name, each.tobytes(), each.shape) for name, each in sorted(state.strategy_state.items())],
        [(encode(update), staleness, size) for update, staleness, size in store.pending()],
        (store.ledger(), store.rounds(1000), store.item_keys(), store.start().b),
    )


def test_initialised_store_gives_the_beginning_back(opened: Opened) -> None:
    """What `initialise` stored is what `load`, `start` and `item_keys` give, also after a reopen."""
    genesis = a_genesis()
    for is_reopened in (False, True):
        store = opened.reopen() if is_reopened else opened.store
        state = store.load()
        assert (state.instance, state.version) == (INSTANCE, 0)
        assert state.table.dtype == np.float32
        np.testing.assert_array_equal(state.table, genesis.table)
        assert (state.answered, state.seen, dict(state.strategy_state)) == ({}, set(), {})
        np.testing.assert_array_equal(store.start().w, genesis.start.w)
        assert store.start().w.dtype == np.float32
        assert store.start().b == genesis.start.b
        assert store.item_keys() == tuple(genesis.item_keys)
        assert store.pending() == []
        assert store.rounds(10) == []
        assert store.ledger() == Ledger(counted=0, pending=0, stale=0, rejected=0, duplicates=0, refused=0)


@pytest.mark.parametrize("question", ["load", "start", "ledger", "next_session"])
def test_store_that_was_never_initialised_is_corrupt(factory: Factory, question: str, tmp_path: Path) -> None:
    """An empty store in the place of a full one is named as what it is."""
    store = factory(tmp_path)
    try:
        with pytest.raises(CorruptError):
            getattr(store, question)()
    finally:
        store.close()


def test_initialise_a_second_time_changes_nothing(store: AggregatorStore) -> None:
    """A fleet begins once."""
    store.commit(batch(accepted(1), devices=("pi",)))
    before = contents(store)

    with pytest.raises(PFedRecError):
        store.initialise(replace(a_genesis(), instance=1))

    assert contents(store) == before


def test_accepted_entries_are_pending_in_journal_order(opened: Opened) -> None:
    """What waits comes back as it was sent, in the order of acceptance, with staleness and size."""
    entries = [
        an_entry(device="b", seq=7, staleness=2, base_version=5),
        an_entry(device="a", seq=9),
        an_entry(device="b", seq=8, staleness=1),
    ]
    opened.store.commit(batch(Journal(entries[0])))
    opened.store.commit(batch(Journal(entries[1]), Journal(entries[2])))

    pending = opened.reopen().pending()

    assert [(staleness, size) for _, staleness, size in pending] == [
        (entry.staleness, len(entry.body or b"")) for entry in entries
    ]
    for (update, _, _), entry in zip(pending, entries, strict=True):
        expected = an_update(seq=entry.seq, base_version=entry.base_version)
        assert_same(dict(update.body), dict(expected.body))
        assert (update.seq, update.base_version, update.instance) == (
            entry.seq,
            entry.base_version,
            INSTANCE,
        )


def test_update_larger_than_one_message_comes_back(store: AggregatorStore) -> None:
    """An update that was put together from chunks is kept whole."""
    rows = np.arange(3000, dtype=np.uint32)
    values = np.ones(3000 * 32, dtype=np.float32)
    update = replace(an_update(), body={"rows": rows, "values": values})
    store.commit(batch(Journal(replace(an_entry(), body=encode(update)))))

    ((found, _, size),) = store.pending()

    assert size == len(encode(update)) > 300_000
    assert_same(dict(found.body), dict(update.body))


def test_what_the_strategy_remembers_comes_back_with_its_version(opened: Opened) -> None:
    """Names, shapes and every bit of the newest round; a round without memory leaves none."""
    opened.store.commit(batch(accepted(1), closing(1), accepted(2), closing(2)))

    state = opened.reopen().load().strategy_state

    expected = a_round(2).strategy_state
    assert state.keys() == expected.keys() != set()
    for name, values in expected.items():
        assert state[name].dtype == np.float32
        np.testing.assert_array_equal(state[name], values)
    opened.store.commit(batch(accepted(3), CloseRound(replace(a_round(3), strategy_state={}))))
    assert dict(opened.reopen().load().strategy_state) == {}


def test_other_verdicts_are_answered_but_never_pending(store: AggregatorStore) -> None:
    """A stale or rejected update is remembered without its body."""
    store.commit(batch(other(1, "stale"), other(2, "rejected")))

    assert store.pending() == []
    assert store.load().answered == {("pi", 1): Answered(seq=2, verdict="rejected")}


def test_round_spends_the_entries_before_it_and_not_those_after(opened: Opened) -> None:
    """In one batch the commands' order decides which round counts an update."""
    opened.store.commit(batch(accepted(1)))

    opened.store.commit(batch(accepted(2), other(3, "stale"), closing(1), accepted(4), other(5, "rejected")))

    store = opened.reopen()
    assert pending_seqs(store) == [4]
    assert store.ledger() == Ledger(counted=2, pending=1, stale=1, rejected=1, duplicates=0, refused=0)
    store.commit(batch(closing(2)))
    assert store.pending() == []
    assert store.ledger().counted == 3


def test_two_rounds_in_one_batch_each_spend_their_own(store: AggregatorStore) -> None:
    """A batch may hold more than one round."""
    store.commit(batch(accepted(1), closing(1), accepted(2), closing(2), accepted(3)))

    assert pending_seqs(store) == [3]
    assert store.load().version == 2
    assert [record.version for record in store.rounds(9)] == [2, 1]


def test_closed_round_is_the_newest_table(opened: Opened) -> None:
    """`load` gives the newest version's table to the bit."""
    opened.store.commit(batch(accepted(1), closing(1)))
    opened.store.commit(batch(accepted(2), closing(2)))

    state = opened.reopen().load()

    assert state.version == 2
    assert state.table.tobytes() == a_table(2).tobytes()


def test_rounds_come_newest_first_with_their_figures(opened: Opened) -> None:
    """A round's record tells what it counted, why it closed, when, and its table's hash."""
    opened.store.commit(batch(accepted(1), closing(1, updates=4, staleness_sum=6, bytes_up=2**40)))
    opened.store.commit(batch(accepted(2), closing(2, by_deadline=True)))

    newest, older = opened.reopen().rounds(10)

    assert (newest.version, older.version) == (2, 1)
    assert (newest.by_deadline, older.by_deadline) == (True, False)
    assert (older.updates, older.staleness_mean, older.bytes_up) == (4, 1.5, 2**40)
    assert older.closed_at == 1_700_000_100.25
    assert older.sha256 == sha256(table_bytes(a_table(1)))
    assert [record.version for record in opened.store.rounds(1)] == [2]


def test_rounds_outlive_their_tables(opened: Opened) -> None:
    """Only the newest tables are kept; the figures and hashes of all rounds are."""
    last = KEEP_VERSIONS + 5
    for version in range(1, last + 1):
        opened.store.commit(batch(accepted(version), closing(version)))

    store = opened.reopen()

    assert store.load().table.tobytes() == a_table(last).tobytes()
    records = store.rounds(1000)
    assert [record.version for record in records] == list(range(last, 0, -1))
    assert records[-1].sha256 == sha256(table_bytes(a_table(1)))


def test_batch_of_more_rounds_than_are_kept_leaves_what_single_ones_do(
    factory: Factory, tmp_path: Path
) -> None:
    """Under load many rounds are stored at once; what can be made anew is the same."""
    last = KEEP_VERSIONS + 5
    commands = [each for number in range(1, last + 1) for each in (accepted(number + 1), closing(number))]
    seen = []
    for name, parts in (
        ("together", [commands]),
        ("singly", [commands[i : i + 2] for i in range(0, 2 * last, 2)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        opened = Opened(factory, folder)
        opened.store.initialise(a_genesis())
        opened.store.commit(batch(accepted(1)))
        for part in parts:
            opened.store.commit(batch(*part))
        store = opened.reopen()
        kept = [store.kept_table(version) for version in range(last + 1)]
        seen.append(
            (
                contents(store),
                [None if each is None else each.table.tobytes() for each in kept],
                [[update.seq for update, _, _ in store.counted(version)] for version in range(last + 1)],
            )
        )
        store.close()

    assert seen[0] == seen[1]
    assert seen[0][2][-1] == [last + 1]


def test_answered_is_the_newest_of_each_incarnation(opened: Opened) -> None:
    """Of every device and incarnation the newest number with its verdict is remembered."""
    opened.store.commit(
        batch(
            accepted(1),
            other(2, "stale"),
            accepted(1, incarnation=2),
            Journal(an_entry(device="other", seq=5)),
        )
    )
    opened.store.commit(batch(other(3, "rejected"), closing(1), accepted(4)))

    assert opened.reopen().load().answered == {
        ("pi", 1): Answered(seq=4, verdict="accepted"),
        ("pi", 2): Answered(seq=1, verdict="accepted"),
        ("other", 1): Answered(seq=5, verdict="accepted"),
    }


@pytest.mark.parametrize("incarnation", [0, 2**53 + 1, 2**63 - 1, 2**63, MAX_U64 - 1, MAX_U64])
def test_incarnations_of_64_bits_stay_exact(opened: Opened, incarnation: int) -> None:
    """Incarnations are unsigned 64-bit numbers, which few databases have."""
    opened.store.commit(batch(accepted(MAX_SEQ, incarnation=incarnation)))

    store = opened.reopen()

    assert list(store.load().answered) == [("pi", incarnation)]
    ((update, _, _),) = store.pending()
    assert (update.incarnation, update.seq) == (incarnation, MAX_SEQ)


def test_devices_are_remembered_once(opened: Opened) -> None:
    """A device that is reported again is no error and counts once."""
    opened.store.commit(batch(devices=("a", "b")))
    opened.store.commit(batch(devices=("b", "c")))

    assert opened.reopen().load().seen == {"a", "b", "c"}


def test_ledger_adds_duplicates_and_refusals_up(opened: Opened) -> None:
    """What was not stored as an update is still counted."""
    opened.store.commit(batch(duplicates=2, refused=1))
    opened.store.commit(batch(duplicates=3, refused=5))

    ledger = opened.reopen().ledger()

    assert (ledger.duplicates, ledger.refused) == (5, 6)


@pytest.mark.parametrize(
    ("prefix", "pending"), [("", 5), ("sim-", 2), ("sim-1", 1), ("S", 1), ("a_", 1), ("%", 0), ("pi", 0)]
)
def test_ledger_of_a_prefix_counts_only_devices_that_begin_so(
    store: AggregatorStore, prefix: str, pending: int
) -> None:
    """Ids are compared letter by letter; nothing in a prefix is a pattern."""
    devices = ("sim-1", "sim-2", "Sim-1", "a_1", "ab1")
    entries = [Journal(an_entry(device=device)) for device in devices]
    store.commit(batch(*entries, duplicates=2, refused=3))

    ledger = store.ledger(prefix)

    assert (ledger.pending, ledger.duplicates, ledger.refused) == (pending, 2, 3)


def test_sessions_count_up_from_one_and_go_on_after_a_reopen(opened: Opened) -> None:
    """No two connections of an aggregator have the same session number."""
    assert [opened.store.next_session(), opened.store.next_session()] == [1, 2]
    assert opened.reopen().next_session() == 3


def test_empty_batch_changes_nothing(store: AggregatorStore) -> None:
    """A batch may hold nothing but its time."""
    before = contents(store)

    store.commit(batch())

    assert contents(store) == before


FAILING: dict[str, tuple[Journal | CloseRound, ...]] = {
    "entry twice in one batch": (accepted(2), accepted(2)),
    "entry of before": (accepted(2), accepted(1)),
    "entry of before in a round": (accepted(1), closing(2)),
    "entry of before after a round": (accepted(2), closing(2), accepted(3), accepted(1)),
    "version of before": (accepted(2), closing(1), accepted(3)),
    "second of two rounds": (accepted(2), closing(2), accepted(3), closing(2)),
}


@pytest.mark.parametrize("commands", FAILING.values(), ids=FAILING)
def test_failed_commit_changes_nothing(opened: Opened, commands: tuple[Journal | CloseRound, ...]) -> None:
    """A batch that cannot be stored whole leaves everything as it was, and the store goes on working."""
    opened.store.commit(batch(other(50, "stale", incarnation=9), accepted(7, incarnation=9), closing(1)))
    opened.store.commit(batch(accepted(1), devices=("pi",), duplicates=1))
    before = contents(opened.store)

    with pytest.raises(PFedRecError):
        opened.store.commit(batch(*commands, devices=("new",), duplicates=4, refused=4))

    assert contents(opened.store) == before
    assert contents(opened.reopen()) == before
    opened.store.commit(batch(accepted(2), closing(2)))
    assert opened.store.load().version == 2


_COMMANDS = st.lists(st.sampled_from(["accepted", "accepted", "stale", "rejected", "close"]), max_size=12)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(_COMMANDS, max_size=5))
def test_ledger_agrees_with_any_history(
    factory: Factory, batches: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However updates and rounds are spread over batches, the sums and what is pending are right."""
    opened = Opened(factory, tmp_path_factory.mktemp("store"))
    opened.store.initialise(a_genesis())
    counted: list[JournalEntry] = []
    waiting: list[JournalEntry] = []
    verdicts: list[str] = []
    version = 0
    for kinds in batches:
        commands: list[Journal | CloseRound] = []
        for kind in kinds:
            if kind == "close":
                version += 1
                commands.append(closing(version))
                counted += waiting
                waiting = []
                continue
            verdicts.append(kind)
            entry = an_entry(seq=len(verdicts), verdict=kind)  # type: ignore[arg-type]
            commands.append(Journal(entry))
            waiting += [entry] if kind == "accepted" else []
        opened.store.commit(batch(*commands))

    store = opened.reopen()
    try:
        assert pending_seqs(store) == [entry.seq for entry in waiting]
        assert store.load().version == version
        assert store.ledger() == Ledger(
            counted=len(counted),
            pending=len(waiting),
            stale=verdicts.count("stale"),
            rejected=verdicts.count("rejected"),
            duplicates=0,
            refused=0,
        )
    finally:
        store.close()


def test_pending_updates_decode_for_the_table(store: AggregatorStore) -> None:
    """What comes back after a restart is what the core needs: bodies of the table's shape."""
    store.commit(batch(accepted(1), accepted(2)))
    shape = store.load().table.shape

    for update, _, _ in store.pending():
        change = ENCODINGS[update.encoding].decode(update.body, *shape)
        assert change.change.shape == (change.rows.size, shape[1])


# --- the catalogue ------------------------------------------------------------------------------------


def asked(kind: Kind, *items: tuple[str, ...]) -> CatalogueChange:
    """Give a change as a file of one line for each item would."""
    return CatalogueChange(kind=kind, items=items, source="f", lines=tuple(range(1, len(items) + 1)))


def make_next_change(store: AggregatorStore) -> None:
    """Make the version of the first change in the queue, as the service does."""
    number, change = store.queued_changes()[0]
    state = store.load()
    changed = apply_change(state.catalogue, change, state.table.shape[1])
    step = CatalogueStep(number=number, change=change, catalogue=changed.catalogue)
    table = changed.table_from(state.table)
    closed = replace(a_round(state.version + 1, updates=0), table=table, catalogue_step=step)
    store.commit(batch(CloseRound(closed)))


def test_changes_of_the_catalogue_wait_in_order_until_a_version_makes_them(opened: Opened) -> None:
    """They outlive a restart; each is checked against those before it."""
    first, second, third, keys = "item 0 · 映画", "item 1 · 映画", "new", opened.store.item_keys()
    changes = [
        asked("add", ("new", first)),
        asked("rename", (first, "x"), ("new", "y")),
        asked("retire", ("y",), (second,)),
        asked("rename", ("x", "z"), ("y", third)),
    ]
    numbers = [opened.store.queue_change(change, 5.0) for change in changes]
    store = opened.reopen()
    assert store.queued_changes() == list(zip(numbers, changes, strict=True))
    assert store.change_outcome(numbers[0]) is None

    for place in range(len(changes)):
        make_next_change(store)
        assert store.change_outcome(numbers[place]) == place + 1

    store = opened.reopen()
    assert store.queued_changes() == []
    expected = Catalogue(("z", *keys[1:], "new"), frozenset({1, 6}), {first: 0, "x": 0, "y": 6})
    assert store.catalogue() == store.load().catalogue == expected
    assert store.item_keys() == expected.keys
    assert store.load().table.shape == (7, 3)
    assert [record.catalogue_changed for record in store.rounds(9)] == [True] * 4


def test_change_that_contradicts_the_queue_is_not_queued(store: AggregatorStore) -> None:
    """Nothing is changed."""
    store.queue_change(asked("add", ("new",)), 5.0)
    before = contents(store), store.queued_changes()
    for change in (asked("add", ("other",), ("new",)), asked("retire", ("nobody",))):
        with pytest.raises(PFedRecError):
            store.queue_change(change, 6.0)
    assert (contents(store), store.queued_changes()) == before


def test_refused_change_leaves_the_queue_with_its_reason(opened: Opened) -> None:
    """Who waits for it learns why."""
    number = opened.store.queue_change(asked("add", ("new",)), 5.0)
    opened.store.refuse_change(number, "a reason")
    store = opened.reopen()
    assert store.queued_changes() == []
    assert store.change_outcome(number) == "a reason"


# --- the guard ----------------------------------------------------------------------------------------


def a_quality(version: int, finding: Finding, reports: int = 3) -> VersionQuality:
    """Give what devices have reported of a version."""
    return VersionQuality(
        version=version, finding=finding, reports=reports, candidates=99 * reports, hits=2, hits_before=1,
        beaten=200, beaten_before=150, ndcg=1.25, ndcg_before=0.5, loss=3.5, loss_before=0.1,
        differences=0.5, squares=0.25,
    )  # fmt: skip


def test_quality_is_kept_with_its_version(opened: Opened) -> None:
    """The newest sums are those that count."""
    opened.store.commit(batch(closing(1), KeepQuality(a_quality(1, "trial")), closing(2)))
    opened.store.commit(batch(KeepQuality(a_quality(1, "good", 4)), KeepQuality(a_quality(2, "trial"))))
    newest, older = opened.reopen().rounds(2)
    assert (newest.quality, older.quality) == (a_quality(2, "trial"), a_quality(1, "good", 4))
    assert [record.quality for record in opened.store.rounds(1)] == [a_quality(2, "trial")]


def test_version_on_trial_comes_back_with_the_one_before(opened: Opened) -> None:
    """With what is known of it, until it is found good or bad."""
    opened.store.commit(batch(closing(1), KeepQuality(a_quality(1, "good")), closing(2)))
    before = opened.reopen().load().before
    assert before is not None
    assert before.version == 1
    np.testing.assert_array_equal(before.table, a_table(1))
    assert opened.store.load().quality is None
    for finding, is_kept in (("trial", True), ("unjudged", True), ("good", False)):
        quality = a_quality(2, finding)  # type: ignore[arg-type]
        opened.store.commit(batch(KeepQuality(quality)))
        state = opened.store.load()
        assert (state.before is not None) == is_kept
        assert state.quality == (quality if is_kept else None)


def test_sums_are_as_large_as_ever_they_get(opened: Opened) -> None:
    """Beyond four bytes."""
    quality = replace(a_quality(1, "good"), reports=2**40, candidates=2**53, beaten=2**52)
    opened.store.commit(batch(CloseRound(a_round(1, staleness_sum=2**40)), KeepQuality(quality)))
    (record,) = opened.store.rounds(1)
    assert (record.staleness_mean, record.quality) == (2**39, quality)


def test_updates_of_all_versions_are_added_up(opened: Opened) -> None:
    """As the journal counts them; none before the first version."""
    assert opened.store.updates_counted() == 0
    opened.store.commit(batch(accepted(1), accepted(2), closing(1), accepted(3)))
    opened.store.commit(batch(accepted(4), closing(2), accepted(5)))
    assert opened.reopen().updates_counted() == opened.store.ledger().counted == 4


def test_rollback_drops_what_it_spends(opened: Opened) -> None:
    """Accepted updates that its version does not count are neither pending nor counted."""
    opened.store.commit(batch(accepted(1), closing(1), accepted(2)))
    opened.store.commit(batch(accepted(3), CloseRound(a_round(2, updates=0, restored=0, dropped=2))))
    opened.store.commit(batch(accepted(4)))
    store = opened.reopen()
    assert store.ledger() == Ledger(
        counted=1, pending=1, stale=0, rejected=0, duplicates=0, refused=0, dropped=2
    )
    state = store.load()
    assert (state.rolled_back, state.before) == ([(0, 2)], None)
    assert (store.rounds(1)[0].kind, store.rounds(1)[0].source, store.rounds(1)[0].dropped) == (
        "rollback",
        0,
        2,
    )
