"""One local pass of PFedRec on one device, sparse: only the rows that the pass touches exist.

For every mini-batch, as in the paper's alternating update (arXiv 2301.08143, algorithm 1):

1. forward with (w, b); one SGD step on w and b with the gradient of the mean batch loss;
2. forward again with the new w, b; one SGD step on the touched item rows.

(``joint=True`` makes both steps from the first forward instead: the plain gradient step of the methods
that the paper compares with.)

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

from dataclasses import dataclass, field

import numpy as np

from trainer.batches import Batch, draw_batches
from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler

_HALF = np.float32(0.5)
_MAX_PENDING = 16
"""Batches after which the rows are renewed: looking back costs k products, renewing one of the width."""


def _nothing() -> Floats:
    return np.empty(0, dtype=np.float32)


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
    network_change : ndarray, shape (n_network,), float32
        Change of what the fleet shares beside the table; empty for most methods.
    """

    score_function: ScoreFunction
    rows: Rows
    table: Floats
    coefficients: Floats
    vectors: Floats
    network_change: Floats = field(default_factory=_nothing)

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

    def values_at(self, positions: Rows) -> Floats:
        """Give some of the rows after the pass, by their positions in `rows`; shape (n, dim), float32."""
        values: Floats = self.table.take(self.rows.take(positions), axis=0)
        values += np.dot(self.coefficients.take(positions, axis=1).T, self.vectors)
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
    *,
    joint: bool = False,
    bias: bool = True,
) -> LocalResult:
    """Train one pass over a user's positives, each with fresh negatives. No argument is changed.

    A pass that diverges ends in values that are not finite (and numpy warns of them unless told not to).

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
        The shared item table.
    positives : ndarray, shape (n_positives,), int64
        The user's items, each once.
    joint : bool
        Step the rows with the same gradient of the same forward as w and b.
    bias : bool
        Whether b is trained.

    Raises
    ------
    ParameterError
        When there is no positive, or one is no row of the table, or `sampler` or `score_function` was
        made for another table.
    """
    if score_function.w.shape != table.shape[1:]:
        raise ParameterError(
            f"w has shape {score_function.w.shape}; the rows of the table have {table.shape[1:]}"
        )
    rows, batches = draw_batches(len(table), positives, sampler, hyperparameters, rng)
    steps = _joint_steps if joint else _alternating_steps
    after, coefficients, vectors = steps(
        table.take(rows, axis=0), score_function, batches, hyperparameters, bias=bias
    )
    if len(batches) > table.shape[1]:
        # More factors than columns: the change itself is the smaller form.
        coefficients = np.dot(vectors.T, coefficients)
        vectors = np.eye(table.shape[1], dtype=np.float32)
    return LocalResult(
        score_function=after, rows=rows, table=table, coefficients=coefficients, vectors=vectors
    )


def _alternating_steps(
    values: Floats,
    score_function: ScoreFunction,
    batches: list[Batch],
    hyperparameters: Hyperparameters,
    *,
    bias: bool,
) -> tuple[ScoreFunction, Floats, Floats]:
    """Step w and b, then with them the rows; give the score function and the factors of the rows' change."""
    coefficients = np.empty((len(batches), len(values)), dtype=np.float32)
    half_vectors = np.empty((len(batches), values.shape[1]), dtype=np.float32)
    renewed = 0
    half_w, half_b = score_function.w * _HALF, 0.5 * score_function.b
    half_z = _half_logits(values, coefficients[:0], half_vectors[:0], half_w, half_b)
    for number, batch in enumerate(batches):
        if number - renewed == _MAX_PENDING:
            values = values + np.dot(coefficients[renewed:number].T, half_vectors[renewed:number])
            renewed = number
        C, W = coefficients[renewed:number], half_vectors[renewed:number]
        half_w, step = _stepped(half_w, batch.two_g(half_z), values, C, W, batch, hyperparameters)
        if bias:
            half_b -= step
        half_z = _half_logits(values, C, W, half_w, half_b)
        two_g = batch.two_g(half_z)
        two_g *= -2.0 * hyperparameters.item_lr * batch.half_mean
        coefficients[number], half_vectors[number] = two_g, half_w
        # The rows move along w, so the logits of the next forward are these and a multiple of w·w.
        two_g *= float(np.dot(half_w, half_w))
        half_z += two_g
    return ScoreFunction(w=half_w + half_w, b=2.0 * half_b), coefficients, half_vectors


def _joint_steps(
    values: Floats,
    score_function: ScoreFunction,
    batches: list[Batch],
    hyperparameters: Hyperparameters,
    *,
    bias: bool,
) -> tuple[ScoreFunction, Floats, Floats]:
    """Step w, b and the rows with the gradient at the same point; give what `_alternating_steps` gives."""
    coefficients = np.empty((len(batches), len(values)), dtype=np.float32)
    half_vectors = np.empty((len(batches), values.shape[1]), dtype=np.float32)
    half_w, half_b = score_function.w * _HALF, 0.5 * score_function.b
    for number, batch in enumerate(batches):
        C, W = coefficients[:number], half_vectors[:number]
        two_g = batch.two_g(_half_logits(values, C, W, half_w, half_b))
        coefficients[number] = two_g * (-2.0 * hyperparameters.item_lr * batch.half_mean)
        half_vectors[number] = half_w
        half_w, step = _stepped(half_w, two_g, values, C, W, batch, hyperparameters)
        if bias:
            half_b -= step
    return ScoreFunction(w=half_w + half_w, b=2.0 * half_b), coefficients, half_vectors


def _stepped(
    half_w: Floats,
    two_g: Floats,
    values: Floats,
    C: Floats,
    W: Floats,
    batch: Batch,
    hyperparameters: Hyperparameters,
) -> tuple[Floats, float]:
    """Give w/2 after its step, and what b/2 loses in its own, for the rows ``values + C.T·W``."""
    half_step = 0.5 * hyperparameters.lr * batch.half_mean
    gradient: Floats = np.dot(two_g, values)
    if len(C):
        gradient += np.dot(np.dot(C, two_g), W)
    gradient *= half_step
    if hyperparameters.decay:
        gradient += half_w * (hyperparameters.lr * hyperparameters.decay)
    return half_w - gradient, half_step * float(np.add.reduce(two_g))


def _half_logits(values: Floats, C: Floats, W: Floats, half_w: Floats, half_b: float) -> Floats:
    """Give ``z/2`` of the rows ``values + C.T·W``; shape (n_rows,)."""
    half_z: Floats = np.dot(values, half_w)
    if len(C):
        half_z += np.dot(np.dot(W, half_w), C)
    half_z += half_b
    return half_z
