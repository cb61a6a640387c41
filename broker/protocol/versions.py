"""What a version of the table, and the catalogue, are as bytes, and their hashes."""

import hashlib
from collections.abc import Sequence

import numpy as np

from broker.errors import HashMismatchError, SchemaError
from broker.protocol.messages import Head
from trainer.datasets import MAX_KEY_BYTES
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


def catalogue_bytes(item_keys: Sequence[str]) -> bytes:
    """Give the item keys in row order, UTF-8, each ended by a line feed."""
    return "".join(f"{key}\n" for key in item_keys).encode()


def catalogue_from_bytes(content: bytes, head: Head) -> tuple[str, ...]:
    """Give the item keys that `head` announces.

    Raises
    ------
    HashMismatchError
        When the bytes are not that catalogue.
    SchemaError
        When they are not the announced number of distinct, printable keys.
    """
    if len(content) != head.catalogue_bytes or sha256(content) != head.catalogue_sha256:
        raise HashMismatchError("the catalogue does not have the announced SHA-256")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SchemaError("the catalogue is not UTF-8") from None
    keys = text.split("\n")
    if keys.pop() or len(keys) != head.catalogue_rows or len(set(keys)) != len(keys):
        raise SchemaError(f"the catalogue is not {head.catalogue_rows} distinct lines")
    for key in keys:
        if not key or not key.isprintable() or len(key.encode()) > MAX_KEY_BYTES:
            raise SchemaError(f"{ascii(key)[:42]} is no item key")
    return tuple(keys)
