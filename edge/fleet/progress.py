"""How far a run is: a bar on a terminal, a plain line now and then elsewhere. On stderr."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 30
_PLAIN_EVERY_S = 10.0
_BAR_EVERY_S = 0.1


class Progress:
    """Shows how many of `total` steps are done.

    Parameters
    ----------
    what : str
        What a step is, in the plural.
    clock : callable
        Gives seconds that do not run backwards.
    """

    def __init__(
        self,
        total: int,
        what: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._what = what
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = clock()
        self._finished_at = -1
        self._is_terminal = self._stream.isatty()
        self._next_at = self._began if self._is_terminal else self._began + _PLAIN_EVERY_S

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` steps are done; `note` is a short fact beside it."""
        now = self._clock()
        done = min(done, self._total)
        if (now < self._next_at and done < self._total) or done == self._finished_at:
            return
        self._finished_at = self._total if done == self._total else -1
        self._next_at = now + (_BAR_EVERY_S if self._is_terminal else _PLAIN_EVERY_S)
        left = (now - self._began) / max(1, done) * (self._total - done)
        text = f"{done}/{self._total} {self._what}, {left:.0f} s left{', ' * bool(note)}{note}"
        if self._is_terminal:
            filled = _WIDTH * done // self._total
            self._stream.write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}\033[K")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the bar's line."""
        if self._is_terminal:
            self._stream.write("\n")
            self._stream.flush()
