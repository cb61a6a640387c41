"""Why an item is recommended: which of the user's own items speak for it.

In the own view by taste an item's score is a sum over the user's items, and what each adds is exact
(`trainer.taste.contributions`). Where there is no such view, the user's items that lie nearest to it in the
own view of the catalogue are named: likeness, not a part of the score.
"""

import numpy as np

from trainer.params import Floats, Rows, as_index
from trainer.taste import TasteSettings, contributions


def supporting_items(
    table: Floats, w: Floats, items: Rows, settings: TasteSettings, rows: Rows, count: int
) -> list[list[int]]:
    """Give up to `count` of the user's items that speak most for each of some rows, most first.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
        The user's own view of the catalogue.
    w : ndarray, shape (dim,), float32
        Of the score function before the taste is added.
    items : ndarray, shape (n,), int64
        The user's item rows, oldest first.
    rows : ndarray, shape (k,), int64

    Returns
    -------
    list of k lists of item rows
        Shorter where fewer speak for it; never the row itself.
    """
    support = (
        contributions(table, w, items, settings, rows) if settings.strength else _likeness(table, items, rows)
    )
    support[items[None, :] == rows[:, None]] = 0.0
    best = np.argsort(-support, axis=1, kind="stable")[:, :count]
    return [
        [int(items[place]) for place in places if line[place] > 0.0]
        for line, places in zip(support, best, strict=True)
    ]


def _likeness(table: Floats, items: Rows, rows: Rows) -> Floats:
    """Give the cosines between centred rows; shape (k, n)."""
    centre = table.mean(axis=0)
    units = []
    for some in (rows, items):
        vectors = table.take(as_index(some), axis=0) - centre
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        units.append(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0))
    likeness: Floats = np.dot(units[0], units[1].T)
    return likeness
