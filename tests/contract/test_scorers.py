"""What every scorer does, whatever is behind it. One suite, run for each of them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.scorer import Scorer, ScorerName, available_scorer_name, make_scorer, top_k
from trainer.errors import ParameterError
from trainer.params import Floats, ScoreFunction

TOLERANCE = 1e-5
"""Of the sum of the magnitudes that a logit is made of; float32 rounding stays far below."""

NOTHING = np.empty(0, dtype=np.int64)


# One scorer for the whole module on purpose: what a call leaves behind must not show in the next.
@pytest.fixture(
    scope="module",
    params=[
        "numpy",
        pytest.param(
            "tflite",
            marks=pytest.mark.skipif(
                available_scorer_name() == "numpy",
                reason="no TFLite runtime is installed that fits this Python, platform and numpy",
            ),
        ),
    ],
)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    """Give the scorer under test."""
    name: ScorerName = request.param
    return make_scorer(name)


def a_table(n_items: int, dim: int, seed: int = 0) -> Floats:
    """Give a random item table."""
    return np.random.default_rng(seed).standard_normal((n_items, dim), dtype=np.float32)


def a_score_function(dim: int, seed: int = 1) -> ScoreFunction:
    """Give a random score function."""
    rng = np.random.default_rng(seed)
    return ScoreFunction(w=rng.standard_normal(dim, dtype=np.float32), b=float(np.float32(rng.normal())))


def exact(table: Floats, score_function: ScoreFunction) -> NDArray[np.float64]:
    """Give the logits in float64."""
    return np.asarray(table, dtype=np.float64) @ score_function.w.astype(np.float64) + score_function.b


def assert_right(scorer: Scorer, table: Floats, score_function: ScoreFunction) -> None:
    """Score and compare with the float64 reference."""
    logits = scorer.logits(table, score_function)
    assert logits.shape == (len(table),)
    assert logits.dtype == np.float32
    magnitude = exact(np.abs(table), ScoreFunction(w=np.abs(score_function.w), b=abs(score_function.b)))
    error = np.abs(logits - exact(table, score_function))
    assert np.all(error <= TOLERANCE * magnitude)


def test_name_of_made_scorer_is_the_asked_one(scorer: Scorer, request: pytest.FixtureRequest) -> None:
    """A scorer says which one it is."""
    assert scorer.name == request.node.callspec.params["scorer"]


def test_logits_of_known_table_are_known(scorer: Scorer) -> None:
    """Small whole numbers have an exact answer."""
    table = np.array([[1, 2], [0, 0], [-3, 4]], dtype=np.float32)
    score_function = ScoreFunction(w=np.array([10, 1], dtype=np.float32), b=0.5)
    assert scorer.logits(table, score_function).tolist() == [12.5, 0.5, -25.5]


@settings(max_examples=60, deadline=None)
@given(
    n_items=st.integers(1, 300),
    dim=st.integers(1, 70),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_of_any_shape_agree_with_float64(
    scorer: Scorer, n_items: int, dim: int, scale: float, seed: int
) -> None:
    """One scorer takes tables of ever different shapes and scales, one after the other."""
    table = a_table(n_items, dim, seed) * np.float32(scale)
    assert_right(scorer, table, a_score_function(dim, seed))


def test_logits_of_catalogue_agree_with_float64(scorer: Scorer) -> None:
    """The size of MovieLens 1M."""
    assert_right(scorer, a_table(3706, 32), a_score_function(32))


@pytest.mark.parametrize(("n_items", "dim"), [(1, 1), (1, 32), (1682, 1), (7, 1024)])
def test_logits_at_the_limits_of_shape_agree_with_float64(scorer: Scorer, n_items: int, dim: int) -> None:
    """One item, one dimension, the widest rows."""
    assert_right(scorer, a_table(n_items, dim), a_score_function(dim))


@pytest.mark.parametrize("shape", [(51, 8), (50, 9), (8, 50), (400, 1), (50, 8)])
def test_logits_after_a_change_of_shape_agree_with_float64(scorer: Scorer, shape: tuple[int, int]) -> None:
    """More items, other dim, both, as many numbers in another shape, and none of it; then back."""
    assert_right(scorer, a_table(50, 8), a_score_function(8))
    assert_right(scorer, a_table(*shape, seed=2), a_score_function(shape[1], seed=3))
    assert_right(scorer, a_table(50, 8), a_score_function(8))


@pytest.mark.parametrize("read_only", [False, True])
def test_logits_of_same_table_follow_the_score_function(scorer: Scorer, *, read_only: bool) -> None:
    """A user who trains keeps the table and changes w and b."""
    table = a_table(200, 16)
    table.setflags(write=not read_only)
    for seed in range(5):
        assert_right(scorer, table, a_score_function(16, seed))


@pytest.mark.parametrize("read_only", [False, True])
def test_logits_of_replaced_table_of_same_shape_are_its_own(scorer: Scorer, *, read_only: bool) -> None:
    """A new version arrives, often where the old one was in memory."""
    for seed in range(5):
        table = a_table(200, 16, seed)
        table.setflags(write=not read_only)
        assert_right(scorer, table, a_score_function(16))
        del table


def test_logits_of_table_changed_in_place_are_the_new_ones(scorer: Scorer) -> None:
    """An array that can be written may have been."""
    table = a_table(20, 4)
    assert_right(scorer, table, a_score_function(4))
    table[7] = 100.0
    assert_right(scorer, table, a_score_function(4))


def test_logits_of_read_only_view_follow_its_writable_owner(scorer: Scorer) -> None:
    """A read-only view does not make its values constant."""
    owner = a_table(20, 4)
    view = owner[:]
    view.setflags(write=False)
    assert_right(scorer, view, a_score_function(4))
    owner[7] = 100.0
    assert_right(scorer, view, a_score_function(4))


def test_logits_of_thawed_and_changed_table_are_the_new_ones(scorer: Scorer) -> None:
    """Read-only once is not read-only for good."""
    table = a_table(20, 4)
    table.setflags(write=False)
    assert_right(scorer, table, a_score_function(4))
    table.setflags(write=True)
    table[7] = 100.0
    assert_right(scorer, table, a_score_function(4))


def test_logits_of_table_changed_then_frozen_are_the_new_ones(scorer: Scorer) -> None:
    """Read-only now says nothing about before."""
    table = a_table(20, 4)
    assert_right(scorer, table, a_score_function(4))
    table[7] = 100.0
    table.setflags(write=False)
    assert_right(scorer, table, a_score_function(4))


def test_logits_of_bytes_received_agree_with_float64(scorer: Scorer) -> None:
    """A table read straight from a message is a read-only view of bytes."""
    table = np.frombuffer(a_table(20, 4).tobytes(), dtype=np.float32).reshape(20, 4)
    for seed in range(2):
        assert_right(scorer, table, a_score_function(4, seed))


def test_logits_of_scattered_memory_agree_with_float64(scorer: Scorer) -> None:
    """Column-major, strided and reversed arrays are tables too."""
    score_function = ScoreFunction(w=a_score_function(12).w[::-2], b=0.25)
    assert_right(scorer, np.asfortranarray(a_table(30, 6)), score_function)
    assert_right(scorer, a_table(60, 12)[::-2, ::2], score_function)


def test_logits_leave_their_arguments_alone(scorer: Scorer) -> None:
    """Neither table nor w is written."""
    table, score_function = a_table(20, 4), a_score_function(4)
    table_before, w_before = table.copy(), score_function.w.copy()
    scorer.logits(table, score_function)[:] = 0
    np.testing.assert_array_equal(table, table_before)
    np.testing.assert_array_equal(score_function.w, w_before)


def test_logits_given_before_survive_the_next_call(scorer: Scorer) -> None:
    """The result belongs to the caller."""
    table = a_table(20, 4)
    first = scorer.logits(table, a_score_function(4))
    kept = first.copy()
    scorer.logits(table, a_score_function(4, seed=9))
    np.testing.assert_array_equal(first, kept)


def test_logits_asked_by_several_threads_are_each_their_own(scorer: Scorer) -> None:
    """Threads that share a scorer do not get each other's answers."""
    # Large enough that threads meet inside a call; without turns, nearly every run of this fails.
    calls = [(a_table(20_000 + seed % 2, 8, seed), a_score_function(8, seed)) for seed in range(100)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda call: scorer.logits(*call), calls))
    for answer, call in zip(answers, calls, strict=True):
        np.testing.assert_array_equal(answer, scorer.logits(*call))


@pytest.mark.parametrize("seed", range(5))
def test_top_k_of_random_table_is_that_of_float64(scorer: Scorer, seed: int) -> None:
    """Rounding does not change what is recommended, on tables without near ties."""
    table, score_function = a_table(1682, 32, seed), a_score_function(32, seed)
    best = top_k(scorer.logits(table, score_function), 50, NOTHING)
    expected = np.argsort(-exact(table, score_function), kind="stable")[:50]
    assert best.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("table", "w"),
    [
        (np.zeros((5, 4), np.float32), np.zeros(3, np.float32)),
        (np.zeros((5, 4), np.float32), np.zeros(5, np.float32)),
        (np.zeros((5, 4), np.float32), np.zeros((1, 4), np.float32)),
        (np.zeros((5, 4), np.float32), np.float32(1)),
        (np.zeros(4, np.float32), np.zeros(4, np.float32)),
        (np.zeros((1, 5, 4), np.float32), np.zeros(4, np.float32)),
        (np.zeros((0, 4), np.float32), np.zeros(4, np.float32)),
        (np.zeros((5, 0), np.float32), np.zeros(0, np.float32)),
        (np.zeros((5, 4), np.float64), np.zeros(4, np.float32)),
        (np.zeros((5, 4), np.float32), np.zeros(4, np.float64)),
        (np.zeros((5, 4), ">f4"), np.zeros(4, np.float32)),
        (np.zeros((5, 4), np.int32), np.zeros(4, np.float32)),
    ],
)
def test_logits_of_what_does_not_fit_are_refused(scorer: Scorer, table: Floats, w: Floats) -> None:
    """The sentence says what was found; the scorer goes on working."""
    with pytest.raises(ParameterError, match=r"float32|shape"):
        scorer.logits(table, ScoreFunction(w=w, b=0.0))
    assert_right(scorer, a_table(5, 4), a_score_function(4))
