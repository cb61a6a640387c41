"""How good a fleet is from round to round, and which round was the best on validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.fleet.device import VirtualDevice
from edge.fleet.scenario import Scenario
from trainer.evaluation import Population, Scores, ViewMetrics, full_metrics, sampled_metrics
from trainer.local import LocalResult
from trainer.metrics import RankingMetrics
from trainer.params import Floats, Rows, ScoreFunction


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """A round's whole state.

    Attributes
    ----------
    table : ndarray, shape (n_items, dim), float32
    W : ndarray, shape (n_users, dim), float32
    b : ndarray, shape (n_users,), float32
    results : list of LocalResult or None
        Every user's newest pass; None for a user who has not trained yet.
    """

    round: int
    version: int
    table: Floats
    W: Floats
    b: Floats
    results: list[LocalResult | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundQuality:
    """Own view, sampled ranking."""

    val: RankingMetrics
    test: RankingMetrics


class Evaluator:
    """Evaluates rounds and keeps the best by validation HR@10; of equal ones the later (as the paper)."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._best: Snapshot | None = None
        self._best_hr = -1.0

    @property
    def best(self) -> Snapshot:
        """The best round so far; there must have been one."""
        if self._best is None:
            raise RuntimeError("no round was evaluated")
        return self._best

    @np.errstate(over="ignore", invalid="ignore")
    def evaluate(
        self, number: int, version: int, table: Floats, devices: Sequence[VirtualDevice], start: ScoreFunction
    ) -> RoundQuality:
        """Evaluate a round.

        Parameters
        ----------
        start : ScoreFunction
            What a device has that has not trained yet.
        """
        results = [device.result for device in devices]
        functions = [start if result is None else result.score_function for result in results]
        snapshot = Snapshot(
            round=number,
            version=version,
            table=table,
            W=np.stack([function.w for function in functions]),
            b=np.array([function.b for function in functions], dtype=np.float32),
            results=results,
        )
        population = Population(W=snapshot.W, b=snapshot.b, own=results)
        val, test = sampled_metrics(table, population, (self._scenario.val, self._scenario.test), own=True)
        if val.hr >= self._best_hr:
            self._best, self._best_hr = snapshot, val.hr
        return RoundQuality(val=val, test=test)

    def final(self) -> dict[str, ViewMetrics]:
        """Give the best round's test figures of both views, ``own`` and ``shared``.

        In float64, from the arrays that a run's folder holds: who computes them elsewhere finds the same
        ranks, whatever the order of the sums.
        """
        scenario, best = self._scenario, self.best
        table = best.table.astype(np.float64)
        population = Population(
            W=best.W.astype(np.float64),
            b=best.b.astype(np.float64),
            own=[None if result is None else _Float64View(result) for result in best.results],
        )
        views = {}
        for name, own in (("own", True), ("shared", False)):
            (sampled,) = sampled_metrics(table, population, (scenario.test,), own=own)
            full = full_metrics(table, population, scenario.split, own=own)
            views[name] = ViewMetrics(sampled=sampled, full=full)
        return views


@dataclass(frozen=True, slots=True, eq=False)
class _Float64View:
    """A pass's own view in float64."""

    result: LocalResult

    @property
    def rows(self) -> Rows:
        return self.result.rows

    def products(self, w: Scores, /) -> Scores:
        products: Scores = np.dot(self.result.values.astype(np.float64), w)
        return products
