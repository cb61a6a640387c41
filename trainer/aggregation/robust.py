"""What a minority of harmful updates may do to a round: bounds, a filter, and centres other than the mean.

All work on the sparse updates of a round. The sample of a coordinate is what the updates that touched its row
say about it: with zeros for all others the median of most coordinates would be zero, and nothing would be
learned of items that fewer than half of the devices drew. The centre of that sample is weighed by the
touching updates' share of the round, as in a mean over all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Floats, Rows

Doubles = NDArray[np.float64]
Centre = Literal["mean", "trimmed-mean", "median"]
CENTRES: tuple[Centre, ...] = ("mean", "trimmed-mean", "median")
_LEAST_TO_COMPARE = 4
"""Among fewer updates nobody can tell which one disagrees."""


@dataclass(frozen=True, slots=True, eq=False)
class WeighedUpdate:
    """An update of a round: rows (n,) distinct, change (n, dim) float32, weight above 0."""

    rows: Rows
    change: Floats
    weight: float


def norms(updates: Sequence[WeighedUpdate]) -> Doubles:
    """Give the updates' Euclidean norms over all values; shape (n,)."""
    return np.array([np.sqrt(np.vdot(u.change.astype(np.float64), u.change)) for u in updates])


def clipped(updates: Sequence[WeighedUpdate], lengths: Doubles, limits: Doubles) -> list[WeighedUpdate]:
    """Scale down what is longer than its limit; the direction stays. `lengths` are the `norms`, all (n,)."""
    factors = np.where(lengths > limits, limits / np.where(lengths > 0.0, lengths, 1.0), 1.0)
    return [
        u if factor == 1.0 else WeighedUpdate(u.rows, u.change * np.float32(factor), u.weight)
        for u, factor in zip(updates, factors.tolist(), strict=True)
    ]


def median_limits(lengths: Doubles, factor: float) -> Doubles:
    """Give, for all updates, ``factor`` times the median of the round's norms (of those above 0); (n,)."""
    positive = lengths[lengths > 0.0]
    middle = float(np.median(positive)) if positive.size else 0.0
    return np.full(lengths.size, factor * middle)


def agreements(updates: Sequence[WeighedUpdate], n_items: int, dim: int) -> Doubles:
    """Give the cosine of each update with the sum of the others' directions, on the update's own rows.

    Every update has the same say in that sum, however long it is; its own share is taken out, which would let
    any update agree with itself in a small round. 0 where nobody else touched its rows. Shape (n,).
    """
    lengths = norms(updates)
    scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0.0)
    total = np.zeros((n_items, dim))
    for update, scale in zip(updates, scales.tolist(), strict=True):
        total[update.rows] += update.change.astype(np.float64) * scale
    result = np.zeros(len(updates))
    for number, (update, scale) in enumerate(zip(updates, scales.tolist(), strict=True)):
        own = update.change.astype(np.float64) * scale
        others = total[update.rows] - own
        length = np.sqrt(np.vdot(others, others))
        # What rounding leaves of a sum of nothing has no direction.
        result[number] = np.vdot(own, others) / length if length > 1e-9 else 0.0
    return result


def agreeing(updates: Sequence[WeighedUpdate], ratio: float, n_items: int, dim: int) -> list[WeighedUpdate]:
    """Leave out updates that agree with the round less than `ratio` times as well as the median update.

    All stay where there are fewer than four, or the median update agrees with nobody.
    """
    if len(updates) < _LEAST_TO_COMPARE:
        return list(updates)
    cosines = agreements(updates, n_items, dim)
    middle = float(np.median(cosines))
    if middle <= 0.0:
        return list(updates)
    return [u for u, cosine in zip(updates, cosines.tolist(), strict=True) if cosine >= ratio * middle]


def robust_sum(
    updates: Sequence[WeighedUpdate], centre: Centre, trim: float, n_items: int, dim: int
) -> Floats:
    """Give the touching updates' weight times the centre of their values, for each coordinate.

    Parameters
    ----------
    trim : float
        Of ``trimmed-mean``: the share of a sample that is left out at each end, rounded up, as long as one
        value, or two of an even number, are left.

    Returns
    -------
    ndarray, shape (n_items, dim), float32
        With ``mean`` the weighted sum of the updates.
    """
    total: Floats = np.zeros((n_items, dim), dtype=np.float32)
    if centre == "mean":
        for u in updates:
            total[u.rows] += u.change if u.weight == 1.0 else u.change * np.float32(u.weight)
        return total
    updates = [u for u in updates if u.rows.size]
    if not updates:
        return total
    rows = np.concatenate([u.rows for u in updates])
    values = np.concatenate([u.change for u in updates])
    weights = np.repeat(np.array([u.weight for u in updates]), [u.rows.size for u in updates])
    order = np.argsort(rows, kind="stable")
    rows, values, weights = rows[order], values[order], weights[order]
    touched, begins, counts = np.unique(rows, return_index=True, return_counts=True)
    # Rows that equally many updates touched are worked on together.
    for count in np.unique(counts).tolist():
        alike = counts == count
        places = begins[alike][:, None] + np.arange(count)
        sample, weighed = values[places], weights[places].astype(np.float32)
        share = np.add.reduce(weighed, axis=1)[:, None]
        total[touched[alike]] = share * _centre(sample, weighed, centre, trim)
    return total


def _centre(sample: Floats, weights: Floats, centre: Centre, trim: float) -> Floats:
    """Give the centre over axis 1 of a sample of shape (rows, count, dim) with weights (rows, count)."""
    count = sample.shape[1]
    order = np.argsort(sample, axis=1, kind="stable")
    ordered = np.take_along_axis(sample, order, axis=1)
    weighed = np.take_along_axis(np.broadcast_to(weights[:, :, None], sample.shape), order, axis=1)
    middle = (count - 1) // 2
    cut = middle if centre == "median" else min(int(np.ceil(trim * count)), middle)
    ordered, weighed = ordered[:, cut : count - cut], weighed[:, cut : count - cut]
    result: Floats = np.add.reduce(ordered * weighed, axis=1) / np.add.reduce(weighed, axis=1)
    return result


def require_trim(trim: float) -> None:
    """Raise ParameterError unless `trim` leaves something of a sample."""
    if not 0.0 <= trim < 0.5:
        raise ParameterError(f"trim is {trim}; it must be at least 0 and below 0.5")
