"""Centralised neural collaborative filtering: what FedNCF approximates, without its constraints.

The MLP of NeuMF (He et al., arXiv 1708.05031): the user's and the item's vector side by side, hidden layers
that halve in width with ReLU, one logit. The loss is the mean over samples of the binary cross-entropy
plus ``decay/2 · (|p_u|² + |q_i|²)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.baselines.descent import (
    Batch,
    DescentSettings,
    Gradient,
    Parameters,
    Values,
    cross_entropy,
    descend,
    require_grid,
    summed_by_row,
)
from trainer.baselines.incidence import Incidence
from trainer.baselines.interface import Samplers, Scorer
from trainer.errors import ParameterError
from trainer.params import Floats, initial_table, sigmoid
from trainer.splits import Split

_INITIAL_SCALE = 0.1
_MAX_LAYERS = 8


@dataclass(frozen=True, slots=True, eq=False)
class NcfScorer:
    """Scores all items of a user in one pass through the layers.

    The first layer is linear in user and item before its ReLU, so the item's half of it is computed once.

    Attributes
    ----------
    parameters : dict of ndarray, float32
        See `initial_ncf`.
    """

    parameters: dict[str, Floats]

    def scores(self, users: slice) -> Floats:
        """See `Scorer.scores`."""
        vectors, items = self.parameters["users"][users], self.parameters["items"]
        dim = items.shape[1]
        first = self.parameters["weight-0"]
        by_user = np.dot(vectors, first[:dim])
        by_user += self.parameters["bias-0"]
        by_item = np.dot(items, first[dim:])
        scores = np.empty((len(vectors), len(items)), dtype=np.float32)
        for line, offset in enumerate(by_user):
            values = by_item + offset
            for layer in range(1, _n_layers(self.parameters)):
                np.maximum(values, 0.0, out=values)
                values = np.dot(values, self.parameters[f"weight-{layer}"])
                values += self.parameters[f"bias-{layer}"]
            scores[line] = values[:, 0]
        return scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Ncf:
    """Neural collaborative filtering by Adam over a grid of settings; a candidate after every epoch.

    Attributes
    ----------
    grid : tuple of DescentSettings
    hidden_layers : int
        The first is as wide as one vector, each next half as wide.

    Raises
    ------
    ParameterError
        When the grid is empty, or the number of layers out of range.
    """

    grid: tuple[DescentSettings, ...] = (
        DescentSettings(epochs=18, lr=0.003, decay=0.01, batch_size=512),
        DescentSettings(epochs=18, lr=0.003, decay=0.02, batch_size=512),
    )
    hidden_layers: int = 2

    def __post_init__(self) -> None:
        require_grid(self.grid)
        if not 1 <= self.hidden_layers <= _MAX_LAYERS:
            raise ParameterError(
                f"hidden_layers is {self.hidden_layers}; it must lie between 1 and {_MAX_LAYERS}"
            )

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "ncf"

    def fits(
        self, split: Split, samplers: Samplers, dim: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`."""
        by_user = Incidence.of_training(split)
        start = initial_ncf(by_user.n_rows, split.n_items, dim, self.hidden_layers, rng)
        fitted = descend(start, ncf_loss_and_gradients, by_user, samplers, self.grid, rng)
        for description, parameters in fitted:
            yield description, NcfScorer(parameters)


def initial_ncf(
    n_users: int, n_items: int, dim: int, hidden_layers: int, rng: np.random.Generator
) -> dict[str, Floats]:
    """Draw the first parameters: vectors N(0, 0.1²), weights N(0, 2 / width of their input), biases 0.

    Returns
    -------
    dict of ndarray, float32
        ``users`` of shape (n_users, dim) and ``items`` of shape (n_items, dim); for every layer k, the one
        that gives the logit included, ``weight-k`` of shape (n_in, n_out) and ``bias-k`` of shape (n_out,).

    Raises
    ------
    ParameterError
        When a size is out of range.
    """
    parameters = {
        name: initial_table(count, dim, rng, scale=_INITIAL_SCALE)
        for name, count in (("users", n_users), ("items", n_items))
    }
    widths = [2 * dim, *(max(1, dim >> layer) for layer in range(hidden_layers)), 1]
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        parameters[f"weight-{layer}"] = initial_table(n_in, n_out, rng, scale=float(np.sqrt(2.0 / n_in)))
        parameters[f"bias-{layer}"] = np.zeros(n_out, dtype=np.float32)
    return parameters


def ncf_loss_and_gradients(
    parameters: Parameters, batch: Batch, decay: float
) -> tuple[float, dict[str, Gradient]]:
    """Give the mean loss of a batch, and its gradient by every parameter; see `initial_ncf`."""
    vectors = np.concatenate((parameters["users"][batch.users], parameters["items"][batch.items]), axis=1)
    inputs: list[Values] = []
    values = vectors
    for layer in range(_n_layers(parameters)):
        if layer:
            values = np.maximum(values, 0.0)
        inputs.append(values)
        values = np.dot(values, parameters[f"weight-{layer}"]) + parameters[f"bias-{layer}"]
    logits = values[:, 0]
    n_samples = batch.labels.size
    loss = cross_entropy(logits, batch.labels)
    loss += 0.5 * decay * float(np.einsum("nd,nd->", vectors, vectors)) / n_samples

    gradients: dict[str, Gradient] = {}
    error = ((sigmoid(logits) - batch.labels) / n_samples)[:, None]
    for layer in reversed(range(len(inputs))):
        gradients[f"weight-{layer}"] = Gradient(rows=None, values=np.dot(inputs[layer].T, error))
        gradients[f"bias-{layer}"] = Gradient(rows=None, values=error.sum(axis=0))
        error = np.dot(error, parameters[f"weight-{layer}"].T)
        if layer:
            error *= inputs[layer] > 0.0
    error += vectors.dtype.type(decay / n_samples) * vectors
    dim = parameters["items"].shape[1]
    gradients["users"] = summed_by_row(batch.users, error[:, :dim])
    gradients["items"] = summed_by_row(batch.items, error[:, dim:])
    return loss, gradients


def _n_layers(parameters: Parameters) -> int:
    return sum(name.startswith("weight-") for name in parameters)
