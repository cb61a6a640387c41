"""What an update reveals, and how little the paper's noise hides."""

import numpy as np
import pytest

from trainer.errors import ParameterError
from trainer.local import LocalResult, local_pass
from trainer.params import Hyperparameters, Rows, initial_score_function, initial_table
from trainer.privacy import add_laplace_noise, f1_score, inferred_positives, require_noise
from trainer.sampling import NegativeSampler


def a_pass(seed: int, positives: Rows) -> LocalResult:
    """Make a pass with steps of the paper's order."""
    rng = np.random.default_rng(seed)
    return local_pass(
        initial_table(300, 16, rng),
        initial_score_function(16, rng),
        positives,
        NegativeSampler.excluding(300, positives),
        Hyperparameters(lr=0.1, item_lr=500.0),
        rng,
    )


@pytest.mark.parametrize("seed", range(3))
def test_attack_recovers_the_positives_of_one_update(seed: int) -> None:
    """All of them, from the update alone."""
    positives = np.random.default_rng(seed).choice(300, 40, replace=False)
    result = a_pass(seed, positives)

    assert set(inferred_positives(result.rows, result.change).tolist()) == set(positives.tolist())


def test_noise_of_the_size_of_the_change_hides_and_the_papers_does_not() -> None:
    """The same attack on the same update, with little and with much noise."""
    positives = np.random.default_rng(5).choice(300, 40, replace=False)
    result = a_pass(5, positives)
    size = float(np.abs(result.change).mean())
    rng = np.random.default_rng(0)

    f1 = [
        f1_score(inferred_positives(result.rows, add_laplace_noise(result.change, scale, rng)), positives)
        for scale in (0.05 * size, 100 * size)
    ]

    assert f1[0] > 0.95
    assert f1[1] < 0.6


def test_noise_is_laplace_of_its_scale_and_changes_nothing_in_place() -> None:
    """Mean magnitude of Laplace(0, s) is s."""
    change = np.zeros((2000, 20), dtype=np.float32)
    noisy = add_laplace_noise(change, 0.5, np.random.default_rng(0))

    assert not change.any()
    assert noisy.dtype == np.float32
    assert np.abs(noisy).mean() == pytest.approx(0.5, rel=0.05)
    assert noisy.mean() == pytest.approx(0.0, abs=0.02)


def test_empty_update_reveals_nothing() -> None:
    """No rows, no guess."""
    nothing = np.empty(0, dtype=np.int64)
    assert inferred_positives(nothing, np.empty((0, 4), dtype=np.float32)).size == 0


@pytest.mark.parametrize(
    ("guessed", "true", "f1"),
    [([1, 2], [1, 2], 1.0), ([1, 2, 3, 4], [1, 9], 1 / 3), ([3], [4], 0.0), ([], [4], 0.0)],
)
def test_f1_by_hand(guessed: list[int], true: list[int], f1: float) -> None:
    """Harmonic mean of precision and recall."""
    assert f1_score(np.array(guessed, dtype=np.int64), np.array(true)) == pytest.approx(f1)


@pytest.mark.parametrize("scale", [-0.1, np.nan, np.inf])
def test_noise_out_of_range_is_refused(scale: float) -> None:
    """One sentence."""
    with pytest.raises(ParameterError, match="noise is"):
        require_noise(scale)
