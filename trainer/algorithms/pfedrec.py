"""PFedRec (arXiv 2301.08143): a personal score function and a personal view of the items."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.algorithms.interface import Scoring, Shared
from trainer.algorithms.linear import LinearScoring, same_start
from trainer.local import LocalPasses, local_passes
from trainer.params import Floats, Hyperparameters, Rows, initial_table
from trainer.sampling import NegativeSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class PFedRec:
    """The paper's algorithm, and the two ablations that leave a step of it out.

    Attributes
    ----------
    own_rows : bool
        Whether users keep a view of the items of their own; without it only the user side is personal.
    joint : bool
        Step w, b and rows at once instead of one after the other (the unified optimisation).
    """

    name: str = "pfedrec"
    own_rows: bool = True
    joint: bool = False
    scoring: Scoring = field(default_factory=LinearScoring)

    def start(self, n_items: int, dim: int, scale: float, rng: np.random.Generator) -> Shared:
        """See `Algorithm.start`."""
        return Shared(table=initial_table(n_items, dim, rng, scale=scale))

    def start_users(self, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """See `Algorithm.start_users`."""
        return same_start(n_users, dim, rng)

    def local_passes(
        self,
        shared: Shared,
        W: Floats,
        b: Floats,
        positives: Sequence[Rows],
        samplers: Sequence[NegativeSampler],
        hyperparameters: Hyperparameters,
        rng: np.random.Generator,
    ) -> LocalPasses:
        """See `Algorithm.local_passes`."""
        return local_passes(shared.table, W, b, positives, samplers, hyperparameters, rng, joint=self.joint)
