"""The step from one version of the table to the next: the rows that are others, with their new values.

As bytes: the rows, ascending, little-endian uint32; then their values, little-endian float32. New values and
not differences, so that a step made twice, or from the wrong table, cannot add up; whether the outcome is the
announced table its SHA-256 says.
"""

import numpy as np

from broker.errors import SchemaError
from trainer.params import Floats


def delta_bytes(before: Floats, after: Floats) -> bytes:
    """Give the step from `before`, shape (n, dim), to `after`, shape (n or more, dim), both float32.

    There is at least one row in it, if need be one that is the same.
    """
    n_before = len(before)
    # By their bits: a NaN would be unlike itself, and -0 is another value than 0.
    changed = (after[:n_before].view(np.uint32) != before.view(np.uint32)).any(axis=1)
    rows = np.concatenate((changed.nonzero()[0], np.arange(n_before, len(after))))
    if not rows.size:
        rows = np.zeros(1, dtype=np.int64)
    return b"".join((rows.astype("<u4").tobytes(), after[rows].astype("<f4").tobytes()))


def with_delta(before: Floats, content: bytes, rows: int) -> Floats:
    """Give a new table of `rows` rows: `before` with the rows of the step put in.

    Raises
    ------
    SchemaError
        When the bytes are no step for such a table.
    """
    n_before, dim = before.shape
    count, rest = divmod(len(content), 4 + 4 * dim)
    if rest or not count:
        raise SchemaError(f"{len(content)} bytes are no step between tables of width {dim}")
    touched = np.frombuffer(content, dtype="<u4", count=count).astype(np.int64)
    if touched[-1] >= rows or np.any(np.diff(touched) <= 0):
        raise SchemaError(f"the rows of a step must be ascending and below {rows}")
    if rows < n_before:
        raise SchemaError(f"a step from {n_before} rows to {rows}: a table never loses rows")
    after = np.zeros((rows, dim), dtype=np.float32)
    after[:n_before] = before
    after[touched] = np.frombuffer(content, dtype="<f4", offset=4 * count).reshape(count, dim)
    return after
