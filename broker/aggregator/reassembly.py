"""Updates that are larger than one message: their chunks, put together under a memory bound.

One update a device at a time: a device sends the next only after a receipt. Chunks that never become
whole are dropped when newer ones need the room; their sender has the update in its outbox and sends
it again.
"""

from broker.errors import TransferError
from broker.protocol.chunks import Assembly
from broker.protocol.messages import Chunk

TOTAL_BYTES = 256 * 1024 * 1024


class Reassembly:
    """Chunks of all devices' updates.

    Parameters
    ----------
    max_bytes : int
        Size of the largest update that can be right.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, Assembly] = {}

    def allow(self, max_bytes: int) -> None:
        """Take another size of the largest update that can be right: the table has grown."""
        self._max_bytes = max_bytes

    def add(self, device: str, chunk: Chunk) -> bytes | None:
        """Take a chunk; give the whole update when it was the last.

        Raises
        ------
        TransferError
            When the update is larger than allowed, or the chunk contradicts those before it.
        HashMismatchError
            When the whole does not have the announced hash.
        """
        if chunk.size > self._max_bytes:
            raise TransferError(f"an update of {chunk.size} bytes; at most {self._max_bytes} fit the table")
        assembly = self._open.pop(device, None)
        if assembly is None or not assembly.fits(chunk):
            assembly = Assembly(chunk.size, chunk.digest)
        if not assembly.add(chunk):
            self._open[device] = assembly
            self._make_room()
            return None
        return assembly.whole()

    def _make_room(self) -> None:
        # The newest stays in any case: with a large table it alone may be more.
        while len(self._open) > 1 and sum(each.size for each in self._open.values()) > TOTAL_BYTES:
            self._open.pop(next(iter(self._open)))
