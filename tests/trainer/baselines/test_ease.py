import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import Doubles, a_random_split, a_split, clean_samplers, dense
from trainer.baselines import Ease
from trainer.baselines.ease import MAX_ITEMS, ease_weights
from trainer.errors import ParameterError


def _textbook(X: Doubles, penalty: float) -> Doubles:
    """Give B = I - P · diag(1 / diag(P)), equation 8 of the paper."""
    P = np.linalg.inv(X.T @ X + penalty * np.eye(X.shape[1]))
    return np.eye(X.shape[1]) - P @ np.diag(1.0 / np.diag(P))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), penalty=st.sampled_from([0.5, 10.0, 300.0]))
def test_scores_are_those_of_the_textbook(seed: int, penalty: float) -> None:
    """Users' rows of X times B."""
    split = a_random_split(seed)
    X = dense(split)

    ((_, scorer),) = Ease(penalties=(penalty,)).fits(
        split, clean_samplers(split), 8, np.random.default_rng(0)
    )

    np.testing.assert_allclose(scorer.scores(slice(0, 99)), X @ _textbook(X, penalty), rtol=1e-4, atol=1e-6)


def test_weights_have_a_zero_diagonal_and_minimise_the_objective() -> None:
    """No column does better when any of its weights off the diagonal moves."""
    X = dense(a_random_split(1))
    gram = X.T @ X
    before = gram.copy()

    weights = ease_weights(gram, 2.0)

    assert weights.dtype == np.float32
    np.testing.assert_array_equal(np.diagonal(weights), 0.0)
    np.testing.assert_array_equal(gram, before)
    gradient = gram @ weights - gram + 2.0 * weights
    np.testing.assert_allclose(gradient - np.diag(np.diagonal(gradient)), 0.0, atol=1e-5)


def test_candidates_are_the_penalties() -> None:
    """One each, in order."""
    split = a_random_split(2)
    found = Ease(penalties=(1.5, 300.0)).fits(split, clean_samplers(split), 8, np.random.default_rng(0))
    assert [description for description, _ in found] == ["penalty 1.5", "penalty 300"]


@pytest.mark.parametrize("penalties", [(), (0.0,), (300.0, -1.0), (float("nan"),), (float("inf"),)])
def test_bad_penalties_are_refused(penalties: tuple[float, ...]) -> None:
    """The sentence names the argument."""
    with pytest.raises(ParameterError, match="penalties"):
        Ease(penalties=penalties)


def test_catalogue_too_large_to_invert_is_refused() -> None:
    """In one sentence, before anything is allocated."""
    split = a_split([[0, MAX_ITEMS]], MAX_ITEMS + 1)
    with pytest.raises(ParameterError, match=r"at most 20000 items, not 20001"):
        next(Ease().fits(split, clean_samplers(split), 8, np.random.default_rng(0)))
