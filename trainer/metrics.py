"""Ranking figures of one held-out positive for each user: HR@k and NDCG@k.

Ties count against the positive, so that a constant score ranks last, not first; so does a score that is
not a number, so that a model that diverged does not look perfect.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.params import Rows

TOP_K = 10
TOP_KS = (5, 10, 20)
"""The k that figures are reported for; 10 is the one that models are chosen by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingMetrics:
    """Means over users, at one k.

    Attributes
    ----------
    hr : float
        Hit ratio: the fraction of users whose positive is among the first k.
    ndcg : float
        ``1 / log2(rank + 2)`` for a hit, 0 otherwise (one relevant item, so the ideal gain is 1).
    """

    hr: float
    ndcg: float


def ranks_among_candidates(scores: NDArray[np.floating[Any]]) -> Rows:
    """Give each user's rank of the positive, 0 the best.

    Parameters
    ----------
    scores : ndarray, shape (n_users, n_candidates)
        The positive's score first.
    """
    ranks: Rows = (scores.shape[1] - 1) - (scores[:, 1:] < scores[:, :1]).sum(axis=1)
    return ranks


def metrics_from_ranks(ranks: NDArray[np.integer[Any]], k: int = TOP_K) -> RankingMetrics:
    """Average HR@k and NDCG@k over `ranks`, shape (n_users,), 0 the best."""
    hit = ranks < k
    gain = np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0)
    return RankingMetrics(hr=float(hit.mean()), ndcg=float(gain.mean()))
