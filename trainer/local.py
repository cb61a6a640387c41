"""One local pass of PFedRec on one device, sparse: only the rows that the pass touches exist.

For every mini-batch, as in the paper's alternating update (arXiv 2301.08143, algorithm 1):

1. forward with (w, b); one SGD step on w and b with the gradient of the mean batch loss;
2. forward again with the new w, b; one SGD step on the touched item rows.

With the binary cross-entropy and ``z = w·e_i + b`` a sample's gradient is ``g = sigmoid(z) - y`` for
b, ``g·e_i`` for w and ``g·w`` for e_i. Two things make a pass cheap:

* All samples of a row in a batch have the same z. With n of them, of which p positive, their gradients
  sum to ``n·sigmoid(z) - p``: one transcendental for each row, whatever the number of samples.
* The row gradients of a batch are rank one: that sum, times w. So the rows after k batches are the rows
  before plus ``C·W``, C of shape (n_rows, k), W the k score vectors. The rows themselves are renewed
  only when the pass ends, or k has grown to the order of the width.

Everything is float32. ``2·sigmoid(z) = tanh(z/2) + 1`` cannot overflow; so a pass works with z/2, w/2
and b/2 throughout.
"""

from dataclasses import dataclass

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler

_HALF = np.float32(0.5)
_MAX_PENDING = 16
"""Batches after which the rows are renewed: looking back costs k products, renewing one of the width."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalResult:
    """What one local pass leaves: small, as the change of the rows is kept as the two factors it is made of.

    Attributes
    ----------
    score_function : ScoreFunction
        The personal score function after the pass.
    rows : ndarray, shape (n_rows,), int64
        The touched rows of the item table, ascending.
    table : ndarray, shape (n_items, dim), float32
        The shared table that the pass started from; not a copy.
    coefficients : ndarray, shape (k, n_rows), float32
    vectors : ndarray, shape (k, dim), float32
        ``change = coefficients.T · vectors``; k is at most the number of batches, and at most dim.
    """

    score_function: ScoreFunction
    rows: Rows
    table: Floats
    coefficients: Floats
    vectors: Floats

    @property
    def change(self) -> Floats:
        """What an update carries; shape (n_rows, dim), float32, computed anew."""
        change: Floats = np.dot(self.coefficients.T, self.vectors)
        return change

    @property
    def values(self) -> Floats:
        """The rows after the pass: the user's own view; shape (n_rows, dim), float32, computed anew."""
        values: Floats = self.table.take(self.rows, axis=0)
        values += self.change
        return values

    def products(self, w: Floats) -> Floats:
        """Give ``values · w``; shape (n_rows,), float32."""
        products: Floats = np.dot(self.table.take(self.rows, axis=0), w)
        products += np.dot(np.dot(self.vectors, w), self.coefficients)
        return products


def local_pass(
    table: Floats,
    score_function: ScoreFunction,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> LocalResult:
    """Train one pass over a user's positives, each with fresh negatives. No argument is changed.

    A pass that diverges ends in values that are not finite (and numpy warns of them unless told not to).

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
        The shared item table.
    positives : ndarray, shape (n_positives,), int64
        The user's items, each once.

    Raises
    ------
    ParameterError
        When there is no positive, or one is no row of the table, or `sampler` or `score_function` was
        made for another table.
    """
    _require_fit(table, score_function, positives, sampler)
    n_samples = (1 + hyperparameters.negatives) * positives.size
    batch_size = hyperparameters.batch_size
    n_batches = -(-n_samples // batch_size)
    negatives = sampler.draw(n_samples - positives.size, rng)
    rows, samples, two_g_bias = _in_batches(positives, negatives, len(table), batch_size, rng)
    coefficients = np.empty((n_batches, rows.size), dtype=np.float32)
    half_vectors = np.empty((n_batches, table.shape[1]), dtype=np.float32)
    values: Floats = table.take(rows, axis=0)
    renewed = 0
    half_w, half_b = score_function.w * _HALF, 0.5 * score_function.b
    half_z = np.dot(values, half_w)
    half_z += half_b
    for batch in range(n_batches):
        half_mean = 0.5 / min(batch_size, n_samples - batch * batch_size)
        if batch - renewed == _MAX_PENDING:
            values = values + np.dot(coefficients[renewed:batch].T, half_vectors[renewed:batch])
            renewed = batch
        C, W = coefficients[renewed:batch], half_vectors[renewed:batch]
        two_g = np.tanh(half_z)
        two_g *= samples[batch]
        two_g += two_g_bias[batch]
        half_step = 0.5 * hyperparameters.lr * half_mean
        gradient = np.dot(two_g, values)
        if batch > renewed:
            gradient += np.dot(np.dot(C, two_g), W)
        gradient *= half_step
        half_w = half_w - gradient
        half_b -= half_step * float(np.add.reduce(two_g))
        half_z = np.dot(values, half_w)
        if batch > renewed:
            half_z += np.dot(np.dot(W, half_w), C)
        half_z += half_b
        np.tanh(half_z, out=two_g)
        two_g *= samples[batch]
        two_g += two_g_bias[batch]
        two_g *= -2.0 * hyperparameters.item_lr * half_mean
        coefficients[batch], half_vectors[batch] = two_g, half_w
        # The rows move along w, so the logits of the next forward are these and a multiple of w·w.
        two_g *= float(np.dot(half_w, half_w))
        half_z += two_g
    if n_batches > table.shape[1]:
        # More factors than columns: the change itself is the smaller form.
        coefficients = np.dot(half_vectors.T, coefficients)
        half_vectors = np.eye(table.shape[1], dtype=np.float32)
    return LocalResult(
        score_function=ScoreFunction(w=half_w + half_w, b=2.0 * half_b),
        rows=rows,
        table=table,
        coefficients=coefficients,
        vectors=half_vectors,
    )


def _require_fit(
    table: Floats, score_function: ScoreFunction, positives: Rows, sampler: NegativeSampler
) -> None:
    if positives.size == 0:
        raise ParameterError("a local pass needs at least one interaction")
    if np.minimum.reduce(positives) < 0 or np.maximum.reduce(positives) >= len(table):
        raise ParameterError(f"positives must be rows of the table, 0..{len(table) - 1}")
    if sampler.n_items > len(table):
        raise ParameterError(f"the sampler draws from {sampler.n_items} items; the table has {len(table)}")
    if score_function.w.shape != table.shape[1:]:
        raise ParameterError(
            f"w has shape {score_function.w.shape}; the rows of the table have {table.shape[1:]}"
        )


def _in_batches(
    positives: Rows, negatives: Rows, n_items: int, batch_size: int, rng: np.random.Generator
) -> tuple[Rows, Floats, Floats]:
    """Shuffle the samples into batches.

    Returns
    -------
    rows : ndarray, shape (n_rows,), int64
        The distinct items, ascending.
    samples, two_g_bias : ndarray, shape (n_batches, n_rows), float32
        The number of samples of each batch and row, and that of negatives less that of positives.
    """
    items = np.concatenate((positives, negatives))
    rows, cell = _touched(items, n_items)
    n_batches = -(-items.size // batch_size)
    if n_batches > 1:
        # A sample's batch is its place after shuffling, over the size. Cells are numbered batch by batch.
        batch = rng.permutation(items.size)
        batch //= batch_size
        batch *= rows.size
        cell += batch
    shape = (n_batches, rows.size)
    samples = np.bincount(cell, minlength=n_batches * rows.size)
    bias = np.bincount(cell[: positives.size], minlength=samples.size)
    bias *= -2
    bias += samples
    return rows, samples.reshape(shape).astype(np.float32), bias.reshape(shape).astype(np.float32)


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
