"""The contract of an aggregation strategy, and the running sum that the linear ones share.

A strategy is told of each update of a round in journal order and then asked for the table's change.
The order matters only to the last bit of a float32 sum: the same journal gives the same table.
"""

from typing import Protocol

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Rows, as_index


class Accumulator:
    """The weighted sum of sparse row changes, in one (n_items, dim) float32 buffer.

    Raises
    ------
    ParameterError
        From `add`, when rows and change do not fit the table or each other; nothing is added.
    """

    def __init__(self, n_items: int, dim: int) -> None:
        self._sum: Floats = np.zeros((n_items, dim), dtype=np.float32)
        self.weight = 0.0
        self.count = 0

    @classmethod
    def into(cls, buffer: Floats) -> "Accumulator":
        """Give one that adds up in `buffer`, shape (n_items, dim), float32, which is set to zero."""
        accumulator = cls(0, buffer.shape[1])
        buffer.fill(0.0)
        accumulator._sum = buffer
        return accumulator

    def add(self, rows: Rows, change: Floats, weight: float) -> None:
        """Add ``weight · change`` at `rows` (distinct, shape (n,)); change has shape (n, dim)."""
        if change.shape != (rows.size, self._sum.shape[1]):
            raise ParameterError(f"a change of shape {change.shape} does not fit {rows.size} rows")
        if rows.size and (np.minimum.reduce(rows) < 0 or np.maximum.reduce(rows) >= len(self._sum)):
            raise ParameterError(f"rows must lie in 0..{len(self._sum) - 1}")
        # The same as `_sum[rows] += ...`, whose reading of rows is the slower of numpy's two ways.
        renewed = self._sum.take(as_index(rows), axis=0)
        renewed += change if weight == 1.0 else change * np.float32(weight)
        self._sum[rows] = renewed
        self.weight += weight
        self.count += 1

    def add_product(self, coefficients: Floats, vectors: Floats, count: int) -> None:
        """Add the changes of `count` updates of weight 1, given as factors over the whole table.

        Parameters
        ----------
        coefficients : ndarray, shape (k, n_items), float32
        vectors : ndarray, shape (k, dim), float32
            ``coefficients.T · vectors`` is the sum of the changes.
        """
        self._sum += np.dot(coefficients.T, vectors)
        self.weight += count
        self.count += count

    def merge(self, partial: Floats, weight: float, count: int) -> None:
        """Add another accumulator's sum, shape (n_items, dim), with its weight and count."""
        self._sum += partial
        self.weight += weight
        self.count += count

    def scaled(self, factor: float) -> Floats:
        """Give ``factor`` times the sum, as a new array of shape (n_items, dim), float32."""
        result: Floats = self._sum * np.float32(factor)
        return result


class Strategy(Protocol):
    """What a server round does with the updates it closes over.

    The round-closing core calls `weight` when it accepts an update, and `change` once, when it closes
    the round.
    """

    def weight(self, staleness: int) -> float:
        """Give the weight, above 0 and at most 1, of an update made `staleness` versions ago."""
        ...

    def change(self, updates: Accumulator, population: int) -> Floats:
        """Give the change of the table, shape (n_items, dim), float32.

        Parameters
        ----------
        updates : Accumulator
            The round's updates with the weights that `weight` gave them; may be empty (a zero change).
        population : int
            How many clients the fleet has, whether or not they took part.

        Raises
        ------
        ParameterError
            When `population` is below one.
        """
        ...
