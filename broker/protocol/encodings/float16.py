"""Rows of half-precision values, each row shifted to where they are precise: about half of `float32`."""

from collections.abc import Mapping

import numpy as np

from broker.errors import EncodingError
from broker.protocol.encodings.interface import (
    Change,
    SparseChange,
    checked_rows,
    require_arrays,
    require_bounded,
    require_size,
)
from broker.protocol.wire import TypedArray

_TOP = 15
"""A row's largest magnitude is put between 2^14 and 2^15: below 65504, and 2^28 above the subnormal ones."""
_LEAST, _MOST = -126, 85
_LARGEST = np.float16(2.0**_TOP)


class Float16:
    """``rows`` uint32 (n,), ``exponents`` int8 (n,), ``values`` float16 (n · dim).

    ``change = value · 2^exponent``. A value is off by 2^-11 of itself, or by 2^-39 of the row's largest
    magnitude where that is more; one below 2^-126 may become zero, as some processors make it.
    """

    name = "float16"

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """See `Encoding.encode`."""
        moved = change.change
        require_bounded(moved, "the change")
        exponents = np.frexp(np.abs(moved).max(axis=1, initial=0.0))[1] - _TOP
        exponents = exponents.clip(_LEAST, _MOST)
        values = np.ldexp(moved, -exponents[:, None]).astype(np.float16)
        return {
            "rows": change.rows.astype(np.uint32),
            "exponents": exponents.astype(np.int8),
            "values": values.ravel(),
        }

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """See `Encoding.decode`."""
        require_arrays(body, {"rows": "<u4", "exponents": "i1", "values": "<f2"})
        rows = checked_rows(body["rows"], n_items)
        exponents, values = body["exponents"], body["values"]
        require_size("exponents", exponents.size, rows.size)
        require_size("values", values.size, rows.size * dim)
        if not ((exponents >= _LEAST) & (exponents <= _MOST)).all():
            raise EncodingError(f"exponents has a value that is not in {_LEAST}..{_MOST}")
        if not (np.abs(values) <= _LARGEST).all():
            raise EncodingError("values has a value that is not finite or beyond 32768")
        scales = np.ldexp(np.float32(1.0), exponents.astype(np.int32))
        change = values.astype(np.float32).reshape(rows.size, dim)
        change *= scales[:, None]
        return SparseChange(rows=rows, change=change)

    def array_bytes(self, n_rows: int, dim: int) -> dict[str, int]:
        """See `RowEncoding.array_bytes`."""
        return {"rows": 4 * n_rows, "exponents": n_rows, "values": 2 * n_rows * dim}

    def most_bytes(self, n_items: int, dim: int) -> int:
        """See `Encoding.most_bytes`."""
        return sum(self.array_bytes(n_items, dim).values())
