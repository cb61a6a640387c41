"""Rows of 4-bit integers with a scale each: about an eighth of `float32`."""

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
from broker.protocol.encodings.scaled import checked_scales, scaled
from broker.protocol.wire import TypedArray

_LEVELS = 7
_LARGEST_SCALE = "1.5e29"
"""Times the least value, -8, it stays far within float32."""


class Int4:
    """``rows`` uint32 (n,), ``scales`` float32 (n,), ``pairs`` int8 (n · ⌈dim / 2⌉): change = scale · value.

    A byte holds two values in two's complement, the earlier one in its lower half; of an odd width the last
    upper half is zero. A row's scale is its largest magnitude / 7, so that the error is at most half a scale.
    """

    name = "int4"

    def encode(self, change: Change) -> dict[str, TypedArray]:
        """See `Encoding.encode`."""
        moved = change.change
        require_bounded(moved, "the change")
        scales, values = scaled(moved, _LEVELS)
        n_rows, dim = values.shape
        halves = np.zeros((n_rows, dim + dim % 2), dtype=np.uint8)
        halves[:, :dim] = values.view(np.uint8) & 0x0F
        packed = halves[:, 0::2] | (halves[:, 1::2] << 4)
        return {
            "rows": change.rows.astype(np.uint32),
            "scales": scales,
            "pairs": packed.view(np.int8).ravel(),
        }

    def decode(self, body: Mapping[str, TypedArray], n_items: int, dim: int) -> SparseChange:
        """See `Encoding.decode`."""
        require_arrays(body, {"rows": "<u4", "scales": "<f4", "pairs": "i1"})
        rows = checked_rows(body["rows"], n_items)
        require_size("scales", body["scales"].size, rows.size)
        require_size("pairs", body["pairs"].size, rows.size * -(-dim // 2))
        scales = checked_scales(body["scales"], _LARGEST_SCALE)
        packed = body["pairs"].astype(np.int8, copy=False).reshape(rows.size, -1)
        values = np.empty((rows.size, 2 * packed.shape[1]), dtype=np.int8)
        values[:, 1::2] = packed >> 4
        values[:, 0::2] = (packed << 4) >> 4
        if dim % 2 and values[:, dim].any():
            raise EncodingError("pairs has something in the half byte after a row's last value")
        return SparseChange(rows=rows, change=values[:, :dim] * scales[:, None])

    def array_bytes(self, n_rows: int, dim: int) -> dict[str, int]:
        """See `RowEncoding.array_bytes`."""
        return {"rows": 4 * n_rows, "scales": 4 * n_rows, "pairs": n_rows * -(-dim // 2)}

    def most_bytes(self, n_items: int, dim: int) -> int:
        """See `Encoding.most_bytes`."""
        return sum(self.array_bytes(n_items, dim).values())
