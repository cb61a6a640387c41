"""One local pass of PFedRec on one device, sparse: only the rows that the pass touches exist.

For every mini-batch, as in the paper's alternating update (arXiv 2301.08143, algorithm 1):

1. forward with (w, b); one SGD step on w and b with the gradient of the mean batch loss;
2. forward again with the new w, b; one SGD step on the touched item rows.

With the binary cross-entropy and ``z = w·e_i + b`` a sample's gradient is ``g = sigmoid(z) - y`` for
b, ``g·e_i`` for w and ``g·w`` for e_i. So the row gradients of a batch are rank one: sum g by row, times
w. The forward pass, too, is one product with the touched rows, then a look-up for each sample.

Everything is float32. ``2g = tanh(z/2) + (1 - 2y)`` needs one transcendental and cannot overflow.
"""

from dataclasses import dataclass

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalResult:
    """What one local pass leaves.

    Attributes
    ----------
    score_function : ScoreFunction
        The personal score function after the pass.
    rows : ndarray, shape (n_rows,), int64
        The touched rows of the item table, ascending.
    values : ndarray, shape (n_rows, dim), float32
        Those rows after the pass: the user's own view of them.
    change : ndarray, shape (n_rows, dim), float32
        ``values - table[rows]``: what an update carries.
    """

    score_function: ScoreFunction
    rows: Rows
    values: Floats
    change: Floats


def local_pass(
    table: Floats,
    score_function: ScoreFunction,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> LocalResult:
    """Train one pass over a user's positives, each with fresh negatives. No argument is changed.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
        The shared item table.
    positives : ndarray, shape (n_positives,), int64
        The user's items, each once.

    Raises
    ------
    ParameterError
        When there is no positive, or one is no row of the table.
    """
    if positives.size == 0:
        raise ParameterError("a local pass needs at least one interaction")
    if int(positives.min()) < 0 or int(positives.max()) >= len(table):
        raise ParameterError(f"positives must be rows of the table, 0..{len(table) - 1}")
    n_positives = positives.size
    items = np.concatenate((positives, sampler.draw(hyperparameters.negatives * n_positives, rng)))
    order = rng.permutation(items.size)
    rows, position = _touched(items, len(table))
    position = position[order]
    two_g_bias = np.where(order < n_positives, np.float32(-1.0), np.float32(1.0))

    before: Floats = table.take(rows, axis=0)
    values = before.copy()
    w = score_function.w.copy()
    b = score_function.b
    for start in range(0, items.size, hyperparameters.batch_size):
        stop = start + hyperparameters.batch_size
        batch = position[start:stop]
        bias = two_g_bias[start:stop]
        half_mean = 0.5 / batch.size
        by_row = _two_g_by_row(values, w, b, batch, bias)
        step = np.float32(hyperparameters.lr * half_mean)
        b -= float(step) * float(by_row.sum())
        w -= step * np.dot(by_row, values)
        by_row = _two_g_by_row(values, w, b, batch, bias)
        by_row *= np.float32(-hyperparameters.item_lr * half_mean)
        values += np.dot(by_row[:, None], w[None, :])
    return LocalResult(
        score_function=ScoreFunction(w=w, b=b), rows=rows, values=values, change=values - before
    )


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


def _two_g_by_row(values: Floats, w: Floats, b: float, batch: Rows, two_g_bias: Floats) -> Floats:
    """Sum twice the logit gradient of a batch's samples for each touched row; shape (n_rows,)."""
    half_z = np.dot(values, w * np.float32(0.5))
    half_z += np.float32(0.5 * b)
    two_g = half_z.take(batch)
    np.tanh(two_g, out=two_g)
    two_g += two_g_bias
    return np.bincount(batch, two_g, len(values)).astype(np.float32)
