"""EASE^R: the linear item-item model with zero diagonal, in closed form (arXiv 1905.03375).

With ``P = (X'X + λI)^-1`` the weights are ``B_ij = -P_ij / P_jj``, ``B_jj = 0``; a user's scores are
``x·B``. It is exact, deterministic, and costs items³ time and items² memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.baselines.incidence import Incidence, cooccurrences
from trainer.baselines.interface import Samplers, Scorer
from trainer.errors import ParameterError
from trainer.params import Floats
from trainer.splits import Split

MAX_ITEMS = 20_000
"""A fit takes about 45 bytes for each pair of items at its peak: 18 GB here, and 2·items³ operations."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EaseScorer:
    """Sums the weights of the user's items.

    Attributes
    ----------
    by_user : Incidence
        The training interactions.
    weights : ndarray, shape (n_items, n_items), float32
        From the row's item to the column's; the diagonal is 0.
    """

    by_user: Incidence
    weights: Floats

    def scores(self, users: slice) -> Floats:
        """See `Scorer.scores`."""
        block = range(*users.indices(self.by_user.n_rows))
        scores = np.empty((len(block), self.by_user.n_columns), dtype=np.float32)
        for line, user in enumerate(block):
            np.add.reduce(self.weights.take(self.by_user.of(user), axis=0), axis=0, out=scores[line])
        return scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Ease:
    """EASE^R over a few strengths of the L2 penalty.

    Attributes
    ----------
    penalties : tuple of float
        λ, in users.

    Raises
    ------
    ParameterError
        When there is none, or one is not positive and finite.
    """

    penalties: tuple[float, ...] = (100.0, 200.0, 300.0, 500.0, 1000.0)

    def __post_init__(self) -> None:
        if not self.penalties or not all(0.0 < penalty < np.inf for penalty in self.penalties):
            raise ParameterError(f"penalties is {self.penalties}; it must list finite values above 0")

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "ease"

    def fits(
        self,
        split: Split,
        samplers: Samplers,  # noqa: ARG002
        dim: int,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`; more than `MAX_ITEMS` items are refused."""
        if split.n_items > MAX_ITEMS:
            raise ParameterError(
                f"EASE inverts an items x items matrix and takes at most {MAX_ITEMS} items, "
                f"not {split.n_items}; choose another baseline"
            )
        by_user = Incidence.of_training(split)
        by_item = by_user.transposed()
        gram = np.empty((split.n_items, split.n_items))
        for item in range(split.n_items):
            gram[item] = cooccurrences(by_user, by_item, item)
        for penalty in self.penalties:
            yield f"penalty {penalty:g}", EaseScorer(by_user=by_user, weights=ease_weights(gram, penalty))


def ease_weights(gram: NDArray[np.float64], penalty: float) -> Floats:
    """Solve for the weights.

    Parameters
    ----------
    gram : ndarray, shape (n_items, n_items), float64
        ``X'X``.
    penalty : float
        λ, above 0.

    Returns
    -------
    ndarray, shape (n_items, n_items), float32
    """
    regularised = gram.copy()
    np.einsum("ii->i", regularised)[:] += penalty
    inverse = np.linalg.inv(regularised)
    inverse /= -np.diagonal(inverse).copy()
    np.fill_diagonal(inverse, 0.0)
    weights: Floats = inverse.astype(np.float32)
    return weights
