from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import a_random_split, a_split, clean_samplers, whole
from trainer.baselines.adam import Adam
from trainer.baselines.descent import (
    Batch,
    DescentSettings,
    Gradient,
    Parameters,
    cross_entropy,
    descend,
    require_grid,
    summed_by_row,
)
from trainer.baselines.incidence import Incidence
from trainer.errors import ParameterError


class _Recorder:
    """Stands for a model: keeps the batches, and its gradient is 1."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(
        self, parameters: Parameters, batch: Batch, decay: float
    ) -> tuple[float, dict[str, Gradient]]:
        self.batches.append(batch)
        return 0.0, {"value": Gradient(rows=None, values=np.ones(1, dtype=np.float32))}


def test_adam_moves_as_its_definition_says() -> None:
    """Bias-corrected moments, step by step in float64."""
    rng = np.random.default_rng(2)
    array = rng.standard_normal(5, dtype=np.float32)
    expected = array.astype(np.float64)
    m, v = np.zeros(5), np.zeros(5)
    optimiser = Adam((5,), 0.01)

    for step in range(1, 30):
        gradient = rng.standard_normal(5, dtype=np.float32)
        optimiser.step(array, None, gradient)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient.astype(np.float64) ** 2
        expected -= 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)

    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def test_adam_of_rows_leaves_the_others_alone() -> None:
    """All rows named is the whole array; rows not named keep their bits."""
    rng = np.random.default_rng(3)
    start = rng.standard_normal((6, 3), dtype=np.float32)
    gradients = rng.standard_normal((9, 6, 3), dtype=np.float32)
    by_rows, by_whole, some = start.copy(), start.copy(), start.copy()
    rowwise, dense, sparse = Adam((6, 3), 0.1), Adam((6, 3), 0.1), Adam((6, 3), 0.1)

    for gradient in gradients:
        rowwise.step(by_rows, np.arange(6), gradient)
        dense.step(by_whole, None, gradient)
        sparse.step(some, np.array([1, 4]), gradient[[1, 4]])

    np.testing.assert_array_equal(by_rows, by_whole)
    np.testing.assert_array_equal(some[[1, 4]], by_whole[[1, 4]])
    np.testing.assert_array_equal(some[[0, 2, 3, 5]], start[[0, 2, 3, 5]])


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_gradients_of_a_row_are_summed(rows: list[int], seed: int) -> None:
    """Rows come out distinct and ascending."""
    values = np.random.default_rng(seed).standard_normal((len(rows), 3))
    expected = np.zeros((10, 3))
    np.add.at(expected, rows, values)

    gradient = summed_by_row(np.array(rows), values)

    assert gradient.rows is not None
    assert gradient.rows.tolist() == sorted(set(rows))
    np.testing.assert_allclose(whole(gradient, expected), expected, atol=1e-12)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    """Right and sure costs nothing, wrong and sure the logit, undecided log 2."""
    logits, labels = np.array([1e4, 1e4, 0.0]), np.array([1.0, 0.0, 1.0])
    assert cross_entropy(logits, labels) == pytest.approx((0 + 1e4 + np.log(2)) / 3)


def test_epoch_holds_every_positive_once_with_its_negatives() -> None:
    """Negatives are the user's own, never training items, and new in every epoch."""
    split = a_random_split(6, n_users=20, n_items=30)
    by_user = Incidence.of_training(split)
    recorder = _Recorder()
    grid = (DescentSettings(epochs=2, lr=0.1, negatives=3, batch_size=16),)

    list(
        descend(
            {"value": np.zeros(1, dtype=np.float32)},
            recorder,
            by_user,
            clean_samplers(split),
            grid,
            np.random.default_rng(1),
        )
    )

    n_samples = 4 * by_user.columns.size
    n_batches = -(-n_samples // 16)
    assert [batch.labels.size for batch in recorder.batches[: n_batches - 1]] == [16] * (n_batches - 1)
    assert len(recorder.batches) == 2 * n_batches
    epochs = [recorder.batches[:n_batches], recorder.batches[n_batches:]]
    drawn = []
    for epoch in epochs:
        users, items, labels = (
            np.concatenate([getattr(batch, name) for batch in epoch]) for name in ("users", "items", "labels")
        )
        for user, train in enumerate(split.train):
            of_user = users == user
            assert sorted(items[of_user & (labels == 1)]) == sorted(train)
            negatives = items[of_user & (labels == 0)]
            assert negatives.size == 3 * train.size
            assert not np.isin(negatives, train).any()
        drawn.append(np.sort(items[labels == 0]).tolist())
    assert drawn[0] != drawn[1]


def test_settings_of_a_grid_start_from_the_same_parameters() -> None:
    """The start is not changed; what is given is a copy."""
    split = a_split([[1, 2]], 5)
    start = {"value": np.zeros(1, dtype=np.float32)}
    grid = tuple(DescentSettings(epochs=2, lr=lr, decay=0.5) for lr in (0.25, 0.125))

    found = list(
        descend(
            start,
            _Recorder(),
            Incidence.of_training(split),
            clean_samplers(split),
            grid,
            np.random.default_rng(1),
        )
    )

    assert [text for text, _ in found] == [
        "lr 0.25, decay 0.5, negatives 4, batch 1024, epoch 1",
        "lr 0.25, decay 0.5, negatives 4, batch 1024, epoch 2",
        "lr 0.125, decay 0.5, negatives 4, batch 1024, epoch 1",
        "lr 0.125, decay 0.5, negatives 4, batch 1024, epoch 2",
    ]
    values = [float(parameters["value"][0]) for _, parameters in found]
    assert values == pytest.approx([-0.25, -0.5, -0.125, -0.25])
    assert start["value"] == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("negatives", 0),
        ("negatives", 1001),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("decay", -0.1),
        ("decay", float("nan")),
    ],
)
def test_bad_settings_are_refused(field: str, value: float) -> None:
    """The sentence names the argument and what was found."""
    fields: dict[str, Any] = {"epochs": 1, "lr": 0.1, field: value}
    with pytest.raises(ParameterError, match=f"{field} is {value}"):
        DescentSettings(**fields)


def test_empty_grid_is_refused() -> None:
    """There would be no candidate."""
    with pytest.raises(ParameterError, match="grid is empty"):
        require_grid(())
