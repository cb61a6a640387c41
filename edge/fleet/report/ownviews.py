"""Users' own views of a run's items, put together again from ``model.npz`` and ``users.npz``.

An own view is the shared table with the user's own rows laid over it, and, where the run has a `shift`, every
item moved along the score vector by as much as gives the shift in the score: ``e_j + shift_j / |w|² · w``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.errors import CorruptError, NothingYetError
from edge.fleet.finishedrun import FinishedRun, SavedModel, SavedUsers
from trainer.algorithms import ALGORITHMS, Scores, Shared
from trainer.evaluation import OwnRowsView, SharedView
from trainer.params import Rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedRows:
    """One user's own rows, as `trainer.algorithms.interface.OwnRows` asks for."""

    rows: Rows
    values: Scores

    def values_at(self, positions: Rows, /) -> Scores:
        """Give some of the values."""
        some: Scores = self.values[positions]
        return some

    def products(self, w: Scores, /) -> Scores:
        """Give ``values · w``."""
        products: Scores = self.values @ w
        return products


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OwnViews:
    """Tables and scores of a run's users, in both views."""

    model: SavedModel
    users: SavedUsers
    shared: SharedView
    own: OwnRowsView

    def own_table(self, user: int) -> NDArray[np.float32]:
        """Give a user's own view of all items, shape (n_items, dim)."""
        table = self.model.table.copy()
        mine = self.own.own[user]
        if mine is not None:
            table[mine.rows] = mine.values
        if self.users.shift is not None:
            w = self.users.W[user]
            squared = float(w @ w)
            if squared > 0.0:
                table += np.outer(self.users.shift[user], w / np.float32(squared))
        return table

    def scores(self, user: int) -> tuple[Scores, Scores]:
        """Give a user's scores of all items by the own view and by the shared one, each (n_items,)."""
        block = slice(user, user + 1)
        own = self.own.scores(block)[0]
        if self.users.shift is not None:
            own = own + self.users.shift[user]
        return own, self.shared.scores(block)[0]


def has_own_views(run: FinishedRun) -> bool:
    """Tell whether a run has own views, and was made with ``--save-users``."""
    files = (run.path / "model.npz", run.path / "users.npz")
    return run.algorithm in ALGORITHMS and all(file.exists() for file in files)


def load_own_views(run: FinishedRun) -> OwnViews:
    """Read a run's own views; large, so keep one at a time.

    Raises
    ------
    NothingYetError
        When it has none.
    CorruptError
        When the files do not fit together.
    """
    model, users = run.model(), run.users()
    if model is None or users is None or run.algorithm not in ALGORITHMS:
        raise NothingYetError(f"{run.path} has no own views; make the run with --save-users")
    n_items, dim = model.table.shape
    fits = (
        users.W.shape[1:] == (dim,)
        and users.values.shape[1:] == (dim,)
        and (users.rows.size == 0 or (users.rows.min() >= 0 and users.rows.max() < n_items))
        and (users.shift is None or users.shift.shape == (len(users.keys), n_items))
    )
    if not fits:
        raise CorruptError(f"{run.path}: users.npz does not fit model.npz")
    shared = SharedView(
        scoring=ALGORITHMS[run.algorithm].scoring,
        shared=Shared(table=model.table, network=model.network),
        W=users.W,
        b=users.b,
    )
    rows = [
        SavedRows(rows=users.rows[begin:end], values=users.values[begin:end])
        for begin, end in zip(users.indptr[:-1], users.indptr[1:], strict=True)
    ]
    return OwnViews(model=model, users=users, shared=shared, own=OwnRowsView(base=shared, own=rows))
