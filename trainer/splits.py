"""Interactions of all users, and the leave-one-out split for training, validation and test."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from trainer.errors import DataTooSmallError
from trainer.params import Rows

MIN_INTERACTIONS = 10
"""Users with fewer are dropped, as in the paper."""
N_SAMPLED_NEGATIVES = 99

HoldOut = Literal["last", "random"]
"""Which two items of a user are kept from training: the last two in time, or any two."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Interactions:
    """Who interacted with what, users in CSR form, each user's items in order of time if there is one.

    Attributes
    ----------
    user_keys, item_keys : tuple of str
        Row u belongs to ``user_keys[u]``; item row i to ``item_keys[i]``.
    indptr : ndarray, shape (n_users + 1,), int64
    items : ndarray, shape (n_interactions,), int64
        Item rows; user u's are ``items[indptr[u]:indptr[u + 1]]``, each item once; oldest first if `timed`.
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

    @property
    def hold_out(self) -> HoldOut:
        """Which items `leave_one_out` holds out."""
        return "last" if self.timed else "random"

    def of(self, user: int) -> Rows:
        """Give the item rows of one user, oldest first if `timed`."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Leave-one-out: of each user one item is the test, another validation.

    Attributes
    ----------
    train : list of ndarray, int64
        A user's item rows for training, in the order of the interactions.
    val, test : ndarray, shape (n_users,), int64
    """

    n_items: int
    train: list[Rows]
    val: Rows
    test: Rows

    def known(self, user: int) -> Rows:
        """Give all of a user's items, held-out ones included."""
        return np.concatenate((self.train[user], [self.val[user], self.test[user]]))


def leave_one_out(data: Interactions, rng: np.random.Generator) -> Split:
    """Split each user's interactions: what is held out is the last in time, or drawn where there is no time.

    With times, a user's last item is the test and the one before it validation. Without, any two different
    items of a user are equally likely. The order of a file is not taken for one of time: in Last.fm's counts
    the lines of a user follow the artists' numbers, which grow with first use, and most users' last artist is
    one that nobody else has.

    Parameters
    ----------
    rng : Generator
        Used only for data without times: two whole numbers for each user, in the order of users. So the first
        users of a data set have the same items held out, however many follow.

    Raises
    ------
    DataTooSmallError
        When a user has fewer than three interactions.
    """
    lengths = np.diff(data.indptr)
    if data.n_users == 0 or int(lengths.min()) < 3:
        raise DataTooSmallError("leave-one-out needs at least three interactions for each user")
    if data.timed:
        test, val = lengths - 1, lengths - 2
    else:
        test, val = rng.integers(0, np.stack((lengths, lengths - 1), axis=1)).T
        val = val + (val >= test)  # the val-th item of those that are not the test
    starts = data.indptr[:-1]
    trained = np.ones(data.items.size, dtype=np.bool_)
    trained[starts + test] = trained[starts + val] = False
    items = data.items[trained]
    edges = (data.indptr - 2 * np.arange(data.n_users + 1)).tolist()
    return Split(
        n_items=data.n_items,
        train=[items[start:stop] for start, stop in pairwise(edges)],
        val=data.items[starts + val],
        test=data.items[starts + test],
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
