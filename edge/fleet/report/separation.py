"""How far a view separates what a user chose from what the user did not: the number beside the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.fleet.finishedrun import FinishedRun
from edge.fleet.paired import Difference, Values, difference
from edge.fleet.report.ownviews import OwnViews
from edge.fleet.rundata import RunData

DEFINITIONS = {
    "AUC": "the chance that a positive of the user scores above a sampled negative, ties counting half, "
    "averaged over users",
    "silhouette": "the mean over a user's positives of (b - a) / max(a, b), averaged over users, with a the "
    "mean distance of a positive's embedding to the user's other positives and b that to the sampled "
    "negatives",
}
HELD_OUT, TRAINED = "held out", "trained with"


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """One measure of one kind of positives: means over users in both views, and the paired difference."""

    positives: str
    measure: str
    own: float
    shared: float
    gain: Difference


def auc(positives: NDArray[np.floating[Any]], negatives: NDArray[np.floating[Any]]) -> float:
    """Give the fraction of pairs whose positive has the higher score; ties count half."""
    ordered = np.sort(negatives)
    below = ordered.searchsorted(positives, side="left") + ordered.searchsorted(positives, side="right")
    return float(below.mean()) / (2 * negatives.size)


def silhouette(positives: NDArray[np.floating[Any]], negatives: NDArray[np.floating[Any]]) -> float:
    """Give the mean silhouette of the positives, of shape (n, dim), n at least 2; see `DEFINITIONS`."""
    n = len(positives)
    a = _distances(positives, positives).sum(axis=1) / (n - 1)
    b = _distances(positives, negatives).mean(axis=1)
    larger = np.maximum(a, b)
    return float(np.divide(b - a, larger, out=np.zeros(n), where=larger > 0).mean())


def _distances(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> Values:
    x, y = x.astype(np.float64), y.astype(np.float64)
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * x @ y.T
    distances: Values = np.sqrt(np.maximum(squared, 0.0))
    return distances


def measured(run: FinishedRun, views: OwnViews, data: RunData | None) -> dict[str, Values]:
    """Measure both views of a run's users; what they trained with is known where the run's data is.

    Returns
    -------
    dict of str to ndarray, shape (n_users, 2, 2)
        For each kind of positives: by own and shared view, then by the measures of `DEFINITIONS`.
    """
    kinds = {HELD_OUT: None} | ({} if data is None else {TRAINED: data})
    return {kind: _of_users(run, views, of_kind) for kind, of_kind in kinds.items()}


def separations(of_seeds: Sequence[dict[str, Values]], *, same_users: bool) -> list[Separation]:
    """Average what `measured` gave for runs that differ in their seed alone."""
    results = []
    for kind in of_seeds[0]:
        for place, measure in enumerate(DEFINITIONS):
            own, shared = ([values[kind][:, side, place] for values in of_seeds] for side in (0, 1))
            gain = difference([a - b for a, b in zip(own, shared, strict=True)], same_users=same_users)
            means = [float(np.mean([values.mean() for values in side])) for side in (own, shared)]
            results.append(
                Separation(positives=kind, measure=measure, own=means[0], shared=means[1], gain=gain)
            )
    return results


def _of_users(run: FinishedRun, views: OwnViews, data: RunData | None) -> Values:
    """Measure with the users' training items, or without `data` with the held-out ones, as positives.

    Held-out positives are the validation and the test item; the negatives are the sampled ones of both.
    """
    val, test = run.candidates()
    values = np.empty((len(views.users.keys), 2, 2))
    for user in range(len(values)):
        held_out = np.array([val[user, 0], test[user, 0]])
        positives = held_out if data is None else data.train[user]
        negatives = np.setdiff1d(np.concatenate((val[user, 1:], test[user, 1:])), positives)
        tables = (views.own_table(user), views.model.table)
        for side, (scores, table) in enumerate(zip(views.scores(user), tables, strict=True)):
            values[user, side, 0] = auc(scores[positives], scores[negatives])
            values[user, side, 1] = silhouette(table[positives], table[negatives])
    return values
