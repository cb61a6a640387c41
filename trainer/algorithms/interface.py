"""The contract of a federated algorithm: clients with a vector each, and an item table that they share.

An algorithm is four things: what the fleet shares, where users start, one local pass, and how a user scores
items. How passes are combined into rounds, who runs them and how they are evaluated is the same for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.local import LocalPasses
from trainer.params import Floats, Hyperparameters, Rows
from trainer.sampling import NegativeSampler

Scores = NDArray[np.floating[Any]]
"""Float32 where speed matters; float64 where others are to find the same ranks in their own way."""


def no_network() -> Floats:
    """Give the network of an algorithm that has none."""
    return np.empty(0, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shared:
    """What the fleet shares, as of one server round.

    Attributes
    ----------
    table : ndarray, shape (n_items, dim), float32
    network : ndarray, shape (n_network,), float32
        All other shared parameters, flat; empty for most algorithms.
    """

    table: Scores
    network: Scores = field(default_factory=no_network)


class OwnRows(Protocol):
    """A user's own view of some rows of the item table."""

    @property
    def rows(self) -> Rows:
        """The rows, ascending; shape (n_own,)."""
        ...

    @property
    def values(self) -> Scores:
        """Their values; shape (n_own, dim)."""
        ...

    def values_at(self, positions: Rows, /) -> Scores:
        """Give some of the values, by their positions in `rows`."""
        ...

    def products(self, w: Scores, /) -> Scores:
        """Give ``values · w``; shape (n_own,)."""
        ...


class Scoring(Protocol):
    """How users score items: logits from score functions (W, b) and item rows.

    Attributes
    ----------
    whole_table_up_to : int
        Catalogues up to this size are scored as a whole where only some items of each user are asked for.
    """

    @property
    def whole_table_up_to(self) -> int: ...  # noqa: D102 - see above

    def of_table(self, W: Scores, b: Scores, shared: Shared) -> Scores:
        """Score all items for some users.

        Parameters
        ----------
        W : ndarray, shape (n_users, dim)
        b : ndarray, shape (n_users,)

        Returns
        -------
        ndarray, shape (n_users, n_items)
        """
        ...

    def of_rows(self, W: Scores, b: Scores, values: Scores, shared: Shared) -> Scores:
        """Score some rows for each user, given as `values` of shape (n_users, k, dim); shape (n_users, k)."""
        ...

    def of_own(self, w: Scores, b: Scores, own: OwnRows, shared: Shared) -> Scores:
        """Score a user's own rows; shape (n_own,)."""
        ...


class Algorithm(Protocol):
    """A federated algorithm whose clients share an item table.

    Attributes
    ----------
    name : str
    own_rows : bool
        Whether a user scores with the rows that its last pass left laid over the shared table.
    scoring : Scoring
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see above

    @property
    def own_rows(self) -> bool: ...  # noqa: D102

    @property
    def scoring(self) -> Scoring: ...  # noqa: D102

    def start(self, n_items: int, dim: int, scale: float, rng: np.random.Generator) -> Shared:
        """Draw what the fleet shares at first, the table from N(0, scale²)."""
        ...

    def start_users(self, n_users: int, dim: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Draw where users start: W of shape (n_users, dim) and b of shape (n_users,)."""
        ...

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
        """Train one pass of each of several users, who need equally many batches.

        See `trainer.local.local_passes`.
        """
        ...
