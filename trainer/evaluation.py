"""How good a fleet's model is: own and shared view, sampled and full ranking, from the ranks of single users.

*own* scores with each user's own view of the items, *shared* with the shared table alone. *sampled* ranks the
positive against 99 fixed negatives; *full* against the whole catalogue without the user's training items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainer.algorithms.interface import OwnRows, Scores, Scoring, Shared
from trainer.metrics import RankingMetrics, metrics_from_ranks, ranks_among_candidates
from trainer.params import Floats, Rows, as_index
from trainer.splits import Split

_MAX_BLOCK_USERS = 256
_MAX_BLOCK_SCORES = 1 << 23
"""Scores in memory at a time."""


class View(Protocol):
    """The scores of some users, numbered from 0: what an evaluation needs of any recommender."""

    @property
    def n_users(self) -> int: ...  # noqa: D102 - see above

    @property
    def n_items(self) -> int: ...  # noqa: D102

    def scores(self, users: slice) -> Scores:
        """Give the scores of all items, shape (n_block, n_items); the caller may change them."""
        ...

    def candidate_scores(self, users: slice, rows: Rows) -> Scores:
        """Give the scores of each user's own `rows`, shape (n_block, k)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SharedView:
    """Users' score functions on the shared table.

    Attributes
    ----------
    W : ndarray, shape (n_users, dim)
    b : ndarray, shape (n_users,)
    """

    scoring: Scoring
    shared: Shared
    W: Scores
    b: Scores

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return len(self.W)

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return len(self.shared.table)

    def scores(self, users: slice) -> Scores:
        """See `View.scores`."""
        return self.scoring.of_table(self.W[users], self.b[users], self.shared)

    def candidate_scores(self, users: slice, rows: Rows) -> Scores:
        """See `View.candidate_scores`."""
        if self.n_items <= self.scoring.whole_table_up_to:
            return np.take_along_axis(self.scores(users), rows, axis=1)
        return self.scoring.of_rows(self.W[users], self.b[users], self.shared.table[rows], self.shared)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OwnRowsView:
    """The shared view with each user's own rows laid over it.

    Attributes
    ----------
    own : sequence of OwnRows or None
        None for a user who has no own rows yet.
    """

    base: SharedView
    own: Sequence[OwnRows | None]

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return self.base.n_users

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return self.base.n_items

    def scores(self, users: slice) -> Scores:
        """See `View.scores`."""
        base = self.base
        scores = base.scores(users)
        for line, user in enumerate(range(*users.indices(self.n_users))):
            own = self.own[user]
            if own is not None:
                scores[line, own.rows] = base.scoring.of_own(base.W[user], base.b[user], own, base.shared)
        return scores

    def candidate_scores(self, users: slice, rows: Rows) -> Scores:
        """See `View.candidate_scores`."""
        base = self.base
        if self.n_items <= base.scoring.whole_table_up_to:
            return np.take_along_axis(self.scores(users), rows, axis=1)
        values = base.shared.table[rows]
        for line, user in enumerate(range(*users.indices(self.n_users))):
            own = self.own[user]
            if own is None or not own.rows.size:
                continue
            positions = np.minimum(own.rows.searchsorted(rows[line]), own.rows.size - 1)
            (mine,) = (own.rows[positions] == rows[line]).nonzero()
            values[line, mine] = own.values_at(positions[mine])
        return base.scoring.of_rows(base.W[users], base.b[users], values, base.shared)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShiftedView:
    """A view whose scores are moved by the users' taste: `contexts · table` in float32, whatever `base` is.

    Attributes
    ----------
    contexts : ndarray, shape (n_users, dim), float32
        See `trainer.taste.context`.
    table : ndarray, shape (n_items, dim), float32
    """

    base: View
    contexts: Floats
    table: Floats

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return self.base.n_users

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return self.base.n_items

    def shift(self, users: slice) -> Floats:
        """Give what is added to the scores, shape (n_block, n_items)."""
        shift: Floats = np.dot(self.contexts[users], self.table.T)
        return shift

    def scores(self, users: slice) -> Scores:
        """See `View.scores`."""
        scores = self.base.scores(users)
        scores += self.shift(users)
        return scores

    def candidate_scores(self, users: slice, rows: Rows) -> Scores:
        """See `View.candidate_scores`."""
        return np.take_along_axis(self.scores(users), rows, axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranks:
    """Each user's rank of the test item in one view, 0 the best; shape (n_users,), int64."""

    sampled: Rows
    full: Rows


def user_blocks(view: View) -> Iterator[slice]:
    """Cut the users into blocks whose scores fit the memory that an evaluation may take."""
    size = max(1, min(_MAX_BLOCK_USERS, _MAX_BLOCK_SCORES // view.n_items))
    for start in range(0, view.n_users, size):
        yield slice(start, min(start + size, view.n_users))


def sampled_ranks(view: View, *candidates: Rows) -> list[Rows]:
    """Rank each user's positive among its candidates, for several candidate sets at once.

    Parameters
    ----------
    candidates : ndarrays, each of shape (n_users, n_candidates), int64
        The positive first.
    """
    if not candidates:
        return []
    widths = np.cumsum([rows.shape[1] for rows in candidates])[:-1]
    together = np.concatenate(candidates, axis=1) if len(candidates) > 1 else candidates[0]
    ranks = [np.empty(view.n_users, dtype=np.int64) for _ in candidates]
    for users in user_blocks(view):
        scores = view.candidate_scores(users, together[users])
        for into, part in zip(ranks, np.split(scores, widths, axis=1), strict=True):
            into[users] = ranks_among_candidates(part)
    return ranks


def full_ranks(view: View, train: Sequence[Rows], test: Rows) -> Rows:
    """Rank each user's test item against all items outside the user's training set.

    Parameters
    ----------
    train : sequence of ndarray, int64
    test : ndarray, shape (n_users,), int64
    """
    ranks = np.empty(view.n_users, dtype=np.int64)
    for users in user_blocks(view):
        scores = view.scores(users)
        for line, user in enumerate(range(users.start, users.stop)):
            positive = scores[line, test[user]]
            scores[line, train[user]] = -np.inf
            # All that is not below counts, a NaN too; the positive is not below itself, hence the - 1.
            ranks[user] = view.n_items - np.count_nonzero(scores[line] < positive) - 1
    return ranks


def popularity_metrics(split: Split, candidates: Rows) -> RankingMetrics:
    """Rank by how many users have the item in training: the baseline without any personalisation."""
    counts = np.bincount(as_index(np.concatenate(split.train)), minlength=split.n_items)
    return metrics_from_ranks(ranks_among_candidates(counts[candidates].astype(np.float32)))
