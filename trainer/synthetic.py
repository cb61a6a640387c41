"""A generated data set with a known structure, for a first run without any file.

Items belong to groups and have a popularity that falls off as in real catalogues (Zipf). Each user
favours a few groups; most of a user's interactions come from those, by popularity within the group.
So popularity alone ranks tolerably, and a model that learns groups ranks much better.
"""

from dataclasses import dataclass

import numpy as np

from trainer.errors import ParameterError
from trainer.splits import Interactions

_LEAST_INTERACTIONS = 12
"""More than the ten that data sets are filtered by, so that no generated user is dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSettings:
    """Sizes of the generated data set.

    Attributes
    ----------
    n_users, n_items, n_groups : int
        Groups divide the items as evenly as possible.
    favourite_groups : int
        How many groups a user favours.
    loyalty : float
        The fraction of interactions from favoured groups; the others follow popularity.
    mean_interactions : int
        Mean of a user's interactions; the least is 12.
    """

    n_users: int = 200
    n_items: int = 400
    n_groups: int = 10
    favourite_groups: int = 2
    loyalty: float = 0.9
    mean_interactions: int = 30

    def __post_init__(self) -> None:
        if self.n_users < 1:
            raise ParameterError(f"n_users is {self.n_users}; it must be at least 1")
        if not 1 <= self.favourite_groups <= self.n_groups <= self.n_items:
            raise ParameterError("favourite_groups, n_groups and n_items must each be at most the next")
        if not _LEAST_INTERACTIONS <= self.mean_interactions <= self.n_items // 4:
            raise ParameterError(
                f"mean_interactions is {self.mean_interactions}; "
                f"it must lie between {_LEAST_INTERACTIONS} and a quarter of n_items, {self.n_items // 4}"
            )
        if not 0.0 <= self.loyalty <= 1.0:
            raise ParameterError(f"loyalty is {self.loyalty}; it must lie between 0 and 1")
        if (
            self.loyalty == 1.0
            and self.favourite_groups * (self.n_items // self.n_groups) < _LEAST_INTERACTIONS
        ):
            raise ParameterError(
                f"with a loyalty of 1 the favourite groups must hold at least {_LEAST_INTERACTIONS} items"
            )


def generate(settings: SyntheticSettings, rng: np.random.Generator) -> Interactions:
    """Draw a data set; the same settings and generator state give the same one.

    Users are ``user-0001`` and so on, items ``item-0001`` and so on.
    """
    n_items = settings.n_items
    group_of = rng.permutation(np.arange(n_items) % settings.n_groups)
    popularity = 1.0 / np.arange(10, n_items + 10)
    rng.shuffle(popularity)
    histories = []
    for _ in range(settings.n_users):
        favourites = rng.choice(settings.n_groups, settings.favourite_groups, replace=False)
        favoured = np.where(np.isin(group_of, favourites), popularity, 0.0)
        chance = settings.loyalty * favoured / favoured.sum()
        chance += (1.0 - settings.loyalty) * popularity / popularity.sum()
        extra = rng.poisson(settings.mean_interactions - _LEAST_INTERACTIONS)
        count = min(_LEAST_INTERACTIONS + int(extra), int(np.count_nonzero(chance)))
        # The largest of log(p) + Gumbel noise are a draw without replacement, in order (Gumbel top-k).
        noisy = np.log(np.maximum(chance, 1e-300)) + rng.gumbel(size=n_items)
        histories.append(rng.permutation(np.argpartition(-noisy, count - 1)[:count]))
    width = max(4, len(str(max(settings.n_users, n_items))))
    return Interactions(
        user_keys=tuple(f"user-{user:0{width}d}" for user in range(1, settings.n_users + 1)),
        item_keys=tuple(f"item-{item:0{width}d}" for item in range(1, n_items + 1)),
        indptr=np.concatenate(([0], np.cumsum([len(h) for h in histories]))).astype(np.int64),
        items=np.concatenate(histories).astype(np.int64),
        timed=False,
    )
