"""Rows of 8-bit integers with a scale each: about a quarter of `float32`."""

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
from broker.protocol.encodings.scaled import checked_scales, scaled
from broker.protocol.wire import TypedArray

_LEVELS = 127


class Int8:
    """``rows`` uint32 (n,), ``scales`` float32 (n,), ``values`` int8 (n · dim,): ``change = scale · value``.

    A row's scale is its largest magnitude / 127, values are rounded to the nearest, so that the error
    is at most half a scale.
    """

    name = "int8"

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """See `Encoding.encode`."""
        moved = change.change
        require_bounded(moved, "the change")
        scales, values = scaled(moved, _LEVELS)
        return {"rows": change.rows.astype(np.uint32), "scales": scales, "values": values.ravel()}

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """See `Encoding.decode`."""
        require_arrays(body, {"rows": "<u4", "scales": "<f4", "values": "i1"})
        rows = checked_rows(body["rows"], n_items)
        require_size("scales", body["scales"].size, rows.size)
        require_size("values", body["values"].size, rows.size * dim)
        scales = checked_scales(body["scales"], "1e28")
        change = body["values"].reshape(rows.size, dim).astype(np.float32)
        change *= scales[:, None]
        return SparseChange(rows=rows, change=change)

    def array_bytes(self, n_rows: int, dim: int) -> dict[str, int]:
        """See `RowEncoding.array_bytes`."""
        return {"rows": 4 * n_rows, "scales": 4 * n_rows, "values": n_rows * dim}

    def most_bytes(self, n_items: int, dim: int) -> int:
        """See `Encoding.most_bytes`."""
        return sum(self.array_bytes(n_items, dim).values())
