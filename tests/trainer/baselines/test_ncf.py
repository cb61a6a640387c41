import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import a_batch, assert_gradients_are_numerical, in_double
from trainer.baselines import Ncf
from trainer.baselines.descent import Batch
from trainer.baselines.ncf import NcfScorer, initial_ncf, ncf_loss_and_gradients
from trainer.errors import ParameterError


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    dim=st.sampled_from([1, 2, 4]),
    hidden_layers=st.integers(1, 3),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_gradients_are_numerical(seed: int, dim: int, hidden_layers: int, decay: float) -> None:
    """By every vector, weight and bias."""
    rng = np.random.default_rng(seed)
    # Away from the kink of a ReLU, where a difference is no derivative.
    parameters = {
        name: array + rng.uniform(-1, 1, array.shape)
        for name, array in in_double(initial_ncf(5, 6, dim, hidden_layers, rng)).items()
    }
    assert_gradients_are_numerical(ncf_loss_and_gradients, parameters, a_batch(seed, 5, 6, 12), decay)


def test_loss_by_hand() -> None:
    """One hidden unit, open for the first sample and shut for the second."""
    parameters = {
        "users": np.array([[1.0]]),
        "items": np.array([[2.0], [-4.0]]),
        "weight-0": np.array([[1.0], [0.5]]),
        "bias-0": np.array([0.25]),
        "weight-1": np.array([[2.0]]),
        "bias-1": np.array([-1.0]),
    }
    batch = Batch(users=np.array([0, 0]), items=np.array([0, 1]), labels=np.array([1.0, 0.0]))

    loss, _ = ncf_loss_and_gradients(parameters, batch, 0.1)

    # Logits 2·(1 + 1 + 0.25) - 1 = 3.5 and 2·max(0, 1 - 2 + 0.25) - 1 = -1.
    expected = (np.log1p(np.exp(-3.5)) + np.log1p(np.exp(-1.0))) / 2 + 0.05 * (1 + 4 + 1 + 16) / 2
    assert loss == pytest.approx(expected)


@pytest.mark.parametrize("hidden_layers", [1, 2, 4])
def test_scores_are_the_logits_of_training(hidden_layers: int) -> None:
    """The scorer's short cut through the first layer changes nothing: one sample's loss tells its logit."""
    parameters = initial_ncf(3, 7, 8, hidden_layers, np.random.default_rng(5))
    for name in parameters:
        parameters[name] = parameters[name] + np.float32(0.1)

    scores = NcfScorer(parameters).scores(slice(0, 3))

    for user in range(3):
        for item in range(7):
            batch = Batch(
                users=np.array([user]), items=np.array([item]), labels=np.zeros(1, dtype=np.float64)
            )
            loss, _ = ncf_loss_and_gradients(in_double(parameters), batch, 0.0)
            assert scores[user, item] == pytest.approx(np.log(np.expm1(loss)), rel=1e-4, abs=1e-5)


def test_initial_widths_halve() -> None:
    """And never fall below one."""
    parameters = initial_ncf(2, 3, 4, 4, np.random.default_rng(0))
    shapes = [parameters[f"weight-{layer}"].shape for layer in range(5)]
    assert shapes == [(8, 4), (4, 2), (2, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("hidden_layers", [0, 9])
def test_bad_depths_are_refused(hidden_layers: int) -> None:
    """The sentence names the argument."""
    with pytest.raises(ParameterError, match=f"hidden_layers is {hidden_layers}"):
        Ncf(hidden_layers=hidden_layers)


def test_empty_grid_is_refused() -> None:
    """There would be no candidate."""
    with pytest.raises(ParameterError, match="grid is empty"):
        Ncf(grid=())
