"""FedMF: federated matrix factorisation; user vectors stay on the devices, the item table is averaged.

Chai et al., "Secure Federated Matrix Factorization", 2020 (arXiv 1906.05108), with the binary
cross-entropy and sampled negatives that PFedRec's paper compares it with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.algorithms.interface import Scoring, Shared
from trainer.algorithms.linear import LinearScoring, own_starts
from trainer.local import LocalPasses, local_passes
from trainer.params import Floats, Hyperparameters, Rows, initial_table
from trainer.sampling import NegativeSampler


@dataclass(frozen=True, kw_only=True, slots=True)
class FedMF:
    """``z = p_u · e_i``; user vector and rows step at once.

    Attributes
    ----------
    joint : bool
        False steps the user vector first, then the rows: what DualPer asks for.
    user_scale : float
        Standard deviation of the first user vectors.
    """

    name: str = "fedmf"
    own_rows: bool = False
    joint: bool = True
    user_scale: float = 0.1
    scoring: Scoring = field(default_factory=LinearScoring)

    def start(self, n_items: int, dim: int, scale: float, rng: np.random.Generator) -> Shared:
        """See `Algorithm.start`."""
        return Shared(table=initial_table(n_items, dim, rng, scale=scale))

    def start_users(self, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """See `Algorithm.start_users`."""
        return own_starts(n_users, dim, rng, scale=self.user_scale)

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
        return local_passes(
            shared.table, W, b, positives, samplers, hyperparameters, rng, joint=self.joint, bias=False
        )
