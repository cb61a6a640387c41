"""Splits, samplers and numerical gradients for the tests of the baselines."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.baselines import Samplers
from trainer.baselines.descent import Batch, Gradient, Parameters
from trainer.params import Floats, Rows
from trainer.sampling import NegativeSampler
from trainer.splits import Split, leave_one_out, sampled_candidates
from trainer.synthetic import SyntheticSettings, generate

Doubles = NDArray[np.float64]


def a_split(train: Sequence[Sequence[int]], n_items: int) -> Split:
    """Give a split with these training items; item 0 is every user's held-out one."""
    return Split(
        n_items=n_items,
        train=[np.array(items, dtype=np.int64) for items in train],
        val=np.zeros(len(train), dtype=np.int64),
        test=np.zeros(len(train), dtype=np.int64),
    )


def a_random_split(seed: int, n_users: int = 12, n_items: int = 9) -> Split:
    """Give users with one to all but two of the items, in random order."""
    rng = np.random.default_rng(seed)
    return a_split(
        [rng.permutation(n_items)[: rng.integers(1, n_items - 1)].tolist() for _ in range(n_users)], n_items
    )


def a_structured_split(n_users: int = 200) -> tuple[Split, Rows, Rows]:
    """Give generated users who favour groups, and the candidates of validation and test."""
    data = generate(SyntheticSettings(n_users=n_users), np.random.default_rng(5))
    split = leave_one_out(data, np.random.default_rng(7))
    return split, *sampled_candidates(split, np.random.default_rng(6))


def clean_samplers(split: Split) -> Samplers:
    """Give samplers that avoid the training items only."""
    return lambda user: NegativeSampler.excluding(split.n_items, split.train[user])


def dense(split: Split) -> Doubles:
    """Give the users x items matrix of zeros and ones."""
    matrix = np.zeros((len(split.train), split.n_items))
    for user, items in enumerate(split.train):
        matrix[user, items] = 1.0
    return matrix


def in_double(parameters: dict[str, Floats]) -> dict[str, Doubles]:
    """Give the parameters in float64, for differences that float32 would drown."""
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def assert_gradients_are_numerical(
    loss_and_gradients: Callable[[Parameters, Batch, float], tuple[float, dict[str, Gradient]]],
    parameters: dict[str, Doubles],
    batch: Batch,
    decay: float,
) -> None:
    """Compare every entry of every gradient with central differences of the loss."""
    _, gradients = loss_and_gradients(parameters, batch, decay)
    assert gradients.keys() == parameters.keys()
    for name, array in parameters.items():
        numerical = np.empty_like(array)
        for index in np.ndindex(array.shape):
            losses = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[index] += step
                losses.append(loss_and_gradients({**parameters, name: moved}, batch, decay)[0])
            numerical[index] = (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(
            whole(gradients[name], array), numerical, rtol=1e-6, atol=1e-8, err_msg=name
        )


def whole(gradient: Gradient, like: NDArray[Any]) -> Doubles:
    """Give a gradient by every row, zero where it has none."""
    if gradient.rows is None:
        return gradient.values.astype(np.float64)
    values = np.zeros(like.shape)
    values[gradient.rows] = gradient.values
    return values


def a_batch(seed: int, n_users: int, n_items: int, n_samples: int) -> Batch:
    """Give random samples in float64; users and items repeat."""
    rng = np.random.default_rng(seed)
    return Batch(
        users=rng.integers(0, n_users, n_samples),
        items=rng.integers(0, n_items, n_samples),
        labels=rng.integers(0, 2, n_samples).astype(np.float64),
    )
