"""FedRecon: the user vector is rebuilt on the device from scratch in each round, then the items are updated.

Singhal et al., "Federated Reconstruction: Partially Local Federated Learning", 2021 (arXiv 2102.03448).
No state stays on the device between rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainer.algorithms.interface import Scoring, Shared
from trainer.algorithms.linear import LinearScoring, same_start
from trainer.local import LocalPasses, local_passes
from trainer.params import Floats, Hyperparameters, Rows, initial_table
from trainer.sampling import NegativeSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class FedRecon:
    """``z = p_u · e_i``; `reconstructions` passes on p_u alone, from zero, then one on the rows alone.

    Attributes
    ----------
    joint : bool
        Whether the rows' pass steps with the same gradient as p_u would; DualPer lets p_u go first.
    """

    name: str = "fedrecon"
    own_rows: bool = False
    joint: bool = True
    reconstructions: int = 10
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
        """See `Algorithm.local_passes`; of W only the shape counts."""
        user_only = replace(hyperparameters, item_lr=0.0)
        rebuilt, none = np.zeros_like(W), np.zeros_like(b)
        for _ in range(self.reconstructions):
            rebuilt = local_passes(
                shared.table, rebuilt, none, positives, samplers, user_only, rng, bias=False
            ).W
        items_only = hyperparameters if not self.joint else replace(hyperparameters, lr=0.0)
        return local_passes(
            shared.table, rebuilt, none, positives, samplers, items_only, rng, joint=self.joint, bias=False
        )
