"""A user's own view of all items from a few: the table moved along the taste that the newest items show.

With unit item vectors ``c_i = (e_i - µ) / |e_i - µ|``, µ the mean row, a user's taste is the direction

    h = Σ_k exp(-age_k / recency) · c_(i_k),        ĥ = h / |h|

over the user's items, age 0 the newest. The own view of every item is ``e_j + strength · (ĥ · e_j) · ŵ``,
ŵ = w/|w|: one rank-one transform of the whole table, so that what the user has chosen carries over to items
that the user has never met. Scored by w it is

    z_j = w·e_j + strength · |w| · ĥ·e_j + b  =  (w + strength · |w| · ĥ) · e_j + b

so a device keeps no row of its own, and its scorer serves the view as it is, with another vector in place of
w. Row-by-row fine-tuning, the paper's own view, cannot do this: see docs/method.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import ParameterError
from trainer.params import Floats, Rows, ScoreFunction, as_index

_FORGOTTEN = 16.0
"""Ages in units of `recency` from which an item's weight is below float32's resolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TasteSettings:
    """How much of a user's own taste enters the own view.

    Attributes
    ----------
    recency : float
        Newer interactions after which an item counts 1/e of the newest; 0: all count the same.
    strength : float
        Length of the taste beside w; 0: there is no such view.

    Raises
    ------
    ParameterError
        When a value is out of its range.
    """

    recency: float = 0.0
    strength: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.recency <= 1e6:
            raise ParameterError(f"taste_recency is {self.recency}; it must lie between 0 and 1e6")
        if not 0.0 <= self.strength <= 100.0:
            raise ParameterError(f"taste_strength is {self.strength}; it must lie between 0 and 100")


def taste(table: Floats, centre: Floats, items: Rows, recency: float) -> Floats:
    """Give a user's taste ĥ.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
    centre : ndarray, shape (dim,), float32
        Its mean row.
    items : ndarray, shape (n,), int64
        The user's item rows, oldest first.

    Returns
    -------
    ndarray, shape (dim,), float32
        Of length 1; zeros for a user without items, and where they cancel out.
    """
    weights, vectors = _weighted(table, centre, items, recency)
    direction: Floats = np.dot(weights, vectors)
    length = float(np.sqrt(np.dot(direction, direction)))
    return direction / np.float32(length) if length > 0 else direction


def _weighted(table: Floats, centre: Floats, items: Rows, recency: float) -> tuple[Floats, Floats]:
    """Give the weights and the centred vectors whose sum is h; of those of the items that still count."""
    if recency:
        items = items[-int(_FORGOTTEN * recency + 1) :]
    vectors = table.take(as_index(items), axis=0)
    vectors -= centre
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    weights = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    if recency:
        weights *= np.exp(np.arange(1 - items.size, 1) / recency).astype(np.float32)
    return weights, vectors


def contributions(table: Floats, w: Floats, items: Rows, settings: TasteSettings, rows: Rows) -> Floats:
    """Give what each of a user's items adds to the scores of some rows, more than to the mean row's.

    Together it is what the taste adds, but for a constant, which changes no ranking.

    Parameters
    ----------
    items : ndarray, shape (n,), int64
        The user's item rows, oldest first.
    rows : ndarray, shape (k,), int64

    Returns
    -------
    ndarray, shape (k, n), float32
        In logits; 0 for items that are too old to count.
    """
    added = np.zeros((rows.size, items.size), dtype=np.float32)
    if not settings.strength or not items.size:
        return added
    centre = table.mean(axis=0)
    weights, vectors = _weighted(table, centre, items, settings.recency)
    direction = np.dot(weights, vectors)
    length = float(np.sqrt(np.dot(direction, direction)))
    if length > 0:
        scale = np.float32(settings.strength * float(np.sqrt(np.dot(w, w))) / length)
        above = table.take(as_index(rows), axis=0) - centre
        added[:, items.size - weights.size :] = np.dot(above, vectors.T) * (weights * scale)
    return added


def context(w: Floats, direction: Floats, strength: float) -> Floats:
    """Give what the taste adds to w, ``strength · |w| · ĥ``; shape (dim,), float32."""
    added: Floats = direction * np.float32(strength * float(np.sqrt(np.dot(w, w))))
    return added


def contexts(table: Floats, W: Floats, histories: Sequence[Rows], settings: TasteSettings) -> Floats:
    """Give what their taste adds to the score functions of several users.

    Parameters
    ----------
    W : ndarray, shape (n_users, dim), float32
    histories : sequence of ndarray, int64
        Each user's item rows, oldest first.

    Returns
    -------
    ndarray, shape (n_users, dim), float32
    """
    centre = table.mean(axis=0)
    return np.stack(
        [
            context(w, taste(table, centre, items, settings.recency), settings.strength)
            for w, items in zip(W, histories, strict=True)
        ]
    )


def with_taste(
    score_function: ScoreFunction, table: Floats, items: Rows, settings: TasteSettings
) -> ScoreFunction:
    """Give the score function that serves the own view on the shared `table`; see `taste`."""
    if not settings.strength or not items.size:
        return score_function
    direction = taste(table, table.mean(axis=0), items, settings.recency)
    w = score_function.w + context(score_function.w, direction, settings.strength)
    return ScoreFunction(w=w, b=score_function.b)
