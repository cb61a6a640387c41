"""One local pass of PFedRec, sparse: only the rows that the pass touches exist.

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

A device makes the pass of its user, `local_pass`. A fleet makes those of many users at once, `local_passes`:
their arrays side by side along a first axis, each user's outcome the same to the last few bits of a
float32 whoever else is there.

Everything is float32. ``2·sigmoid(z) = tanh(z/2) + 1`` cannot overflow; so a pass works with z/2, w/2
and b/2 throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from trainer.aggregation import Accumulator
from trainer.batches import Batch, Drawn, draw_batches
from trainer.errors import ParameterError
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction, as_index
from trainer.sampling import NegativeSampler

_HALF = np.float32(0.5)
_DENSE_PER_ROW = 25
"""Up to so many multiplications for one of a sparse product, a dense one takes less time."""
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
    own_products : ndarray, shape (n_rows,), float32, optional
        ``values · w`` of the score function after the pass, where the pass has it already.
    """

    score_function: ScoreFunction
    rows: Rows
    table: Floats
    coefficients: Floats
    vectors: Floats
    network_change: Floats = field(default_factory=_nothing)
    own_products: Floats | None = None

    @property
    def change(self) -> Floats:
        """What an update carries; shape (n_rows, dim), float32, computed anew."""
        change: Floats = np.dot(self.coefficients.T, self.vectors)
        return change

    @property
    def values(self) -> Floats:
        """The rows after the pass: the user's own view; shape (n_rows, dim), float32, computed anew."""
        values: Floats = self.table.take(as_index(self.rows), axis=0)
        values += self.change
        return values

    def values_at(self, positions: Rows) -> Floats:
        """Give some of the rows after the pass, by their positions in `rows`; shape (n, dim), float32."""
        places = as_index(positions)
        values: Floats = self.table.take(as_index(self.rows.take(places)), axis=0)
        values += np.dot(self.coefficients.take(places, axis=1).T, self.vectors)
        return values

    def products(self, w: Floats) -> Floats:
        """Give ``values · w``; shape (n_rows,), float32."""
        if self.own_products is not None and w.tobytes() == self.score_function.w.tobytes():
            return self.own_products.copy()
        products: Floats = np.dot(self.table.take(as_index(self.rows), axis=0), w)
        products += np.dot(np.dot(self.vectors, w), self.coefficients)
        return products


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalPasses(Sequence[LocalResult]):
    """What one local pass of several users leaves: a `LocalResult` for each, in one piece.

    Attributes
    ----------
    W : ndarray, shape (n_users, dim), float32
    b : ndarray, shape (n_users,), float32
        The score functions after the pass.
    drawn : Drawn
        Whose rows the coefficients are about.
    table : ndarray, shape (n_items, dim), float32
    coefficients : ndarray, shape (n_users, k, width), float32
    vectors : ndarray, shape (n_users, k, dim), float32
        See `LocalResult`.
    network_changes : ndarray, shape (n_users, n_network), float32
    own_products : ndarray, shape (n_users, width), float32, optional
    """

    W: Floats
    b: Floats
    drawn: Drawn
    table: Floats
    coefficients: Floats
    vectors: Floats
    network_changes: Floats
    own_products: Floats | None = None

    def __len__(self) -> int:
        return len(self.W)

    def add_to(self, total: Accumulator) -> None:
        """Add all users' changes, each with weight 1."""
        n_users, k, _ = self.coefficients.shape
        if n_users * k * len(self.table) > _DENSE_PER_ROW * int(self.drawn.n_rows.sum()):
            for result in self:
                total.add(result.rows, result.change, 1.0)
            return
        # On a small catalogue one product over all of its rows costs less than each user's few in turn.
        n_items = len(self.table)
        spread = np.zeros((n_users, k, n_items + 1), dtype=np.float32)
        filling = np.arange(self.drawn.rows.shape[1]) >= self.drawn.n_rows[:, None]
        columns = np.where(filling, n_items, self.drawn.rows)
        np.put_along_axis(spread, columns[:, None, :], self.coefficients, axis=2)
        total.add_product(
            spread.reshape(n_users * k, -1)[:, :n_items], self.vectors.reshape(n_users * k, -1), n_users
        )

    @overload
    def __getitem__(self, user: int) -> LocalResult: ...

    @overload
    def __getitem__(self, user: slice) -> list[LocalResult]: ...

    def __getitem__(self, user: int | slice) -> LocalResult | list[LocalResult]:
        if isinstance(user, slice):
            return [self[number] for number in range(*user.indices(len(self)))]
        n_rows = self.drawn.n_rows[user]
        return LocalResult(
            score_function=ScoreFunction(w=self.W[user], b=float(self.b[user])),
            rows=self.drawn.rows[user, :n_rows],
            table=self.table,
            coefficients=self.coefficients[user, :, :n_rows],
            vectors=self.vectors[user],
            network_change=self.network_changes[user],
            own_products=None if self.own_products is None else self.own_products[user, :n_rows],
        )


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
    W, b = score_function.w[None], np.array([score_function.b], dtype=np.float32)
    return local_passes(table, W, b, [positives], [sampler], hyperparameters, rng, joint=joint, bias=bias)[0]


def local_passes(
    table: Floats,
    W: Floats,
    b: Floats,
    positives: Sequence[Rows],
    samplers: Sequence[NegativeSampler],
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
    *,
    joint: bool = False,
    bias: bool = True,
) -> LocalPasses:
    """Train one pass of each of several users, who need equally many batches; see `local_pass`.

    Parameters
    ----------
    W : ndarray, shape (n_users, dim), float32
    b : ndarray, shape (n_users,), float32
        Their score functions.

    Raises
    ------
    ParameterError
        As `local_pass`, and when the numbers of batches differ.
    """
    if W.shape[1:] != table.shape[1:]:
        raise ParameterError(f"w has shape {W.shape[1:]}; the rows of the table have {table.shape[1:]}")
    drawn = draw_batches(len(table), positives, samplers, hyperparameters, rng)
    steps = _joint_steps if joint else _alternating_steps
    values = table.take(as_index(drawn.rows.ravel()), axis=0).reshape(*drawn.rows.shape, -1)
    after = steps(values, W * _HALF, b * _HALF, drawn.batches, hyperparameters, bias=bias)
    half_W, half_b, half_products, coefficients, vectors = after
    if len(drawn.batches) > table.shape[1]:
        # More factors than columns: the change itself is the smaller form.
        coefficients = np.matmul(vectors.transpose(0, 2, 1), coefficients)
        vectors = np.broadcast_to(np.eye(table.shape[1], dtype=np.float32), (len(W), *2 * table.shape[1:]))
    return LocalPasses(
        W=half_W + half_W,
        b=half_b + half_b,
        drawn=drawn,
        table=table,
        coefficients=coefficients,
        vectors=vectors,
        network_changes=np.empty((len(W), 0), dtype=np.float32),
        own_products=half_products + half_products,
    )


_Steps = tuple[Floats, Floats, Floats, Floats, Floats]


def _alternating_steps(
    values: Floats,
    half_W: Floats,
    half_b: Floats,
    batches: list[Batch],
    hyperparameters: Hyperparameters,
    *,
    bias: bool,
) -> _Steps:
    """Step w and b, then with them the rows; give w/2, b/2, the rows' ``w·e/2``, their change's factors."""
    coefficients, vectors = _factors(values, batches)
    renewed = 0
    half_z = _half_logits(values, coefficients[:, :0], vectors[:, :0], half_W, half_b)
    for number, batch in enumerate(batches):
        if number - renewed == _MAX_PENDING:
            C, V = coefficients[:, renewed:number], vectors[:, renewed:number]
            values = values + np.matmul(C.transpose(0, 2, 1), V)
            renewed = number
        C, V = coefficients[:, renewed:number], vectors[:, renewed:number]
        half_W, step = _stepped(half_W, batch.two_g(half_z), values, C, V, batch, hyperparameters)
        if bias:
            half_b = half_b - step
        half_z = _half_logits(values, C, V, half_W, half_b)
        two_g = batch.two_g(half_z)
        two_g *= batch.half_mean * np.float32(-2.0 * hyperparameters.item_lr)
        coefficients[:, number], vectors[:, number] = two_g, half_W
        # The rows move along w, so the logits of the next forward are these and a multiple of w·w.
        two_g *= _squared_lengths(half_W)
        half_z += two_g
    half_z -= half_b[:, None]
    return half_W, half_b, half_z, coefficients, vectors


def _joint_steps(
    values: Floats,
    half_W: Floats,
    half_b: Floats,
    batches: list[Batch],
    hyperparameters: Hyperparameters,
    *,
    bias: bool,
) -> _Steps:
    """Step w, b and the rows with the gradient at the same point; give what `_alternating_steps` gives."""
    coefficients, vectors = _factors(values, batches)
    for number, batch in enumerate(batches):
        C, V = coefficients[:, :number], vectors[:, :number]
        two_g = batch.two_g(_half_logits(values, C, V, half_W, half_b))
        coefficients[:, number] = two_g * (batch.half_mean * np.float32(-2.0 * hyperparameters.item_lr))
        vectors[:, number] = half_W
        half_W, step = _stepped(half_W, two_g, values, C, V, batch, hyperparameters)
        if bias:
            half_b = half_b - step
    half_products = _half_logits(values, coefficients, vectors, half_W, np.zeros_like(half_b))
    return half_W, half_b, half_products, coefficients, vectors


def _factors(values: Floats, batches: list[Batch]) -> tuple[Floats, Floats]:
    """Give room for what the rows' change is made of, a factor for each batch."""
    n_users, width, dim = values.shape
    return (
        np.empty((n_users, len(batches), width), dtype=np.float32),
        np.empty((n_users, len(batches), dim), dtype=np.float32),
    )


def _stepped(
    half_W: Floats,
    two_g: Floats,
    values: Floats,
    C: Floats,
    V: Floats,
    batch: Batch,
    hyperparameters: Hyperparameters,
) -> tuple[Floats, Floats]:
    """Give w/2 after its step, and what b/2 loses in its own, for the rows ``values + C.T·V``."""
    half_step = batch.half_mean * np.float32(0.5 * hyperparameters.lr)
    gradient: Floats = np.matmul(two_g[:, None, :], values)
    if C.shape[1]:
        gradient += np.matmul(np.matmul(two_g[:, None, :], C.transpose(0, 2, 1)), V)
    gradient = gradient[:, 0]
    gradient *= half_step
    if hyperparameters.decay:
        gradient += half_W * np.float32(hyperparameters.lr * hyperparameters.decay)
    return half_W - gradient, half_step[:, 0] * np.add.reduce(two_g, axis=1)


def _half_logits(values: Floats, C: Floats, V: Floats, half_W: Floats, half_b: Floats) -> Floats:
    """Give ``z/2`` of the rows ``values + C.T·V``; shape (n_users, width)."""
    half_z: Floats = np.matmul(values, half_W[:, :, None])[:, :, 0]
    if C.shape[1]:
        half_z += np.matmul(np.matmul(V, half_W[:, :, None]).transpose(0, 2, 1), C)[:, 0]
    half_z += half_b[:, None]
    return half_z


def _squared_lengths(half_W: Floats) -> Floats:
    """Give ``w/2 · w/2`` of each user; shape (n_users, 1)."""
    lengths: Floats = np.matmul(half_W[:, None, :], half_W[:, :, None])[:, 0]
    return lengths
