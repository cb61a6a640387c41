"""Which candidate of a baseline is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.algorithms import Scores
from trainer.baselines.interface import Baseline, Samplers, Scorer
from trainer.errors import ParameterError
from trainer.evaluation import sampled_ranks
from trainer.metrics import RankingMetrics, metrics_from_ranks
from trainer.params import Rows
from trainer.splits import Split

OnCandidate = Callable[[int, str, "ScorerView", RankingMetrics], None]
"""Told of each candidate: its index, its description, its view and its validation figures."""


@dataclass(frozen=True, slots=True, eq=False)
class ScorerView:
    """A plain scorer as `trainer.evaluation` sees any recommender."""

    scorer: Scorer
    n_users: int
    n_items: int

    def scores(self, users: slice) -> Scores:
        """See `View.scores`."""
        return self.scorer.scores(users)

    def candidate_scores(self, users: slice, rows: Rows) -> Scores:
        """See `View.candidate_scores`."""
        return np.take_along_axis(self.scores(users), rows, axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BestFit:
    """The candidate that validation chose.

    Attributes
    ----------
    description : str
    view : ScorerView
    val : RankingMetrics
        Sampled ranking of the validation items.
    index : int
        Among the candidates, from 0.
    """

    description: str
    view: ScorerView
    val: RankingMetrics
    index: int


def best_fit(
    baseline: Baseline,
    split: Split,
    samplers: Samplers,
    dim: int,
    val_candidates: Rows,
    rng: np.random.Generator,
    on_candidate: OnCandidate | None = None,
    *,
    by: Literal["hr", "ndcg"] = "ndcg",
) -> BestFit:
    """Fit a baseline and keep the candidate with the best validation figure; of equal ones, the latest.

    Parameters
    ----------
    val_candidates : ndarray, shape (n_users, n_candidates), int64
        For each user the validation item first, then negatives.
    by : {"ndcg", "hr"}
        The figure that decides.

    Raises
    ------
    ParameterError
        When `val_candidates` is not of the split's users, or what the baseline raises; see `Baseline.fits`.
    """
    if len(val_candidates) != len(split.train):
        raise ParameterError(f"there are candidates of {len(val_candidates)} users, not {len(split.train)}")
    best: BestFit | None = None
    for index, (description, scorer) in enumerate(baseline.fits(split, samplers, dim, rng)):
        view = ScorerView(scorer, len(split.train), split.n_items)
        val = metrics_from_ranks(sampled_ranks(view, val_candidates)[0])
        if on_candidate is not None:
            on_candidate(index, description, view, val)
        if best is None or getattr(val, by) >= getattr(best.val, by):
            best = BestFit(description=description, view=view, val=val, index=index)
    if best is None:
        raise ParameterError(f"{baseline.name} gave no candidate")
    return best
