"""The own view by taste: what it is, what it does not depend on, and that it is a view of the items."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Floats, Rows, ScoreFunction, initial_score_function, initial_table
from trainer.taste import TasteSettings, contexts, contributions, taste, with_taste


def a_table(n_items: int = 30, dim: int = 6, seed: int = 0) -> Floats:
    """Draw a table."""
    return initial_table(n_items, dim, np.random.default_rng(seed))


def rows(*items: int) -> Rows:
    """Give item rows, oldest first."""
    return np.array(items, dtype=np.int64)


def plainly(table: Floats, items: Rows, recency: float) -> NDArray[np.float64]:
    """Compute the formula of the module item by item in float64."""
    table64 = table.astype(np.float64)
    centre = table64.mean(axis=0)
    h = np.zeros(table.shape[1])
    for age, item in enumerate(items[::-1]):
        c = table64[item] - centre
        h += (np.exp(-age / recency) if recency else 1.0) * c / np.linalg.norm(c)
    return h / np.linalg.norm(h)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30), recency=st.sampled_from([0.0, 0.3, 2.0, 50.0]))
def test_taste_is_the_formula(seed: int, count: int, recency: float) -> None:
    """Also where the oldest items are left out, as they no longer count."""
    table = a_table(seed=seed)
    items = np.random.default_rng(seed).permutation(30)[:count]

    found = taste(table, table.mean(axis=0), items, recency)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plainly(table, items, recency), atol=2e-5)


def test_newest_item_counts_most() -> None:
    """With a short memory the taste is the newest item's direction."""
    table = a_table()
    centre = table.mean(axis=0)

    found = taste(table, centre, rows(3, 9, 17), recency=0.05)

    newest = (table[17] - centre) / np.linalg.norm(table[17] - centre)
    np.testing.assert_allclose(found, newest, atol=1e-6)


def test_without_recency_the_order_means_nothing() -> None:
    """All items count the same."""
    table = a_table()
    centre = table.mean(axis=0)

    forwards, backwards = (taste(table, centre, rows(*items), 0.0) for items in ((1, 5, 8), (8, 5, 1)))

    np.testing.assert_allclose(forwards, backwards, atol=1e-6)


def test_nobody_and_nothing_have_no_direction() -> None:
    """No items, items at the centre, and items that cancel out give zeros, not NaN."""
    table = np.array([[1, 0], [-1, 0], [0, 0]], dtype=np.float32)
    centre = table.mean(axis=0)

    for items in (rows(), rows(2), rows(0, 1)):
        assert taste(table, centre, items, 0.0).tolist() == [0.0, 0.0]


def test_view_is_one_of_all_items() -> None:
    """Scoring with the changed vector is scoring the moved items with the user's own."""
    table, strength = a_table(), 0.8
    own = initial_score_function(6, np.random.default_rng(4))
    items = rows(2, 7, 11)

    changed = with_taste(own, table, items, TasteSettings(recency=2.0, strength=strength))

    direction = plainly(table, items, 2.0)
    w = own.w.astype(np.float64)
    view = table + strength * (table @ direction)[:, None] * w / np.linalg.norm(w)
    np.testing.assert_allclose(table @ changed.w, view @ w, atol=1e-5)
    assert changed.b == own.b


@pytest.mark.parametrize(
    ("items", "strength"), [(rows(), 1.0), (rows(1, 2), 0.0)], ids=["no items", "no strength"]
)
def test_nothing_to_add_is_the_score_function_itself(items: Rows, strength: float) -> None:
    """A new user, and a fleet without such a view."""
    own = ScoreFunction(w=np.ones(6, dtype=np.float32), b=0.5)
    assert with_taste(own, a_table(), items, TasteSettings(strength=strength)) is own


def test_contexts_are_each_users_own() -> None:
    """Many at once give what one at a time gives."""
    table = a_table()
    W = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    histories = [rows(1), rows(4, 5, 6), rows()]
    view = TasteSettings(recency=1.0, strength=0.5)

    together = contexts(table, W, histories, view)

    for w, items, added in zip(W, histories, together, strict=True):
        alone = with_taste(ScoreFunction(w=w, b=0.0), table, items, view)
        np.testing.assert_allclose(w + added, alone.w, atol=1e-6)


@pytest.mark.parametrize(
    "values", [{"recency": -1.0}, {"recency": np.nan}, {"strength": -0.1}, {"strength": 101.0}]
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    """With the name that users know."""
    with pytest.raises(ParameterError, match=f"taste_{next(iter(values))}"):
        TasteSettings(**values)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 30),
    recency=st.sampled_from([0.0, 0.3, 2.0]),
    strength=st.sampled_from([0.0, 0.25, 1.5]),
)
def test_contributions_are_what_the_taste_adds(
    seed: int, count: int, recency: float, strength: float
) -> None:
    """Summed over the user's items, and above what the mean row gets."""
    rng = np.random.default_rng(seed)
    table, start = a_table(seed=seed), initial_score_function(6, rng)
    items = rng.choice(len(table), count, replace=False)
    how = TasteSettings(recency=recency, strength=strength)

    added = contributions(table, start.w, items, how, np.arange(len(table)))

    assert added.shape == (len(table), count)
    whole = table @ (with_taste(start, table, items, how).w - start.w)
    np.testing.assert_allclose(added.sum(axis=1), whole - whole.mean(), rtol=1e-3, atol=1e-5)
    some = rows(3, 0, 7)
    np.testing.assert_allclose(contributions(table, start.w, items, how, some), added[some], atol=1e-6)


def test_contributions_of_nothing() -> None:
    """A user without items has none."""
    table = a_table()

    assert contributions(table, table[0], rows(), TasteSettings(strength=1.0), rows(1, 2)).shape == (2, 0)
