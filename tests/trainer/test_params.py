import math
from typing import Any

import numpy as np
import pytest

from trainer.errors import ParameterError
from trainer.params import (
    MAX_DIM,
    Hyperparameters,
    initial_score_function,
    initial_table,
    paper_hyperparameters,
    sigmoid,
)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": -0.1},
        {"lr": math.nan},
        {"item_lr": math.inf},
        {"item_lr": 1.1e9},
        {"negatives": 0},
        {"negatives": 1001},
        {"batch_size": 0},
        {"batch_size": 65537},
    ],
)
def test_hyperparameters_out_of_range(values: dict[str, Any]) -> None:
    """A value outside its documented range is refused, and the message names it."""
    with pytest.raises(ParameterError, match=next(iter(values))):
        Hyperparameters(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.0, "item_lr": 0.0, "negatives": 1, "batch_size": 1},
        {"lr": 1e9, "item_lr": 1e9, "negatives": 1000, "batch_size": 65536},
    ],
)
def test_hyperparameters_at_the_ends_of_their_ranges(values: dict[str, Any]) -> None:
    """Both ends of each range are allowed."""
    hyperparameters = Hyperparameters(**values)

    assert {name: getattr(hyperparameters, name) for name in values} == values


def test_paper_hyperparameters_of_ml_100k() -> None:
    """For 1,682 items the item step is 0.1 · 1682 · 80 - 0.1; the rest is as published."""
    hyperparameters = paper_hyperparameters(1682)

    assert hyperparameters.item_lr == pytest.approx(13_455.9)
    assert (hyperparameters.lr, hyperparameters.negatives, hyperparameters.batch_size) == (0.1, 4, 256)


def test_initial_table_distribution() -> None:
    """The table is float32 with the mean and standard deviation of N(0, scale²)."""
    table = initial_table(4000, 25, np.random.default_rng(1), scale=0.1)

    assert table.shape == (4000, 25)
    assert table.dtype == np.float32
    # 100,000 values: five standard errors of the mean and of the standard deviation.
    assert abs(float(table.mean())) < 5 * 0.1 / math.sqrt(100_000)
    assert abs(float(table.std()) - 0.1) < 5 * 0.1 / math.sqrt(200_000)


def test_initial_table_scale_multiplies() -> None:
    """The same generator state gives the same draws, multiplied by the scale."""
    unit = initial_table(30, 8, np.random.default_rng(3))
    halved = initial_table(30, 8, np.random.default_rng(3), scale=0.5)

    np.testing.assert_array_equal(halved, unit * np.float32(0.5))


@pytest.mark.parametrize(("n_items", "dim"), [(0, 4), (-1, 4), (4, 0), (4, MAX_DIM + 1)])
def test_initial_table_out_of_range(n_items: int, dim: int) -> None:
    """A table without rows or columns, or too wide, is refused."""
    with pytest.raises(ParameterError):
        initial_table(n_items, dim, np.random.default_rng(0))


def test_initial_score_function_is_within_its_bounds() -> None:
    """Both w and b are uniform in ±1/sqrt(dim): inside, and close to both ends."""
    functions = [initial_score_function(16, np.random.default_rng(seed)) for seed in range(200)]
    values = np.concatenate([np.append(function.w, np.float32(function.b)) for function in functions])

    assert functions[0].w.shape == (16,)
    assert functions[0].w.dtype == np.float32
    assert values.min() >= -0.25
    assert values.max() <= 0.25
    assert values.min() < -0.24
    assert values.max() > 0.24


def test_initial_score_function_bias_survives_float32() -> None:
    """The bias is a float32 value, so that storing it as one loses nothing."""
    b = initial_score_function(7, np.random.default_rng(5)).b

    assert b == float(np.float32(b))


@pytest.mark.parametrize("dim", [0, -3, MAX_DIM + 1])
def test_initial_score_function_out_of_range(dim: int) -> None:
    """The width has the same limits as the table's."""
    with pytest.raises(ParameterError, match="dim"):
        initial_score_function(dim, np.random.default_rng(0))


def test_sigmoid_known_values() -> None:
    """0 gives a half, ln 3 three quarters; the dtype is kept."""
    result = sigmoid(np.array([0.0, math.log(3.0), -math.log(3.0)], dtype=np.float32))

    np.testing.assert_allclose(result, [0.5, 0.75, 0.25], rtol=1e-6)
    assert result.dtype == np.float32


def test_sigmoid_of_large_logits() -> None:
    """Logits far out give 0 and 1 without an overflow warning (warnings are errors here)."""
    np.testing.assert_array_equal(sigmoid(np.array([-1e30, 1e30], dtype=np.float32)), [0.0, 1.0])
