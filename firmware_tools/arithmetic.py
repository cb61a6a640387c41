"""The arithmetic of the C core in numpy: what its scores must be, to the last bit.

The core's sums over a row are made in four lanes, k modulo 4; integer scores know no floats at all. This file
defines both; `trainer.integers` says how a table becomes 8-bit integers. It knows no file and no C.
"""

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.integers import QuantisedTable
from trainer.params import Floats

_LANES = 4


def vector_levels(dim: int) -> int:
    """Give the largest magnitude of a score vector's integers: no sum over a row leaves 32 bits."""
    return 32767 if dim <= 512 else 16383


def quantise_vector(w: Floats) -> tuple[NDArray[np.int16], np.float32]:
    """Turn a score vector, shape (dim,), float32, into 16-bit integers and their scale.

    Raises
    ------
    ParameterError
        When a value is not finite.
    """
    if not np.isfinite(w).all():
        raise ParameterError("the score vector has values that are not finite")
    levels = np.float32(vector_levels(w.size))
    scale = np.float32(np.abs(w).max() / levels)
    if not scale >= np.finfo(np.float32).tiny:
        return np.zeros(w.size, dtype=np.int16), np.float32(0.0)
    return np.rint(w / scale).clip(-levels, levels).astype(np.int16), scale


def integer_scores(table: QuantisedTable, vector: NDArray[np.int16]) -> NDArray[np.int32]:
    """Give every item's integer score, ``round(multiplier · Σ value · vector / 65536)``, halves upwards.

    Returns
    -------
    ndarray, shape (n_items,), int32
    """
    sums = table.values.astype(np.int64) @ vector.astype(np.int64)
    return ((sums * table.multipliers.astype(np.int64) + 32768) >> 16).astype(np.int32)


def integer_logits(table: QuantisedTable, scores: NDArray[np.int32], scale: np.float32, b: float) -> Floats:
    """Give the logits that integer scores stand for; shape of `scores`, float32."""
    logits: Floats = scores.astype(np.float32) * (np.float32(65536.0) * table.unit * scale) + np.float32(b)
    return logits


def lane_products(table: Floats, w: Floats) -> Floats:
    """Give ``table · w`` with the core's order of additions; shape (n_items,), float32."""
    lanes = np.zeros((_LANES, len(table)), dtype=np.float32)
    for k in range(w.size):
        lanes[k % _LANES] += table[:, k] * w[k]
    total: Floats = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    return total


def float_logits(table: Floats, w: Floats, b: float) -> Floats:
    """Give ``w · e_i + b`` for every row of a float32 table as the core does; shape (n_items,), float32."""
    logits: Floats = lane_products(table, w) + np.float32(b)
    return logits


def quantised_logits(table: QuantisedTable, w: Floats, b: float) -> Floats:
    """Give ``w · e_i + b`` of an 8-bit table in floats as the core does; shape (n_items,), float32."""
    scales = table.multipliers.astype(np.float32) * table.unit
    logits: Floats = lane_products(table.values.astype(np.float32), w) * scales + np.float32(b)
    return logits


def keys_of_logits(logits: Floats) -> NDArray[np.int32]:
    """Give the integers that order as the logits do; `logits` has no NaN."""
    bits = (logits + np.float32(0.0)).astype(np.float32).view(np.int32)
    keys: NDArray[np.int32] = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return keys


def best_rows(keys: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Give the k rows of the largest keys, best first; of equal ones the smaller row first."""
    order: NDArray[np.int64] = np.argsort(-keys.astype(np.int64), kind="stable")[:k]
    return order
