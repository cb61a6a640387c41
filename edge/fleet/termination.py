"""SIGTERM while asyncio runs: what runs is cancelled, so that it clears up after itself, as with Ctrl-C."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from broker.commandline import TerminatedError

_T = TypeVar("_T")


async def terminable(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work`; SIGTERM cancels it.

    Raises
    ------
    TerminatedError
        When it was; `work` has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return await work  # signals are not for it
    task, came = asyncio.ensure_future(work), False

    def cancel() -> None:
        nonlocal came
        came = True
        task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if came:
            raise TerminatedError from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
