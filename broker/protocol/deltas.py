"""The step from one version of the table to the next, in bytes; exact in either form.

*Plain*: the rows that are others, ascending, uint32; then their new values, float32. All is little-endian.

*Rounded*, where that is smaller: the aggregator may round what it adds to a row to whole multiples, -127 to
127, of a power of two (`trainer.aggregation.rounding`), and then the multiples say it all. In this order:
4294967295, which no row is; n and m (uint32 each); n rows that take a step (uint32); m rows with new values,
as plain (uint32, then float32); n exponents e (int8); n · dim multiples (int8). A row that takes a step
becomes, in float32, what it is plus multiple · 2^e.

Whether the outcome is the announced table its SHA-256 says: so a step from the wrong table leads nowhere.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from broker.errors import SchemaError
from trainer.aggregation.rounding import LEAST_EXPONENT, exponents
from trainer.params import Floats

_ROUNDED = struct.Struct("<III")
_MARK = 2**32 - 1
_GLANCE = 16
_MOST_EXPONENT = 120
"""With 127 times this a float32 is still finite."""


def delta_bytes(before: Floats, after: Floats) -> bytes:
    """Give the step from `before`, shape (n, dim), to `after`, shape (n or more, dim), both float32.

    There is at least one row in it, if need be one that is the same.
    """
    n_before, dim = before.shape
    # By their bits: a NaN would be unlike itself, and -0 is another value than 0.
    changed = (after[:n_before].view(np.uint32) != before.view(np.uint32)).any(axis=1).nonzero()[0]
    appended = np.arange(n_before, len(after))
    # A glance at a few rows first: of a step that was not rounded none is anything like that.
    few = changed[:_GLANCE]
    n_stepped = int(np.count_nonzero(_rounded(before[few], after[few])[0]))
    if n_stepped:
        stepped, powers, multiples = _rounded(before[changed], after[changed])
        n_stepped = int(np.count_nonzero(stepped))
    if n_stepped * (4 + 4 * dim) <= _ROUNDED.size + n_stepped * (5 + dim):
        rows = np.concatenate((changed, appended))
        return _plain(rows if rows.size else np.zeros(1, dtype=np.int64), after)
    replaced = np.concatenate((changed[~stepped], appended))
    return b"".join(
        (
            _ROUNDED.pack(_MARK, n_stepped, replaced.size),
            changed[stepped].astype("<u4").tobytes(),
            _plain(replaced, after),
            powers[stepped].astype(np.int8).tobytes(),
            multiples[stepped].tobytes(),
        )
    )


def _plain(rows: NDArray[np.int64], after: Floats) -> bytes:
    return rows.astype("<u4").tobytes() + after[rows].astype("<f4").tobytes()


def _rounded(before: Floats, after: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int8]]:
    """Give which rows took a rounded step, and the exponents and multiples of all that are nearest to one."""
    with np.errstate(invalid="ignore"):
        difference = after.astype(np.float64) - before
        difference[~np.isfinite(difference)] = 0.0
    powers = exponents(np.abs(difference).max(axis=1, initial=0.0)).clip(max=_MOST_EXPONENT)
    multiples = np.rint(np.ldexp(difference, -powers[:, None])).clip(-127, 127)
    integers = multiples.astype(np.int8)
    reached = _stepped(before, powers, integers)
    stepped: NDArray[np.bool_] = (reached.view(np.uint32) == after.view(np.uint32)).all(axis=1)
    return stepped, powers, integers


def _stepped(before: Floats, powers: NDArray[np.int32], multiples: NDArray[np.int8]) -> Floats:
    steps = np.ldexp(multiples.astype(np.float32), powers[:, None])
    with np.errstate(over="ignore", invalid="ignore"):
        after: Floats = before + steps
    return after


def with_delta(before: Floats, content: bytes, rows: int) -> Floats:
    """Give a new table of `rows` rows: `before` with the step made.

    Raises
    ------
    SchemaError
        When the bytes are no step for such a table.
    """
    n_before, dim = before.shape
    if rows < n_before:
        raise SchemaError(f"a step from {n_before} rows to {rows}: a table never loses rows")
    after = np.zeros((rows, dim), dtype=np.float32)
    after[:n_before] = before
    n_stepped, n_replaced, at = _counts(content, dim)
    stepped = _checked_rows(content, at, n_stepped, n_before)
    at += 4 * n_stepped
    replaced = _checked_rows(content, at, n_replaced, rows)
    at += 4 * n_replaced
    after[replaced] = np.frombuffer(content, "<f4", n_replaced * dim, at).reshape(-1, dim)
    at += 4 * n_replaced * dim
    powers = np.frombuffer(content, "i1", n_stepped, at).astype(np.int32)
    if not ((powers >= LEAST_EXPONENT) & (powers <= _MOST_EXPONENT)).all():
        raise SchemaError(f"the exponents of a step must lie in {LEAST_EXPONENT}..{_MOST_EXPONENT}")
    multiples = np.frombuffer(content, "i1", n_stepped * dim, at + n_stepped).reshape(-1, dim)
    after[stepped] = _stepped(before[stepped], powers, multiples)
    return after


def _counts(content: bytes, dim: int) -> tuple[int, int, int]:
    """Give the numbers of stepped and replaced rows, and where the rows begin."""
    count, rest = divmod(len(content), 4 + 4 * dim)
    if content[:4] != _ROUNDED.pack(_MARK, 0, 0)[:4]:
        if rest or not count:
            raise SchemaError(f"{len(content)} bytes are no step between tables of width {dim}")
        return 0, count, 0
    if len(content) < _ROUNDED.size:
        raise SchemaError(f"{len(content)} bytes are no step between tables of width {dim}")
    _, n_stepped, n_replaced = _ROUNDED.unpack_from(content)
    expected = _ROUNDED.size + n_stepped * (5 + dim) + n_replaced * (4 + 4 * dim)
    if len(content) != expected or not n_stepped + n_replaced:
        raise SchemaError(
            f"a step of {n_stepped} and {n_replaced} rows has {expected} bytes, not {len(content)}"
        )
    return n_stepped, n_replaced, _ROUNDED.size


def _checked_rows(content: bytes, at: int, count: int, below: int) -> NDArray[np.int64]:
    rows = np.frombuffer(content, "<u4", count, at).astype(np.int64)
    if count and (rows[-1] >= below or np.any(np.diff(rows) <= 0)):
        raise SchemaError(f"the rows of a step must be ascending and below {below}")
    return rows
