"""What a recommender without federation offers, so that one comparison serves them all.

This file knows neither a baseline nor how candidates are evaluated and chosen.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from trainer.params import Floats
from trainer.sampling import NegativeSampler
from trainer.splits import Split

Samplers = Callable[[int], NegativeSampler]
"""Gives the sampler of a user's training negatives under the protocol that is compared."""


class Scorer(Protocol):
    """A fitted recommender. The evaluation asks it for one block of users at a time."""

    def scores(self, users: slice) -> Floats:
        """Score every item for a block of users, the larger the better.

        Parameters
        ----------
        users : slice
            Of the split's users. As everywhere in Python, it may end beyond the last one.

        Returns
        -------
        ndarray, shape (n_block, n_items), float32
            Users in order. It MUST be a new array, as the caller writes into it.
        """
        ...


class Baseline(Protocol):
    """A way to fit a recommender on the training items of all users together."""

    @property
    def name(self) -> str:
        """The key in the registry."""
        ...

    def fits(
        self, split: Split, samplers: Samplers, dim: int, rng: np.random.Generator
    ) -> Iterator[tuple[str, Scorer]]:
        """Yield the candidates to choose from on validation, each with a short description of its own.

        There is one for each hyperparameter setting, and for iterative methods one for each epoch of
        it. A yielded scorer MUST stay as it is when the next one is made. Held-out items MUST have no
        influence but through `samplers`.

        Parameters
        ----------
        samplers : callable
            A method that draws negatives MUST take them from here; others ignore it.
        dim : int
            Width of the embeddings; ignored by methods that have none.
        rng : numpy.random.Generator
            The only source of randomness: the same state gives the same candidates, if nobody else
            draws from it before the last one.

        Raises
        ------
        When the first candidate is asked for:

        DataTooSmallError
            When the split has no training interaction.
        ParameterError
            When `dim` is out of range, or the catalogue is larger than the method can take.
        """
        ...
