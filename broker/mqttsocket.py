"""What stands between paho and its socket: bytes are read and written many packets at a time.

It knows where packets begin and end (MQTT 3.1.1, section 2.2), and lets their owner take whole ones before
paho sees them; the rest is for paho, which finds a connection on which little happens.
"""

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_READ_BYTES: Final = 256 * 1024
"""Larger packets are left to paho."""
_LEAST_ROOM_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 64 * 1024
"""What waits to go out beyond this, paho keeps."""
_WAIT_FOR_ROOM_S: Final = 0.05
"""What is to be sent waits as long at most."""
_LONGEST_REST_S: Final = 10.0
"""Then something is read all the same: paho takes a broker for gone that is not heard for two keepalives."""
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_LONGEST_LENGTH: Final = 4
"""Bytes of a packet's length, seven bits in each, the lowest first; an eighth says that another follows."""


class BufferedSocket:
    """A non-blocking socket, or TLS over one, as paho uses it.

    An error of a write is raised by the next read: paho looks for one there.

    Parameters
    ----------
    wait_for_room : callable
        Given seconds to wait; tells whether more may be received. Otherwise it is as if nothing had come.
    take : callable
        Given the first byte of a packet and what follows its length, which is valid during the call; tells
        whether it has taken the packet. If not, it is paho's.
    """

    def __init__(
        self,
        sock: Any,
        wait_for_room: Callable[[float], bool],
        take: Callable[[int, memoryview], bool] = lambda _first, _content: False,
    ) -> None:
        self._sock = sock
        self._wait_for_room = wait_for_room
        self._take = take
        # One for good: new ones would leave holes in memory.
        self._room = memoryview(bytearray(_READ_BYTES))
        self._start = self._end = 0
        self._for_paho = 0
        """Bytes of the packet that paho reads; they may not have come yet."""
        self._is_sorted = True
        """Whether what has come behind that packet was looked at."""
        self._unsent = bytearray()
        self._error: OSError | None = None
        self.read_at = time.monotonic()
        """When anything has come last, on the monotonic clock, in seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Give at most `size` bytes of packets that were not taken; none at the end.

        Raises
        ------
        BlockingIOError
            When nothing has come but what was taken, or there is no room for it.
        """
        if not self._is_sorted and not self._for_paho:
            # Only now: paho has worked on its packet before this call; what came behind is taken after it.
            self._is_sorted = True
            self._sort()
        if not self.buffered:
            if not self._receive():
                return b""
            self._sort()
            if not self.buffered:
                raise BlockingIOError
        after = self._start + min(size, self._for_paho, self._end - self._start)
        given = bytes(self._room[self._start : after])
        self._start = after
        self._for_paho -= len(given)
        self._is_sorted = self._for_paho > 0 or self._start == self._end
        return given

    def _receive(self) -> int:
        """Receive what there is, at least a byte; give how many, none at the end."""
        if self._error is not None:
            raise self._error
        rested_s = time.monotonic() - self.read_at
        if not self._wait_for_room(_WAIT_FOR_ROOM_S) and rested_s < _LONGEST_REST_S:
            raise BlockingIOError
        if len(self._room) - self._end < _LEAST_ROOM_BYTES:
            rest = bytes(self._room[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._room[: self._end] = rest
        received: int = self._sock.recv_into(self._room[self._end :])
        self._end += received
        self.read_at = time.monotonic()
        return received

    def _sort(self) -> None:
        """Let whole packets be taken, up to the first that is paho's."""
        room = self._room
        while not self._for_paho and self._start < self._end:
            length, at = 0, self._start + 1
            for place in range(_LONGEST_LENGTH):
                if at == self._end:
                    return
                byte = room[at]
                at += 1
                length |= (byte & 127) << 7 * place
                if byte < 128:
                    break
            else:  # no MQTT: paho knows what to say to that
                self._for_paho = self._end - self._start
                return
            after = at + length
            if after - self._start > len(room):
                self._for_paho = after - self._start
            elif after > self._end:
                return
            elif self._take(room[self._start], room[at:after]):
                self._start = after
            else:
                self._for_paho = after - self._start
        if self._start == self._end:
            self._start = self._end = 0

    def pending(self) -> int:
        """Give how much can be read without waiting; paho asks before it waits."""
        if self.buffered or not self._is_sorted or self._error is not None:
            return 1
        below = getattr(self._sock, "pending", None)
        return 0 if below is None else int(below())

    @property
    def buffered(self) -> bool:
        """Whether there is something to read that was received already."""
        return self._for_paho > 0 and self._start < self._end

    @property
    def unsent(self) -> bool:
        """Whether there is something to write."""
        return bool(self._unsent)

    def send(self, content: bytes | bytearray) -> int:
        """Take bytes to write; give how many.

        Raises
        ------
        BlockingIOError
            When there is no room.
        """
        if len(self._unsent) >= _WRITE_BYTES:
            self.flush()
            if len(self._unsent) >= _WRITE_BYTES:
                raise BlockingIOError
        self._unsent += content
        return len(content)

    def flush(self) -> None:
        """Write what the system takes now."""
        try:
            while self._unsent and self._error is None:
                del self._unsent[: self._sock.send(self._unsent)]
        except _WOULD_BLOCK:
            pass
        except OSError as error:
            self._error = error
            self._unsent.clear()

    def close(self) -> None:
        """Write what the system takes, and close."""
        with suppress(ValueError):  # closed already
            self.flush()
        self._sock.close()
