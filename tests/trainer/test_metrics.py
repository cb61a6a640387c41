import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from trainer.metrics import metrics_from_ranks, ranks_among_candidates
from trainer.params import Floats


def test_ranks_known_answers() -> None:
    """Best, second, last."""
    scores = np.array([[3, 1, 2], [2, 3, 1], [1, 2, 3]], dtype=np.float32)

    np.testing.assert_array_equal(ranks_among_candidates(scores), [0, 1, 2])


def test_ranks_ties_count_against_the_positive() -> None:
    """A constant score ranks last; one tie costs one place."""
    scores = np.array([[0, 0, 0, 0], [5, 5, 1, 2]], dtype=np.float32)

    np.testing.assert_array_equal(ranks_among_candidates(scores), [3, 1])


def test_ranks_nan_counts_against_the_positive() -> None:
    """A diverged model ranks last, and a negative that is not a number is ahead of the positive."""
    nan = np.nan
    scores = np.array([[nan, nan, nan], [nan, 1, 2], [3, nan, 1]], dtype=np.float32)

    np.testing.assert_array_equal(ranks_among_candidates(scores), [2, 2, 1])


@settings(deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-4, 4, width=16))
)
def test_ranks_equal_counting(scores: Floats) -> None:
    """The rank is the number of other candidates that score no less."""
    counted = [sum(other >= line[0] for other in line[1:]) for line in scores.tolist()]

    np.testing.assert_array_equal(ranks_among_candidates(scores), counted)


def test_metrics_known_answers() -> None:
    """Ranks 0, 1, 9 hit with gains 1, 1/log2(3), 1/log2(11); ranks 10 and 98 miss."""
    metrics = metrics_from_ranks(np.array([0, 1, 9, 10, 98]))

    assert metrics.hr == pytest.approx(3 / 5)
    assert metrics.ndcg == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(11)) / 5)


def test_metrics_at_another_cut() -> None:
    """With k = 1 only the first place counts, and NDCG equals HR."""
    metrics = metrics_from_ranks(np.array([0, 1, 0, 5]), k=1)

    assert (metrics.hr, metrics.ndcg) == (0.5, 0.5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=50))
def test_metrics_bounds_and_order_of_users(ranks: list[int]) -> None:
    """NDCG lies between 0 and HR, HR is at most 1, and the order of the users does not matter."""
    metrics = metrics_from_ranks(np.array(ranks))
    backwards = metrics_from_ranks(np.array(ranks[::-1]))

    assert 0.0 <= metrics.ndcg <= metrics.hr <= 1.0
    assert backwards.hr == pytest.approx(metrics.hr)
    assert backwards.ndcg == pytest.approx(metrics.ndcg)
