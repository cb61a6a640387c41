"""``edge-client start``, as often as releases want it: one turn with each release that is used.

A release changes the scorer and settings that an agent is made with. So another release is another agent; the
process, its place with the service manager and its hold on the directory stay.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from broker.errors import ConfigError, CorruptError, MissingExtraError, PFedRecError
from broker.servicing import Service
from broker.storage import exclusive
from edge.agent import Agent
from edge.config import DeviceConfig
from edge.rebuild import open_sound_store
from edge.services import services
from edge.trial import Running, begin


class _Turn(threading.Event):
    """What ends a turn: its own event, or the one that ends all."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        return super().is_set() or self._stop.is_set()


def serve(
    directory: Path,
    load: Callable[[], DeviceConfig],
    service: Service[DeviceConfig],
    say: Callable[[str], None],
    rng: np.random.Generator,
) -> None:
    """Run the device of a directory until the service is told to stop.

    Parameters
    ----------
    load : callable
        Reads the configuration, with what the release in use sets.

    Raises
    ------
    PFedRecError
        As `Agent.run`, `open_sound_store` and `load` do.
    """
    load()  # what is wrong in it is told before anything is chosen
    with exclusive(directory):
        try:
            while _turn(directory, load, service, say, rng):
                pass
        finally:
            service.end()


def _turn(
    directory: Path,
    load: Callable[[], DeviceConfig],
    service: Service[DeviceConfig],
    say: Callable[[str], None],
    rng: np.random.Generator,
) -> bool:
    """Run with one release; tell whether there is another turn."""
    state = begin(directory, say)
    running = Running(directory, state, say, time.monotonic())
    try:
        config = load()
        with closing(open_sound_store(directory, say)) as store:
            named = f", release {state.release}" if state.release else ""
            say(f"device {config.device_id} of fleet {config.fleet}, broker {config.address}{named}")
            agent = Agent(config, store, say, rng, release=state.release)
            turn = _Turn(service.stop)

            def each_round() -> None:
                service.each_round(agent)
                if running.look(time.monotonic(), config.update_trial_s, connected=agent.connected):
                    turn.set()

            with services(config, directory, say, lambda: agent.model):
                agent.run(turn, each_round)
    except (ConfigError, CorruptError, MissingExtraError) as error:
        # No other start would cure these, and a service manager makes none: then it is the release's to go.
        if not running.on_trial:
            raise
        running.fail(str(error))
        return True
    if service.stop.is_set():
        with suppress(PFedRecError):  # an attempt less is no reason to end badly
            running.stopped()
        return False
    return True
