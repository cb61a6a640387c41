"""The service manager's ear: sd_notify(3) over the datagram socket that ``NOTIFY_SOCKET`` names.

Without such a variable nobody listens, and every call does nothing. A message that cannot be delivered is
dropped: the service goes on, and the manager notices by its watchdog.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

_LONGEST_LINE = 200


class Supervisor:
    """Whoever has started this process and wants to know how it is.

    Parameters
    ----------
    environment : mapping
        ``NOTIFY_SOCKET``: a path, or a name in the abstract namespace behind ``@``. ``WATCHDOG_USEC`` and
        ``WATCHDOG_PID``: how often it wants to hear, in microseconds, and from which process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment) if self._address else None
        self._alive_at = 0.0
        self._status = ""

    def ready(self) -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service ends by itself or was told to."""
        self._send("STOPPING=1")

    def status(self, line: str) -> None:
        """Show a line beside the service's state, if it is another one than before."""
        if line != self._status:
            self._status = line
            self._send(f"STATUS={' '.join(line.split())[:_LONGEST_LINE]}")

    def alive(self, now: float) -> None:
        """Say that the loop goes round; sent twice in each of the watchdog's spans."""
        if self._watchdog_s is not None and now >= self._alive_at:
            self._alive_at = now + self._watchdog_s / 2
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)  # noqa: FBT003 - the name of the parameter is not to be used
            out.sendto(message.encode(), self._address)


def _address(path: str) -> str:
    return path.replace("@", "\0", 1) if path.startswith("@") else path if path.startswith("/") else ""


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    span, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not span.isdigit() or int(span) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(span) / 1e6
