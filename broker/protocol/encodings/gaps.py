"""Distances between ascending rows, in as few bytes as each needs: unsigned LEB128.

Seven bits a byte, the lowest first; a byte's highest bit says that another one follows. A pass on a catalogue
of some thousand items has mostly distances below 128: one byte each.
"""

import numpy as np
from numpy.typing import NDArray

from broker.errors import EncodingError
from trainer.params import Rows, as_index

MOST_BYTES = 5
"""Of one number: enough for 32 bits."""


def packed(numbers: Rows) -> NDArray[np.int8]:
    """Pack numbers of 0 to 2^35 - 1."""
    lengths = np.ones(numbers.size, dtype=np.int64)
    for length in range(1, MOST_BYTES):
        lengths += numbers >= 1 << 7 * length
    starts = np.cumsum(lengths) - lengths
    content = np.empty(int(lengths.sum()), dtype=np.uint8)
    for at in range(int(lengths.max())):
        longer = lengths > at
        follows = (lengths[longer] > at + 1).astype(np.uint8) << 7
        content[starts[longer] + at] = (numbers[longer] >> 7 * at & 0x7F).astype(np.uint8) | follows
    return content.view(np.int8)


def unpacked(content: NDArray[np.int8]) -> Rows:
    """Give the numbers, shape (n,), int64.

    Raises
    ------
    EncodingError
        When the last number is cut off, or one has more than five bytes.
    """
    ends = (content >= 0).nonzero()[0].astype(np.int64)
    if not ends.size or ends[-1] + 1 != content.size:
        raise EncodingError("gaps ends within a number")
    if ends.size == content.size:
        return content.astype(np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > MOST_BYTES:
        raise EncodingError(f"gaps has a number of more than {MOST_BYTES} bytes")
    place = np.arange(content.size) - starts.repeat(as_index(lengths))
    groups = content.astype(np.int64) & 0x7F
    numbers: Rows = np.add.reduceat(groups << 7 * place, as_index(starts))
    return numbers
