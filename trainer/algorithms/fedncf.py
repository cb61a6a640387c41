"""FedNCF: federated neural collaborative filtering; a small network scores user and item vectors.

Perifanis and Efraimidis, "Federated Neural Collaborative Filtering", 2022 (arXiv 2106.04405): the user vector
stays on the device; the item table and the network are averaged.

    h_1 = relu(A_1ᵀ·[p_u; e_i] + c_1),  h_l = relu(A_lᵀ·h_(l-1) + c_l),  z = a·h_L + c
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.algorithms.interface import OwnRows, Scores, Shared
from trainer.algorithms.linear import own_starts
from trainer.batches import Batch, draw_batches
from trainer.errors import ParameterError
from trainer.local import LocalPasses
from trainer.params import Floats, Hyperparameters, Rows, as_index, initial_table
from trainer.sampling import NegativeSampler

Layers = list[tuple[Scores, Scores]]
"""Weights of shape (n_in, n_out) and offsets of shape (n_out,), from the first layer to the logit."""


def layer_sizes(dim: int, widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Give each layer's inputs and outputs, the logit's included."""
    return list(pairwise((2 * dim, *widths, 1)))


def as_layers(network: Scores, dim: int, widths: tuple[int, ...]) -> Layers:
    """Cut the flat network into its layers; views, not copies."""
    layers, at = [], 0
    for n_in, n_out in layer_sizes(dim, widths):
        A = network[at : at + n_in * n_out].reshape(n_in, n_out)
        at += n_in * n_out
        layers.append((A, network[at : at + n_out]))
        at += n_out
    return layers


def loss_gradients(
    p: Scores, values: Scores, network: Scores, widths: tuple[int, ...], g_of: Callable[[Scores], Scores]
) -> tuple[Scores, Scores, Scores]:
    """Give the gradients for p, the rows and the network of a loss that is a sum over the rows' logits.

    Parameters
    ----------
    p : ndarray, shape (dim,)
    values : ndarray, shape (n_rows, dim)
    g_of : callable
        Gives the loss's derivative by each row's logit, shape (n_rows,), from the logits.

    Returns
    -------
    (ndarray, shape (dim,), ndarray, shape (n_rows, dim), ndarray, shape (n_network,))
    """
    dim = p.size
    layers = as_layers(network, dim, widths)
    first, offset = layers[0]
    hidden = [np.maximum(np.dot(values, first[dim:]) + (np.dot(p, first[:dim]) + offset), 0)]
    for A, c in layers[1:-1]:
        hidden.append(np.maximum(np.dot(hidden[-1], A) + c, 0))
    last, constant = layers[-1]
    upstream = g_of((np.dot(hidden[-1], last) + constant)[:, 0])[:, None]
    gradients: list[Scores] = []
    for (A, _), below in zip(reversed(layers[1:]), reversed(hidden), strict=True):
        gradients += [upstream.sum(axis=0), np.dot(below.T, upstream).ravel()]
        upstream = np.dot(upstream, A.T)
        upstream *= below > 0
    total = upstream.sum(axis=0)
    by_user, by_item = np.outer(p, total), np.dot(values.T, upstream)
    gradients += [total, np.concatenate((by_user, by_item)).ravel()]
    gradients.reverse()
    return np.dot(first[:dim], total), np.dot(upstream, first[dim:].T), np.concatenate(gradients)


@dataclass(frozen=True, slots=True)
class NeuralScoring:
    """See `trainer.algorithms.interface.Scoring`."""

    widths: tuple[int, ...]
    whole_table_up_to: int = 0

    def of_table(self, W: Scores, b: Scores, shared: Shared) -> Scores:  # noqa: ARG002 - there is no bias
        """See `Scoring.of_table`."""
        layers = as_layers(shared.network, W.shape[1], self.widths)
        first, offset = layers[0]
        # The items' half of the first layer is the same for all users.
        by_item = np.dot(shared.table, first[W.shape[1] :])
        by_user = np.dot(W, first[: W.shape[1]]) + offset
        return np.stack([_upwards(by_item + line, layers) for line in by_user])

    def of_rows(self, W: Scores, b: Scores, values: Scores, shared: Shared) -> Scores:  # noqa: ARG002
        """See `Scoring.of_rows`."""
        layers = as_layers(shared.network, W.shape[1], self.widths)
        first, offset = layers[0]
        by_item = np.dot(values, first[W.shape[1] :])
        by_user = np.dot(W, first[: W.shape[1]]) + offset
        return _upwards(by_item + by_user[:, None, :], layers)

    def of_own(self, w: Scores, b: Scores, own: OwnRows, shared: Shared) -> Scores:
        """See `Scoring.of_own`."""
        scores: Scores = self.of_rows(w[None], np.atleast_1d(b), own.values[None], shared)[0]
        return scores


def _upwards(first_sums: Scores, layers: Layers) -> Scores:
    """Give the logits from the first layer's sums, shape (..., n_first); shape (...,)."""
    h = np.maximum(first_sums, 0)
    for A, c in layers[1:-1]:
        h = np.maximum(np.matmul(h, A) + c, 0)
    last, constant = layers[-1]
    z: Scores = (np.matmul(h, last) + constant)[..., 0]
    return z


@dataclass(frozen=True, kw_only=True, slots=True)
class FedNCF:
    """FedNCF with layers of the given widths.

    Attributes
    ----------
    joint : bool
        False steps user vector and network first, then the rows: what DualPer asks for.
    user_scale : float
        Standard deviation of the first user vectors.
    """

    name: str = "fedncf"
    own_rows: bool = False
    joint: bool = True
    widths: tuple[int, ...] = (16,)
    user_scale: float = 0.5

    @property
    def scoring(self) -> NeuralScoring:
        """See `Algorithm`."""
        return NeuralScoring(self.widths)

    def start(self, n_items: int, dim: int, scale: float, rng: np.random.Generator) -> Shared:
        """See `Algorithm.start`; weights are uniform in ±sqrt(6 / (n_in + n_out)), offsets 0."""
        table = initial_table(n_items, dim, rng, scale=scale)
        parts = []
        for n_in, n_out in layer_sizes(dim, self.widths):
            bound = np.sqrt(6.0 / (n_in + n_out))
            parts += [rng.uniform(-bound, bound, n_in * n_out), np.zeros(n_out)]
        return Shared(table=table, network=np.concatenate(parts).astype(np.float32))

    def start_users(self, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """See `Algorithm.start_users`."""
        return own_starts(n_users, dim, rng, scale=self.user_scale)

    def local_passes(
        self,
        shared: Shared,
        W: Floats,
        b: Floats,  # noqa: ARG002 - there is no bias
        positives: Sequence[Rows],
        samplers: Sequence[NegativeSampler],
        hyperparameters: Hyperparameters,
        rng: np.random.Generator,
    ) -> LocalPasses:
        """See `Algorithm.local_passes`."""
        if W.shape[1:] != shared.table.shape[1:]:
            raise ParameterError(
                f"w has shape {W.shape[1:]}; the rows of the table have {shared.table.shape[1:]}"
            )
        drawn = draw_batches(len(shared.table), positives, samplers, hyperparameters, rng)
        n_users, dim = W.shape
        after = np.empty_like(W)
        networks = np.empty((n_users, shared.network.size), dtype=np.float32)
        changes = np.zeros((n_users, dim, drawn.rows.shape[1]), dtype=np.float32)
        for user, p in enumerate(W):
            rows, batches = drawn.of(user)
            before: Floats = shared.table.take(as_index(rows), axis=0)
            after[user], values, networks[user] = self._trained(
                p, before, shared.network, batches, hyperparameters
            )
            changes[user, :, : rows.size] = (values - before).T
        return LocalPasses(
            W=after,
            b=np.zeros(n_users, dtype=np.float32),
            drawn=drawn,
            table=shared.table,
            coefficients=changes,
            vectors=np.broadcast_to(np.eye(dim, dtype=np.float32), (n_users, dim, dim)),
            network_changes=networks - shared.network,
        )

    def _trained(
        self,
        p: Floats,
        before: Floats,
        network: Floats,
        batches: list[Batch],
        hyperparameters: Hyperparameters,
    ) -> tuple[Floats, Floats, Floats]:
        """Give the user vector, the rows and the network after a user's pass."""
        values = before.copy()
        lr, item_lr = np.float32(hyperparameters.lr), np.float32(hyperparameters.item_lr)
        for batch in batches:
            touched = batch.samples.nonzero()[0]
            g_of = batch.among(touched).gradient
            by_p, by_rows, by_network = loss_gradients(p, values[touched], network, self.widths, g_of)
            by_p = by_p + np.float32(hyperparameters.decay) * p
            p, network = p - lr * by_p, network - lr * by_network
            if not self.joint:
                by_rows = loss_gradients(p, values[touched], network, self.widths, g_of)[1]
            values[touched] -= item_lr * by_rows
        return p, values, network
