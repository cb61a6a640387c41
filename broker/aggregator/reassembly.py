"""Updates that are larger than one message: their chunks, put together under a memory bound.

One update a device at a time: a device sends the next only after a receipt. Chunks that never become
whole are dropped when newer ones need the room, or no more come for long; their sender has the update in its
outbox and sends it again. What counts is what is there: an announced size costs nobody else any room.
"""

from broker.errors import TransferError
from broker.protocol.chunks import Assembly
from broker.protocol.messages import Chunk

TOTAL_BYTES = 128 * 1024 * 1024
MOST_OPEN = 10_000
GIVEN_UP_AFTER_S = 120.0


class Reassembly:
    """Chunks of all devices' updates.

    Parameters
    ----------
    max_bytes : int
        Size of the largest update that can be right.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, tuple[Assembly, float]] = {}
        """In the order of their last chunks, with the times of those."""
        self._bytes = 0
        self._given_up = 0

    def allow(self, max_bytes: int) -> None:
        """Take another size of the largest update that can be right: the table has grown."""
        self._max_bytes = max_bytes

    def add(self, device: str, chunk: Chunk, now: float = 0.0) -> bytes | None:
        """Take a chunk; give the whole update when it was the last.

        Parameters
        ----------
        now : float
            Seconds of a clock that does not run backwards.

        Raises
        ------
        TransferError
            When the update is larger than allowed, or the chunk contradicts those before it.
        HashMismatchError
            When the whole does not have the announced hash.
        """
        if chunk.size > self._max_bytes:
            raise TransferError(f"an update of {chunk.size} bytes; at most {self._max_bytes} fit the table")
        assembly = self._take(device)
        if assembly is not None and not assembly.fits(chunk):
            self._given_up += 1
            assembly = None
        if assembly is None:
            assembly = Assembly(chunk.size, chunk.digest)
        if assembly.add(chunk):
            return assembly.whole()
        self._open[device] = assembly, now
        self._bytes += assembly.collected_bytes
        # The newest stays in any case: with a large table it alone may be more.
        while len(self._open) > 1 and (self._bytes > TOTAL_BYTES or len(self._open) > MOST_OPEN):
            self._give_up_oldest()
        return None

    def given_up(self, now: float) -> int:
        """Give up what no chunk has come for; give how many were given up since the last call."""
        while self._open and next(iter(self._open.values()))[1] + GIVEN_UP_AFTER_S < now:
            self._give_up_oldest()
        count, self._given_up = self._given_up, 0
        return count

    def _give_up_oldest(self) -> None:
        self._take(next(iter(self._open)))
        self._given_up += 1

    def _take(self, device: str) -> Assembly | None:
        assembly, _ = self._open.pop(device, (None, 0.0))
        if assembly is not None:
            self._bytes -= assembly.collected_bytes
        return assembly
