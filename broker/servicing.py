"""A ``start`` command as a service: signals, a configuration that is read again, and a watchdog.

The loop of what is run calls `Service.each_round`; so the watchdog hears nothing any more when it hangs.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Generic, Protocol, TypeVar

from broker.errors import PFedRecError
from broker.journal import Trouble
from broker.supervisor import Supervisor

_Config = TypeVar("_Config")
_Config_contra = TypeVar("_Config_contra", contravariant=True)


class Serving(Protocol[_Config_contra]):
    """What is run: a device's agent, or the aggregator."""

    @property
    def state(self) -> str:
        """What it does, in a line."""
        ...

    def reconfigure(self, config: _Config_contra) -> list[str]:
        """Take a configuration; give the names of what stays as it was."""
        ...


class Service(Generic[_Config]):
    """One run of ``start``.

    Parameters
    ----------
    load : callable
        Reads the configuration, as it was read for the start.
    say : callable
        Told one sentence when something needs attention.

    Attributes
    ----------
    stop : threading.Event
        Set when the service is to end.
    """

    def __init__(
        self, supervisor: Supervisor, load: Callable[[], _Config], say: Callable[[str], None]
    ) -> None:
        self.stop = threading.Event()
        self._supervisor = supervisor
        self._load = load
        self._say = say
        self._reload = False
        self._is_ready = False
        self._on_terminal = _is_terminal()

    def listen(self) -> None:
        """Take SIGTERM and SIGINT for stop, SIGHUP for reload; in the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._supervisor.stopping()
        self.stop.set()

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        if self._on_terminal and not _is_terminal():  # it was closed
            self.stop.set()
        self._reload = True

    def each_round(self, serving: Serving[_Config]) -> None:
        """Do what is due between two rounds of the loop."""
        if self._reload:
            self._reload = False
            self._supervisor.reloading()
            self._read_again(serving)
            self._supervisor.ready()
        if not self._is_ready:
            self._is_ready = True
            self._supervisor.ready()
        self._supervisor.status(serving.state)
        self._supervisor.alive(time.monotonic())

    def end(self) -> None:
        """Tell that the service ends."""
        self._supervisor.stopping()

    def _read_again(self, serving: Serving[_Config]) -> None:
        try:
            kept = serving.reconfigure(self._load())
        except PFedRecError as error:
            self._say(Trouble(f"the settings stay as they were: {error}"))
            return
        if kept:
            self._say(
                f"the settings were read again; {' and '.join(kept)} "
                f"{'changes' if len(kept) == 1 else 'change'} with the next start only"
            )
        else:
            self._say("the settings were read again")


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False
