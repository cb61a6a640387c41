"""The scorer that factor models share: user vector times item vector, and an item bias."""

from dataclasses import dataclass

import numpy as np

from trainer.params import Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FactorScorer:
    """Scores an item with ``p_u · q_i + b_i``. A bias of the user changes no ranking, so there is none.

    Attributes
    ----------
    user_factors : ndarray, shape (n_users, dim), float32
    item_factors : ndarray, shape (n_items, dim), float32
    item_bias : ndarray, shape (n_items,), float32
    """

    user_factors: Floats
    item_factors: Floats
    item_bias: Floats

    def scores(self, users: slice) -> Floats:
        """See `Scorer.scores`."""
        scores: Floats = np.dot(self.user_factors[users], self.item_factors.T)
        scores += self.item_bias
        return scores
