"""Item-kNN: an item scores the sum of its cosine similarities to the user's items.

Only the similarities to an item's nearest neighbours count (Sarwar et al., WWW 2001; Deshpande and
Karypis, TOIS 2004), damped by a shrinkage for items that few users have:
``s_ij = c_ij / (sqrt(c_ii·c_jj) + shrinkage)`` with ``c = X'X``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.baselines.incidence import Incidence, cooccurrences, entries_of
from trainer.baselines.interface import Samplers, Scorer
from trainer.errors import ParameterError
from trainer.params import Floats, Rows
from trainer.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Neighbourhoods:
    """Each item's nearest neighbours, nearest first; ties in order of the items.

    Attributes
    ----------
    indptr : ndarray, shape (n_items + 1,), int64
    items : ndarray, shape (n_entries,), int64
        Item i's neighbours are ``items[indptr[i]:indptr[i + 1]]``: those that share a user with it.
    similarities : ndarray, shape (n_entries,), float32
    """

    indptr: Rows
    items: Rows
    similarities: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemKnnScorer:
    """Sums similarities, looked up by the user's items: the work is that of the neighbours met.

    Attributes
    ----------
    by_user : Incidence
        The training interactions.
    indptr : ndarray, shape (n_items + 1,), int64
    targets : ndarray, shape (n_entries,), int64
        Item i is a neighbour of ``targets[indptr[i]:indptr[i + 1]]``.
    similarities : ndarray, shape (n_entries,), float32
    """

    by_user: Incidence
    indptr: Rows
    targets: Rows
    similarities: Floats

    def scores(self, users: slice) -> Floats:
        """See `Scorer.scores`."""
        block = range(*users.indices(self.by_user.n_rows))
        scores = np.empty((len(block), self.by_user.n_columns), dtype=np.float32)
        for line, user in enumerate(block):
            met = entries_of(self.indptr, self.by_user.of(user))
            scores[line] = np.bincount(
                self.targets[met], self.similarities[met], minlength=self.by_user.n_columns
            )
        return scores


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemKnn:
    """Cosine item-kNN over a grid of shrinkages and neighbourhood sizes.

    Attributes
    ----------
    neighbours : tuple of int
    shrinkages : tuple of float
        In users.

    Raises
    ------
    ParameterError
        When a grid is empty, a size below 1, or a shrinkage negative or not finite.
    """

    neighbours: tuple[int, ...] = (10, 20, 50, 100)
    shrinkages: tuple[float, ...] = (0.0, 10.0)

    def __post_init__(self) -> None:
        if not self.neighbours or min(self.neighbours) < 1:
            raise ParameterError(f"neighbours is {self.neighbours}; it must list sizes of at least 1")
        if not self.shrinkages or not all(0.0 <= shrinkage < np.inf for shrinkage in self.shrinkages):
            raise ParameterError(f"shrinkages is {self.shrinkages}; it must list finite values from 0 up")

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "item-knn"

    def fits(
        self,
        split: Split,
        samplers: Samplers,  # noqa: ARG002
        dim: int,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`."""
        by_user = Incidence.of_training(split)
        most = max(self.neighbours)
        for shrinkage, found in zip(
            self.shrinkages, nearest_neighbours(by_user, most, self.shrinkages), strict=True
        ):
            for size in self.neighbours:
                yield f"neighbours {size}, shrinkage {shrinkage:g}", _scorer(by_user, found, size)


def nearest_neighbours(
    by_user: Incidence, most: int, shrinkages: Sequence[float]
) -> tuple[Neighbourhoods, ...]:
    """Find every item's at most `most` nearest neighbours, for several shrinkages at once.

    The shrinkages share the counting, which is where the time goes; a row of X'X is all of it that exists.
    """
    by_item = by_user.transposed()
    norms = np.sqrt(by_item.counts)
    items: list[list[Rows]] = [[] for _ in shrinkages]
    similarities: list[list[Floats]] = [[] for _ in shrinkages]
    for item in range(by_item.n_rows):
        counts = cooccurrences(by_user, by_item, item)
        counts[item] = 0
        others = counts.nonzero()[0]
        for place, shrinkage in enumerate(shrinkages):
            similar = (counts[others] / (norms[item] * norms[others] + shrinkage)).astype(np.float32)
            nearest = np.argsort(-similar, kind="stable")[:most]
            items[place].append(others[nearest])
            similarities[place].append(similar[nearest])
    return tuple(
        Neighbourhoods(
            indptr=np.concatenate(([0], np.cumsum([part.size for part in parts]))).astype(np.int64),
            items=np.concatenate(parts),
            similarities=np.concatenate(values),
        )
        for parts, values in zip(items, similarities, strict=True)
    )


def _scorer(by_user: Incidence, found: Neighbourhoods, size: int) -> ItemKnnScorer:
    """Keep the first `size` neighbours of each item, and turn the lists round."""
    lengths = np.diff(found.indptr)
    targets = np.repeat(np.arange(lengths.size), lengths)
    kept = (np.arange(targets.size) - found.indptr[targets] < size).nonzero()[0]
    kept = kept[np.argsort(found.items[kept], kind="stable")]
    n_targets = np.bincount(found.items[kept], minlength=by_user.n_columns)
    return ItemKnnScorer(
        by_user=by_user,
        indptr=np.concatenate(([0], np.cumsum(n_targets))),
        targets=targets[kept],
        similarities=found.similarities[kept],
    )
