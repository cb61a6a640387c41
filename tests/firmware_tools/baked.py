"""Small TFLite models with a table baked in, kept in tests/data/firmware; how they were made.

``python -m tests.firmware_tools.baked`` makes them anew, with TensorFlow.
"""

from pathlib import Path

import numpy as np

from firmware_tools.convert import CONVERSIONS, Conversion, build_baked
from trainer.params import Floats

ITEMS, DIM = 40, 32
"""Smaller tables the converter leaves in floats, whatever it is told."""
_FOLDER = Path(__file__).parents[1] / "data" / "firmware"


def baked_table() -> Floats:
    """Give their item table."""
    return np.random.default_rng(0).standard_normal((ITEMS, DIM), dtype=np.float32)


def baked_users() -> tuple[Floats, Floats]:
    """Give the score functions that their scales were chosen by."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((30, DIM), dtype=np.float32), rng.standard_normal(30, dtype=np.float32)


def baked(conversion: Conversion) -> bytes:
    """Read one."""
    return (_FOLDER / f"baked-{conversion}.tflite").read_bytes()


if __name__ == "__main__":
    for each in CONVERSIONS:
        (_FOLDER / f"baked-{each}.tflite").write_bytes(build_baked(baked_table(), each, baked_users()))
