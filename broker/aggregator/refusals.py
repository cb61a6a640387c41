"""Lines in the log about refused messages: a few of each kind, then a sum; a flood must not fill a disk.

Every refusal is counted elsewhere (`broker.aggregator.watching`); this is for people.
"""

import logging

_LOG = logging.getLogger(__name__)
LINES = 10
PERIOD_S = 60.0


class RefusalLog:
    """Writes at most `LINES` lines of each kind in `PERIOD_S` seconds."""

    def __init__(self) -> None:
        self._begins: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def note(self, kind: str, sentence: str, now: float) -> None:
        """Take one refusal; kinds are as many as classes of errors."""
        if now >= self._begins.get(kind, -PERIOD_S) + PERIOD_S:
            self._sum_up(kind)
            self._begins[kind] = now
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= LINES:
            _LOG.warning("%s", sentence)
        if self._counts[kind] == LINES:
            _LOG.warning("more of the kind %s are counted, but not written for a minute", kind)

    def _sum_up(self, kind: str) -> None:
        more = self._counts.pop(kind, 0) - LINES
        if more > 0:
            _LOG.warning("%d more messages were refused as %s", more, kind)
