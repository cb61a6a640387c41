import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction, initial_score_function, initial_table
from trainer.sampling import NegativeSampler

Doubles = NDArray[np.float64]

_POSITIVES = np.array([3, 0, 7, 11, 12, 5], dtype=np.int64)


def _run(
    seed: int = 0,
    *,
    n_items: int = 40,
    dim: int = 6,
    positives: Rows = _POSITIVES,
    hyperparameters: Hyperparameters | None = None,
) -> LocalResult:
    """Run one pass over a small catalogue, everything seeded."""
    model = np.random.default_rng(100 + seed)
    return local_pass(
        initial_table(n_items, dim, model),
        initial_score_function(dim, model),
        positives,
        NegativeSampler.excluding(n_items, positives),
        hyperparameters or Hyperparameters(lr=0.1, item_lr=5.0, negatives=4, batch_size=8),
        np.random.default_rng(seed),
    )


def _mean_loss(table: Doubles, w: Doubles | Floats, b: float, items: Rows, labels: Doubles) -> float:
    """Give the mean binary cross-entropy of the samples, in float64."""
    z = table[items] @ w + b
    return float(np.mean(np.logaddexp(0.0, z) - labels * z))


def _numerical_gradient(function: Callable[[Doubles], float], at: Doubles) -> Doubles:
    """Give the gradient by central differences; same shape as `at`."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        gradient[index] = (function(at + step) - function(at - step)) / 2e-5
    return gradient


def _dense_pass(
    table: Doubles,
    w: Doubles,
    b: float,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> tuple[Doubles, Doubles, float, Rows]:
    """Do the alternating update sample by sample over the whole table, in float64.

    Gives the table, w, b and the items of all samples. It draws from `rng` as a local pass does: the
    negatives of all positives, then the samples' places after shuffling.
    """
    table = table.copy()
    items = np.concatenate((positives, sampler.draw(hyperparameters.negatives * positives.size, rng)))
    labels = (np.arange(items.size) < positives.size).astype(np.float64)
    batch_of = rng.permutation(items.size) // hyperparameters.batch_size
    for number in range(batch_of.max() + 1):
        samples = np.flatnonzero(batch_of == number)
        batch, y = items[samples], labels[samples]

        error = 1.0 / (1.0 + np.exp(-(table[batch] @ w + b))) - y
        w, b = (
            w - hyperparameters.lr * (table[batch] * error[:, None]).mean(axis=0),
            b - hyperparameters.lr * float(error.mean()),
        )

        error = 1.0 / (1.0 + np.exp(-(table[batch] @ w + b))) - y
        row_gradient = np.zeros_like(table)
        for item, g in zip(batch, error, strict=True):
            row_gradient[item] += g * w / batch.size
        table -= hyperparameters.item_lr * row_gradient
    return table, w, b, items


def _single_batch(lr: float, item_lr: float) -> tuple[Doubles, ScoreFunction, Rows, Doubles, LocalResult]:
    """Run a pass of one batch whose samples are known: only one item is left to draw as a negative."""
    rng = np.random.default_rng(8)
    table = initial_table(6, 5, rng)
    score_function = initial_score_function(5, rng)
    positives = np.array([4, 0, 1, 5, 2])
    items = np.concatenate((positives, np.full(2 * positives.size, 3)))
    labels = (np.arange(items.size) < positives.size).astype(np.float64)
    result = local_pass(
        table,
        score_function,
        positives,
        NegativeSampler.excluding(6, positives),
        Hyperparameters(lr=lr, item_lr=item_lr, negatives=2, batch_size=64),
        rng,
    )
    return table.astype(np.float64), score_function, items, labels, result


def test_score_function_step_is_the_numerical_gradient() -> None:
    """With one batch, w and b move by -lr times the gradient of the mean loss."""
    table, before, items, labels, result = _single_batch(lr=0.7, item_lr=3.0)
    w = before.w.astype(np.float64)

    gradient_w = _numerical_gradient(lambda at: _mean_loss(table, at, before.b, items, labels), w)
    gradient_b = _numerical_gradient(
        lambda at: _mean_loss(table, w, float(at[0]), items, labels), np.array([before.b])
    )

    np.testing.assert_allclose(result.score_function.w - w, -0.7 * gradient_w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.score_function.b - before.b, -0.7 * gradient_b[0], rtol=1e-4, atol=1e-6)


def test_item_step_is_the_numerical_gradient_at_the_new_score_function() -> None:
    """With one batch, the rows move by -item_lr times the gradient at the new w and b."""
    table, _, items, labels, result = _single_batch(lr=0.7, item_lr=3.0)
    w, b = result.score_function.w.astype(np.float64), result.score_function.b

    gradient = _numerical_gradient(lambda at: _mean_loss(at, w, b, items, labels), table)

    np.testing.assert_array_equal(result.rows, np.arange(6))
    np.testing.assert_allclose(result.change, -3.0 * gradient, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    n_positives=st.integers(1, 40),
    negatives=st.integers(1, 6),
    batch_size=st.integers(1, 70),
    n_items=st.sampled_from([41, 60, 500, 10_000]),
)
def test_pass_agrees_with_a_dense_float64_pass(
    seed: int, n_positives: int, negatives: int, batch_size: int, n_items: int
) -> None:
    """Over any number of mini-batches the sparse float32 pass is the plain dense one."""
    model = np.random.default_rng(seed)
    table = initial_table(n_items, 8, model)
    start = initial_score_function(8, model)
    positives = model.choice(n_items, n_positives, replace=False)
    sampler = NegativeSampler.excluding(n_items, positives)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=2.0, negatives=negatives, batch_size=batch_size)

    result = local_pass(table, start, positives, sampler, hyperparameters, np.random.default_rng(seed))

    dense_table, w, b, items = _dense_pass(
        table.astype(np.float64),
        start.w.astype(np.float64),
        start.b,
        positives,
        sampler,
        hyperparameters,
        np.random.default_rng(seed),
    )
    np.testing.assert_array_equal(result.rows, np.unique(items))
    np.testing.assert_allclose(result.values, dense_table[result.rows], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(result.score_function.w, w, rtol=1e-3, atol=2e-4)
    assert result.score_function.b == pytest.approx(b, rel=1e-3, abs=2e-4)


def test_rows_are_the_touched_ones_ascending() -> None:
    """Rows are distinct and ascending, hold every positive, and values are table plus change."""
    result = _run()
    table = initial_table(40, 6, np.random.default_rng(100))

    assert np.all(np.diff(result.rows) > 0)
    assert set(_POSITIVES.tolist()) <= set(result.rows.tolist())
    assert result.rows.dtype == np.int64
    assert result.values.shape == result.change.shape == (result.rows.size, 6)
    assert result.values.dtype == result.change.dtype == result.score_function.w.dtype == np.float32
    np.testing.assert_array_equal(result.values, table[result.rows] + result.change)
    w = result.score_function.w
    np.testing.assert_allclose(result.products(w), result.values @ w, rtol=1e-4, atol=1e-5)


def test_untouched_rows_are_absent() -> None:
    """With one negative for each of two positives, at most four of a thousand rows are there."""
    result = _run(
        n_items=1000,
        positives=np.array([998, 2]),
        hyperparameters=Hyperparameters(negatives=1, batch_size=2),
    )

    assert 3 <= result.rows.size <= 4
    assert {2, 998} <= set(result.rows.tolist())
    assert np.all(np.abs(result.change).max(axis=1) > 0)


def test_inputs_are_not_changed() -> None:
    """Read-only arrays serve, and the score function that came in stays as it was."""
    rng = np.random.default_rng(1)
    table, start = initial_table(30, 4, rng), initial_score_function(4, rng)
    positives = _POSITIVES.copy()
    for array in (table, start.w, positives):
        array.setflags(write=False)
    w, b = start.w.copy(), start.b

    local_pass(table, start, positives, NegativeSampler.excluding(30, positives), Hyperparameters(), rng)

    np.testing.assert_array_equal(start.w, w)
    assert start.b == b


def test_same_generator_state_gives_the_same_bits() -> None:
    """Two runs are bit-identical; another seed is another pass."""
    first, second, other = _run(5), _run(5), _run(6)

    for name in ("rows", "values", "change"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.score_function.w, second.score_function.w)
    assert first.score_function.b == second.score_function.b
    assert not np.array_equal(first.score_function.w, other.score_function.w)


@pytest.mark.parametrize(("lr", "item_lr"), [(0.0, 0.0), (0.1, 0.0), (0.0, 5.0)])
def test_step_of_zero_changes_nothing(lr: float, item_lr: float) -> None:
    """A learning rate of 0 leaves its half of the model as it was, and only that half."""
    result = _run(hyperparameters=Hyperparameters(lr=lr, item_lr=item_lr))
    model = np.random.default_rng(100)
    initial_table(40, 6, model)
    start = initial_score_function(6, model)

    assert bool(np.any(result.change)) == (item_lr > 0)
    assert np.array_equal(result.score_function.w, start.w) == (lr == 0)
    assert (result.score_function.b == start.b) == (lr == 0)


def test_loss_falls_over_passes() -> None:
    """Twenty passes with fresh negatives bring the loss over the whole catalogue well down."""
    rng = np.random.default_rng(3)
    table, function = initial_table(60, 8, rng), initial_score_function(8, rng)
    positives = np.arange(0, 60, 5)
    sampler = NegativeSampler.excluding(60, positives)
    items, labels = np.arange(60), np.isin(np.arange(60), positives).astype(np.float64)
    losses = []
    for _ in range(20):
        losses.append(_mean_loss(table.astype(np.float64), function.w, function.b, items, labels))
        result = local_pass(
            table, function, positives, sampler, Hyperparameters(lr=0.1, item_lr=5.0, batch_size=16), rng
        )
        function = result.score_function
        table[result.rows] = result.values

    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[10] < losses[0]


def test_change_of_one_batch_lies_along_w() -> None:
    """All rows of a batch move along the new w, positives forwards and negatives backwards."""
    result = _run(hyperparameters=Hyperparameters(item_lr=5.0, batch_size=1000))

    w = result.score_function.w
    along = result.change @ w / np.dot(w, w)
    np.testing.assert_allclose(result.change, along[:, None] * w, rtol=1e-3, atol=1e-5)
    assert set(result.rows[along > 0].tolist()) == set(_POSITIVES.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_one_update_reveals_the_positives(seed: int) -> None:
    """Who sees one update, and nothing else, tells positives from negatives (docs/method.md says so)."""
    positives = np.random.default_rng(seed).choice(300, 40, replace=False)
    result = _run(seed, n_items=300, dim=16, positives=positives)

    _, _, directions = np.linalg.svd(result.change, full_matrices=False)
    forwards = result.change @ directions[0] > 0
    smaller = forwards if 2 * np.count_nonzero(forwards) < forwards.size else ~forwards
    assert set(result.rows[smaller].tolist()) == set(positives.tolist())


def test_rows_of_several_updates_reveal_the_positives() -> None:
    """The row numbers alone are enough: negatives change from pass to pass, positives stay."""
    rows = [set(_run(seed, n_items=400).rows.tolist()) for seed in range(8)]

    assert set.intersection(*rows) == set(_POSITIVES.tolist())


def test_memory_does_not_grow_with_a_large_catalogue() -> None:
    """A pass over 200,000 items allocates a small part of the table and returns the touched rows only."""
    rng = np.random.default_rng(0)
    table, function = initial_table(200_000, 8, rng), initial_score_function(8, rng)
    positives = np.array([199_999, 17, 100_000])
    sampler = NegativeSampler.excluding(200_000, positives)
    tracemalloc.start()
    try:
        result = local_pass(table, function, positives, sampler, Hyperparameters(), rng)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert result.rows.size <= 15
    assert result.values.shape == result.change.shape == (result.rows.size, 8)
    assert peak < 200_000


def test_rows_added_to_the_table_do_not_change_a_pass() -> None:
    """A sampler made before the catalogue grew gives the same bits on the longer table."""
    rng = np.random.default_rng(2)
    table, function = initial_table(50_000, 4, rng), initial_score_function(4, rng)
    sampler = NegativeSampler.excluding(30, _POSITIVES)

    def run(n_items: int) -> LocalResult:
        random = np.random.default_rng(9)
        return local_pass(table[:n_items], function, _POSITIVES, sampler, Hyperparameters(), random)

    short, long = run(30), run(50_000)
    np.testing.assert_array_equal(short.rows, long.rows)
    np.testing.assert_array_equal(short.change, long.change)
    np.testing.assert_array_equal(short.score_function.w, long.score_function.w)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positives": np.array([], dtype=np.int64)}, "at least one interaction"),
        ({"positives": np.array([2, -1])}, r"rows of the table, 0\.\.19"),
        ({"positives": np.array([20, 3])}, r"rows of the table, 0\.\.19"),
        ({"sampler": NegativeSampler.excluding(21, np.array([0]))}, "21 items; the table has 20"),
        ({"score_function": ScoreFunction(w=np.zeros(5, dtype=np.float32), b=0.0)}, r"shape \(5,\)"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    """No interaction, rows outside the table, and parts of another model are refused by name."""
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {
        "table": initial_table(20, 4, rng),
        "score_function": initial_score_function(4, rng),
        "positives": np.array([1, 2]),
        "sampler": NegativeSampler.excluding(20, np.array([1, 2])),
        "hyperparameters": Hyperparameters(),
        "rng": rng,
    }

    with pytest.raises(ParameterError, match=message):
        local_pass(**(arguments | changed))
