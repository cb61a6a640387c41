"""A service manager's ear, played by the test: a real datagram socket."""

import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.brokers import PATIENCE_S


class Manager:
    """Receives what sd_notify(3) sends."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_S)

    def __enter__(self) -> Self:
        self._socket.bind(self.path.replace("@", "\0", 1) if self.path.startswith("@") else self.path)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def environment(self, watchdog_s: float | None = None, pid: int | None = None) -> dict[str, str]:
        """Give what systemd sets for a service."""
        values = {"NOTIFY_SOCKET": self.path}
        if watchdog_s is not None:
            values["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        if pid is not None:
            values["WATCHDOG_PID"] = str(pid)
        return values

    def next(self) -> str:
        """Give the next message."""
        return self._socket.recv(4096).decode()

    def hear(self, words: str) -> str:
        """Wait for a message that begins with these words; give it."""
        seen: list[str] = []
        while True:
            try:
                message = self.next()
            except TimeoutError:
                raise AssertionError(f"no {words}, only {seen}") from None
            if message.startswith(words):
                return message
            seen.append(message)

    def forget(self) -> None:
        """Drop what has come so far."""
        while not self.is_silent_for(0.001):
            pass

    def is_silent_for(self, span_s: float) -> bool:
        """Tell whether nothing comes for a while."""
        self._socket.settimeout(span_s)
        try:
            self.next()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_S)
        return False


def monotonic_us() -> int:
    """Give the clock of MONOTONIC_USEC."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def this_process() -> int:
    """Give this process's id."""
    return os.getpid()
