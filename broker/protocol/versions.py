"""What a version of the table, and the catalogue, are as bytes, and their hashes."""

import hashlib
from collections.abc import Sequence

import numpy as np

from broker.errors import HashMismatchError, SchemaError
from broker.protocol.catalogue import Catalogue, read_catalogue
from broker.protocol.messages import Head
from trainer.params import Floats


def table_bytes(table: Floats) -> bytes:
    """Give the values row by row as little-endian float32."""
    return np.ascontiguousarray(table, dtype="<f4").tobytes()


def sha256(content: bytes) -> bytes:
    """Give the SHA-256 digest, 32 bytes."""
    return hashlib.sha256(content).digest()


def table_from_bytes(content: bytes, head: Head) -> Floats:
    """Give the table that `head` announces; shape (rows, dim), float32, read-only.

    Raises
    ------
    HashMismatchError
        When the bytes are not that table.
    SchemaError
        When the table has values that are not finite.
    """
    if len(content) != head.table_bytes or sha256(content) != head.sha256:
        raise HashMismatchError(f"the table of version {head.version} does not have the announced SHA-256")
    table = np.frombuffer(content, dtype="<f4").reshape(head.rows, head.dim)
    if not np.isfinite(table).all():
        raise SchemaError(f"the table of version {head.version} has values that are not finite")
    return table.astype(np.float32, copy=False)


def catalogue_bytes(catalogue: Catalogue | Sequence[str]) -> bytes:
    """Give a catalogue's lines; see `broker.protocol.catalogue`."""
    return Catalogue.of(catalogue).to_bytes()


def catalogue_from_bytes(content: bytes, head: Head) -> Catalogue:
    """Give the catalogue that `head` announces.

    Raises
    ------
    HashMismatchError
        When the bytes are not that catalogue.
    SchemaError
        When they are not the announced number of distinct, printable keys.
    """
    if len(content) != head.catalogue_bytes or sha256(content) != head.catalogue_sha256:
        raise HashMismatchError("the catalogue does not have the announced SHA-256")
    return read_catalogue(content, head.catalogue_rows)
