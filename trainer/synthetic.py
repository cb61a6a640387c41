"""A generated data set with a known structure, for a first run without any file.

Items belong to groups and have a popularity that falls off as in real catalogues (Zipf). Each user
favours a few groups; most of a user's interactions come from those, by popularity within the group.
So popularity alone ranks tolerably, and a model that learns groups ranks much better.

`generate` looks at every item for every user; `generate_large` draws from the same distribution (not the
same data) at a cost that grows with the interactions only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError
from trainer.params import Rows
from trainer.splits import Interactions

_LEAST_INTERACTIONS = 12
"""More than the ten that data sets are filtered by, so that no generated user is dropped."""
_BLOCK_DRAWS = 1 << 20


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
    return _interactions(
        settings, np.array([len(history) for history in histories]), np.concatenate(histories)
    )


def generate_large(settings: SyntheticSettings, rng: np.random.Generator) -> Interactions:
    """Draw a data set of the same kind as `generate` does, in time and memory of its interactions.

    A user's items are drawn with replacement until there are as many different ones as the user has
    interactions. That is a draw without replacement; the few users who would need too many draws get the
    rest of their items as in `generate`.
    """
    catalogue = _Catalogue.drawn(settings, rng)
    mean = settings.mean_interactions
    counts = _LEAST_INTERACTIONS + rng.poisson(mean - _LEAST_INTERACTIONS, settings.n_users)
    n_draws = 2 * mean + 64
    block = max(1, _BLOCK_DRAWS // n_draws)
    items = []
    for start in range(0, settings.n_users, block):
        counts[start : start + block], histories = _histories(
            catalogue, settings, counts[start : start + block], n_draws, rng
        )
        items.append(histories)
    return _interactions(settings, counts, np.concatenate(items))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Catalogue:
    """Items sorted by group.

    Attributes
    ----------
    items : ndarray, shape (n_items,), int64
    upto : ndarray, shape (n_items + 1,), float64
        The popularity of the items before each place, relative to that of all.
    edges : ndarray, shape (n_groups + 1,), int64
        Group g has the places ``edges[g]`` up to ``edges[g + 1]``.
    """

    items: Rows
    upto: NDArray[np.float64]
    edges: Rows

    @classmethod
    def drawn(cls, settings: SyntheticSettings, rng: np.random.Generator) -> "_Catalogue":
        n_items = settings.n_items
        popularity = 1.0 / np.arange(10, n_items + 10)
        rng.shuffle(popularity)
        sizes = np.bincount(np.arange(n_items) % settings.n_groups)
        upto = np.concatenate(([0.0], np.cumsum(popularity)))
        return cls(
            items=rng.permutation(n_items),
            upto=upto / upto[-1],
            edges=np.concatenate(([0], np.cumsum(sizes))),
        )

    def places(self, at: NDArray[np.float64], first: Rows, last: Rows) -> Rows:
        """Give the places that hold `at`, popularity before them included; rounding stays in first..last."""
        return np.clip(self.upto.searchsorted(at, side="right") - 1, first, last)

    def chances(self, favourites: Rows, loyalty: float) -> NDArray[np.float64]:
        """Give the chance of each place for a user with these favourite groups."""
        popularity = np.diff(self.upto)
        favoured = np.zeros_like(popularity)
        for group in favourites.tolist():
            places = slice(self.edges[group], self.edges[group + 1])
            favoured[places] = popularity[places]
        chances: NDArray[np.float64] = loyalty * favoured / favoured.sum() + (1.0 - loyalty) * popularity
        return chances


def _histories(
    catalogue: _Catalogue, settings: SyntheticSettings, counts: Rows, n_draws: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Draw the histories of some users; give their lengths, and all their items one after the other."""
    n_users = counts.size
    edges = catalogue.edges
    favourites = rng.random((n_users, settings.n_groups)).argsort(axis=1)[:, : settings.favourite_groups]
    if settings.loyalty == 1.0:
        counts = np.minimum(counts, np.diff(edges)[favourites].sum(axis=1))
    else:
        counts = np.minimum(counts, settings.n_items)
    places = _with_replacement(catalogue, favourites, settings.loyalty, n_draws, rng)
    isfirst = _first_in_line(places)
    nth = np.cumsum(isfirst, axis=1)
    isfirst &= nth <= counts[:, None]
    users, columns = isfirst.nonzero()
    drawn = places[users, columns]
    missing = np.maximum(counts - nth[:, -1], 0)
    for user in missing.nonzero()[0].tolist():
        chance = catalogue.chances(favourites[user], settings.loyalty)
        chance[places[user]] = 0.0
        with np.errstate(divide="ignore"):
            noisy = np.log(chance) + rng.gumbel(size=chance.size)
        rest = np.argpartition(-noisy, missing[user] - 1)[: missing[user]]
        users = np.concatenate((users, np.full(rest.size, user)))
        drawn = np.concatenate((drawn, rest))
    # What is popular is drawn early; a history's order is to tell nothing.
    order = np.lexsort((rng.random(users.size), users))
    return counts, catalogue.items[drawn[order]]


def _with_replacement(
    catalogue: _Catalogue, favourites: Rows, loyalty: float, n_draws: int, rng: np.random.Generator
) -> Rows:
    """Draw places for users with these favourite groups; shape (n_users, n_draws)."""
    shape = (len(favourites), n_draws)
    starts, stops = catalogue.edges[favourites], catalogue.edges[favourites + 1]
    before = catalogue.upto[starts]
    masses = catalogue.upto[stops] - before
    upto = np.cumsum(masses, axis=1)
    at = rng.random(shape) * upto[:, -1:]
    which = np.zeros(shape, dtype=np.int64)
    for column in range(favourites.shape[1] - 1):
        which += at >= upto[:, column, None]
    at -= np.take_along_axis(upto - masses, which, axis=1)
    at += np.take_along_axis(before, which, axis=1)
    first = np.take_along_axis(starts, which, axis=1)
    last = np.take_along_axis(stops, which, axis=1) - 1
    elsewhere = rng.random(shape) >= loyalty
    at[elsewhere] = rng.random(int(np.count_nonzero(elsewhere)))
    first[elsewhere], last[elsewhere] = 0, catalogue.items.size - 1
    return catalogue.places(at, first, last)


def _first_in_line(values: Rows) -> NDArray[np.bool_]:
    """Tell of each value whether it stands in its line for the first time."""
    order = values.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones(values.shape, dtype=np.bool_)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first


def _interactions(settings: SyntheticSettings, lengths: Rows, items: Rows) -> Interactions:
    n_items = settings.n_items
    width = max(4, len(str(max(settings.n_users, n_items))))
    return Interactions(
        user_keys=tuple(f"user-{user:0{width}d}" for user in range(1, settings.n_users + 1)),
        item_keys=tuple(f"item-{item:0{width}d}" for item in range(1, n_items + 1)),
        indptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        items=items.astype(np.int64),
        timed=False,
    )
