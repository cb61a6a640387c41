"""Cutting something large into chunks and putting it together again."""

import hashlib
from collections.abc import Iterator

from broker.errors import HashMismatchError, TransferError
from broker.protocol.messages import CHUNK_BYTES, DIGEST_PREFIX_BYTES, Chunk, chunk_count

__all__ = ["CHUNK_BYTES", "Assembly", "chunk_count", "cut"]


def cut(whole: bytes, sha256: bytes) -> Iterator[Chunk]:
    """Give the chunks of `whole` (not empty), in order; `sha256` is its digest."""
    count = chunk_count(len(whole))
    for index in range(count):
        yield Chunk(
            digest=sha256[:DIGEST_PREFIX_BYTES],
            index=index,
            count=count,
            size=len(whole),
            data=whole[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES],
        )


class Assembly:
    """Collects the chunks of one whole, in any order, repeats allowed.

    Memory is bounded by `size`, which the caller has checked; chunks of another whole are refused.

    Parameters
    ----------
    size : int
        Bytes of the whole.
    digest : bytes
        SHA-256 of the whole, or its first eight bytes where no more is known.
    """

    def __init__(self, size: int, digest: bytes) -> None:
        self.size = size
        self.digest = digest
        self.count = chunk_count(size)
        self._parts: dict[int, bytes] = {}

    def fits(self, chunk: Chunk) -> bool:
        """Tell whether `chunk` belongs to this whole."""
        return chunk.digest == self.digest[:DIGEST_PREFIX_BYTES]

    @property
    def complete(self) -> bool:
        """Whether all chunks are there."""
        return len(self._parts) == self.count

    @property
    def collected_bytes(self) -> int:
        """How much is there, rounded up to whole chunks."""
        return len(self._parts) * CHUNK_BYTES

    @property
    def missing(self) -> list[int]:
        """The places of the chunks that are not there yet, in order."""
        return [index for index in range(self.count) if index not in self._parts]

    def add(self, chunk: Chunk) -> bool:
        """Keep one chunk; tell whether the whole is complete.

        Raises
        ------
        TransferError
            When the chunk does not belong here or has the wrong length; nothing is kept.
        """
        if not self.fits(chunk) or chunk.size != self.size or chunk.count != self.count:
            raise TransferError("a chunk that belongs to another whole")
        expected = min(CHUNK_BYTES, self.size - chunk.index * CHUNK_BYTES)
        if len(chunk.data) != expected:
            raise TransferError(f"chunk {chunk.index} has {len(chunk.data)} bytes, not {expected}")
        self._parts[chunk.index] = chunk.data
        return self.complete

    def whole(self) -> bytes:
        """Join the chunks.

        Raises
        ------
        TransferError
            When one is missing.
        HashMismatchError
            When the whole is not what `digest` announced; all chunks are dropped.
        """
        if not self.complete:
            raise TransferError(f"{self.count - len(self._parts)} of {self.count} chunks are missing")
        whole = b"".join(self._parts[index] for index in range(self.count))
        if not hashlib.sha256(whole).digest().startswith(self.digest):
            self._parts.clear()
            raise HashMismatchError("the chunks do not have the announced SHA-256")
        return whole
