"""Paired differences over users, with a 95 % interval: what tells a better ranking from a luckier one.

A user's gain is what the user adds to HR@k or NDCG@k. Differences are taken user by user, averaged over the
seeds where the users are the same, and their mean has the normal interval ``mean ± 1.96 · sd / sqrt(n)`` over
the n users. How much the mean differs from seed to seed is told beside it: the interval knows nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A mean of paired differences.

    Attributes
    ----------
    low, high : float or None
        Of the 95 % interval over users; None for a single user.
    seeds_sd : float or None
        Sample standard deviation of the seeds' means; None for a single seed.
    """

    mean: float
    low: float | None
    high: float | None
    seeds_sd: float | None


def gains(ranks: NDArray[np.integer[Any]], name: str, k: int) -> Values:
    """Give what each user adds to HR@k (`name` ``hr``) or NDCG@k (``ndcg``), shape (n_users,)."""
    hit = ranks < k
    return hit.astype(np.float64) if name == "hr" else np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0)


def difference(of_seeds: Sequence[Values], *, same_users: bool) -> Difference:
    """Average differences over users and seeds.

    Parameters
    ----------
    of_seeds : sequence of ndarray, shape (n_users,)
        For each seed.
    same_users : bool
        Whether place u is the same user under every seed; otherwise all count as users of their own.
    """
    paired = same_users and len({values.size for values in of_seeds}) == 1
    users = np.mean(of_seeds, axis=0) if paired else np.concatenate(of_seeds)
    mean = float(users.mean())
    half = Z_95 * float(users.std(ddof=1)) / float(np.sqrt(users.size)) if users.size > 1 else None
    means = [float(values.mean()) for values in of_seeds if values.size]
    return Difference(
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        seeds_sd=stdev(means) if len(means) > 1 else None,
    )
