"""PFedRec without its user side: one score function for the whole fleet, averaged like the table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trainer.algorithms.interface import OwnRows, Scores, Scoring, Shared
from trainer.algorithms.linear import LinearScoring, same_start
from trainer.local import LocalPasses, local_passes
from trainer.params import Floats, Hyperparameters, Rows, initial_score_function, initial_table
from trainer.sampling import NegativeSampler


@dataclass(frozen=True, slots=True)
class SharedScoring:
    """Scores every user with the fleet's score function, the network ``(w, b)``."""

    linear: LinearScoring = field(default_factory=LinearScoring)

    @property
    def whole_table_up_to(self) -> int:
        """See `Scoring`."""
        return self.linear.whole_table_up_to

    def of_table(self, W: Scores, b: Scores, shared: Shared) -> Scores:
        """See `Scoring.of_table`."""
        return self.linear.of_table(*self._everybodys(W, b, shared), shared)

    def of_rows(self, W: Scores, b: Scores, values: Scores, shared: Shared) -> Scores:
        """See `Scoring.of_rows`."""
        return self.linear.of_rows(*self._everybodys(W, b, shared), values, shared)

    def of_own(self, w: Scores, b: Scores, own: OwnRows, shared: Shared) -> Scores:  # noqa: ARG002
        """See `Scoring.of_own`."""
        return self.linear.of_own(shared.network[:-1], shared.network[-1:], own, shared)

    @staticmethod
    def _everybodys(W: Scores, b: Scores, shared: Shared) -> tuple[Scores, Scores]:
        return np.broadcast_to(shared.network[:-1], W.shape), np.broadcast_to(shared.network[-1:], b.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalScore:
    """PFedRec whose score function is the fleet's; with `own_rows` only the item side is personal."""

    name: str = "pfedrec-item"
    own_rows: bool = True
    scoring: Scoring = field(default_factory=SharedScoring)

    def start(self, n_items: int, dim: int, scale: float, rng: np.random.Generator) -> Shared:
        """See `Algorithm.start`."""
        table = initial_table(n_items, dim, rng, scale=scale)
        first = initial_score_function(dim, rng)
        return Shared(table=table, network=np.append(first.w, np.float32(first.b)))

    def start_users(self, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """See `Algorithm.start_users`; nothing of it is used."""
        return same_start(n_users, dim, rng)

    def local_passes(
        self,
        shared: Shared,
        W: Floats,  # noqa: ARG002 - the contract's signature
        b: Floats,  # noqa: ARG002
        positives: Sequence[Rows],
        samplers: Sequence[NegativeSampler],
        hyperparameters: Hyperparameters,
        rng: np.random.Generator,
    ) -> LocalPasses:
        """See `Algorithm.local_passes`; all start from the fleet's score function."""
        n_users = len(positives)
        first_W = np.repeat(shared.network[None, :-1], n_users, axis=0)
        first_b = np.repeat(shared.network[-1:], n_users)
        passes = local_passes(shared.table, first_W, first_b, positives, samplers, hyperparameters, rng)
        after = np.concatenate((passes.W, passes.b[:, None]), axis=1)
        return replace(passes, network_changes=after - shared.network)
