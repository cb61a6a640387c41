"""The contract of an aggregation strategy, and the running sum that the linear ones share.

A strategy opens a round, is told of each of its updates in journal order, and then asked for the table's
change. The order matters only to the last bit of a float32 sum: the same journal gives the same table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Rows, as_index


def require_fitting(rows: Rows, change: Floats, n_items: int, dim: int) -> None:
    """Raise ParameterError unless `rows` and `change` are an update of a table of shape (n_items, dim)."""
    if change.shape != (rows.size, dim):
        raise ParameterError(f"a change of shape {change.shape} does not fit {rows.size} rows")
    if rows.size and (np.minimum.reduce(rows) < 0 or np.maximum.reduce(rows) >= n_items):
        raise ParameterError(f"rows must lie in 0..{n_items - 1}")


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
        require_fitting(rows, change, *self._sum.shape)
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

    @property
    def sum(self) -> Floats:
        """The sum itself, shape (n_items, dim); a view, not to be changed."""
        view = self._sum.view()
        view.flags.writeable = False
        return view

    def scaled(self, factor: float) -> Floats:
        """Give ``factor`` times the sum, as a new array of shape (n_items, dim), float32."""
        result: Floats = self._sum * np.float32(factor)
        return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Closing:
    """What a round comes to.

    Attributes
    ----------
    change : ndarray, shape (n_items, dim), float32
        To add to the table; the caller may change it in place.
    state : mapping of str to ndarray, float32, two-dimensional
        What the strategy must be given when the next round closes; empty for those without memory.
    """

    change: Floats
    state: Mapping[str, Floats]


class OpenRound(Protocol):
    """The updates of a round that is not closed yet."""

    @property
    def count(self) -> int:
        """How many updates it has."""
        ...

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        """Take one update, made `staleness` versions ago.

        Raises
        ------
        ParameterError
            When rows (distinct, shape (n,)) and change (n, dim) do not fit the table or each other, or the
            staleness is negative; nothing is added.
        """
        ...

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:
        """Give the table's change; neither the round nor `state` is altered.

        Parameters
        ----------
        population : int
            How many clients the fleet has, whether or not they took part.
        state : mapping
            That of the last closing; empty for the first.

        Raises
        ------
        ParameterError
            When `population` is below one.
        """
        ...


class Strategy(Protocol):
    """What a server round does with the updates it closes over."""

    def open(self, n_items: int, dim: int) -> OpenRound:
        """Begin a round on a table of shape (n_items, dim)."""
        ...


class Weighting(Protocol):
    """A linear strategy: a weighted sum of the updates, of which only the sum must be kept."""

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


class SummedRound:
    """A round of a linear strategy: memory for one table, however many updates."""

    def __init__(self, weighting: Weighting, n_items: int, dim: int) -> None:
        self._weighting = weighting
        self._sum = Accumulator(n_items, dim)

    @property
    def count(self) -> int:
        """See `OpenRound.count`."""
        return self._sum.count

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        """See `OpenRound.add`."""
        self._sum.add(rows, change, self._weighting.weight(staleness))

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:  # noqa: ARG002 - no memory
        """See `OpenRound.close`."""
        return Closing(change=self._weighting.change(self._sum, population), state={})
