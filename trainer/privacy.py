"""What an update reveals about its user, and the paper's noise against it.

All rows of an update move very nearly along one direction, w, the positives one way and the negatives the
other (`trainer.local`), and positives are fewer. `inferred_positives` is what an aggregator could do with a
single update and nothing else. `add_laplace_noise` is the local differential privacy of the paper
(arXiv 2301.08143, section 4.4): noise on every value that is sent. How little it hides is measured with the
first; see docs/method.md.
"""

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Rows


def require_noise(scale: float) -> None:
    """Refuse a noise scale that is out of range.

    Raises
    ------
    ParameterError
    """
    if not 0.0 <= scale <= 1e9:
        raise ParameterError(f"noise is {scale}; it must lie between 0 and 1e9")


def add_laplace_noise(change: Floats, scale: float, rng: np.random.Generator) -> Floats:
    """Add zero-mean Laplace noise of the given scale to every value; shape (n_rows, dim), a new array."""
    noisy: Floats = change + rng.laplace(0.0, scale, change.shape).astype(np.float32)
    return noisy


def inferred_positives(rows: Rows, change: Floats) -> Rows:
    """Guess a user's positives from one update: the smaller side of the rows' main direction.

    Parameters
    ----------
    rows : ndarray, shape (n_rows,), int64
    change : ndarray, shape (n_rows, dim), float32

    Returns
    -------
    ndarray, int64
        Ascending, if `rows` are.
    """
    if not rows.size:
        return rows
    # The main direction from the small side: dim x dim.
    _, directions = np.linalg.eigh(np.dot(change.T, change).astype(np.float64))
    along = np.dot(change, directions[:, -1])
    forwards, backwards = along > 0, along < 0
    smaller = forwards if forwards.sum() <= backwards.sum() else backwards
    guessed: Rows = rows[smaller]
    return guessed


def f1_score(guessed: Rows, true: Rows) -> float:
    """Give the harmonic mean of precision and recall of a guess; 0 when nothing is right."""
    right = np.intersect1d(guessed, true).size
    return 2.0 * right / (guessed.size + true.size) if right else 0.0
