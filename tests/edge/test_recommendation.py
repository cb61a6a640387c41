"""What a user is recommended, from what the device holds."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker.errors import NothingYetError, UnknownItemError
from broker.protocol.catalogue import Catalogue
from edge.personal import Personal
from edge.recommendation import recommend
from edge.scheduler import Progress
from edge.scorer import NumpyScorer, Scorer, available_scorer_name, make_scorer
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head, a_plan, a_store
from trainer.params import Floats, ScoreFunction

TABLE = np.array([[3, 0], [0, 1], [2, 0], [0, 2], [1, 0], [0, 3]], dtype=np.float32)
"""With w = (0.5, 0.5) all items that are equally long are equally good."""


@pytest.fixture
def store() -> Iterator[DeviceStore]:
    """Give a device that has a table."""
    with closing(a_store(Path(":memory:"))) as store:
        store.replace_model(a_head(7, table=TABLE), TABLE, ITEM_KEYS)
        yield store


def save(store: DeviceStore, w: list[float], rows: list[int], values: list[list[float]]) -> None:
    """Let a pass have left this."""
    personal = Personal(
        score_function=ScoreFunction(w=np.array(w, dtype=np.float32), b=0.0),
        own_rows=np.array(rows, dtype=np.int64),
        own_values=np.array(values, dtype=np.float32).reshape(len(rows), 2),
    )
    store.save_pass(personal, Progress(), None)


def sigmoid(z: Floats | float) -> float:
    """Give the logistic function in double precision."""
    return float(1.0 / (1.0 + np.exp(-np.float64(z))))


def items(store: DeviceStore, count: int = 10) -> list[str]:
    """Ask for keys."""
    return [each.item for each in recommend(store, NumpyScorer(), count).items]


def test_recommend_before_the_first_table_says_what_to_do() -> None:
    """There is nothing to recommend from."""
    with (
        closing(a_store(Path(":memory:"))) as store,
        pytest.raises(NothingYetError, match="edge-client start"),
    ):
        recommend(store, NumpyScorer(), 3)


def test_recommend_before_the_first_pass_is_the_fleets_order(store: DeviceStore) -> None:
    """The head's score function, w = (0.5, 0.5) and b = 0.25; ties go by the order of the catalogue."""
    found = recommend(store, NumpyScorer(), 3)
    assert found.version == 7
    assert not found.personal
    assert [(each.rank, each.item) for each in found.items] == [(1, "apple"), (2, "fig"), (3, "cheese")]
    expected = [sigmoid(1.75), sigmoid(1.75), sigmoid(1.25)]
    assert [each.score for each in found.items] == pytest.approx(expected, abs=1e-6)


def test_recommend_after_a_pass_is_personal(store: DeviceStore) -> None:
    """The own score function ranks the own view: row 4 is this user's favourite."""
    save(store, [1, 0], [4], [[9, 0]])
    found = recommend(store, NumpyScorer(), 3)
    assert found.personal
    assert [each.item for each in found.items] == ["egg", "apple", "cheese"]
    assert found.items[0].score == pytest.approx(sigmoid(9.0), abs=1e-6)


def test_recommend_leaves_out_what_is_retired(store: DeviceStore) -> None:
    """Also for who wants to see again what was seen, and among given items."""
    catalogue = Catalogue(tuple(ITEM_KEYS), frozenset({0}), {"figue": 5})
    store.replace_model(a_head(8, table=TABLE, item_keys=catalogue), TABLE, catalogue)
    assert items(store)[0] == "fig"
    found = recommend(store, NumpyScorer(), 9, exclude_seen=False, among=["apple", "figue", "egg"])
    assert [each.item for each in found.items] == ["fig", "egg"]


def test_recommend_leaves_out_what_the_user_knows(store: DeviceStore) -> None:
    """And items that the catalogue does not have do not disturb."""
    store.record([("apple", 1.0), ("fig", 2.0), ("apple", 3.0), ("unheard of", 4.0)])
    assert items(store) == ["cheese", "date", "bread", "egg"]


def test_recommend_gives_at_most_what_is_left(store: DeviceStore) -> None:
    """A short list is no error, nor is an empty one."""
    store.record([(item, 1.0) for item in ITEM_KEYS[:5]])
    assert items(store, 100) == ["fig"]
    store.record([(ITEM_KEYS[5], 1.0)])
    assert items(store, 100) == []


def test_recommend_with_a_catalogue_that_is_ahead_of_the_table(store: DeviceStore) -> None:
    """An interaction with an item that has no row yet is no reason to fail."""
    keys = (*ITEM_KEYS, "grape")
    store.replace_model(a_head(8, table=TABLE, item_keys=keys), TABLE, keys)
    store.record([("grape", 1.0)])
    assert len(items(store)) == 6
    assert "grape" not in items(store)


@pytest.mark.skipif(
    available_scorer_name() == "numpy",
    reason="no TFLite runtime is installed that fits this Python, platform and numpy",
)
def test_recommend_is_the_same_with_either_scorer(store: DeviceStore) -> None:
    """To the last place; scores to rounding."""
    save(store, [0.3, -0.7], [1, 4], [[0.5, 0.25], [-1, 2]])
    store.record([("bread", 1.0)])
    tflite: Scorer = make_scorer("tflite")
    one, other = recommend(store, NumpyScorer(), 10), recommend(store, tflite, 10)
    assert [each.item for each in one.items] == [each.item for each in other.items]
    assert [each.score for each in one.items] == pytest.approx([each.score for each in other.items], abs=1e-6)


# -- choosing --------------------------------------------------------------------------------------


def test_recommend_with_what_the_user_knows(store: DeviceStore) -> None:
    """The same order, nothing left out."""
    store.record([("apple", 1.0), ("fig", 2.0)])

    found = recommend(store, NumpyScorer(), 10, exclude_seen=False)

    assert [each.item for each in found.items] == ["apple", "fig", "cheese", "date", "bread", "egg"]


def test_recommend_among_some_items(store: DeviceStore) -> None:
    """Those that the catalogue has, without those that the user knows."""
    store.record([("apple", 1.0)])

    found = recommend(store, NumpyScorer(), 10, among=["egg", "apple", "no such item", "date"])

    assert [each.item for each in found.items] == ["date", "egg"]


@pytest.mark.parametrize("among", [[], ["no such item"]])
def test_recommend_among_nothing_is_refused(store: DeviceStore, among: list[str]) -> None:
    """An empty answer would look like one."""
    with pytest.raises(UnknownItemError, match="none of the items"):
        recommend(store, NumpyScorer(), 10, among=among)


# -- explaining ------------------------------------------------------------------------------------


def test_recommend_explains_by_the_nearest_of_the_users_items(store: DeviceStore) -> None:
    """Without a view by taste: those in the same direction from the middle, at most three."""
    store.record([("apple", 1.0), ("bread", 2.0)])

    found = recommend(store, NumpyScorer(), 10, explain=True)

    reasons = {each.item: each.because for each in found.items}
    assert reasons["cheese"] == ["apple"]
    assert reasons["fig"] == ["bread"]


def test_recommend_does_not_explain_unless_asked(store: DeviceStore) -> None:
    """It costs a look at all of the user's items."""
    store.record([("apple", 1.0)])

    assert {tuple(each.because) for each in recommend(store, NumpyScorer(), 10).items} == {()}


def test_recommend_before_the_first_interaction_has_no_reasons(store: DeviceStore) -> None:
    """Nothing of the user's own speaks for anything."""
    found = recommend(store, NumpyScorer(), 3, explain=True)

    assert [each.because for each in found.items] == [[], [], []]


def test_recommend_explains_by_what_the_taste_adds(store: DeviceStore) -> None:
    """The item that adds most is named first; one that speaks against is not named."""
    plan = a_plan(taste_strength=1.0)
    store.replace_model(a_head(8, table=TABLE, plan=plan), TABLE, ITEM_KEYS)
    store.record([("apple", 1.0), ("cheese", 2.0), ("bread", 3.0)])

    found = recommend(store, NumpyScorer(), 10, explain=True)

    reasons = {each.item: each.because for each in found.items}
    assert set(reasons["egg"]) == {"apple", "cheese"}
    assert reasons["fig"][0] == "bread"
