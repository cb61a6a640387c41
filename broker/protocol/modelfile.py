"""A model in one piece, as the C core reads it where it lies: ``model.pfr``.

Little endian. A header of 64 bytes: magic ``PFRM``, format (uint16), table format (uint16; 0 float32, 1
int8), rows, dim, size of the whole, CRC-32 of what follows it (uint32 each), unit, b (float32), zeros. Then
w and the mean row (dim float32 each); of an 8-bit table the multipliers (uint16), filled up to 4 bytes; then
the values.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from trainer.integers import QuantisedTable
from trainer.params import Floats

MAGIC = b"PFRM"
FORMAT = 1
HEADER_BYTES = 64
_CRC_END = 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """A table and what a new user starts from.

    Attributes
    ----------
    table : ndarray, shape (rows, dim), float32; or QuantisedTable
    w : ndarray, shape (dim,), float32
    b : float
    mean : ndarray, shape (dim,), float32
        The mean row: what taste is measured from.
    """

    table: Floats | QuantisedTable
    w: Floats
    b: float
    mean: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dim."""
        values = self.table.values if isinstance(self.table, QuantisedTable) else self.table
        return values.shape[0], values.shape[1]

    @property
    def floats(self) -> Floats:
        """The table as float32; that of integers as what it stands for."""
        return self.table.dequantised() if isinstance(self.table, QuantisedTable) else self.table


def model_bytes(model: Model) -> bytes:
    """Give the file's bytes; the same model gives the same bytes."""
    rows, dim = model.shape
    parts = [model.w.astype("<f4").tobytes(), model.mean.astype("<f4").tobytes()]
    unit = np.float32(0.0)
    if isinstance(model.table, QuantisedTable):
        unit = model.table.unit
        multipliers = model.table.multipliers.astype("<u2").tobytes()
        parts += [multipliers, bytes(-len(multipliers) % 4), model.table.values.tobytes()]
    else:
        parts.append(model.table.astype("<f4").tobytes())
    body = b"".join(parts)
    rest = struct.pack("<ff", unit, model.b) + bytes(HEADER_BYTES - _CRC_END - 8) + body
    table_format = int(isinstance(model.table, QuantisedTable))
    start = MAGIC + struct.pack("<HHIII", FORMAT, table_format, rows, dim, HEADER_BYTES + len(body))
    return start + struct.pack("<I", zlib.crc32(rest)) + rest
