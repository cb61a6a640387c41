import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import (
    a_batch,
    a_random_split,
    assert_gradients_are_numerical,
    clean_samplers,
    in_double,
)
from trainer.baselines import Mf
from trainer.baselines.descent import Batch, DescentSettings
from trainer.baselines.mf import initial_mf, mf_loss_and_gradients
from trainer.errors import ParameterError


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(1, 4),
    n_samples=st.integers(1, 20),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_gradients_are_numerical(seed: int, dim: int, n_samples: int, decay: float) -> None:
    """By every entry of both tables, biases included."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: array + rng.uniform(-1, 1, array.shape)
        for name, array in in_double(initial_mf(5, 6, dim, rng)).items()
    }
    assert_gradients_are_numerical(mf_loss_and_gradients, parameters, a_batch(seed, 5, 6, n_samples), decay)


def test_loss_by_hand() -> None:
    """One positive with logit 2·3 + 0.5 - 1, and the penalty on the vectors but not the biases."""
    parameters = {"users": np.array([[2.0, 0.5]]), "items": np.array([[3.0, -1.0]])}
    batch = Batch(users=np.array([0]), items=np.array([0]), labels=np.array([1.0]))

    loss, _ = mf_loss_and_gradients(parameters, batch, 0.2)

    assert loss == pytest.approx(np.log1p(np.exp(-5.5)) + 0.1 * (4 + 9))


def test_scores_rank_as_the_logits_do() -> None:
    """They are the logits less the user's bias."""
    split = a_random_split(3, n_users=8, n_items=12)
    baseline = Mf(grid=(DescentSettings(epochs=3, lr=0.05, batch_size=32),))
    *_, (_, scorer) = baseline.fits(split, clean_samplers(split), 4, np.random.default_rng(0))
    scores = scorer.scores(slice(0, 8))
    for user, items in enumerate(split.train):
        others = np.setdiff1d(np.arange(12), items)
        assert scores[user, items].mean() > scores[user, others].mean()


def test_defaults_have_a_grid() -> None:
    """And an empty one is refused."""
    assert Mf().grid
    with pytest.raises(ParameterError, match="grid is empty"):
        Mf(grid=())
