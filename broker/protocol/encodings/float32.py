"""Exact changes: 4 bytes a row and 4 a value."""

from collections.abc import Mapping

import numpy as np

from broker.protocol.encodings.interface import (
    Change,
    SparseChange,
    checked_rows,
    require_arrays,
    require_bounded,
    require_size,
)
from broker.protocol.wire import TypedArray


class Float32:
    """``rows`` uint32 (n,), ``values`` float32 (n · dim,), row by row."""

    name = "float32"

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """See `Encoding.encode`."""
        values = change.change
        require_bounded(values, "the change")
        return {"rows": change.rows.astype(np.uint32), "values": values.ravel()}

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """See `Encoding.decode`."""
        require_arrays(body, {"rows": "<u4", "values": "<f4"})
        rows = checked_rows(body["rows"], n_items)
        require_size("values", body["values"].size, rows.size * dim)
        values = body["values"].astype(np.float32, copy=False)
        require_bounded(values, "values")
        return SparseChange(rows=rows, change=values.reshape(rows.size, dim))

    def array_bytes(self, n_rows: int, dim: int) -> dict[str, int]:
        """See `RowEncoding.array_bytes`."""
        return {"rows": 4 * n_rows, "values": 4 * n_rows * dim}

    def most_bytes(self, n_items: int, dim: int) -> int:
        """See `Encoding.most_bytes`."""
        return sum(self.array_bytes(n_items, dim).values())
