"""What encodings with an integer a value and a scale a row share."""

import numpy as np
from numpy.typing import NDArray

from broker.errors import EncodingError
from broker.protocol.wire import TypedArray
from trainer.params import Floats


def scaled(change: Floats, levels: int) -> tuple[Floats, NDArray[np.int8]]:
    """Give each row's scale, shape (n,), float32, and its values, shape (n, dim), -levels to levels.

    A row's scale is its largest magnitude / `levels`; values are rounded to the nearest.
    """
    scales = or_zero(np.abs(change).max(axis=1, initial=0.0) / np.float32(levels))
    divisor = np.where(scales > 0.0, scales, np.float32(1.0))[:, None]
    return scales, np.rint(change / divisor).clip(-levels, levels).astype(np.int8)


def or_zero(scales: Floats) -> Floats:
    """Give zero in place of a subnormal scale, which would make a quotient inexact or infinite."""
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(0.0), scales).astype(np.float32)


def checked_scales(scales: TypedArray, largest: str) -> Floats:
    """Give the scales if none is negative, not finite or beyond `largest`, a number as messages show it.

    Raises
    ------
    EncodingError
    """
    values = scales.astype(np.float32, copy=False)
    # Both give NaN where there is one, which is not in bounds.
    least, most = np.minimum.reduce(values, initial=0.0), np.maximum.reduce(values, initial=0.0)
    if not (least >= 0.0 and most <= np.float32(largest)):
        raise EncodingError(f"scales has a value that is negative, not finite or beyond {largest}")
    return values
