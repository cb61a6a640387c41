"""Serving on when the store's database server goes and comes back.

Whether the batch that was being stored has been is not known then. So the service ends as by a crash, which
loses nothing: what was not acknowledged, the broker sends again to the service that is made from the stored
state.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from broker.aggregator.store.sql import SqlStore
from broker.connection import SERVERS_LONGEST_WAIT_S, jittered_waits
from broker.errors import StoreLostError
from broker.journal import Trouble

_ALIVE_S = 1.0

_Store = TypeVar("_Store", bound=SqlStore)


def serve_with(
    open_store: Callable[[], _Store],
    serve: Callable[[_Store], None],
    stop: threading.Event,
    say: Callable[[str], None],
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Open the store and serve; anew each time that the store was lost, until `serve` returns.

    Parameters
    ----------
    say : callable
        Told one sentence when the store goes and one when it is back.
    alive : callable
        Called once a second while the store is away.
    """
    gone = False
    waits = _new_waits()
    while not stop.is_set():
        try:
            with closing(open_store()) as store:
                if gone:
                    say("the store is back")
                gone, waits = False, _new_waits()
                serve(store)
                return
        except StoreLostError as error:
            if not gone:
                say(Trouble(f"{error}; trying again until it is back"))
            gone = True
        until = time.monotonic() + next(waits)
        while not stop.is_set() and (left := until - time.monotonic()) > 0.0:
            alive()
            stop.wait(min(left, _ALIVE_S))


def _new_waits() -> Iterator[float]:
    return jittered_waits(random.SystemRandom().uniform, SERVERS_LONGEST_WAIT_S)
