"""FedNCF's gradients against central differences, and its steps against those gradients."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes import one_pass
from trainer.algorithms import Scores
from trainer.algorithms.fedncf import FedNCF, as_layers, layer_sizes, loss_gradients
from trainer.local import LocalResult
from trainer.params import Hyperparameters, ScoreFunction
from trainer.sampling import NegativeSampler

Doubles = NDArray[np.float64]
DIM, N_ROWS = 3, 7

widths_cases = pytest.mark.parametrize("widths", [(1,), (5,), (16,), (7, 4), (6, 5, 3)], ids=str)


def n_network(widths: tuple[int, ...], dim: int = DIM) -> int:
    """Give how many weights and offsets a network has."""
    return sum((n_in + 1) * n_out for n_in, n_out in layer_sizes(dim, widths))


def plain_logits(p: Doubles, values: Doubles, network: Doubles, widths: tuple[int, ...]) -> Doubles:
    """Give each row's logit, row by row and layer by layer, in float64."""
    layers = as_layers(network, p.size, widths)
    logits = []
    for row in values:
        h = np.concatenate((p, row))
        for A, c in layers[:-1]:
            h = np.maximum(h @ A + c, 0.0)
        logits.append((h @ layers[-1][0] + layers[-1][1])[0])
    return np.array(logits)


def loss(z: Doubles, samples: Doubles, positives: Doubles) -> float:
    """Give the sum of the binary cross-entropies of all samples of the rows."""
    return float(np.sum(samples * np.logaddexp(0.0, z) - positives * z))


def numerical_gradient(function: Callable[[Doubles], float], at: Doubles) -> Doubles:
    """Give the gradient by central differences; same shape as `at`."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-6
        gradient[index] = (function(at + step) - function(at - step)) / 2e-6
    return gradient


def assert_close(found: Scores, expected: Doubles, *, rtol: float, atol: float) -> None:
    """Assert that two arrays are equal within the tolerance."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def sigmoid(z: Doubles) -> Doubles:
    """Give the logistic function."""
    result: Doubles = 1.0 / (1.0 + np.exp(-z))
    return result


@widths_cases
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_numerical_ones(widths: tuple[int, ...], seed: int) -> None:
    """For the user vector, every row and every weight and offset, in float64."""
    rng = np.random.default_rng([seed, *widths])
    p, values = rng.standard_normal(DIM), rng.standard_normal((N_ROWS, DIM))
    network = rng.standard_normal(n_network(widths))
    samples = rng.integers(1, 5, N_ROWS).astype(np.float64)
    positives = np.minimum(samples, rng.integers(0, 2, N_ROWS))

    def g_of(z: Scores) -> Scores:
        g: Doubles = samples * sigmoid(z.astype(np.float64)) - positives
        return g

    by_p, by_rows, by_network = loss_gradients(p, values, network, widths, g_of)

    def of(p: Doubles, values: Doubles, network: Doubles) -> float:
        return loss(plain_logits(p, values, network, widths), samples, positives)

    assert_close(by_p, numerical_gradient(lambda at: of(at, values, network), p), rtol=1e-5, atol=1e-7)
    assert_close(by_rows, numerical_gradient(lambda at: of(p, at, network), values), rtol=1e-5, atol=1e-7)
    assert_close(by_network, numerical_gradient(lambda at: of(p, values, at), network), rtol=1e-5, atol=1e-7)


@widths_cases
def test_gradients_do_not_change_their_arguments(widths: tuple[int, ...]) -> None:
    """Read-only arrays serve; float32 stays float32."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(DIM, dtype=np.float32)
    values = rng.standard_normal((N_ROWS, DIM), dtype=np.float32)
    network = rng.standard_normal(n_network(widths), dtype=np.float32)
    for array in (p, values, network):
        array.setflags(write=False)

    gradients = loss_gradients(p, values, network, widths, np.tanh)

    assert [array.shape for array in gradients] == [p.shape, values.shape, network.shape]
    assert {array.dtype for array in gradients} == {np.dtype(np.float32)}


@widths_cases
def test_start_fits_the_widths(widths: tuple[int, ...]) -> None:
    """Weights are within their bound and not all the same; offsets are 0."""
    shared = FedNCF(widths=widths).start(10, DIM, 1.0, np.random.default_rng(0))

    assert shared.network.shape == (n_network(widths),)
    for A, c in as_layers(shared.network, DIM, widths):
        assert np.abs(A).max() <= np.sqrt(6.0 / sum(A.shape))
        assert np.ptp(A) > 0 or A.size == 1
        np.testing.assert_array_equal(c, 0.0)


def one_batch(widths: tuple[int, ...], *, joint: bool) -> tuple[Doubles, Doubles, Doubles, LocalResult]:
    """Run a pass of one batch whose samples are known: only item 3 is left to draw as a negative."""
    rng = np.random.default_rng([4, *widths])
    algorithm = FedNCF(widths=widths, joint=joint)
    shared = algorithm.start(6, DIM, 1.0, rng)
    p = rng.standard_normal(DIM, dtype=np.float32)
    positives = np.array([4, 0, 1, 5, 2])
    result = one_pass(
        algorithm,
        shared,
        ScoreFunction(w=p, b=0.0),
        positives,
        NegativeSampler.excluding(6, positives),
        Hyperparameters(lr=0.7, item_lr=3.0, negatives=2, batch_size=64),
        rng,
    )
    return (
        shared.table.astype(np.float64),
        p.astype(np.float64),
        shared.network.astype(np.float64),
        result,
    )


@widths_cases
@pytest.mark.parametrize("joint", [True, False])
def test_steps_are_the_numerical_gradient(widths: tuple[int, ...], *, joint: bool) -> None:
    """User vector and network step first; the rows with the same gradient or at the new point."""
    table, p, network, result = one_batch(widths, joint=joint)
    samples = np.array([1.0, 1.0, 1.0, 10.0, 1.0, 1.0])
    positives = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])

    def mean_loss(p: Doubles, table: Doubles, network: Doubles) -> float:
        return loss(plain_logits(p, table, network, widths), samples, positives) / 15.0

    by_p = numerical_gradient(lambda at: mean_loss(at, table, network), p)
    by_network = numerical_gradient(lambda at: mean_loss(p, table, at), network)
    new_p, new_network = p - 0.7 * by_p, network - 0.7 * by_network
    at_p, at_network = (p, network) if joint else (new_p, new_network)
    by_rows = numerical_gradient(lambda at: mean_loss(at_p, at, at_network), table)

    assert_close(result.score_function.w, new_p, rtol=1e-3, atol=2e-6)
    assert_close(result.network_change, new_network - network, rtol=1e-3, atol=2e-6)
    np.testing.assert_array_equal(result.rows, np.arange(6))
    assert_close(result.change, -3.0 * by_rows, rtol=1e-3, atol=2e-6)
    assert result.score_function.b == 0.0
