"""Whether a running aggregator is alive, and whether it is ready; why not, in words."""

import os
import shutil
import time
from pathlib import Path

from broker.aggregator.watching import Watched

HANGS_AFTER_S = 60.0
"""Without a turn of the loop; the longest step of one is a transaction on a slow disk."""
_LEAST_FREE_BYTES = 20_000_000


class Health:
    """Looks at a service and its directory.

    Attributes
    ----------
    watched : Watched or None
        The service; None while there is none, as the store is waited for.
    """

    def __init__(self, watched: Watched | None, directory: Path) -> None:
        self.watched = watched
        self._directory = directory

    def complaints(self) -> list[str]:
        """Say why the process should be started again; nothing: it is alive."""
        watched = self.watched
        if watched is None:
            return []
        idle_s = time.monotonic() - watched.turned_at
        return [f"the loop has not gone round for {idle_s:.0f} s"] if idle_s > HANGS_AFTER_S else []

    def waits_for(self) -> list[str]:
        """Say what keeps it from serving; nothing: it is ready."""
        missing = self.complaints()
        watched = self.watched
        if watched is None:
            missing.append("the store does not answer")
        elif not watched.broker_connected:
            missing.append("the broker is not connected")
        elif not watched.head_published:
            missing.append("no head is published yet")
        if not os.access(self._directory, os.W_OK):
            missing.append("the store cannot be written")
        elif shutil.disk_usage(self._directory).free < _LEAST_FREE_BYTES:
            missing.append("the store's file system has less than 20 MB free")
        return missing
