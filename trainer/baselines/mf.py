"""Centralised matrix factorisation: what FedMF approximates, without its constraints.

A pair's logit is ``p_u · q_i + a_u + b_i``; the loss is the mean over samples of the binary cross-entropy
plus ``decay/2 · (|p_u|² + |q_i|²)`` (Koren, Bell and Volinsky, Computer 2009, with implicit feedback).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.baselines.descent import (
    Batch,
    DescentSettings,
    Gradient,
    Parameters,
    cross_entropy,
    descend,
    require_grid,
    summed_by_row,
)
from trainer.baselines.factors import FactorScorer
from trainer.baselines.incidence import Incidence
from trainer.baselines.interface import Samplers, Scorer
from trainer.params import Floats, initial_table, sigmoid
from trainer.splits import Split

_INITIAL_SCALE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Mf:
    """Matrix factorisation by Adam over a grid of settings; a candidate after every epoch.

    Attributes
    ----------
    grid : tuple of DescentSettings

    Raises
    ------
    ParameterError
        When the grid is empty.
    """

    grid: tuple[DescentSettings, ...] = (
        DescentSettings(epochs=30, lr=0.005, decay=0.01),
        DescentSettings(epochs=30, lr=0.005, decay=0.015),
    )

    def __post_init__(self) -> None:
        require_grid(self.grid)

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "mf"

    def fits(
        self, split: Split, samplers: Samplers, dim: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`."""
        by_user = Incidence.of_training(split)
        start = initial_mf(by_user.n_rows, split.n_items, dim, rng)
        fitted = descend(start, mf_loss_and_gradients, by_user, samplers, self.grid, rng)
        for description, parameters in fitted:
            yield (
                description,
                FactorScorer(
                    user_factors=parameters["users"][:, :-1],
                    item_factors=parameters["items"][:, :-1],
                    item_bias=parameters["items"][:, -1],
                ),
            )


def initial_mf(n_users: int, n_items: int, dim: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Draw the first parameters: vectors N(0, 0.1²), biases 0.

    Returns
    -------
    dict of ndarray, float32
        ``users`` of shape (n_users, dim + 1) and ``items`` of shape (n_items, dim + 1): the bias last.

    Raises
    ------
    ParameterError
        When a size is out of range.
    """
    return {
        name: np.pad(initial_table(count, dim, rng, scale=_INITIAL_SCALE), ((0, 0), (0, 1)))
        for name, count in (("users", n_users), ("items", n_items))
    }


def mf_loss_and_gradients(
    parameters: Parameters, batch: Batch, decay: float
) -> tuple[float, dict[str, Gradient]]:
    """Give the mean loss of a batch, and its gradients by ``users`` and ``items``; see `initial_mf`."""
    users, items = parameters["users"][batch.users], parameters["items"][batch.items]
    p, q = users[:, :-1], items[:, :-1]
    logits = np.einsum("nd,nd->n", p, q) + users[:, -1] + items[:, -1]
    penalty = 0.5 * decay * float(np.einsum("nd,nd->", p, p) + np.einsum("nd,nd->", q, q)) / batch.labels.size
    error = (sigmoid(logits) - batch.labels) / batch.labels.size
    shrink = users.dtype.type(decay / batch.labels.size)
    by_user, by_item = np.empty_like(users), np.empty_like(items)
    by_user[:, :-1] = error[:, None] * q + shrink * p
    by_item[:, :-1] = error[:, None] * p + shrink * q
    by_user[:, -1] = by_item[:, -1] = error
    return cross_entropy(logits, batch.labels) + penalty, {
        "users": summed_by_row(batch.users, by_user),
        "items": summed_by_row(batch.items, by_item),
    }
