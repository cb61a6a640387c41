"""Views and ranks: by hand, block by block, and the whole catalogue against the candidates alone."""

from dataclasses import dataclass

import numpy as np
import pytest

from trainer.algorithms import Scores, Shared
from trainer.algorithms.linear import LinearScoring
from trainer.evaluation import (
    OwnRowsView,
    SharedView,
    ShiftedView,
    View,
    full_ranks,
    popularity_metrics,
    sampled_ranks,
    user_blocks,
)
from trainer.metrics import RankingMetrics, metrics_from_ranks
from trainer.params import Floats, Rows
from trainer.splits import Split

_N_USERS = 600
"""More than two blocks of users, and not a whole number of them."""

every_way = pytest.mark.parametrize("whole_table_up_to", [0, 1000], ids=["candidates alone", "whole table"])


@dataclass(frozen=True, slots=True, eq=False)
class _OwnRows:
    """Own rows that are simply there."""

    rows: Rows
    values: Scores

    def values_at(self, positions: Rows, /) -> Scores:
        return self.values[positions]

    def products(self, w: Scores, /) -> Scores:
        products: Scores = self.values @ w
        return products


def _ints(*values: int) -> Rows:
    return np.array(values, dtype=np.int64)


def _floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def _shared(table: Floats, W: Floats, b: Floats, whole_table_up_to: int = 1000) -> SharedView:
    return SharedView(scoring=LinearScoring(whole_table_up_to), shared=Shared(table=table), W=W, b=b)


def _ranking(*scores: float) -> SharedView:
    """Give the view of one user to whom `scores` are the items'."""
    return _shared(_floats(*scores)[:, None], np.ones((1, 1), dtype=np.float32), _floats(0))


def _sampled(view: View, candidates: Rows) -> RankingMetrics:
    return metrics_from_ranks(sampled_ranks(view, candidates)[0])


def _full(view: View, split: Split) -> RankingMetrics:
    return metrics_from_ranks(full_ranks(view, split.train, split.test))


def _random_fleet(whole_table_up_to: int = 1000) -> tuple[OwnRowsView, Split]:
    rng = np.random.default_rng(12)
    n_items, dim = 90, 5
    items = [rng.permutation(n_items)[: rng.integers(5, 20)] for _ in range(_N_USERS)]
    own = [np.sort(rng.choice(n_items, 12, replace=False)) for _ in range(_N_USERS)]
    base = _shared(
        rng.standard_normal((n_items, dim), dtype=np.float32),
        rng.standard_normal((_N_USERS, dim), dtype=np.float32),
        rng.standard_normal(_N_USERS, dtype=np.float32),
        whole_table_up_to,
    )
    view = OwnRowsView(
        base=base, own=[_OwnRows(rows, rng.standard_normal((12, dim), dtype=np.float32)) for rows in own]
    )
    split = Split(
        n_items=n_items,
        train=[history[:-2] for history in items],
        val=np.array([history[-2] for history in items]),
        test=np.array([history[-1] for history in items]),
    )
    return view, split


def _only(view: OwnRowsView, user: int) -> OwnRowsView:
    """Give the view of one user."""
    base = view.base
    return OwnRowsView(
        base=SharedView(
            scoring=base.scoring,
            shared=base.shared,
            W=base.W[user : user + 1],
            b=base.b[user : user + 1],
        ),
        own=[view.own[user]],
    )


def _only_split(split: Split, user: int) -> Split:
    return Split(
        n_items=split.n_items,
        train=[split.train[user]],
        val=split.val[user : user + 1],
        test=split.test[user : user + 1],
    )


def test_shared_scores_by_hand() -> None:
    """Each score is w·e + b."""
    table = np.array([[1, 0], [0, 1], [2, 3]], dtype=np.float32)
    view = _shared(table, np.array([[1, 2], [0, -1]], dtype=np.float32), _floats(0.5, 0))

    np.testing.assert_array_equal(view.scores(slice(0, 2)), [[1.5, 2.5, 8.5], [0.0, -1.0, -3.0]])


@every_way
def test_own_rows_lie_over_the_shared_ones(whole_table_up_to: int) -> None:
    """A user's own rows replace the shared ones, for that user alone."""
    table = np.array([[1, 0], [0, 1], [2, 3]], dtype=np.float32)
    base = _shared(table, np.array([[1, 2], [0, -1]], dtype=np.float32), _floats(0.5, 0), whole_table_up_to)
    own = _OwnRows(_ints(0, 2), np.array([[3, 3], [0, 0]], dtype=np.float32))
    view = OwnRowsView(base=base, own=[own, None])
    expected = np.array([[9.5, 2.5, 0.5], [0.0, -1.0, -3.0]])

    np.testing.assert_array_equal(view.scores(slice(0, 2)), expected)
    np.testing.assert_array_equal(view.scores(slice(1, 2)), expected[1:])
    rows = np.array([[2, 1], [0, 2]])
    np.testing.assert_array_equal(
        view.candidate_scores(slice(0, 2), rows), np.take_along_axis(expected, rows, axis=1)
    )
    np.testing.assert_array_equal(table[0], [1, 0])


def test_own_rows_decide_the_own_ranking_only() -> None:
    """A row that the user pushed down loses the hit in the own view and keeps it in the shared one."""
    shared = _ranking(9, *range(8, -4, -1))
    pushed = OwnRowsView(base=shared, own=[_OwnRows(_ints(0), _floats(-9)[:, None])])
    split = Split(n_items=13, train=[_ints()], val=_ints(1), test=_ints(0))
    candidates = _ints(*range(13))[None, :]

    assert (_sampled(shared, candidates).hr, _sampled(pushed, candidates).hr) == (1.0, 0.0)
    assert (_full(shared, split).hr, _full(pushed, split).hr) == (1.0, 0.0)


def test_shift_is_added_to_every_item() -> None:
    """`contexts · table` in float32, whatever the base is."""
    view, _ = _random_fleet()
    contexts = np.random.default_rng(3).standard_normal((_N_USERS, 5), dtype=np.float32)
    table = view.base.shared.table.astype(np.float32)
    shifted = ShiftedView(base=view, contexts=contexts, table=table)
    users, rows = slice(7, 11), np.random.default_rng(4).integers(0, 90, (4, 6))

    expected = view.scores(users) + contexts[users] @ table.T
    np.testing.assert_allclose(shifted.scores(users), expected, rtol=1e-6)
    np.testing.assert_allclose(
        shifted.candidate_scores(users, rows), np.take_along_axis(expected, rows, axis=1), rtol=1e-6
    )
    assert (shifted.n_users, shifted.n_items) == (_N_USERS, 90)


def test_ranks_of_several_candidate_sets() -> None:
    """Every set gets its ranks, in order; only its candidates count."""
    first, second = sampled_ranks(
        _ranking(*range(20)), _ints(5, *range(6, 9))[None, :], _ints(0, *range(1, 20))[None, :]
    )

    assert (first.tolist(), second.tolist()) == ([3], [19])
    assert sampled_ranks(_ranking(1, 2)) == []


def test_full_ranking_leaves_out_training_items() -> None:
    """Twelve better items that the user trained on do not stand before the test item."""
    split = Split(n_items=20, train=[_ints(*range(12))], val=_ints(12), test=_ints(13))

    # Only the validation item is before it.
    assert full_ranks(_ranking(*range(20, 0, -1)), split.train, split.test).tolist() == [1]


@pytest.mark.parametrize("score", [0.0, float("nan")], ids=["constant", "diverged"])
def test_scores_that_tell_nothing_apart_rank_last(score: float) -> None:
    """Ties count against the positive, and so does NaN: such a model hits nothing."""
    view = _ranking(*[score] * 30)
    split = Split(n_items=30, train=[_ints(1, 2)], val=_ints(3), test=_ints(4))

    assert full_ranks(view, split.train, split.test)[0] >= 27
    assert sampled_ranks(view, _ints(*range(20))[None, :])[0].tolist() == [19]


@every_way
def test_ranks_of_a_fleet_are_those_of_its_users(whole_table_up_to: int) -> None:
    """Blocks of users give what each user alone gives."""
    fleet, split = _random_fleet(whole_table_up_to)
    candidates = np.random.default_rng(1).permuted(np.tile(np.arange(90), (_N_USERS, 1)), axis=1)[:, :30]

    (sampled,) = sampled_ranks(fleet, candidates)
    full = full_ranks(fleet, split.train, split.test)

    for user in range(0, _N_USERS, 7):
        alone, one = _only(fleet, user), _only_split(split, user)
        assert sampled_ranks(alone, candidates[user : user + 1])[0].tolist() == [sampled[user]]
        assert full_ranks(alone, one.train, one.test).tolist() == [full[user]]
    assert 0.1 < (sampled < 10).mean() < 0.9


def test_full_ranking_is_sampled_ranking_over_the_same_items() -> None:
    """Ranking among all items outside training is sampled ranking with those as candidates."""
    fleet, split = _random_fleet()
    user = 400
    others = np.setdiff1d(np.arange(90), [*split.train[user], split.test[user]])
    candidates = np.concatenate((split.test[user : user + 1], others))[None, :]
    own, one = _only(fleet, user), _only_split(split, user)

    for view in (own, own.base):
        assert _full(view, one) == _sampled(view, candidates)


def test_blocks_cover_the_users_once_and_are_bounded() -> None:
    """However many items there are: a block's scores fit the memory that an evaluation may take."""
    one = np.zeros((1, 1), dtype=np.float32)
    for n_items in (1, 90, 100_000, 20_000_000):
        table = np.broadcast_to(one, (n_items, 1))
        view = _shared(table, np.broadcast_to(one, (_N_USERS, 1)), np.zeros(_N_USERS, dtype=np.float32))
        blocks = list(user_blocks(view))
        assert [user for block in blocks for user in range(_N_USERS)[block]] == list(range(_N_USERS))
        assert max(block.stop - block.start for block in blocks) * n_items <= max(n_items, 1 << 23)


def test_popularity_by_hand() -> None:
    """Items rank by the number of users who trained on them; held-out interactions do not count."""
    split = Split(
        n_items=15,
        train=[_ints(0, 1), _ints(0, 1, 2), _ints(0)],
        val=_ints(3, 3, 3),
        test=_ints(1, 0, 4),
    )
    candidates = np.array([[1, 0, 2, 3], [0, 1, 2, 3], [4, 0, 3, 5]])

    metrics = popularity_metrics(split, candidates)

    # Ranks 1, 0 and 3: item 4 has no count and ties with 3 and 5.
    assert metrics.hr == 1.0
    assert metrics.ndcg == pytest.approx((1 / np.log2(3) + 1 + 1 / np.log2(5)) / 3)
