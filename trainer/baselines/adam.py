"""Adam for a dense array, and for the rows of one that a mini-batch touches."""

import numpy as np
from numpy.typing import NDArray

from trainer.params import Floats, Rows

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
"""The published defaults (arXiv 1412.6980)."""


class Adam:
    """The moments of one array, and the step they give.

    Rows that a step does not touch keep value and moments, which makes the cost that of the rows touched;
    the bias correction counts the steps of the whole array.
    """

    def __init__(self, shape: tuple[int, ...], lr: float) -> None:
        self._lr = lr
        self._mean = np.zeros(shape, dtype=np.float32)
        self._square = np.zeros(shape, dtype=np.float32)
        self._steps = 0

    def step(self, array: Floats, rows: Rows | None, gradient: NDArray[np.float32]) -> None:
        """Move `array` in place.

        Parameters
        ----------
        rows : ndarray, shape (n_rows,), int64, or None
            Distinct rows that `gradient` is of; None for the whole array.
        gradient : ndarray, float32
            Shape (n_rows, ...), or that of the array.
        """
        self._steps += 1
        mean = self._mean if rows is None else self._mean[rows]
        square = self._square if rows is None else self._square[rows]
        mean *= _BETA_1
        mean += (1.0 - _BETA_1) * gradient
        square *= _BETA_2
        square += (1.0 - _BETA_2) * gradient * gradient
        denominator = np.sqrt(square)
        # Both corrections moved out of the arrays: lr·(m/c1) / (sqrt(v/c2) + eps).
        correction = float(np.sqrt(1.0 - _BETA_2**self._steps))
        denominator += _EPSILON * correction
        move = mean / denominator
        move *= self._lr * correction / (1.0 - _BETA_1**self._steps)
        if rows is None:
            array -= move
        else:
            self._mean[rows], self._square[rows] = mean, square
            array[rows] -= move
