"""The account of one round of the results while it goes on, the same for a live and a simulated fleet."""

import time
from collections.abc import Callable, Sequence

from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.runfolder import RoundReport, Stopwatch, Traffic
from trainer.params import Floats, ScoreFunction


class RoundBook:
    """Counts time and traffic since the last round ended; evaluates and reports when the next one does.

    Attributes
    ----------
    done : int
        Rounds that have ended.
    watch, traffic : Stopwatch, Traffic
        Of the round that goes on; whoever spends time or bytes adds them.
    counted, staleness_sum : int
        Updates counted in it, and the sum of their staleness in versions.
    """

    def __init__(self, evaluator: Evaluator, on_round: Callable[[RoundReport], None]) -> None:
        self._evaluator = evaluator
        self._on_round = on_round
        self.done = 0
        self._begin()

    def _begin(self) -> None:
        self.watch = Stopwatch()
        self.traffic = Traffic()
        self.counted = 0
        self.staleness_sum = 0
        self._began = time.perf_counter()

    def end(
        self, version: int, table: Floats, devices: Sequence[VirtualDevice], start: ScoreFunction
    ) -> None:
        """End the round at `version` with its `table`, shape (n_items, dim)."""
        self.done += 1
        began = time.perf_counter()
        quality = self._evaluator.evaluate(self.done, version, table, devices, start)
        ended = time.perf_counter()
        self.watch.evaluate = ended - began
        self.watch.total = ended - self._began
        self._on_round(
            RoundReport(
                number=self.done,
                version=version,
                quality=quality,
                watch=self.watch,
                traffic=self.traffic,
                staleness_mean=self.staleness_sum / max(1, self.counted),
            )
        )
        self._begin()
