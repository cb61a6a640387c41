from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from tests.trainer.baselines.builders import a_split, clean_samplers
from trainer.baselines import (
    BestFit,
    Samplers,
    Scorer,
    ScorerView,
    best_fit,
)
from trainer.errors import ParameterError
from trainer.evaluation import full_ranks, sampled_ranks
from trainer.metrics import RankingMetrics, metrics_from_ranks
from trainer.params import Floats, Rows
from trainer.splits import Split

_N_USERS = 600
"""More than two blocks of users, and not a whole number of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Listed:
    """Scores that are simply there."""

    values: Floats

    def scores(self, users: slice) -> Floats:
        return self.values[users].copy()


def _sampled(scorer: _Listed, candidates: Rows) -> RankingMetrics:
    view = ScorerView(scorer, *scorer.values.shape)
    return metrics_from_ranks(sampled_ranks(view, candidates)[0])


def _full(scorer: _Listed, split: Split) -> RankingMetrics:
    view = ScorerView(scorer, *scorer.values.shape)
    return metrics_from_ranks(full_ranks(view, split.train, split.test))


@dataclass(frozen=True, slots=True)
class _Given:
    """A baseline whose candidates are given by the ranks that they leave the positives at."""

    ranks: tuple[tuple[int, ...], ...]
    name: str = "given"

    def fits(
        self, split: Split, samplers: Samplers, dim: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, Scorer]]:
        for number, ranks in enumerate(self.ranks):
            values = np.tile(-np.arange(1, split.n_items + 1, dtype=np.float32), (len(ranks), 1))
            values[:, 0] = -np.array(ranks, dtype=np.float32) - 1.5
            yield f"number {number}", _Listed(values)


def _best(by: Literal["hr", "ndcg"], *ranks: tuple[int, ...]) -> BestFit:
    """Choose among candidates that rank item 0 of two users, of thirty, so."""
    split = a_split([[29]] * 2, 30)
    candidates = np.tile(np.arange(29), (2, 1))
    return best_fit(
        _Given(ranks), split, clean_samplers(split), 8, candidates, np.random.default_rng(0), by=by
    )


def _random_ranking() -> tuple[Floats, Split, Rows]:
    """Give scores with many ties, a split, and candidates."""
    rng = np.random.default_rng(12)
    histories = [rng.permutation(90)[: rng.integers(5, 20)] for _ in range(_N_USERS)]
    split = Split(
        n_items=90,
        train=[items[:-2] for items in histories],
        val=np.array([items[-2] for items in histories]),
        test=np.array([items[-1] for items in histories]),
    )
    candidates = rng.permuted(np.tile(np.arange(90), (_N_USERS, 1)), axis=1)[:, :30]
    return rng.integers(0, 40, (_N_USERS, 90)).astype(np.float32), split, candidates


def test_sampled_metrics_count_candidates_that_are_not_below() -> None:
    """User by user, over several blocks."""
    scores, _, candidates = _random_ranking()
    ranks = [
        sum(scores[user, other] >= scores[user, rows[0]] for other in rows[1:])
        for user, rows in enumerate(candidates)
    ]

    metrics = _sampled(_Listed(scores), candidates)

    assert metrics == metrics_from_ranks(np.array(ranks))
    assert 0.1 < metrics.hr < 0.9


def test_full_metrics_count_other_items_that_are_not_below() -> None:
    """All but the user's training items, the validation item included."""
    scores, split, _ = _random_ranking()
    ranks = [
        sum(
            scores[user, other] >= scores[user, test]
            for other in np.setdiff1d(np.arange(90), [*split.train[user], test])
        )
        for user, test in enumerate(split.test)
    ]

    metrics = _full(_Listed(scores), split)

    assert metrics == metrics_from_ranks(np.array(ranks))
    assert 0.05 < metrics.hr < 0.9


def test_full_metrics_leave_out_training_items() -> None:
    """Twelve better items that the user trained on do not stand before the test item."""
    split = a_split([[*range(1, 13)]], 20)
    scores = np.array([[5.0, *range(20, 8, -1), 6.0, *[0.0] * 6]], dtype=np.float32)

    metrics = _full(_Listed(scores), split)

    assert metrics.hr == 1.0
    assert metrics.ndcg == pytest.approx(1 / np.log2(1 + 2))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_scores_that_tell_nothing_apart_hit_nothing(value: float) -> None:
    """Ties count against the positive, and so does what is not a number."""
    scorer = _Listed(np.full((1, 30), value, dtype=np.float32))
    assert _sampled(scorer, np.arange(30)[None, :]).hr == 0.0
    assert _full(scorer, a_split([[1, 2]], 30)).hr == 0.0


def test_best_by_ndcg_may_have_fewer_hits() -> None:
    """One first place is worth more than two ninth ones; by hits it is the other way round."""
    first, ninths = (0, 20), (8, 8)

    assert _best("ndcg", ninths, first, ninths).index == 1
    assert _best("hr", first, ninths, first).index == 1


def test_best_of_equals_is_the_latest() -> None:
    """As in the paper's choice of a round."""
    best = _best("ndcg", (5, 5), (3, 4), (4, 3), (9, 9))

    assert (best.index, best.description) == (2, "number 2")
    assert best.val == metrics_from_ranks(sampled_ranks(best.view, np.tile(np.arange(29), (2, 1)))[0])


def test_observer_is_told_of_every_candidate() -> None:
    """In order, with validation figures."""
    split = a_split([[29]], 30)
    told: list[tuple[int, str, float, float]] = []

    def tell(index: int, text: str, _: ScorerView, metrics: RankingMetrics) -> None:
        told.append((index, text, metrics.hr, metrics.ndcg))

    best_fit(
        _Given(((3,), (20,))),
        split,
        clean_samplers(split),
        8,
        np.arange(29)[None, :],
        np.random.default_rng(0),
        tell,
    )

    assert told == [
        (0, "number 0", 1.0, pytest.approx(1 / np.log2(3 + 2))),
        (1, "number 1", 0.0, 0.0),
    ]


def test_candidates_of_other_users_are_refused() -> None:
    """They would be ranked with another user's scores."""
    split = a_split([[29]] * 2, 30)
    with pytest.raises(ParameterError, match="candidates of 3 users, not 2"):
        best_fit(
            _Given(((1, 1),)),
            split,
            clean_samplers(split),
            8,
            np.tile(np.arange(29), (3, 1)),
            np.random.default_rng(0),
        )


def test_baseline_without_candidates_is_refused() -> None:
    """There is nothing to give."""
    with pytest.raises(ParameterError, match="given gave no candidate"):
        _best("ndcg")
