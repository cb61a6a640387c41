"""Popularity: the same ranking for everybody, by how many users have an item in training."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.baselines.incidence import Incidence
from trainer.baselines.interface import Samplers, Scorer
from trainer.params import Floats
from trainer.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PopularityScorer:
    """Scores an item with its number of users.

    Attributes
    ----------
    n_users : int
    counts : ndarray, shape (n_items,), float32
    """

    n_users: int
    counts: Floats

    def scores(self, users: slice) -> Floats:
        """See `Scorer.scores`."""
        return np.tile(self.counts, (len(range(*users.indices(self.n_users))), 1))


@dataclass(frozen=True, slots=True)
class Popularity:
    """The least that a recommender must beat. It has nothing to choose, hence one candidate."""

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "popularity"

    def fits(
        self,
        split: Split,
        samplers: Samplers,  # noqa: ARG002
        dim: int,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`."""
        by_user = Incidence.of_training(split)
        counts = np.bincount(by_user.columns, minlength=by_user.n_columns).astype(np.float32)
        yield "counts", PopularityScorer(n_users=by_user.n_rows, counts=counts)
