"""The contract of an update encoding, and the checks that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from broker.errors import EncodingError
from broker.protocol.wire import TypedArray
from trainer.params import Floats, Rows

MAX_ABS_CHANGE = np.float32(1e30)
"""Beyond this a sum over a large fleet could leave float32."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SparseChange:
    """Changes of some rows of the item table.

    Attributes
    ----------
    rows : ndarray, shape (n,), int64
        Ascending, each once.
    change : ndarray, shape (n, dim), float32
        Finite.
    """

    rows: Rows
    change: Floats

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.change.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FactoredChange:
    """The same, as the factors that a local pass makes it of: one direction for each mini-batch.

    Attributes
    ----------
    rows : ndarray, shape (n,), int64
        Ascending, each once.
    coefficients : ndarray, shape (k, n), float32
        Zero where a mini-batch left a row alone.
    directions : ndarray, shape (k, dim), float32
    """

    rows: Rows
    coefficients: Floats
    directions: Floats

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.directions.shape[1]

    @property
    def change(self) -> Floats:
        """``coefficients.T · directions``; shape (n, dim), float32, computed anew."""
        change: Floats = np.dot(self.coefficients.T, self.directions)
        return change


Change: TypeAlias = SparseChange | FactoredChange
"""What an encoding takes: both have ``rows`` and ``change``, and only a factored encoding looks further."""


class Encoding(Protocol):
    """Turns a change into a message body and back.

    The device encodes, the aggregator decodes. Nothing is allocated by `decode` before sizes, dtypes
    and ranges were checked.
    """

    @property
    def name(self) -> str:
        """What an update's ``encoding`` field and the ``--encoding`` option call it."""
        ...

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """Give the body; the same change gives the same.

        Raises
        ------
        EncodingError
            When a value is not finite or beyond 1e30 in magnitude, or could be, by its factors.
        """
        ...

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """Read a body for a table of shape (n_items, dim).

        Raises
        ------
        EncodingError
            When the body is anything but finite changes of distinct, ascending rows of that table. Its
            text fits the reason of a receipt.
        """
        ...

    def most_bytes(self, n_items: int, dim: int) -> int:
        """Give a bound on the bytes of a body's arrays for a table of shape (n_items, dim)."""
        ...


class RowEncoding(Encoding, Protocol):
    """An encoding whose bodies of equally many rows have equally many bytes."""

    def array_bytes(self, n_rows: int, dim: int) -> dict[str, int]:
        """Give the sizes of the body's arrays by name without building them."""
        ...


def require_arrays(body: Mapping[str, TypedArray], dtypes: Mapping[str, str]) -> None:
    """Refuse a body that does not have exactly the named arrays of the named dtypes."""
    if body.keys() != dtypes.keys():
        raise EncodingError(f"the body has {_names(body)}; expected {_names(dtypes)}")
    for name, dtype in dtypes.items():
        if body[name].dtype != np.dtype(dtype):
            raise EncodingError(f"{name} is {body[name].dtype}; expected {np.dtype(dtype)}")


def _names(mapping: Mapping[str, object]) -> str:
    # The sender chose them, and a receipt's reason will quote them: short, and printable ASCII.
    return ", ".join(sorted(ascii(name)[:22] for name in mapping))


def checked_rows(rows: TypedArray, n_items: int) -> Rows:
    """Give the rows as int64 if they are distinct, ascending and within the table."""
    if rows.size == 0:
        raise EncodingError("an update without rows")
    if rows.size > n_items or int(rows[-1]) >= n_items:
        raise EncodingError(f"row {int(rows[-1])} of a table of {n_items}")
    wide: Rows = rows.astype(np.int64)
    if not (wide[1:] > wide[:-1]).all():
        raise EncodingError("the rows are not ascending and distinct")
    return wide


def require_size(name: str, found: int, expected: int) -> None:
    """Refuse an array of the wrong length."""
    if found != expected:
        raise EncodingError(f"{name} has {found} values; expected {expected}")


def require_bounded(values: Floats, what: str) -> None:
    """Refuse values that are not finite or beyond `MAX_ABS_CHANGE`."""
    flat = values.ravel()
    # One pass decides for all ordinary values: no value is larger than the root of the sum of squares.
    if np.dot(flat, flat) < MAX_ABS_CHANGE:
        return
    # Comparing is False for NaN, so this one test covers NaN, infinity and the bound.
    if not (np.abs(values) <= MAX_ABS_CHANGE).all():
        raise EncodingError(f"{what} has a value that is not finite or beyond 1e30")
