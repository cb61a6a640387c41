"""Strategies put together: clip -> filter -> centre -> scale -> server optimiser.

As long as nothing needs to see updates beside each other, only their sum is kept; otherwise the sparse
updates of the open round are, which the round's size bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.aggregation.interface import (
    Accumulator,
    Closing,
    OpenRound,
    SummedRound,
    Weighting,
    require_fitting,
)
from trainer.aggregation.optimisers import ServerOptimiser
from trainer.aggregation.robust import (
    CENTRES,
    Centre,
    WeighedUpdate,
    agreeing,
    clipped,
    median_limits,
    norms,
    require_trim,
    robust_sum,
)
from trainer.errors import ParameterError
from trainer.params import Floats, Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A linear strategy with what goes before and after it; see `trainer.aggregation.robust`.

    Attributes
    ----------
    weighting : Weighting
        FedAvg, FedBuff or FedAsync: staleness weights, and the scale of the whole.
    clip : float or None
        Longest norm of an update's change.
    clip_to_median : float or None
        Longest norm, as a multiple of the round's median norm.
    similarity : float or None
        Leave out updates that agree with the round less than this times the median update's agreement. The
        others stand for them: the table moves as far as without the filter.
    centre : str
        Of each coordinate: ``mean``, ``trimmed-mean`` or ``median``.
    trim : float
        Share that ``trimmed-mean`` leaves out at each end.
    optimiser : ServerOptimiser or None
    """

    weighting: Weighting
    clip: float | None = None
    clip_to_median: float | None = None
    similarity: float | None = None
    centre: Centre = "mean"
    trim: float = 0.1
    optimiser: ServerOptimiser | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0.0 < self.clip <= 1e12:
            raise ParameterError(f"clip is {self.clip}; it must lie above 0 and at most at 1e12")
        if self.clip_to_median is not None and not 0.01 <= self.clip_to_median <= 1000.0:
            raise ParameterError(
                f"clip_to_median is {self.clip_to_median}; it must lie between 0.01 and 1000"
            )
        if self.similarity is not None and not 0.0 <= self.similarity <= 1.0:
            raise ParameterError(f"similarity is {self.similarity}; it must lie between 0 and 1")
        if self.centre not in CENTRES:
            raise ParameterError(f"the centre is {self.centre!r}; it must be one of {', '.join(CENTRES)}")
        require_trim(self.trim)

    def open(self, n_items: int, dim: int) -> OpenRound:
        """See `Strategy.open`."""
        return _PipelineRound(self, n_items, dim)

    @property
    def compares(self) -> bool:
        """Whether updates must be seen beside each other, and so be kept until the round closes."""
        return (self.clip_to_median, self.similarity, self.centre) != (None, None, "mean")


class _PipelineRound:
    def __init__(self, pipeline: Pipeline, n_items: int, dim: int) -> None:
        self._pipeline = pipeline
        self._shape = (n_items, dim)
        self._sum = SummedRound(pipeline.weighting, 0 if pipeline.compares else n_items, dim)
        self._kept: list[WeighedUpdate] = []

    @property
    def count(self) -> int:
        return len(self._kept) if self._pipeline.compares else self._sum.count

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        pipeline = self._pipeline
        require_fitting(rows, change, *self._shape)
        update = WeighedUpdate(rows, change, pipeline.weighting.weight(staleness))
        if pipeline.clip is not None:
            (update,) = clipped([update], norms([update]), np.array([pipeline.clip]))
        if pipeline.compares:
            # A copy: what was given may lie in a buffer that its owner uses again.
            self._kept.append(WeighedUpdate(update.rows.copy(), update.change.copy(), update.weight))
        else:
            self._sum.add(update.rows, update.change, staleness)

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:
        pipeline = self._pipeline
        if pipeline.compares:
            change = pipeline.weighting.change(self._compared(), population)
        else:
            change = self._sum.close(population, {}).change
        if pipeline.optimiser is None:
            return Closing(change=change, state={})
        fraction = min(1.0, self.count / population)
        mean = change / np.float32(fraction) if fraction else change
        return pipeline.optimiser.close(mean, fraction, state)

    def _compared(self) -> Accumulator:
        """Give the round's updates as if they had been summed up, harmful ones made harmless."""
        pipeline, updates = self._pipeline, self._kept
        if pipeline.clip_to_median is not None:
            lengths = norms(updates)
            updates = clipped(updates, lengths, median_limits(lengths, pipeline.clip_to_median))
        if pipeline.similarity is not None:
            updates = agreeing(updates, pipeline.similarity, *self._shape)
        total = robust_sum(updates, pipeline.centre, pipeline.trim, *self._shape)
        everybody, left = (sum(u.weight for u in each) for each in (self._kept, updates))
        if left < everybody:
            total *= np.float32(everybody / left) if left else np.float32(0.0)
        result = Accumulator(*self._shape)
        result.merge(total, everybody, len(self._kept))
        return result
