"""A recommender without federation, fitted on everybody's data, on a fleet's split and candidates."""

import time

import numpy as np

from edge.fleet.outcome import Outcome, RoundQuality
from edge.fleet.runfolder import OnRound, RoundReport, Stopwatch, Traffic
from edge.fleet.scenario import Scenario
from trainer.baselines import Baseline, ScorerView, best_fit
from trainer.evaluation import Ranks, full_ranks, sampled_ranks
from trainer.metrics import RankingMetrics, metrics_from_ranks


class BaselineFit:
    """Fits all candidates of a baseline; each is a round of the results.

    Raises
    ------
    ParameterError
        From `run`, when the data is too large for the method.
    """

    def __init__(
        self, baseline: Baseline, scenario: Scenario, dim: int, seed: int, on_round: OnRound
    ) -> None:
        self._baseline = baseline
        self._scenario = scenario
        self._dim = dim
        self._seed = seed
        self._on_round = on_round
        self._began = time.perf_counter()

    def resume(self) -> int:
        """Start anew: a fit takes less than a minute."""
        return 0

    def run(self, *, users: bool = False) -> Outcome:  # noqa: ARG002 - there are none
        """Fit, and give the best candidate by validation NDCG@10."""
        scenario, split = self._scenario, self._scenario.split
        rng = np.random.default_rng([self._seed, 0])
        self._began = time.perf_counter()
        best = best_fit(
            self._baseline, split, scenario.sampler, self._dim, scenario.val, rng, self._on_candidate
        )
        ranks = Ranks(
            sampled=sampled_ranks(best.view, scenario.test)[0],
            full=full_ranks(best.view, split.train, split.test),
        )
        return Outcome(
            round=best.index + 1,
            version=best.index + 1,
            description=best.description,
            ranks={"own": ranks, "shared": ranks},
        )

    def _on_candidate(
        self,
        index: int,
        description: str,  # noqa: ARG002 - the outcome has that of the best
        view: ScorerView,
        val: RankingMetrics,
    ) -> None:
        test = metrics_from_ranks(sampled_ranks(view, self._scenario.test)[0])
        seconds = time.perf_counter() - self._began
        self._on_round(
            RoundReport(
                number=index + 1,
                version=index + 1,
                quality=RoundQuality(val=val, test=test),
                watch=Stopwatch(train=seconds, total=seconds),
                traffic=Traffic(),
                staleness_mean=0.0,
            )
        )
        self._began = time.perf_counter()
