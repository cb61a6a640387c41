"""Scoring by a product: ``z = w · e_i + b``, what all algorithms here but FedNCF do."""

from dataclasses import dataclass

import numpy as np

from trainer.algorithms.interface import OwnRows, Scores, Shared
from trainer.params import Floats, initial_score_function


@dataclass(frozen=True, slots=True)
class LinearScoring:
    """See `trainer.algorithms.interface.Scoring`."""

    whole_table_up_to: int = 16_384

    def of_table(self, W: Scores, b: Scores, shared: Shared) -> Scores:
        """See `Scoring.of_table`."""
        scores: Scores = np.dot(W, shared.table.T)
        scores += b[:, None]
        return scores

    def of_rows(self, W: Scores, b: Scores, values: Scores, shared: Shared) -> Scores:  # noqa: ARG002
        """See `Scoring.of_rows`."""
        scores: Scores = np.matmul(values, W[:, :, None])[:, :, 0]
        scores += b[:, None]
        return scores

    def of_own(self, w: Scores, b: Scores, own: OwnRows, shared: Shared) -> Scores:  # noqa: ARG002
        """See `Scoring.of_own`."""
        scores: Scores = own.products(w)
        scores += b
        return scores


def same_start(n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Start all users from one score function, as PFedRec does."""
    start = initial_score_function(dim, rng)
    return np.tile(start.w, (n_users, 1)), np.full(n_users, start.b, dtype=np.float32)


def own_starts(n_users: int, dim: int, rng: np.random.Generator, *, scale: float) -> tuple[Floats, Floats]:
    """Start each user from a vector of its own from N(0, scale²), without a bias: matrix factorisation."""
    W = rng.standard_normal((n_users, dim), dtype=np.float32)
    W *= np.float32(scale)
    return W, np.zeros(n_users, dtype=np.float32)
