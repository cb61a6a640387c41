"""Paho's client with fewer system calls.

It reads and writes each packet in several, and wakes its thread for each that is sent; each call gives the
interpreter's lock away and waits to have it again. So there is a buffer between it and the socket: what is
written there goes out when paho has nothing more to write.

Three of its private names are used, ``_create_socket``, ``_sockpairW`` and ``_handle_on_message``: should a
later release lack them, this is paho as it was.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

_READ_BYTES: Final = 256 * 1024
_WRITE_BYTES: Final = 64 * 1024
"""What waits to go out beyond this, paho keeps."""
_WAIT_FOR_ROOM_S: Final = 0.05
"""What is to be sent waits as long at most."""
_LONGEST_REST_S: Final = 10.0
"""Then something is read all the same: paho takes a broker for gone that is not heard for two keepalives."""
_PACKETS_AT_ONCE: Final = 64
"""Packets read before it is the turn of those to write."""
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket:
    """A non-blocking socket, or TLS over one, as paho uses it.

    An error of a write is raised by the next read: paho looks for one there.

    Parameters
    ----------
    wait_for_room : callable
        Given seconds to wait; tells whether more may be received. Otherwise it is as if nothing had come.
    """

    def __init__(self, sock: Any, wait_for_room: Callable[[float], bool]) -> None:
        self._sock = sock
        self._wait_for_room = wait_for_room
        # One for good: new ones would leave holes in memory.
        self._room = memoryview(bytearray(_READ_BYTES))
        self._received = self._room[:0]
        self._unsent = bytearray()
        self._error: OSError | None = None
        self._read_at = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Give at most `size` bytes; none at the end.

        Raises
        ------
        BlockingIOError
            When nothing has come, or there is no room for it.
        """
        if not self._received:
            if self._error is not None:
                raise self._error
            rested_s = time.monotonic() - self._read_at
            if not self._wait_for_room(_WAIT_FOR_ROOM_S) and rested_s < _LONGEST_REST_S:
                raise BlockingIOError
            self._received = self._room[: self._sock.recv_into(self._room)]
            self._read_at = time.monotonic()
        given, self._received = bytes(self._received[:size]), self._received[size:]
        return given

    def pending(self) -> int:
        """Give how much can be read without waiting; paho asks before it waits."""
        below = getattr(self._sock, "pending", None)
        return len(self._received) or int(self._error is not None) or (0 if below is None else below())

    @property
    def buffered(self) -> bool:
        """Whether there is something to read that was received already."""
        return bool(self._received)

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


class Client(paho.Client):
    """See the module.

    Attributes
    ----------
    wait_for_room : callable
        See `BufferedSocket`.
    """

    wait_for_room: Callable[[float], bool] = staticmethod(lambda _: True)

    def _create_socket(self) -> Any:
        return BufferedSocket(super()._create_socket(), self.wait_for_room)

    def want_write(self) -> bool:
        """Tell whether something waits to be written."""
        sock = self.socket()
        return super().want_write() or (isinstance(sock, BufferedSocket) and sock.unsent)

    def loop_write(self) -> MQTTErrorCode:
        """Write what waits."""
        code = super().loop_write()
        sock = self.socket()
        if isinstance(sock, BufferedSocket):
            sock.flush()
        return code

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read what was received."""
        for _ in range(_PACKETS_AT_ONCE):
            code = super().loop_read(max_packets)
            sock = self.socket()
            if code or not isinstance(sock, BufferedSocket) or not sock.buffered:
                break
        return code

    def _handle_on_message(self, message: paho.MQTTMessage) -> None:
        # Paho looks first for callbacks of the topic's own, of which there are none.
        if self.on_message is not None:
            self.on_message(self, None, message)

    @contextmanager
    def one_wake(self) -> Iterator[None]:
        """Wake the network thread once for all that is sent within the block, at its end."""
        pair = getattr(self, "_sockpairW", None)
        if pair is None:
            yield
            return
        self._sockpairW = None
        try:
            yield
        finally:
            self._sockpairW = pair
            with suppress(OSError):  # full: it is awake; closed: it has ended
                pair.send(b"0")
