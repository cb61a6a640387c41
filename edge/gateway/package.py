"""A version of the fleet's table as a board holds it: one piece of bytes.

It is a model in the form of the C core (`broker.protocol.modelfile`); a mask of the retired rows, a bit for
each, the lowest first; and the head, as the aggregator published it. The same version gives the same bytes,
so that a download goes on after a gateway has ended, and its CRC-32 tells whether a board has it.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from broker.protocol.messages import Head, encode
from broker.protocol.modelfile import Model, model_bytes
from trainer.integers import quantise_table
from trainer.params import Floats, Rows

INTEGERS = 1
"""The table format of boards that score from 8-bit integers; 0: from float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What a board gets of a version.

    Attributes
    ----------
    content : bytes
        The model, the mask and the head, so many bytes each.
    """

    instance: int
    version: int
    crc: int
    model: int
    mask: int
    head: int
    content: bytes


def make_package(head: Head, table: Floats, retired: Rows, table_format: int) -> Package:
    """Give the package of a version.

    Parameters
    ----------
    table : ndarray, shape (head.rows, head.dim), float32
    retired : ndarray, shape (n,), int64
        Rows that are neither recommended nor drawn; those beyond the table are passed over.
    table_format : int
        INTEGERS, or 0 for float32.
    """
    quantised = quantise_table(table) if table_format == INTEGERS else None
    floats = table if quantised is None else quantised.dequantised()
    model = model_bytes(
        Model(
            table=table if quantised is None else quantised,
            w=head.w.astype(np.float32),
            b=head.b,
            mean=floats.mean(axis=0, dtype=np.float32),
        )
    )
    is_retired = np.zeros(head.rows, dtype=bool)
    is_retired[retired[retired < head.rows]] = True
    mask = np.packbits(is_retired, bitorder="little").tobytes()
    manifest = encode(head)
    content = model + mask + manifest
    return Package(
        instance=head.instance,
        version=head.version,
        crc=zlib.crc32(content),
        model=len(model),
        mask=len(mask),
        head=len(manifest),
        content=content,
    )
