"""What a model is made of: the shared item table, the personal score function, the learning rates.

This file owns their shapes, their seeded initial values and the paper's settings. It does not know
how they are trained, stored or sent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Index = NDArray[np.intp]

MAX_DIM = 1024
"""Widest embedding that anything here accepts; published models of this kind use 8 to 512."""


def as_index(rows: Rows | Index) -> Index:
    """Give row numbers in numpy's own type of an index.

    It is int64, and nothing is copied, but on a 32-bit processor it is int32; there `take`, `repeat`,
    `reduceat` and `bincount` refuse int64. (Indexing with ``[]`` takes either.)
    """
    return rows.astype(np.intp, copy=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoreFunction:
    """A user's personal score function: ``score(i) = sigmoid(w · e_i + b)``. It never leaves the device.

    Attributes
    ----------
    w : ndarray, shape (dim,), float32
    b : float
    """

    w: Floats
    b: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """How one local pass trains; part of the head's training plan.

    Attributes
    ----------
    lr : float
        Step of the score function for the mean gradient of a mini-batch.
    item_lr : float
        Step of the item rows, likewise.
    negatives : int
        Items drawn as negatives for each positive, afresh in every pass.
    batch_size : int
        Samples in a mini-batch, positives and negatives together.
    decay : float
        L2 decay of w: each of its steps also takes away ``lr · decay · w``. 0 in the paper.

    Raises
    ------
    ParameterError
        When a value is out of its range.
    """

    lr: float = 0.1
    item_lr: float = 1.0
    negatives: int = 4
    batch_size: int = 256
    decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("item_lr", self.item_lr)):
            if not 0.0 <= value <= 1e9:
                raise ParameterError(f"{name} is {value}; it must lie between 0 and 1e9")
        if not 0.0 <= self.lr * self.decay <= 1.0:
            raise ParameterError(f"decay is {self.decay}; lr · decay must lie between 0 and 1")
        if not 1 <= self.negatives <= 1000:
            raise ParameterError(f"negatives is {self.negatives}; it must lie between 1 and 1000")
        if not 1 <= self.batch_size <= 65536:
            raise ParameterError(f"batch_size is {self.batch_size}; it must lie between 1 and 65536")


def item_lr(lr: float, n_items: int, lr_eta: float) -> float:
    """Give the step of item rows, ``lr · n_items · lr_eta - lr``, but not below 0.

    Large, because the server divides the sum of the clients' changes by their number (arXiv 2301.08143,
    section 5.1, and the published code's behaviour).
    """
    return max(0.0, lr * n_items * lr_eta - lr)


def paper_hyperparameters(n_items: int, *, lr: float = 0.1, lr_eta: float = 80.0) -> Hyperparameters:
    """Give the published settings for a catalogue of `n_items`."""
    return Hyperparameters(lr=lr, item_lr=item_lr(lr, n_items, lr_eta), negatives=4, batch_size=256)


def _require_dim(dim: int) -> None:
    if not 1 <= dim <= MAX_DIM:
        raise ParameterError(f"dim is {dim}; it must lie between 1 and {MAX_DIM}")


def initial_table(n_items: int, dim: int, rng: np.random.Generator, *, scale: float = 1.0) -> Floats:
    """Draw the first shared item table, N(0, scale²).

    Returns
    -------
    ndarray, shape (n_items, dim), float32

    Raises
    ------
    ParameterError
        When `n_items` or `dim` is out of range.
    """
    if n_items < 1:
        raise ParameterError(f"an item table needs at least one item, not {n_items}")
    _require_dim(dim)
    return (rng.standard_normal((n_items, dim), dtype=np.float32) * np.float32(scale)).astype(np.float32)


def initial_score_function(dim: int, rng: np.random.Generator) -> ScoreFunction:
    """Draw the score function that all clients start from, uniform in ±1/sqrt(dim).

    Raises
    ------
    ParameterError
        When `dim` is out of range.
    """
    _require_dim(dim)
    bound = 1.0 / np.sqrt(dim)
    w = rng.uniform(-bound, bound, dim).astype(np.float32)
    return ScoreFunction(w=w, b=float(np.float32(rng.uniform(-bound, bound))))


def sigmoid(z: Floats) -> Floats:
    """Give the logistic function of `z` without overflow, in the dtype of `z`."""
    half = z.dtype.type(0.5)
    result: Floats = np.tanh(z * half) * half + half
    return result
