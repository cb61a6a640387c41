"""Mini-batch training of a model on positives with sampled negatives, by Adam.

This file owns the samples, the batches and the loop; a model brings parameters and a function for the
loss and its gradients. Binary cross-entropy as in PFedRec, so that the comparison is of models.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.baselines.adam import Adam
from trainer.baselines.incidence import Incidence
from trainer.baselines.interface import Samplers
from trainer.errors import ParameterError
from trainer.params import Floats, Rows

Values = NDArray[np.floating[Any]]
"""Float32 in training; float64 where gradients are to be checked."""

Parameters = Mapping[str, Values]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Samples of a mini-batch.

    Attributes
    ----------
    users, items : ndarray, shape (n_samples,), int64
    labels : ndarray, shape (n_samples,), floating
        1 for a positive, 0 for a negative.
    """

    users: Rows
    items: Rows
    labels: Values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gradient:
    """The gradient of one parameter.

    Attributes
    ----------
    rows : ndarray, shape (n_rows,), int64, or None
        The rows of the parameter that the gradient is of, ascending; it is zero elsewhere. None for all.
    values : ndarray, floating
        Shape (n_rows, ...), or that of the parameter.
    """

    rows: Rows | None
    values: Values


LossAndGradients = Callable[[Parameters, Batch, float], tuple[float, dict[str, Gradient]]]
"""Gives the mean loss of a batch under a decay, and its gradient by every parameter; changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentSettings:
    """How a model is trained.

    Attributes
    ----------
    epochs : int
    lr : float
        Adam's step.
    decay : float
        L2 penalty on the embeddings of each sample.
    negatives : int
        Drawn afresh in every epoch for each positive.
    batch_size : int
        Samples, positives and negatives together.

    Raises
    ------
    ParameterError
        When a value is out of its range.
    """

    epochs: int
    lr: float
    decay: float = 0.0
    negatives: int = 4
    batch_size: int = 1024

    def __post_init__(self) -> None:
        for name, count, most in (
            ("epochs", self.epochs, 10_000),
            ("negatives", self.negatives, 1000),
            ("batch_size", self.batch_size, 10_000_000),
        ):
            if not 1 <= count <= most:
                raise ParameterError(f"{name} is {count}; it must lie between 1 and {most}")
        if not 0.0 < self.lr <= 10.0:
            raise ParameterError(f"lr is {self.lr}; it must be above 0 and at most 10")
        if not 0.0 <= self.decay < np.inf:
            raise ParameterError(f"decay is {self.decay}; it must be finite and not negative")

    def __str__(self) -> str:
        return f"lr {self.lr:g}, decay {self.decay:g}, negatives {self.negatives}, batch {self.batch_size}"


def require_grid(grid: tuple[DescentSettings, ...]) -> None:
    """Refuse a grid without settings.

    Raises
    ------
    ParameterError
        When it is empty.
    """
    if not grid:
        raise ParameterError("the grid is empty; it must list at least one setting")


def descend(
    start: Mapping[str, Floats],
    loss_and_gradients: LossAndGradients,
    by_user: Incidence,
    samplers: Samplers,
    grid: tuple[DescentSettings, ...],
    rng: np.random.Generator,
) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Train under each setting, and give a description and a copy of the parameters after each epoch.

    Parameters
    ----------
    start : mapping of ndarray, float32
        Where every setting starts; not changed.
    by_user : Incidence
        The training interactions.
    """
    for settings in grid:
        parameters = {name: array.copy() for name, array in start.items()}
        optimisers = {name: Adam(array.shape, settings.lr) for name, array in start.items()}
        for epoch, samples in enumerate(_epochs(by_user, samplers, settings, rng), start=1):
            for first in range(0, samples.items.size, settings.batch_size):
                part = slice(first, first + settings.batch_size)
                batch = Batch(
                    users=samples.users[part], items=samples.items[part], labels=samples.labels[part]
                )
                _, gradients = loss_and_gradients(parameters, batch, settings.decay)
                for name, gradient in gradients.items():
                    optimisers[name].step(parameters[name], gradient.rows, gradient.values)
            yield (
                f"{settings}, epoch {epoch}",
                {name: array.copy() for name, array in parameters.items()},
            )


def _epochs(
    by_user: Incidence, samplers: Samplers, settings: DescentSettings, rng: np.random.Generator
) -> Iterator[Batch]:
    """Give the samples of each epoch, shuffled: every positive once, with fresh negatives."""
    counts = by_user.counts * settings.negatives
    draws = [samplers(user) for user in range(by_user.n_rows)]
    positive_users = np.repeat(np.arange(by_user.n_rows), by_user.counts)
    users = np.concatenate((positive_users, np.repeat(np.arange(by_user.n_rows), counts)))
    labels = (np.arange(users.size) < positive_users.size).astype(np.float32)
    for _ in range(settings.epochs):
        negatives = [sampler.draw(int(count), rng) for sampler, count in zip(draws, counts, strict=True)]
        items = np.concatenate((by_user.columns, *negatives))
        order = rng.permutation(items.size)
        yield Batch(users=users[order], items=items[order], labels=labels[order])


def summed_by_row(rows: Rows, values: Values) -> Gradient:
    """Sum the gradients of samples that share a row.

    Parameters
    ----------
    rows : ndarray, shape (n_samples,), int64
    values : ndarray, shape (n_samples, dim), floating
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.concatenate(([0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1))
    return Gradient(rows=ordered[starts], values=np.add.reduceat(values[order], starts, axis=0))


def cross_entropy(logits: Values, labels: Values) -> float:
    """Give the mean binary cross-entropy of logits, without overflow."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
