"""Users' samples in mini-batches: the positives with fresh negatives, shuffled, counted by row.

All samples of a row in a batch have the same logit z, so that a batch is known from how many samples each
row has and how many of them are positive: one transcendental for each row, whatever the number of samples.

Users with equally many batches are drawn together, their rows side by side in one array: on a large fleet
most of a pass's time would otherwise be that of starting numpy's functions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows, as_index
from trainer.sampling import NegativeSampler, draw_for_each

_MARKED_PER_SAMPLE = 200
_ROWS_TOGETHER = 10_000


class Batch(NamedTuple):
    """One mini-batch of the binary cross-entropy, by rows; of one user, or of several side by side.

    With ``g = sigmoid(z) - y`` a row's samples sum to ``2 · Σ g = samples · tanh(z/2) + bias``.

    Attributes
    ----------
    samples : ndarray, shape (..., n_rows), float32
        How many samples each row has.
    bias : ndarray, shape (..., n_rows), float32
        The number of negatives less that of positives.
    half_mean : ndarray, shape (..., 1), float32
        Half of one over the batch size: turns ``2 · Σ g`` into the gradient of the mean loss.
    """

    samples: Floats
    bias: Floats
    half_mean: Floats

    def two_g(self, half_z: Floats) -> Floats:
        """Give ``2 · Σ g`` of each row from ``z/2``; shape (..., n_rows), float32."""
        two_g: Floats = np.tanh(half_z)
        two_g *= self.samples
        two_g += self.bias
        return two_g

    def gradient(self, z: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Give the mean loss's derivative by each row's logit; shape (..., n_rows)."""
        gradient: NDArray[np.floating[Any]] = (np.tanh(0.5 * z) * self.samples + self.bias) * self.half_mean
        return gradient

    def among(self, positions: Rows) -> "Batch":
        """Give the same batch for some of the rows only."""
        return Batch(self.samples[positions], self.bias[positions], self.half_mean)


class Drawn(NamedTuple):
    """The samples of one pass of several users, who have equally many batches.

    Attributes
    ----------
    rows : ndarray, shape (n_users, width), int64
        Each user's distinct items, ascending; after them 0, which no sample counts for.
    n_rows : ndarray, shape (n_users,), int64
        How many distinct items each user has; width is the largest.
    batches : list of Batch
        Of shapes (n_users, width) and (n_users, 1).
    """

    rows: Rows
    n_rows: Rows
    batches: list[Batch]

    def of(self, user: int) -> tuple[Rows, list[Batch]]:
        """Give one user's distinct items and batches, without what only fills up."""
        n_rows = self.n_rows[user]
        return self.rows[user, :n_rows], [
            Batch(samples[user, :n_rows], bias[user, :n_rows], half_mean[user])
            for samples, bias, half_mean in self.batches
        ]


def count_batches(n_positives: Rows, hyperparameters: Hyperparameters) -> Rows:
    """Give the number of batches in a pass of users with so many positives."""
    return -(-n_positives * (1 + hyperparameters.negatives) // hyperparameters.batch_size)


def users_alike(n_positives: Rows, n_items: int, hyperparameters: Hyperparameters) -> list[Rows]:
    """Cut users into groups that can be drawn together, and whose rows fit a processor's cache together.

    Parameters
    ----------
    n_positives : ndarray, shape (n_users,), int64

    Returns
    -------
    list of ndarray, int64
        Users by number, each in one group; the fewest positives first.
    """
    order = np.argsort(n_positives, kind="stable")
    n_batches = count_batches(n_positives, hyperparameters)[order]
    most_rows = np.minimum(n_positives[order] * (1 + hyperparameters.negatives), n_items)
    cuts, start = [], 0
    for number, (batches, rows) in enumerate(zip(n_batches.tolist(), most_rows.tolist(), strict=True)):
        if batches != n_batches[start] or (number + 1 - start) * rows > _ROWS_TOGETHER:
            if number > start:
                cuts.append(number)
            start = number
    return np.split(order, cuts)


def draw_batches(
    n_items: int,
    positives: Sequence[Rows],
    samplers: Sequence[NegativeSampler],
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> Drawn:
    """Draw negatives for each user's positives and shuffle the user's samples into mini-batches.

    Parameters
    ----------
    positives : sequence of n_users ndarrays, int64
        A user's items, each once.
    samplers : sequence of n_users NegativeSampler

    Raises
    ------
    ParameterError
        When somebody has no positive, or one that is no row of the table, or a sampler that was made for a
        larger table; or not all have equally many batches.
    """
    n_positives = np.array([items.size for items in positives])
    _require_drawable(n_items, positives, samplers, n_positives)
    n_samples = n_positives * (1 + hyperparameters.negatives)
    n_batches_each = count_batches(n_positives, hyperparameters)
    n_batches = int(n_batches_each[0])
    if np.any(n_batches_each != n_batches):
        raise ParameterError("users who are drawn together need equally many batches")
    rows, n_rows, cell = _cells(n_items, positives, samplers, n_positives, n_samples, n_batches, rng)
    n_users, width = rows.shape
    if n_batches > 1:
        cell += _shuffled_batches(n_positives, n_samples, hyperparameters.batch_size, rng) * width
    shape = (n_users, n_batches, width)
    n_first = int(n_positives.sum())
    n_cells = n_users * n_batches * width
    bias = np.bincount(as_index(cell[n_first:]), minlength=n_cells).astype(np.float32)
    samples = bias.copy()
    # A user's positives are different items, so that no cell is here twice.
    samples[cell[:n_first]] += 1.0
    bias[cell[:n_first]] -= 1.0
    samples, bias = samples.reshape(shape), bias.reshape(shape)
    sizes = np.minimum(
        n_samples[:, None] - np.arange(n_batches) * hyperparameters.batch_size, hyperparameters.batch_size
    )
    half_means = (0.5 / sizes).astype(np.float32)
    return Drawn(
        rows,
        n_rows,
        [
            Batch(samples[:, number], bias[:, number], half_means[:, number, None])
            for number in range(n_batches)
        ],
    )


def _cells(
    n_items: int,
    positives: Sequence[Rows],
    samplers: Sequence[NegativeSampler],
    n_positives: Rows,
    n_samples: Rows,
    n_batches: int,
    rng: np.random.Generator,
) -> tuple[Rows, Rows, Rows]:
    """Draw the negatives; give `Drawn.rows`, `Drawn.n_rows`, and the cell of each sample in the first batch.

    The cells are those of an array of shape (n_users, n_batches, width). The samples are all users'
    positives, then all users' negatives.
    """
    if len(positives) == 1:
        keys = np.concatenate((positives[0], samplers[0].draw(int(n_samples[0] - n_positives[0]), rng)))
        distinct, position = _distinct(keys, n_items)
        return distinct[None], np.array([distinct.size]), position
    # A key is a user's item.
    offsets = np.arange(len(positives), dtype=np.int64) * n_items
    negative_keys = draw_for_each(samplers, n_samples - n_positives, n_items, rng)
    positive_keys = np.concatenate(positives)
    positive_keys += offsets.repeat(n_positives)
    keys = np.concatenate((positive_keys, negative_keys))
    distinct, position = _distinct(keys, len(positives) * n_items)
    starts = distinct.searchsorted(offsets)
    n_rows = np.diff(starts, append=distinct.size)
    width = int(n_rows.max())
    # Where a user's rows lie when all users' are filled up to the width.
    place = np.arange(distinct.size) + (np.arange(len(positives)) * width - starts).repeat(n_rows)
    rows = np.zeros(len(positives) * width, dtype=np.int64)
    rows[place] = distinct - offsets.repeat(n_rows)
    if n_batches > 1:
        place += np.arange(0, len(positives) * (n_batches - 1) * width, (n_batches - 1) * width).repeat(
            n_rows
        )
    return rows.reshape(-1, width), n_rows, place.take(as_index(position))


def _require_drawable(
    n_items: int, positives: Sequence[Rows], samplers: Sequence[NegativeSampler], n_positives: Rows
) -> None:
    if not n_positives.all():
        raise ParameterError("a local pass needs at least one interaction")
    together = np.concatenate(positives) if len(positives) > 1 else positives[0]
    if np.minimum.reduce(together) < 0 or np.maximum.reduce(together) >= n_items:
        raise ParameterError(f"positives must be rows of the table, 0..{n_items - 1}")
    largest = max(sampler.n_items for sampler in samplers)
    if largest > n_items:
        raise ParameterError(f"the sampler draws from {largest} items; the table has {n_items}")


def _shuffled_batches(n_positives: Rows, n_samples: Rows, batch_size: int, rng: np.random.Generator) -> Rows:
    """Give each sample's batch: its place after shuffling among its user's, over the size."""
    of_positives, of_negatives = [], []
    for positive, total in zip(n_positives.tolist(), n_samples.tolist(), strict=True):
        place = rng.permutation(total)
        of_positives.append(place[:positive])
        of_negatives.append(place[positive:])
    place = np.concatenate(of_positives + of_negatives)
    place //= batch_size
    return place


def _distinct(keys: Rows, n_keys: int) -> tuple[Rows, Rows]:
    """Give the distinct keys, ascending, and each key's position among them.

    A mark for each possible key is several times faster than sorting, up to catalogues far larger than
    a pass.
    """
    if n_keys > _MARKED_PER_SAMPLE * keys.size:
        return np.unique(keys, return_inverse=True)
    mark = np.zeros(n_keys, dtype=np.bool_)
    mark[keys] = True
    distinct = mark.nonzero()[0].astype(np.int64, copy=False)
    position = np.empty(n_keys, dtype=np.int64)
    position[distinct] = np.arange(distinct.size)
    return distinct, position[keys]
