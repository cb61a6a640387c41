"""An item table in 8-bit integers with a multiplier for each row: what boards hold and score from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Floats

LEVELS = 127
"""Of a table's integers, either side of zero."""
_MOST_UNITS = 65535


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantisedTable:
    """An item table in 8-bit integers: row i is ``multipliers[i] · unit · values[i]``.

    A row's integers are exact to half of its own step; the step is a whole number of units, so that the
    integer scores of all rows count the same thing.

    Attributes
    ----------
    values : ndarray, shape (n_items, dim), int8
        -127 to 127.
    multipliers : ndarray, shape (n_items,), uint16
        0 for a row of zeros.
    unit : float32
    """

    values: NDArray[np.int8]
    multipliers: NDArray[np.uint16]
    unit: np.float32

    def dequantised(self) -> Floats:
        """The table that it stands for; shape (n_items, dim), float32."""
        scales = self.multipliers.astype(np.float32) * self.unit
        table: Floats = self.values * scales[:, None]
        return table


def quantise_table(table: Floats) -> QuantisedTable:
    """Turn a table into 8-bit integers with a multiplier for each row.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32

    Raises
    ------
    ParameterError
        When a value is not finite.
    """
    if not np.isfinite(table).all():
        raise ParameterError("the table has values that are not finite")
    # In double precision: here nothing needs to be what a board could compute.
    largest = np.abs(table.astype(np.float64)).max(axis=1)
    unit = np.float32(largest.max() / LEVELS / _MOST_UNITS)
    if not unit > np.finfo(np.float32).tiny:
        return QuantisedTable(
            values=np.zeros(table.shape, dtype=np.int8),
            multipliers=np.zeros(len(table), dtype=np.uint16),
            unit=np.float32(0.0),
        )
    # Upwards, so that the largest value stays within the levels.
    multipliers = np.minimum(np.ceil(largest / LEVELS / float(unit)), _MOST_UNITS)
    steps = np.maximum(multipliers, 1.0) * float(unit)
    values = np.rint(table / steps[:, None]).clip(-LEVELS, LEVELS)
    return QuantisedTable(values=values.astype(np.int8), multipliers=multipliers.astype(np.uint16), unit=unit)
