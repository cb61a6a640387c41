"""Serial ports: opened, read and written by the standard library alone.

A port is a terminal (``/dev/ttyACM0``, a pseudo-terminal), ``unix:PATH`` or ``tcp:HOST:PORT``, as QEMU and
serial servers offer them.
"""

import errno
import fcntl
import logging
import os
import select
import socket
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from edge.gateway.frames import FrameReader, encode_frame
from edge.gateway.messages import MOST_BYTES
from trainer.errors import ParameterError

_LOG = logging.getLogger(__name__)

_OPEN_AGAIN_S = 1.0
_CONNECT_S = 5.0
_LOOK_S = 0.25
"""Longest wait for a byte: bounds how long a stop request goes unnoticed."""
_WRITE_S = 5.0
"""A line that takes nothing for so long loses what is being written; the board asks again."""
_READ_BYTES = 4096
SPEEDS = {
    rate: getattr(termios, f"B{rate}")
    for rate in (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600, 1000000)
    if hasattr(termios, f"B{rate}")
}
"""Baud rates, and what termios calls them."""


@dataclass(frozen=True, slots=True)
class Port:
    """Where a board is.

    Attributes
    ----------
    text : str
        As the user wrote it.
    baud : int
        Of a terminal.

    Raises
    ------
    ParameterError
        When it is none.
    """

    text: str
    baud: int = 115200

    def __post_init__(self) -> None:
        _ = self._socket_address
        if self.baud not in SPEEDS:
            raise ParameterError(f"{self.baud} baud is not one of {', '.join(map(str, SPEEDS))}")

    @property
    def _socket_address(self) -> tuple[int, str | tuple[str, int]] | None:
        """The family and address of a socket; None for a terminal."""
        kind, _, rest = self.text.partition(":")
        if kind == "unix" and rest:
            return socket.AF_UNIX, rest
        if kind == "tcp":
            host, _, port = rest.rpartition(":")
            if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
                return socket.AF_INET, (host, int(port))
        if kind in ("unix", "tcp") or not self.text:
            raise ParameterError(
                f"{self.text!r} is no serial port; write a device such as /dev/ttyACM0, unix:PATH, or "
                "tcp:HOST:PORT"
            )
        return None

    def open(self) -> int:
        """Open it; give a handle that does not block.

        Raises
        ------
        OSError
        """
        address = self._socket_address
        if address is None:
            return self._open_terminal()
        with socket.socket(address[0], socket.SOCK_STREAM) as line:
            line.settimeout(_CONNECT_S)
            line.connect(address[1])
            line.settimeout(0.0)
            return line.detach()

    def _open_terminal(self) -> int:
        handle = os.open(self.text, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # Two readers would tear each other's frames apart.
            fcntl.ioctl(handle, termios.TIOCEXCL)
            attributes = termios.tcgetattr(handle)
            speed = SPEEDS[self.baud]
            control = attributes[6]
            control[termios.VMIN], control[termios.VTIME] = 1, 0
            raw = [0, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0, speed, speed, control]
            termios.tcsetattr(handle, termios.TCSANOW, raw)
            # What has gathered there is older than this gateway.
            termios.tcflush(handle, termios.TCIFLUSH)
        except termios.error as error:  # it is no OSError
            os.close(handle)
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY)) from error
        except BaseException:
            os.close(handle)
            raise
        return handle


class Wire:
    """A port that is opened again and again; reads frames in a thread of its own.

    Parameters
    ----------
    sink : callable
        Given each message that came, in this thread; may be set anew at any time.
    say : callable
        Told one sentence when the port is away and one when it is back.
    """

    def __init__(self, port: Port, sink: Callable[[bytes], None], say: Callable[[str], None]) -> None:
        self.port = port
        self.sink = sink
        self._say = say
        self._handle: int | None = None
        self._lock = threading.Lock()
        self._is_away = False

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set."""
        while not stop.is_set():
            try:
                handle = self.port.open()
            except OSError as error:
                self._complain(f"cannot be opened: {_reason(error)}")
                stop.wait(_OPEN_AGAIN_S)
                continue
            with self._lock:
                self._handle = handle
            if self._is_away:
                self._say(f"the port {self.port.text} is back")
            self._is_away = False
            try:
                self._read(handle, stop)
            except OSError as error:
                self._complain(f"is lost: {_reason(error)}")
            finally:
                with self._lock:
                    self._handle = None
                    os.close(handle)
            if not stop.is_set():
                stop.wait(_LOOK_S)

    def write(self, message: bytes) -> None:
        """Send a message, or lose it with the line; for one thread at a time."""
        frame = memoryview(encode_frame(message))
        until = time.monotonic() + _WRITE_S
        with self._lock:
            if self._handle is None:
                return
            with suppress(OSError):  # the reader meets it, too
                while frame and time.monotonic() < until:
                    try:
                        frame = frame[os.write(self._handle, frame) :]
                    except BlockingIOError:
                        select.select([], [self._handle], [], _LOOK_S)

    def _read(self, handle: int, stop: threading.Event) -> None:
        reader = FrameReader(MOST_BYTES)
        dropped = 0
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while not stop.is_set():
            if not poll.poll(_LOOK_S * 1000.0):
                continue
            try:
                received = os.read(handle, _READ_BYTES)
            except BlockingIOError:
                continue
            if not received:
                raise OSError(errno.EPIPE, "its other end has closed")
            for message in reader.feed(received):
                self.sink(message)
            if reader.dropped > dropped:
                dropped = reader.dropped
                if dropped.bit_count() == 1:  # the 1st, 2nd, 4th and so on: noise must not fill a log
                    _LOG.warning("%s: %d damaged frames so far", self.port.text, dropped)

    def _complain(self, what: str) -> None:
        if not self._is_away:
            self._say(f"the port {self.port.text} {what}; trying again until it is there")
        self._is_away = True


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
