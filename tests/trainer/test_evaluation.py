import numpy as np
import pytest

from trainer.evaluation import (
    DenseView,
    Population,
    full_metrics,
    own_scores,
    popularity_metrics,
    sampled_metrics,
    shared_scores,
)
from trainer.metrics import RankingMetrics
from trainer.params import Floats, Rows
from trainer.splits import Split

_N_USERS = 600
"""More than two blocks of users, and not a whole number of them."""


def _ints(*values: int) -> Rows:
    return np.array(values, dtype=np.int64)


def _floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def _plain(W: Floats, b: Floats) -> Population:
    """Give a population whose users have no rows of their own."""
    return Population(
        W=W,
        b=b,
        own=[None] * len(W),
    )


def _ranking(*scores: float) -> tuple[Floats, Population]:
    """Give a table and one user whose shared scores are `scores`."""
    return _floats(*scores)[:, None], _plain(np.ones((1, 1), dtype=np.float32), _floats(0))


def _random_fleet(n_items: int = 90, dim: int = 5) -> tuple[Floats, Population, Split]:
    rng = np.random.default_rng(12)
    items = [rng.permutation(n_items)[: rng.integers(5, 20)] for _ in range(_N_USERS)]
    own = [np.sort(rng.choice(n_items, 12, replace=False)) for _ in range(_N_USERS)]
    population = Population(
        W=rng.standard_normal((_N_USERS, dim), dtype=np.float32),
        b=rng.standard_normal(_N_USERS, dtype=np.float32),
        own=[DenseView(rows, rng.standard_normal((12, dim), dtype=np.float32)) for rows in own],
    )
    split = Split(
        n_items=n_items,
        train=[history[:-2] for history in items],
        val=np.array([history[-2] for history in items]),
        test=np.array([history[-1] for history in items]),
    )
    return rng.standard_normal((n_items, dim), dtype=np.float32), population, split


def _only(population: Population, user: int) -> Population:
    """Give the population of one user."""
    return Population(
        W=population.W[user : user + 1],
        b=population.b[user : user + 1],
        own=[population.own[user]],
    )


def _only_split(split: Split, user: int) -> Split:
    return Split(
        n_items=split.n_items,
        train=[split.train[user]],
        val=split.val[user : user + 1],
        test=split.test[user : user + 1],
    )


def _mean(metrics: list[RankingMetrics]) -> tuple[float, float]:
    return float(np.mean([m.hr for m in metrics])), float(np.mean([m.ndcg for m in metrics]))


def test_shared_scores_by_hand() -> None:
    """Each score is w·e + b."""
    table = np.array([[1, 0], [0, 1], [2, 3]], dtype=np.float32)
    population = _plain(np.array([[1, 2], [0, -1]], dtype=np.float32), _floats(0.5, 0))

    scores = shared_scores(table, population, slice(0, 2))

    np.testing.assert_array_equal(scores, [[1.5, 2.5, 8.5], [0.0, -1.0, -3.0]])


def test_own_scores_overlay_the_own_rows() -> None:
    """A user's own rows replace the shared ones, for that user alone."""
    table = np.array([[1, 0], [0, 1], [2, 3]], dtype=np.float32)
    population = Population(
        W=np.array([[1, 2], [0, -1]], dtype=np.float32),
        b=_floats(0.5, 0),
        own=[DenseView(_ints(0, 2), np.array([[3, 3], [0, 0]], dtype=np.float32)), None],
    )

    scores = own_scores(table, population, slice(0, 2))

    np.testing.assert_array_equal(scores, [[9.5, 2.5, 0.5], [0.0, -1.0, -3.0]])
    np.testing.assert_array_equal(own_scores(table, population, slice(1, 9)), scores[1:])
    np.testing.assert_array_equal(table[0], [1, 0])


def test_own_rows_decide_the_own_ranking_only() -> None:
    """A row that the user pushed down loses the hit in the own view and keeps it in the shared one."""
    table, plain = _ranking(9, *range(8, -4, -1))
    pushed = Population(W=plain.W, b=plain.b, own=[DenseView(_ints(0), _floats(-9)[:, None])])
    split = Split(n_items=13, train=[_ints()], val=_ints(1), test=_ints(0))
    candidates = _ints(*range(13))[None, :]

    assert sampled_metrics(table, pushed, [candidates], own=False)[0].hr == 1.0
    assert sampled_metrics(table, pushed, [candidates], own=True)[0].hr == 0.0
    assert full_metrics(table, pushed, split, own=False).hr == 1.0
    assert full_metrics(table, pushed, split, own=True).hr == 0.0


def test_sampled_metrics_of_several_candidate_sets() -> None:
    """Every set gets its figures, in order; only its candidates count."""
    table, population = _ranking(*range(20))

    first, second = sampled_metrics(
        table, population, [_ints(5, *range(6, 9))[None, :], _ints(0, *range(1, 20))[None, :]], own=False
    )

    assert first.hr == 1.0
    assert first.ndcg == pytest.approx(1 / np.log2(3 + 2))
    assert (second.hr, second.ndcg) == (0.0, 0.0)


def test_full_metrics_leave_out_training_items() -> None:
    """Twelve better items that the user trained on do not stand before the test item."""
    table, population = _ranking(*range(20, 0, -1))
    split = Split(n_items=20, train=[_ints(*range(12))], val=_ints(12), test=_ints(13))

    metrics = full_metrics(table, population, split, own=False)

    # Only the validation item is before it.
    assert metrics.hr == 1.0
    assert metrics.ndcg == pytest.approx(1 / np.log2(1 + 2))


def test_constant_scores_rank_last() -> None:
    """Ties count against the positive: a model that tells nothing apart hits nothing."""
    table, population = _ranking(*[0.0] * 30)
    split = Split(n_items=30, train=[_ints(1, 2)], val=_ints(3), test=_ints(4))

    assert full_metrics(table, population, split, own=False).hr == 0.0
    assert sampled_metrics(table, population, [_ints(*range(20))[None, :]], own=True)[0].hr == 0.0


def test_diverged_table_ranks_last() -> None:
    """A table of NaN hits nothing in either ranking."""
    table, population = _ranking(*[float("nan")] * 30)
    split = Split(n_items=30, train=[_ints(1, 2)], val=_ints(3), test=_ints(4))

    assert full_metrics(table, population, split, own=False).hr == 0.0
    assert sampled_metrics(table, population, [_ints(*range(20))[None, :]], own=True)[0].hr == 0.0


@pytest.mark.parametrize("own", [True, False])
def test_sampled_metrics_of_a_fleet_are_the_mean_of_its_users(own: bool) -> None:  # noqa: FBT001
    """Blocks of users give what each user alone gives."""
    table, population, _ = _random_fleet()
    candidates = np.random.default_rng(1).permuted(np.tile(np.arange(90), (_N_USERS, 1)), axis=1)[:, :30]

    fleet = sampled_metrics(table, population, [candidates], own=own)[0]

    alone = [
        sampled_metrics(table, _only(population, user), [candidates[user : user + 1]], own=own)[0]
        for user in range(_N_USERS)
    ]
    assert (fleet.hr, fleet.ndcg) == pytest.approx(_mean(alone))
    assert 0.1 < fleet.hr < 0.9


@pytest.mark.parametrize("own", [True, False])
def test_full_metrics_of_a_fleet_are_the_mean_of_its_users(own: bool) -> None:  # noqa: FBT001
    """Blocks of users give what each user alone gives."""
    table, population, split = _random_fleet()

    fleet = full_metrics(table, population, split, own=own)

    alone = [
        full_metrics(table, _only(population, user), _only_split(split, user), own=own)
        for user in range(_N_USERS)
    ]
    assert (fleet.hr, fleet.ndcg) == pytest.approx(_mean(alone))
    assert 0.02 < fleet.hr < 0.9


def test_full_metrics_equal_sampled_ones_over_the_same_items() -> None:
    """Ranking among all items outside training is sampled ranking with those as candidates."""
    table, population, split = _random_fleet()
    user = 400
    others = np.setdiff1d(np.arange(90), [*split.train[user], split.test[user]])
    candidates = np.concatenate((split.test[user : user + 1], others))[None, :]

    one, one_split = _only(population, user), _only_split(split, user)

    for own in (True, False):
        full = full_metrics(table, one, one_split, own=own)
        assert full == sampled_metrics(table, one, [candidates], own=own)[0]


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
