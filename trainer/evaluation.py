"""How good a table with all users' score functions is: own and shared view, sampled and full ranking.

*own* scores with each user's fine-tuned rows laid over the shared table; *shared* with the shared table
alone. *sampled* ranks the positive against 99 fixed negatives; *full* against the whole catalogue
without the user's training items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.metrics import RankingMetrics, metrics_from_ranks, ranks_among_candidates
from trainer.params import Floats, Rows
from trainer.splits import Split

_BLOCK_USERS = 256
"""Users scored at a time: bounds the score matrix to 256 x n_items floats."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Population:
    """Every user's personal state, as an evaluation sees it.

    Attributes
    ----------
    W : ndarray, shape (n_users, dim), float32
    b : ndarray, shape (n_users,), float32
    own_rows : sequence of ndarray, int64
        For each user the rows of its own view, ascending; shape (n_u,).
    own_values : sequence of ndarray, float32
        Their values; shape (n_u, dim).
    """

    W: Floats
    b: Floats
    own_rows: Sequence[Rows]
    own_values: Sequence[Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMetrics:
    """Sampled and full ranking of one view."""

    sampled: RankingMetrics
    full: RankingMetrics


def own_scores(table: Floats, population: Population, users: slice) -> Floats:
    """Give the logits of the users' own views, shape (n_block, n_items), float32."""
    scores = shared_scores(table, population, users)
    for line, user in enumerate(range(*users.indices(len(population.W)))):
        own = np.dot(population.own_values[user], population.W[user])
        scores[line, population.own_rows[user]] = own + population.b[user]
    return scores


def shared_scores(table: Floats, population: Population, users: slice) -> Floats:
    """Give the logits of the shared table, shape (n_block, n_items), float32."""
    scores: Floats = np.dot(population.W[users], table.T)
    scores += population.b[users][:, None]
    return scores


def sampled_metrics(
    table: Floats, population: Population, candidates: Sequence[Rows], *, own: bool
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


def full_metrics(table: Floats, population: Population, split: Split, *, own: bool) -> RankingMetrics:
    """Rank each user's test item against all items outside the user's training set."""
    view = own_scores if own else shared_scores
    ranks = np.empty(len(population.W), dtype=np.int64)
    for start in range(0, len(population.W), _BLOCK_USERS):
        scores = view(table, population, slice(start, start + _BLOCK_USERS))
        for line, user in enumerate(range(start, min(start + _BLOCK_USERS, len(population.W)))):
            positive = scores[line, split.test[user]]
            scores[line, split.train[user]] = -np.inf
            # The positive itself is not below itself, hence the - 1.
            ranks[user] = np.count_nonzero(scores[line] >= positive) - 1
    return metrics_from_ranks(ranks)


def popularity_metrics(split: Split, candidates: Rows) -> RankingMetrics:
    """Rank by how many users have the item in training: the baseline without any personalisation."""
    counts = np.bincount(np.concatenate(split.train), minlength=split.n_items)
    return metrics_from_ranks(ranks_among_candidates(counts[candidates].astype(np.float32)))
