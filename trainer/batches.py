"""A user's samples in mini-batches: the positives with fresh negatives, shuffled, counted by row.

All samples of a row in a batch have the same logit z, so that a batch is known from how many samples each
row has and how many of them are positive: one transcendental for each row, whatever the number of samples.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows
from trainer.sampling import NegativeSampler


class Batch(NamedTuple):
    """One mini-batch of the binary cross-entropy, by rows.

    With ``g = sigmoid(z) - y`` a row's samples sum to ``2 · Σ g = samples · tanh(z/2) + bias``.

    Attributes
    ----------
    samples : ndarray, shape (n_rows,), float32
        How many samples each row has.
    bias : ndarray, shape (n_rows,), float32
        The number of negatives less that of positives.
    half_mean : float
        Half of one over the batch size: turns ``2 · Σ g`` into the gradient of the mean loss.
    """

    samples: Floats
    bias: Floats
    half_mean: float

    def two_g(self, half_z: Floats) -> Floats:
        """Give ``2 · Σ g`` of each row from ``z/2``; shape (n_rows,), float32."""
        two_g: Floats = np.tanh(half_z)
        two_g *= self.samples
        two_g += self.bias
        return two_g

    def gradient(self, z: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Give the mean loss's derivative by each row's logit; shape (n_rows,)."""
        gradient: NDArray[np.floating[Any]] = (np.tanh(0.5 * z) * self.samples + self.bias) * self.half_mean
        return gradient

    def among(self, positions: Rows) -> "Batch":
        """Give the same batch for some of the rows only."""
        return Batch(self.samples[positions], self.bias[positions], self.half_mean)


def draw_batches(
    n_items: int,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> tuple[Rows, list[Batch]]:
    """Draw negatives for the positives and shuffle all samples into mini-batches.

    Parameters
    ----------
    positives : ndarray, shape (n_positives,), int64
        The user's items, each once.

    Returns
    -------
    rows : ndarray, shape (n_rows,), int64
        The distinct items of all samples, ascending.
    batches : list of Batch

    Raises
    ------
    ParameterError
        When there is no positive, or one is no row of the table, or `sampler` was made for a larger table.
    """
    if positives.size == 0:
        raise ParameterError("a local pass needs at least one interaction")
    if np.minimum.reduce(positives) < 0 or np.maximum.reduce(positives) >= n_items:
        raise ParameterError(f"positives must be rows of the table, 0..{n_items - 1}")
    if sampler.n_items > n_items:
        raise ParameterError(f"the sampler draws from {sampler.n_items} items; the table has {n_items}")
    batch_size = hyperparameters.batch_size
    items = np.concatenate((positives, sampler.draw(hyperparameters.negatives * positives.size, rng)))
    rows, cell = _touched(items, n_items)
    n_batches = -(-items.size // batch_size)
    if n_batches > 1:
        # A sample's batch is its place after shuffling, over the size. Cells are numbered batch by batch.
        place = rng.permutation(items.size)
        place //= batch_size
        place *= rows.size
        cell += place
    shape = (n_batches, rows.size)
    counts = np.bincount(cell, minlength=n_batches * rows.size)
    less = np.bincount(cell[: positives.size], minlength=counts.size)
    less *= -2
    less += counts
    samples = counts.reshape(shape).astype(np.float32)
    bias = less.reshape(shape).astype(np.float32)
    return rows, [
        Batch(samples[number], bias[number], 0.5 / min(batch_size, items.size - number * batch_size))
        for number in range(n_batches)
    ]


def _touched(items: Rows, n_items: int) -> tuple[Rows, Rows]:
    """Give the distinct items, ascending, and each item's position among them.

    A mark for each row of the catalogue is several times faster than sorting, up to catalogues far
    larger than a pass.
    """
    if n_items > 200 * items.size:
        return np.unique(items, return_inverse=True)
    mark = np.zeros(n_items, dtype=np.bool_)
    mark[items] = True
    rows = mark.nonzero()[0]
    position = np.empty(n_items, dtype=np.int64)
    position[rows] = np.arange(rows.size)
    return rows, position[items]
