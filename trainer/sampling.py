"""Negative sampling: uniform over the catalogue without a user's excluded items.

The two protocols differ only in what is excluded: *clean* excludes the user's training items,
*published* the held-out ones as well (which leaks, see docs/method.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Index, Rows, as_index

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
        nth: Rows = (rng.random(count) * (self.n_items - self.gaps.size)).astype(np.int64)
        if self.n_items <= _LISTED_PER_DRAW * count:
            # Listing the allowed items is cheaper than that many searches; the answer is the same.
            allowed = np.ones(self.n_items, dtype=np.bool_)
            allowed[self.gaps + np.arange(self.gaps.size)] = False
            return allowed.nonzero()[0].take(as_index(nth)).astype(np.int64, copy=False)
        return nth + self.gaps.searchsorted(nth, side="right")


def draw_for_each(
    samplers: Sequence[NegativeSampler], counts: Rows | Index, stride: int, rng: np.random.Generator
) -> Rows:
    """Draw for several users at once what `NegativeSampler.draw` draws for one after the other.

    Parameters
    ----------
    counts : ndarray, shape (n_users,), int64
        How many for each user.
    stride : int
        At least every sampler's number of items.

    Returns
    -------
    ndarray, shape (sum of counts,), int64
        ``user · stride + item``, users in order.
    """
    n_excluded = np.array([sampler.gaps.size for sampler in samplers])
    n_allowed = np.array([sampler.n_items for sampler in samplers]) - n_excluded
    offsets = np.arange(len(samplers), dtype=np.int64) * stride
    counts = as_index(counts)
    nth: Rows = (rng.random(int(counts.sum())) * n_allowed.repeat(counts)).astype(np.int64)
    gaps = np.concatenate([sampler.gaps for sampler in samplers])
    gaps += offsets.repeat(n_excluded)
    excluded_before = n_excluded.cumsum() - n_excluded
    if len(samplers) * stride <= _LISTED_PER_DRAW * nth.size:
        allowed = np.ones((len(samplers), stride), dtype=np.bool_)
        allowed.reshape(-1)[gaps + np.arange(gaps.size) - excluded_before.repeat(n_excluded)] = False
        for line, sampler in zip(allowed, samplers, strict=True):
            line[sampler.n_items :] = False
        nth += (n_allowed.cumsum() - n_allowed).repeat(counts)
        return allowed.reshape(-1).nonzero()[0].take(as_index(nth)).astype(np.int64, copy=False)
    # One search for all: a user's numbers lie between those of the users before and after.
    nth += offsets.repeat(counts)
    nth += gaps.searchsorted(nth, side="right") - excluded_before.repeat(counts)
    return nth
