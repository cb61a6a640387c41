"""Interactions of all users, and the leave-one-out split for training, validation and test."""

from dataclasses import dataclass

import numpy as np

from trainer.errors import DataTooSmallError
from trainer.params import Rows

MIN_INTERACTIONS = 10
"""Users with fewer are dropped, as in the paper."""
N_SAMPLED_NEGATIVES = 99


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interactions:
    """Who interacted with what, users in CSR form, each user's items in order of time.

    Attributes
    ----------
    user_keys, item_keys : tuple of str
        Row u belongs to ``user_keys[u]``; item row i to ``item_keys[i]``.
    indptr : ndarray, shape (n_users + 1,), int64
    items : ndarray, shape (n_interactions,), int64
        Item rows; user u's are ``items[indptr[u]:indptr[u + 1]]``, each item once, oldest first.
    timed : bool
        Whether that order is one of time; otherwise it means nothing.
    """

    user_keys: tuple[str, ...]
    item_keys: tuple[str, ...]
    indptr: Rows
    items: Rows
    timed: bool = True

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return len(self.user_keys)

    @property
    def n_items(self) -> int:
        """How many items the catalogue has, interacted with or not."""
        return len(self.item_keys)

    def of(self, user: int) -> Rows:
        """Give the item rows of one user, oldest first."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Leave-one-out by time: a user's last item is the test, the one before it validation.

    Attributes
    ----------
    train : list of ndarray, int64
        A user's item rows for training, oldest first.
    val, test : ndarray, shape (n_users,), int64
    """

    n_items: int
    train: list[Rows]
    val: Rows
    test: Rows

    def known(self, user: int) -> Rows:
        """Give all of a user's items, held-out ones included."""
        return np.concatenate((self.train[user], [self.val[user], self.test[user]]))


def leave_one_out(data: Interactions) -> Split:
    """Split each user's interactions.

    Raises
    ------
    DataTooSmallError
        When a user has fewer than three interactions.
    """
    lengths = np.diff(data.indptr)
    if data.n_users == 0 or int(lengths.min()) < 3:
        raise DataTooSmallError("leave-one-out needs at least three interactions for each user")
    last = data.indptr[1:]
    return Split(
        n_items=data.n_items,
        train=[data.of(user)[:-2] for user in range(data.n_users)],
        val=data.items[last - 2],
        test=data.items[last - 1],
    )


def sampled_candidates(split: Split, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Draw each user's fixed candidates: the positive first, then 99 distinct items unknown to the user.

    Returns
    -------
    (val, test) : ndarrays, each of shape (n_users, 100), int64
        The negatives of the two are drawn independently.

    Raises
    ------
    DataTooSmallError
        When a user leaves fewer than 99 items.
    """
    n_users = len(split.train)
    val = np.empty((n_users, 1 + N_SAMPLED_NEGATIVES), dtype=np.int64)
    test = np.empty_like(val)
    val[:, 0], test[:, 0] = split.val, split.test
    for user in range(n_users):
        known = split.known(user)
        known.sort()
        n_unknown = split.n_items - known.size
        if n_unknown < N_SAMPLED_NEGATIVES:
            raise DataTooSmallError(
                f"sampled evaluation needs {N_SAMPLED_NEGATIVES} items that a user does not know; "
                f"one user leaves {n_unknown} of {split.n_items}"
            )
        # As in NegativeSampler: the n-th unknown item, without a list of all of them.
        gaps = known - np.arange(known.size)
        for into in (val, test):
            nth = rng.choice(n_unknown, N_SAMPLED_NEGATIVES, replace=False, shuffle=False)
            into[user, 1:] = nth + gaps.searchsorted(nth, side="right")
    return val, test
