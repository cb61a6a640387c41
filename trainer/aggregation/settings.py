"""A strategy by the names that configuration and commands use."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, cast

from trainer.aggregation.interface import Strategy
from trainer.aggregation.optimisers import OPTIMISERS, OptimiserName, ServerOptimiser
from trainer.aggregation.pipeline import Pipeline
from trainer.aggregation.robust import CENTRES, Centre, require_trim
from trainer.aggregation.rounding import RoundedSteps
from trainer.aggregation.rounds import FedAsync, FedAvg, FedBuff
from trainer.errors import ParameterError

STRATEGIES: Final = ("fedbuff", "fedavg", "fedasync")
ROBUST: Final = MappingProxyType({"clip_to_median": 1.5})
"""The robust preset; docs/aggregation.md has what it is worth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregationSettings:
    """How updates are combined; 0 and ``none`` switch a piece off. See docs/aggregation.md.

    Raises
    ------
    ParameterError
        When a value is out of range.
    """

    strategy: str = "fedbuff"
    staleness_exponent: float = 0.5
    mixing: float = 0.0
    clip: float = 0.0
    clip_to_median: float = 0.0
    similarity: float = 0.0
    robust: str = "none"
    trim: float = 0.1
    server_optimiser: str = "none"
    server_lr: float = 0.1
    step_encoding: str = "float32"

    def __post_init__(self) -> None:
        for name, values in (
            ("strategy", STRATEGIES),
            ("robust", ("none", *CENTRES[1:])),
            ("server_optimiser", ("none", *OPTIMISERS)),
            ("step_encoding", ("float32", "int8")),
        ):
            if getattr(self, name) not in values:
                raise ParameterError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}"
                )
        require_trim(self.trim)
        if self.strategy == "fedasync" and self.compares:
            raise ParameterError(
                "fedasync takes each update by itself; clip_to_median, similarity and robust compare the "
                "updates of a round: use fedbuff, or clip"
            )
        _ = self.make()

    @property
    def compares(self) -> bool:
        """Whether the updates of a round are compared with each other."""
        return bool(self.clip_to_median or self.similarity or self.robust != "none")

    def buffer(self, wanted: int) -> int:
        """Give how many updates close a round: 1 for fedasync, else what is wanted."""
        return 1 if self.strategy == "fedasync" else wanted

    def make(self) -> Strategy:
        """Give the strategy."""
        strategy = self._combining()
        return RoundedSteps(strategy) if self.step_encoding == "int8" else strategy

    def _combining(self) -> Strategy:
        weighting: FedAvg | FedBuff | FedAsync
        if self.strategy == "fedavg":
            weighting = FedAvg()
        elif self.strategy == "fedasync":
            weighting = FedAsync(self.staleness_exponent, self.mixing or None)
        else:
            weighting = FedBuff(self.staleness_exponent)
        optimiser = None
        if self.server_optimiser != "none":
            name = cast("OptimiserName", self.server_optimiser)
            optimiser = ServerOptimiser(name=name, lr=self.server_lr, beta1=0.0 if name == "adagrad" else 0.9)
        if not (self.clip or self.compares or optimiser):
            return weighting
        return Pipeline(
            weighting=weighting,
            clip=self.clip or None,
            clip_to_median=self.clip_to_median or None,
            similarity=self.similarity or None,
            centre="mean" if self.robust == "none" else cast("Centre", self.robust),
            trim=self.trim,
            optimiser=optimiser,
        )
