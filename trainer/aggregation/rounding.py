"""Rounds whose change is rounded before it is made, so that it can be told in a byte a value.

The table itself takes the rounded change: what is published of it is exact, and whoever has the table before
arrives at the same bits. A row's values become whole multiples, -127 to 127, of a power of two of its own. A
power of two can be found again from the two tables alone, as no rounding of their difference comes near one
(`broker.protocol.deltas`), and multiplying by it is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.aggregation.interface import Closing, OpenRound, Strategy
from trainer.params import Floats, Rows

LEAST_EXPONENT = -126
"""That of the smallest normal float32: what is finer becomes zero."""
_MOST = 127.25 / 128.0
"""Of the multiples; between 127 and 127.5, where neither a row nor what rounding made of it can lie."""


def exponents(largest: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Give for rows' largest magnitudes, shape (n,), the least e with ``127.25 · 2^e`` not below them.

    int32, as ``ldexp`` takes no wider exponents on 32-bit processors.
    """
    fraction, power = np.frexp(largest)
    found: NDArray[np.int32] = power.astype(np.int32) - 7 + (fraction > _MOST)
    return np.maximum(found, LEAST_EXPONENT)


def rounded(change: Floats) -> Floats:
    """Round a change, shape (n, dim), row by row; a new array."""
    powers = exponents(np.abs(change).max(axis=1, initial=0.0))[:, None]
    result: Floats = np.ldexp(np.rint(np.ldexp(change, -powers)), powers)
    return result


@dataclass(frozen=True, slots=True)
class RoundedSteps:
    """A strategy whose rounds' changes are rounded."""

    strategy: Strategy

    def open(self, n_items: int, dim: int) -> OpenRound:
        """See `Strategy.open`."""
        return _RoundedRound(self.strategy.open(n_items, dim))


class _RoundedRound:
    def __init__(self, inner: OpenRound) -> None:
        self._inner = inner

    @property
    def count(self) -> int:
        return self._inner.count

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        self._inner.add(rows, change, staleness)

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:
        closing = self._inner.close(population, state)
        return Closing(change=rounded(closing.change), state=closing.state)
