"""How good a fleet of devices is from round to round, and which round was the best on validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker.presets import SelectBy
from edge.fleet.cohort import Float64Rows
from edge.fleet.device import VirtualDevice
from edge.fleet.outcome import FleetModel, Outcome, RoundQuality
from edge.fleet.scenario import Scenario
from trainer.algorithms import Shared
from trainer.algorithms.linear import LinearScoring
from trainer.evaluation import (
    OwnRowsView,
    Ranks,
    SharedView,
    ShiftedView,
    View,
    full_ranks,
    sampled_ranks,
    user_blocks,
)
from trainer.local import LocalResult
from trainer.metrics import metrics_from_ranks
from trainer.params import Floats, Rows, ScoreFunction
from trainer.taste import TasteSettings, contexts


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


class Evaluator:
    """Evaluates rounds and keeps the best on validation; of equal ones the later (as the paper)."""

    def __init__(
        self, scenario: Scenario, *, taste: TasteSettings | None = None, select_by: SelectBy = "hr"
    ) -> None:
        self._scenario = scenario
        self._taste = taste or TasteSettings()
        self._select_by = select_by
        self._best: Snapshot | None = None
        self._best_figure = -1.0

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
        W = snapshot.W + self._contexts(snapshot) if self._taste.strength else snapshot.W
        shared = SharedView(scoring=LinearScoring(), shared=Shared(table=table), W=W, b=snapshot.b)
        view = shared if self._taste.strength else OwnRowsView(base=shared, own=results)
        val, test = map(metrics_from_ranks, sampled_ranks(view, self._scenario.val, self._scenario.test))
        figure = val.hr if self._select_by == "hr" else val.ndcg
        if figure >= self._best_figure:
            self._best, self._best_figure = snapshot, figure
        return RoundQuality(val=val, test=test)

    def outcome(self) -> Outcome:
        """Give the best round with its ranks, in float64 from the arrays that a run's folder holds.

        Who computes them elsewhere finds the same ranks, whatever the order of the sums.
        """
        scenario, best = self._scenario, self.best
        shared = SharedView(
            scoring=LinearScoring(),
            shared=Shared(table=best.table.astype(np.float64)),
            W=best.W.astype(np.float64),
            b=best.b.astype(np.float64),
        )
        own_rows: list[tuple[Rows, Floats]] = []
        shift: Floats | None = None
        own: View
        if self._taste.strength:
            own = ShiftedView(base=shared, contexts=self._contexts(best), table=best.table)
            shift = np.concatenate([own.shift(block) for block in user_blocks(own)])
        else:
            own = OwnRowsView(base=shared, own=[None if r is None else Float64Rows(r) for r in best.results])
            none = (np.empty(0, dtype=np.int64), np.empty((0, best.table.shape[1]), dtype=np.float32))
            own_rows = [none if r is None else (r.rows, r.values) for r in best.results]
        return Outcome(
            round=best.round,
            version=best.version,
            model=FleetModel(shared=Shared(table=best.table), W=best.W, b=best.b, own=own_rows, shift=shift),
            ranks={
                name: Ranks(
                    sampled=sampled_ranks(view, scenario.test)[0],
                    full=full_ranks(view, scenario.split.train, scenario.split.test),
                )
                for name, view in (("own", own), ("shared", shared))
            },
        )

    def _contexts(self, snapshot: Snapshot) -> Floats:
        return contexts(snapshot.table, snapshot.W, self._scenario.split.train, self._taste)
