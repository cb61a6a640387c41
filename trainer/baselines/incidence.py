"""The training interactions of all users as a sparse matrix of zeros and ones.

It holds one entry for each interaction, never users x items.
"""

from dataclasses import dataclass

import numpy as np

from trainer.errors import DataTooSmallError
from trainer.params import Rows
from trainer.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Incidence:
    """A binary matrix in CSR form: users by items, or transposed.

    Attributes
    ----------
    n_columns : int
    indptr : ndarray, shape (n_rows + 1,), int64
    columns : ndarray, shape (n_entries,), int64
        Row r has ones in ``columns[indptr[r]:indptr[r + 1]]``.
    """

    n_columns: int
    indptr: Rows
    columns: Rows

    @classmethod
    def of_training(cls, split: Split) -> "Incidence":
        """Give users by items of the training part of a split.

        Raises
        ------
        DataTooSmallError
            When there is no interaction.
        """
        lengths = [items.size for items in split.train]
        if sum(lengths) == 0:
            raise DataTooSmallError("there is no training interaction to fit a recommender on")
        return cls(
            n_columns=split.n_items,
            indptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            columns=np.concatenate(split.train),
        )

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self.indptr.size - 1

    @property
    def counts(self) -> Rows:
        """The number of ones in each row, shape (n_rows,), int64."""
        return np.diff(self.indptr)

    def of(self, row: int) -> Rows:
        """Give the columns of the ones of a row."""
        return self.columns[self.indptr[row] : self.indptr[row + 1]]

    def transposed(self) -> "Incidence":
        """Give the same matrix by columns; the rows in each are ascending."""
        order = np.argsort(self.columns, kind="stable")
        lengths = np.bincount(self.columns, minlength=self.n_columns)
        return Incidence(
            n_columns=self.n_rows,
            indptr=np.concatenate(([0], np.cumsum(lengths))),
            columns=np.repeat(np.arange(self.n_rows), self.counts)[order],
        )


def entries_of(indptr: Rows, rows: Rows) -> Rows:
    """Give the positions of the entries of several rows of a CSR matrix, row after row.

    Parameters
    ----------
    indptr : ndarray, shape (n_rows + 1,), int64
    rows : ndarray, shape (n_asked,), int64
        In any order, repetitions allowed.

    Returns
    -------
    ndarray, shape (n_entries,), int64
    """
    starts = indptr[rows]
    lengths = indptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    positions: Rows = np.arange(ends[-1] if ends.size else 0)
    positions += np.repeat(starts - ends + lengths, lengths)
    return positions


def cooccurrences(by_user: Incidence, by_item: Incidence, item: int) -> Rows:
    """Count for every item the users who have it and `item`: a row of X'X, the own count included.

    Parameters
    ----------
    by_user, by_item : Incidence
        X and its transpose.

    Returns
    -------
    ndarray, shape (n_items,), int64
    """
    items = by_user.columns[entries_of(by_user.indptr, by_item.of(item))]
    return np.bincount(items, minlength=by_user.n_columns)
