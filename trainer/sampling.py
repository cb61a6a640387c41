"""Negative sampling: uniform over the catalogue without a user's excluded items.

The two protocols differ only in what is excluded: *clean* excludes the user's training items,
*published* the held-out ones as well (which leaks, see docs/method.md).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Rows

Protocol = Literal["published", "clean"]
_LISTED_PER_DRAW = 20
PROTOCOLS: tuple[Protocol, ...] = ("published", "clean")


@dataclass(frozen=True, slots=True, eq=False)
class NegativeSampler:
    """Draws items that are not excluded, each with the same probability, with replacement.

    The memory is that of the excluded items, not of the catalogue: the r-th allowed item is found by
    binary search among the gaps that the excluded ones leave.

    Attributes
    ----------
    n_items : int
    gaps : ndarray, shape (n_excluded,), int64
        For the j-th excluded item (ascending), how many allowed items are smaller.
    """

    n_items: int
    gaps: Rows

    @classmethod
    def excluding(cls, n_items: int, excluded: NDArray[np.integer[Any]]) -> "NegativeSampler":
        """Build a sampler over ``range(n_items)`` without `excluded` (any order, duplicates allowed).

        Raises
        ------
        ParameterError
            When an excluded item is no row of the table, or nothing is left to draw.
        """
        distinct = np.unique(np.asarray(excluded, dtype=np.int64))
        if distinct.size and (distinct[0] < 0 or distinct[-1] >= n_items):
            raise ParameterError(f"excluded items must lie in 0..{n_items - 1}")
        if distinct.size >= n_items:
            raise ParameterError(f"all {n_items} items are excluded; none is left to draw as a negative")
        return cls(n_items, distinct - np.arange(distinct.size))

    def draw(self, count: int, rng: np.random.Generator) -> Rows:
        """Draw `count` allowed items; shape (count,), int64."""
        nth: Rows = rng.integers(0, self.n_items - self.gaps.size, count)
        if self.n_items <= _LISTED_PER_DRAW * count:
            # Listing the allowed items is cheaper than that many searches; the answer is the same.
            excluded = np.zeros(self.n_items, dtype=np.bool_)
            excluded[self.gaps + np.arange(self.gaps.size)] = True
            return (~excluded).nonzero()[0].take(nth)
        return nth + self.gaps.searchsorted(nth, side="right")
