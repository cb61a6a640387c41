"""How good a table with all users' score functions is: own and shared view, sampled and full ranking.

*own* scores with each user's fine-tuned rows laid over the shared table; *shared* with the shared table
alone. *sampled* ranks the positive against 99 fixed negatives; *full* against the whole catalogue
without the user's training items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import RankingMetrics, metrics_from_ranks, ranks_among_candidates
from trainer.params import Rows
from trainer.splits import Split

_BLOCK_USERS = 256
"""Users scored at a time: bounds the score matrix to 256 x n_items floats."""


Scores = NDArray[np.floating[Any]]
"""Float32 where speed matters; float64 where others are to find the same ranks in their own way."""


class OwnView(Protocol):
    """A user's own view of some rows of the item table."""

    @property
    def rows(self) -> Rows:
        """The rows, ascending; shape (n_own,)."""
        ...

    def products(self, w: Scores, /) -> Scores:
        """Give the own values of the rows times w; shape (n_own,)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DenseView:
    """An own view as values, shape (n_own, dim)."""

    rows: Rows
    values: Scores

    def products(self, w: Scores, /) -> Scores:
        """See `OwnView.products`."""
        products: Scores = np.dot(self.values, w)
        return products


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Population:
    """Every user's personal state, as an evaluation sees it.

    Attributes
    ----------
    W : ndarray, shape (n_users, dim)
    b : ndarray, shape (n_users,)
    own : sequence of OwnView or None
        None for a user who has no own view yet.
    """

    W: Scores
    b: Scores
    own: Sequence[OwnView | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMetrics:
    """Sampled and full ranking of one view."""

    sampled: RankingMetrics
    full: RankingMetrics


def own_scores(table: Scores, population: Population, users: slice) -> Scores:
    """Give the logits of the users' own views, shape (n_block, n_items)."""
    scores = shared_scores(table, population, users)
    for line, user in enumerate(range(*users.indices(len(population.W)))):
        own = population.own[user]
        if own is not None:
            scores[line, own.rows] = own.products(population.W[user]) + population.b[user]
    return scores


def shared_scores(table: Scores, population: Population, users: slice) -> Scores:
    """Give the logits of the shared table, shape (n_block, n_items)."""
    scores: Scores = np.dot(population.W[users], table.T)
    scores += population.b[users][:, None]
    return scores


def sampled_metrics(
    table: Scores, population: Population, candidates: Sequence[Rows], *, own: bool
) -> list[RankingMetrics]:
    """Rank each user's positive among its candidates, for several candidate sets at once.

    Parameters
    ----------
    candidates : sequence of ndarray, each of shape (n_users, n_candidates), int64
        The positive first.
    """
    view = own_scores if own else shared_scores
    ranks: list[list[Rows]] = [[] for _ in candidates]
    for start in range(0, len(population.W), _BLOCK_USERS):
        users = slice(start, start + _BLOCK_USERS)
        scores = view(table, population, users)
        for into, rows in zip(ranks, candidates, strict=True):
            into.append(ranks_among_candidates(np.take_along_axis(scores, rows[users], axis=1)))
    return [metrics_from_ranks(np.concatenate(parts)) for parts in ranks]


def full_metrics(table: Scores, population: Population, split: Split, *, own: bool) -> RankingMetrics:
    """Rank each user's test item against all items outside the user's training set."""
    view = own_scores if own else shared_scores
    ranks = np.empty(len(population.W), dtype=np.int64)
    for start in range(0, len(population.W), _BLOCK_USERS):
        scores = view(table, population, slice(start, start + _BLOCK_USERS))
        for line, user in enumerate(range(start, min(start + _BLOCK_USERS, len(population.W)))):
            positive = scores[line, split.test[user]]
            scores[line, split.train[user]] = -np.inf
            # All that is not below counts, a NaN too; the positive is not below itself, hence the - 1.
            ranks[user] = split.n_items - np.count_nonzero(scores[line] < positive) - 1
    return metrics_from_ranks(ranks)


def popularity_metrics(split: Split, candidates: Rows) -> RankingMetrics:
    """Rank by how many users have the item in training: the baseline without any personalisation."""
    counts = np.bincount(np.concatenate(split.train), minlength=split.n_items)
    return metrics_from_ranks(ranks_among_candidates(counts[candidates].astype(np.float32)))
