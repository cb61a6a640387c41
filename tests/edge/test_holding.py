"""The newest table: what is stored of it, when, and what a restart finds."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.holding import Allowance, Holding
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import INCARNATION, INSTANCE, ITEM_KEYS, a_head, a_personal_state, a_table

DAY = 86_400.0
NOW = 1.7e9
COST = 2.0 * a_table().nbytes
"""Of storing the tables here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the database's path."""
    return tmp_path / "device.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[DeviceStore]:
    """Give a new device's store."""
    with closing(DeviceStore(path)) as opened:
        opened.set_facts(incarnation=INCARNATION)
        yield opened


def hold(holding: Holding, version: int, now: float = NOW, keys: tuple[str, ...] | None = None) -> None:
    """Let the table of a version arrive; each is another."""
    table = a_table(len(keys or ITEM_KEYS), seed=version)
    holding.hold(a_head(version, table=table, item_keys=keys or ITEM_KEYS), table, keys, now)


def stored_version(store: DeviceStore) -> int | None:
    """Give the version that a restart finds."""
    store.check()
    return store.remembered().version


def held_version(store: DeviceStore) -> int | None:
    """Give the version that a restart knows of."""
    held = store.remembered().held
    return None if held is None else held.version


def test_first_table_is_stored_whatever_it_costs(store: DeviceStore) -> None:
    """Without one there is nothing to recommend after a restart."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 5, keys=ITEM_KEYS)
    assert (stored_version(store), held_version(store)) == (5, 5)
    assert holding.is_stored


def test_newer_table_beyond_the_allowance_is_held_and_remembered(store: DeviceStore) -> None:
    """Only its head is written; the device works with the table."""
    holding = Holding(store, per_day=COST)
    hold(holding, 5, keys=ITEM_KEYS)
    hold(holding, 6)
    assert holding.model is not None
    assert holding.model.head.version == 6
    assert (stored_version(store), held_version(store), holding.is_stored) == (5, 6, False)
    again = Holding(store, per_day=COST)
    assert again.model is not None
    assert again.model.head.version == 5
    assert again.model.table.tobytes() == a_table(seed=5).tobytes()


def test_table_is_stored_once_the_allowance_has_grown(store: DeviceStore) -> None:
    """By the next version, or by itself when none comes."""
    holding = Holding(store, per_day=COST)
    hold(holding, 1, keys=ITEM_KEYS)
    hold(holding, 2, NOW + DAY / 3)
    assert stored_version(store) == 1
    hold(holding, 3, NOW + DAY)
    assert stored_version(store) == 3
    hold(holding, 4, NOW + DAY)
    holding.look(NOW + DAY)
    assert stored_version(store) == 3
    holding.look(NOW + 2 * DAY)
    assert (stored_version(store), holding.is_stored) == (4, True)


def test_what_was_written_before_a_restart_is_not_forgotten(store: DeviceStore) -> None:
    """A device that is switched off each night writes no more than another."""
    per_day = COST
    hold(Holding(store, per_day), 1, keys=ITEM_KEYS)
    for version in range(2, 6):
        hold(Holding(store, per_day), version)
    assert (stored_version(store), held_version(store)) == (1, 5)


def test_without_a_limit_each_table_is_stored(store: DeviceStore) -> None:
    """As the setting says."""
    holding = Holding(store, per_day=0.0)
    for version in range(9):
        hold(holding, version, keys=ITEM_KEYS if version == 0 else None)
        assert stored_version(store) == version


def test_another_limit_counts_from_then_on(store: DeviceStore) -> None:
    """Without a restart."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 1, keys=ITEM_KEYS)
    hold(holding, 2)
    holding.limit(0.0)
    holding.look(NOW)
    assert stored_version(store) == 2


def test_table_with_another_catalogue_is_stored_with_it(store: DeviceStore) -> None:
    """Keys and rows belong together, also after a restart."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 1, keys=ITEM_KEYS)
    keys = ("bread", "apple", *ITEM_KEYS[2:-1], "later", ITEM_KEYS[-1])
    hold(holding, 2, keys=keys)
    assert stored_version(store) == 2
    assert store.catalogue() == list(keys)


def test_table_of_another_aggregator_is_stored_and_forgets_the_personal_state(store: DeviceStore) -> None:
    """It would not fit the table before."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 7, keys=ITEM_KEYS)
    store.save_pass(a_personal_state(1), Progress(contributed_version=7), (1, b"update"))
    holding.hold(a_head(2, instance=INSTANCE + 1), a_table(), ITEM_KEYS, NOW)
    assert (stored_version(store), held_version(store)) == (2, 2)
    assert (store.personal(), store.remembered().progress) == (None, Progress())


def test_set_back_is_noticed_by_what_was_in_memory_only(store: DeviceStore) -> None:
    """What was contributed to versions that are gone is gone with them, whichever table is stored."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 3, keys=ITEM_KEYS)
    hold(holding, 6)
    store.save_pass(a_personal_state(1), Progress(contributed_version=6), (1, b"update"))
    hold(holding, 6)
    assert store.remembered().progress.contributed_version == 6, "the same table is no news"
    hold(holding, 5)
    assert store.remembered().progress.contributed_version == 4
    assert (stored_version(store), held_version(store)) == (3, 5)


def test_small_table_is_stored_before_the_device_stops(store: DeviceStore) -> None:
    """If the allowance pays for it; a large one would take too long."""
    holding = Holding(store, per_day=4 * COST)
    hold(holding, 1, keys=ITEM_KEYS)
    hold(holding, 2, NOW)
    assert stored_version(store) == 2, "the bucket is filled twice a day"
    hold(holding, 3, NOW)
    holding.end(NOW + DAY / 8)
    assert stored_version(store) == 2
    holding.end(NOW + DAY / 4)
    assert stored_version(store) == 3
    large = Holding(store, per_day=COST)
    hold(large, 4, NOW + DAY)
    hold(large, 5, NOW + DAY)
    large.end(NOW + 99 * DAY)
    assert (stored_version(store), held_version(store)) == (4, 5)


def test_catalogue_is_written_only_where_it_is_another(store: DeviceStore, path: Path) -> None:
    """Of 4,000 keys one is renamed."""
    keys = tuple(f"item-{row:05d}" for row in range(4_000))
    hold(Holding(store, 0.0), 1, keys=keys)
    store.scrub()
    log = path.with_name(f"{path.name}-wal")
    assert log.stat().st_size == 0
    hold(Holding(store, 0.0), 2, keys=(*keys[:70], "other", *keys[71:]))
    table_pages = 2 * a_table(len(keys)).nbytes
    assert log.stat().st_size < table_pages + 100_000 < 400_000
    assert store.catalogue()[69:72] == ["item-00069", "other", "item-00071"]


def test_clock_that_was_ahead_does_not_stop_storing(store: DeviceStore) -> None:
    """What is left counts from the moment that the clock is right again."""
    holding = Holding(store, per_day=COST)
    hold(holding, 1, NOW + 9_000 * DAY, keys=ITEM_KEYS)
    hold(holding, 2, NOW)
    assert stored_version(store) == 1
    again = Holding(store, per_day=COST)
    hold(again, 3, NOW)
    again.look(NOW + 2 * DAY)
    assert stored_version(store) == 3


def test_table_of_other_size_is_stored_and_drops_what_does_not_fit(store: DeviceStore) -> None:
    """A directory that was set back may have fewer rows than the user's own view."""
    holding = Holding(store, per_day=COST / 100)
    hold(holding, 3, keys=ITEM_KEYS)
    store.save_pass(a_personal_state(1), Progress(contributed_version=3), None)
    personal = store.personal()
    assert personal is not None
    n_left = int(personal.own_rows.max())
    hold(holding, 2, keys=ITEM_KEYS[:n_left])
    assert (stored_version(store), store.personal()) == (2, None)


moves = st.lists(st.tuples(st.floats(-2 * DAY, 2 * DAY), st.floats(1.0, 1e8)), max_size=60)


@given(per_day=st.floats(1.0, 1e7), times=moves)
def test_no_more_is_written_than_allowed_whatever_the_clock_does(
    per_day: float, times: list[tuple[float, float]]
) -> None:
    """Above a bucket and what flowed in since, only by the last table, if that is greater than the bucket."""
    allowance = Allowance(per_day=per_day, left=per_day / 2, at=NOW)
    now, forward, written, last = NOW, 0.0, 0.0, 0.0
    for step, cost in times:
        now += step
        forward += max(0.0, step)
        allowance = allowance.by(now)
        if allowance.pays(cost):
            allowance, written, last = allowance.without(cost), written + cost, cost
    assert written <= (per_day / 2 + forward / DAY * per_day + last) * (1 + 1e-9)


@given(per_day=st.floats(1.0, 1e7), cost=st.floats(1.0, 1e9))
def test_each_table_can_be_stored_some_day(per_day: float, cost: float) -> None:
    """Even one that is greater than the bucket; then the others wait for longer."""
    allowance = Allowance(per_day=per_day, left=per_day / 2, at=NOW)
    assert allowance.pays(cost)
    after = allowance.without(cost)
    assert after.by(NOW + (cost / per_day + 0.51) * DAY).pays(cost)
