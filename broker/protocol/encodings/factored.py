"""A pass's change as the factors that it is made of: exact, or in bytes, and many times smaller.

Within one local pass every row's change is a combination of the few score vectors that the pass went
through, one for each mini-batch, and a mini-batch moves few of the rows. So what travels is, for each of k
mini-batches,

* ``counts``: how many rows it moved, and ``gaps``: which ones, ascending, each as its distance from the one
  before, less one; the first one as it is;
* ``values``: how far it moved each of them, in the same order;
* ``directions``: the vector that it moved them along, divided by the largest of its values: so factors say no
  more of a score vector's length and sign than rows do.

**Without factors.** What is not made of factors, or is smaller without, is sent as if each row had a
mini-batch of its own: the row's change is the direction, its value is one. So every change can be encoded,
and a reader knows one form only.

Whatever machine decodes a body finds the same bits: the product is made of single multiplications and
additions in a fixed order, not by a BLAS.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.errors import EncodingError
from broker.protocol.encodings import gaps
from broker.protocol.encodings.interface import (
    MAX_ABS_CHANGE,
    Change,
    FactoredChange,
    SparseChange,
    require_arrays,
    require_bounded,
    require_size,
)
from broker.protocol.encodings.scaled import checked_scales, or_zero
from broker.protocol.wire import TypedArray
from trainer.params import Floats, Rows, as_index

_LEVELS = np.float32(127.0)
_COUNT_BYTES = 4
MOST_BATCHES_OF_A_ROW = 64
"""What bounds a reader's work by the table's size, not by the message's; a pass has few rows in several."""
_MOST_DECODED = np.float32(2e30)
"""Rounding factors can carry a change a little beyond what may be encoded."""


class _Factors(NamedTuple):
    """k mini-batches and the s rows that they moved, one mini-batch after the other.

    Attributes
    ----------
    counts : ndarray, shape (k,), int64
        At least 1 each; s together.
    rows : ndarray, shape (s,), int64
        Ascending within a mini-batch.
    values : ndarray, shape (s,), float32
    directions : ndarray, shape (k, dim), float32
    """

    counts: Rows
    rows: Rows
    values: Floats
    directions: Floats


class _Numbers(Protocol):
    """How values and directions become arrays of a body, and back."""

    dtypes: Mapping[str, str]
    value_bytes: int
    direction_bytes: int
    scale_bytes: int

    def write(self, factors: _Factors) -> dict[str, TypedArray]: ...

    def read(self, body: Mapping[str, TypedArray], counts: Rows, dim: int) -> tuple[Floats, Floats]: ...


class Factored:
    """The encodings ``factored`` and ``factored-int8``; see the module."""

    def __init__(self, name: str, numbers: _Numbers) -> None:
        self._name = name
        self._numbers = numbers
        self._dtypes = {"counts": "<u4", "gaps": "i1", **numbers.dtypes}

    @property
    def name(self) -> str:
        """See `Encoding.name`."""
        return self._name

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """See `Encoding.encode`."""
        factors = _by_batches(change) if isinstance(change, FactoredChange) else None
        if factors is None or self._size(factors.counts, factors.rows.size, change) > self._size_by_rows(
            change
        ):
            require_bounded(change.change, "the change")
            factors = _by_rows(change)
        return {
            "counts": factors.counts.astype(np.uint32),
            "gaps": gaps.packed(_distances(factors)),
            **self._numbers.write(factors),
        }

    def _size(self, counts: Rows, n_values: int, change: Change) -> int:
        numbers = self._numbers
        a_batch = _COUNT_BYTES + numbers.scale_bytes + change.dim * numbers.direction_bytes
        # Distances are counted as a byte each: both ways have about as many long ones.
        return counts.size * a_batch + n_values * (1 + numbers.value_bytes)

    def _size_by_rows(self, change: Change) -> int:
        return self._size(change.rows, change.rows.size, change)

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """See `Encoding.decode`."""
        require_arrays(body, self._dtypes)
        counts = body["counts"].astype(np.int64)
        if not counts.size:
            raise EncodingError("an update without rows")
        if not counts.all():
            raise EncodingError("counts has a mini-batch without rows")
        values, directions = self._numbers.read(body, counts, dim)
        distances = gaps.unpacked(body["gaps"].astype(np.int8, copy=False))
        require_size("gaps", distances.size, values.size)
        rows = _rows(distances, counts, n_items)
        return _product(rows, counts, values, directions)

    def most_bytes(self, n_items: int, dim: int) -> int:
        """See `Encoding.most_bytes`."""
        numbers = self._numbers
        a_row = _COUNT_BYTES + gaps.MOST_BYTES + numbers.scale_bytes + numbers.value_bytes
        return n_items * (a_row + dim * numbers.direction_bytes)


def _by_batches(change: FactoredChange) -> _Factors | None:
    """Give the change's own factors; nothing if a reader might refuse them."""
    directions = change.directions
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = change.coefficients * largest
    reach = np.abs(values).max(axis=1, keepdims=True)
    short = np.abs(largest) < np.finfo(np.float32).tiny
    # Comparing is False for NaN.
    if not reach.sum(dtype=np.float64) <= MAX_ABS_CHANGE or (reach[short] > 0.0).any():
        return None
    touched = values != 0.0
    # A row that no mini-batch moved is sent nevertheless, with a zero.
    touched[0] |= ~touched.any(axis=0)
    if np.count_nonzero(touched, axis=0).max() > MOST_BATCHES_OF_A_ROW:
        return None
    counts = np.count_nonzero(touched, axis=1)
    used = counts > 0
    unit = directions / np.where(short, np.float32(1.0), largest)
    return _Factors(
        counts=counts[used].astype(np.int64),
        rows=change.rows[touched.nonzero()[1]],
        values=values[touched],
        directions=unit[used],
    )


def _by_rows(change: Change) -> _Factors:
    ones = np.ones(change.rows.size, dtype=np.int64)
    return _Factors(counts=ones, rows=change.rows, values=ones.astype(np.float32), directions=change.change)


def _distances(factors: _Factors) -> Rows:
    rows = factors.rows
    distances = np.diff(rows, prepend=0) - 1
    starts = np.cumsum(factors.counts) - factors.counts
    distances[starts] = rows[starts]
    return distances


def _rows(distances: Rows, counts: Rows, n_items: int) -> Rows:
    """Give the rows of all mini-batches; shape (s,), int64."""
    ends = np.cumsum(counts)
    upto = np.cumsum(distances + 1)
    before = np.concatenate(([0], upto[ends[:-1] - 1]))
    # A mini-batch's rows ascend, so its last one is its largest.
    last = upto[ends - 1] - before - 1
    if last.max() >= n_items:
        raise EncodingError(f"row {int(last.max())} of a table of {n_items}")
    rows: Rows = upto - before.repeat(as_index(counts)) - 1
    return rows


def _product(rows: Rows, counts: Rows, values: Floats, directions: Floats) -> SparseChange:
    """Add up each row's values times their directions, in the order of the mini-batches."""
    batch = np.arange(counts.size).repeat(as_index(counts))
    order = rows.argsort(kind="stable")
    ascending = rows[order]
    first = np.concatenate(([True], ascending[1:] != ascending[:-1]))
    starts = first.nonzero()[0]
    position = first.cumsum() - 1
    turn = np.arange(rows.size) - starts[position]
    turns = int(turn.max()) + 1
    if turns > MOST_BATCHES_OF_A_ROW:
        raise EncodingError(f"a row in {turns} mini-batches; at most {MOST_BATCHES_OF_A_ROW} are allowed")
    with np.errstate(over="ignore", invalid="ignore"):
        place = order[starts]
        change: Floats = directions[batch[place]]
        # In place: on a large table the change is the largest thing here.
        change *= values[place, None]
        for number in range(1, turns):
            now = turn == number
            place = order[now]
            change[position[now]] += values[place, None] * directions[batch[place]]
    # Comparing is False for NaN, which a maximum passes on.
    if not (change.max() <= _MOST_DECODED and change.min() >= -_MOST_DECODED):
        raise EncodingError("values times directions has a value that is not finite or beyond 2e30")
    return SparseChange(rows=ascending[starts], change=change)


class _Exact:
    """Float32 throughout."""

    dtypes: Mapping[str, str] = {"values": "<f4", "directions": "<f4"}
    value_bytes, direction_bytes, scale_bytes = 4, 4, 0

    def write(self, factors: _Factors) -> dict[str, TypedArray]:
        return {"values": factors.values, "directions": factors.directions.ravel()}

    def read(self, body: Mapping[str, TypedArray], counts: Rows, dim: int) -> tuple[Floats, Floats]:
        require_size("values", body["values"].size, int(counts.sum()))
        require_size("directions", body["directions"].size, counts.size * dim)
        values = body["values"].astype(np.float32, copy=False)
        directions = body["directions"].astype(np.float32, copy=False)
        require_bounded(values, "values")
        require_bounded(directions, "directions")
        return values, directions.reshape(-1, dim)


class _Bytes:
    """Integers of 8 bits for both factors, and a scale for each mini-batch's product of them."""

    dtypes: Mapping[str, str] = {"scales": "<f4", "values": "i1", "directions": "i1"}
    value_bytes, direction_bytes, scale_bytes = 1, 1, 4

    def write(self, factors: _Factors) -> dict[str, TypedArray]:
        counts, directions = factors.counts, factors.directions
        starts = np.cumsum(counts) - counts
        steps = or_zero(np.maximum.reduceat(np.abs(factors.values), as_index(starts)) / _LEVELS)
        unit = or_zero(np.abs(directions).max(axis=1) / _LEVELS)
        return {
            "scales": or_zero(steps * unit),
            "values": _integers(factors.values, steps.repeat(as_index(counts))),
            "directions": _integers(directions, unit[:, None]).ravel(),
        }

    def read(self, body: Mapping[str, TypedArray], counts: Rows, dim: int) -> tuple[Floats, Floats]:
        require_size("scales", body["scales"].size, counts.size)
        require_size("values", body["values"].size, int(counts.sum()))
        require_size("directions", body["directions"].size, counts.size * dim)
        scales = checked_scales(body["scales"], "1e26")
        values: Floats = body["values"] * scales.repeat(as_index(counts))
        return values, body["directions"].astype(np.float32).reshape(-1, dim)


def _integers(values: Floats, steps: Floats) -> NDArray[np.int8]:
    whole = np.rint(values / np.where(steps > 0.0, steps, np.float32(1.0)))
    integers: NDArray[np.int8] = whole.clip(-_LEVELS, _LEVELS).astype(np.int8)
    return integers


FACTORED = Factored("factored", _Exact())
FACTORED_INT8 = Factored("factored-int8", _Bytes())
