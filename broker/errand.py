"""Work that may take long and cannot be interrupted, done so that a request to stop is heard meanwhile."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LISTEN_S = 0.1


class Errand(Generic[_T]):
    """Calls `work` in a thread of its own, at once.

    The thread ends with the process: work that nobody waits for any more must leave nothing behind.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._results: list[_T] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is wanted
            self._failure = error

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return not self._thread.is_alive()

    def result(self, stop: threading.Event, meanwhile: Callable[[], None] = lambda: None) -> _T | None:
        """Wait for the work's result, and raise what it raised; None when `stop` is set before.

        `meanwhile` is called about ten times a second.
        """
        while self._thread.is_alive():
            if stop.is_set():
                return None
            meanwhile()
            self._thread.join(_LISTEN_S)
        return self.finished()

    def finished(self) -> _T:
        """Give the result of work that is `done`, or raise what it raised."""
        if self._failure is not None:
            raise self._failure
        return self._results[0]
