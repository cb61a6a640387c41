"""Some of a fleet's users, trained and evaluated together: the unit that worker processes share.

How users are cut into cohorts depends on the data alone, every cohort draws from a random stream of its own
in each round, and cohorts' sums are added in their order. So results are the same to the last bit whatever
process runs which cohort.
"""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from broker.errors import EncodingError
from broker.protocol.encodings import ENCODINGS, Change, Float32, SparseChange
from broker.protocol.messages import encoded_update_bytes
from edge.fleet.scenario import Scenario
from edge.personal import as_change
from trainer.aggregation import Accumulator
from trainer.algorithms import Algorithm, Shared
from trainer.batches import users_alike
from trainer.errors import ParameterError
from trainer.evaluation import (
    OwnRowsView,
    Ranks,
    SharedView,
    ShiftedView,
    View,
    full_ranks,
    sampled_ranks,
    user_blocks,
)
from trainer.local import LocalResult
from trainer.params import Floats, Hyperparameters, Rows
from trainer.privacy import add_laplace_noise, f1_score, inferred_positives
from trainer.taste import TasteSettings, contexts

MAX_COHORTS = 16
_SizeOf = Callable[[Mapping[str, int]], int]
_INCARNATION = 2**52
"""A device's own number in its updates takes this many bits; the sizes that are counted include it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortSettings:
    """What all cohorts of a run have in common."""

    algorithm: Algorithm
    hyperparameters: Hyperparameters
    taste: TasteSettings
    encoding: str
    noise: float
    seed: int


class FleetArrays:
    """A whole fleet's state, in memory that processes forked later share.

    Attributes
    ----------
    tables : ndarray, shape (2, n_items, dim), float32
    networks : ndarray, shape (2, n_network), float32
        What rounds start from and end with: round r reads ``r % 2`` and leaves its outcome in the other.
    W, b : ndarray, shapes (n_users, dim) and (n_users,), float32
    sums : ndarray, shape (n_cohorts, n_items, dim), float32
    network_sums : ndarray, shape (n_cohorts, n_network), float32
    val_ranks, test_ranks : ndarray, shape (n_users,), int64
    """

    def __init__(self, shared: Shared, W: Floats, b: Floats, n_cohorts: int) -> None:
        self.tables: Floats = shared_array((2, *shared.table.shape), np.float32)
        self.networks: Floats = shared_array((2, *shared.network.shape), np.float32)
        self.W: Floats = shared_array(W.shape, np.float32)
        self.b: Floats = shared_array(b.shape, np.float32)
        self.sums: Floats = shared_array((n_cohorts, *shared.table.shape), np.float32)
        self.network_sums: Floats = shared_array((n_cohorts, *shared.network.shape), np.float32)
        self.val_ranks: Rows = shared_array((len(W),), np.int64)
        self.test_ranks: Rows = shared_array((len(W),), np.int64)
        first = self.shared_at(1)
        first.table[:], first.network[:] = shared.table, shared.network
        self.W[:], self.b[:] = W, b

    def shared_at(self, round_number: int) -> Shared:
        """Give what round `round_number` starts from."""
        slot = round_number % 2
        return Shared(table=self.tables[slot], network=self.networks[slot])


def shared_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Give an array of zeros that this process and those it forks later see alike."""
    size = prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype=dtype, count=prod(shape)).reshape(shape)


def cut_into_cohorts(lengths: NDArray[np.int64]) -> list[Rows]:
    """Cut users into at most `MAX_COHORTS` cohorts of about equally many interactions, none of them empty.

    Users of a cohort are alike in their number of interactions, so that many passes can be made together.

    Parameters
    ----------
    lengths : ndarray, shape (n_users,), int64
        Each user's number of training interactions.

    Returns
    -------
    list of ndarray, int64
        The users of each cohort.
    """
    order = np.argsort(lengths, kind="stable")
    n_cohorts = min(MAX_COHORTS, lengths.size)
    upto = np.cumsum(lengths[order])
    marks = upto[-1] * np.arange(1, n_cohorts) / n_cohorts
    cuts = np.searchsorted(upto, marks, side="right")
    # Each cohort at least one user, in order.
    steps = np.arange(1, n_cohorts)
    cuts = np.clip(
        np.maximum.accumulate(np.maximum(cuts - steps, 0)) + steps, steps, lengths.size - n_cohorts + steps
    )
    return np.split(order, cuts)


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortPass:
    """What one round of a cohort was.

    Attributes
    ----------
    recovered_f1 : list of float
        For each user, how well its positives can be told from its update; only when asked for.
    """

    updates: int
    bytes_up: int
    recovered_f1: list[float] = field(default_factory=list)


class Cohort:
    """One cohort; see the module.

    Raises
    ------
    ParameterError
        From `train`, when a pass diverges.
    """

    def __init__(
        self, number: int, users: Rows, scenario: Scenario, settings: CohortSettings, arrays: FleetArrays
    ) -> None:
        self.users = users
        self._number = number
        self._settings = settings
        self._arrays = arrays
        self._scenario = scenario
        self._train = [scenario.split.train[user] for user in users]
        self._samplers = [scenario.sampler(user) for user in users.tolist()]
        sizes = np.array([items.size for items in self._train])
        self._groups = users_alike(sizes, scenario.data.n_items, settings.hyperparameters)
        self._results: list[LocalResult | None] = [None] * len(self._train)

    @np.errstate(over="ignore", invalid="ignore")
    def train(self, round_number: int, *, attack: bool = False) -> CohortPass:
        """Make one pass of each user; leave the sum of the changes, and W and b, in the fleet's arrays.

        Parameters
        ----------
        attack : bool
            Try to tell each user's positives from its update.
        """
        settings, arrays = self._settings, self._arrays
        shared = arrays.shared_at(round_number)
        rng = np.random.default_rng([settings.seed, 3, round_number, self._number])
        total = Accumulator.into(arrays.sums[self._number])
        network_sum = arrays.network_sums[self._number]
        network_sum.fill(0.0)
        W, b = arrays.W[self.users], arrays.b[self.users]
        size_of = _update_sizes(settings, shared, round_number)
        exact_size = cache(lambda n_rows: size_of(Float32().array_bytes(n_rows, W.shape[1])))
        bytes_up = 0
        recovered: list[float] = []
        keeps_rows = settings.algorithm.own_rows and not settings.taste.strength
        as_made = settings.encoding == "float32" and not settings.noise
        for lines in self._groups:
            results = settings.algorithm.local_passes(
                shared,
                W[lines],
                b[lines],
                [self._train[line] for line in lines],
                [self._samplers[line] for line in lines],
                settings.hyperparameters,
                rng,
            )
            W[lines], b[lines] = results.W, results.b
            network_sum += np.add.reduce(results.network_changes, axis=0)
            if as_made:
                bytes_up += sum(map(exact_size, results.drawn.n_rows.tolist()))
                results.add_to(total)
            for line, result in zip(lines.tolist(), results, strict=True):
                if keeps_rows:
                    self._results[line] = result
                if as_made and not attack:
                    continue
                change, size = self._travelled(result, shared, rng, size_of)
                if not as_made:
                    bytes_up += size
                    total.add(result.rows, change, 1.0)
                if attack:
                    recovered.append(f1_score(inferred_positives(result.rows, change), self._train[line]))
        arrays.W[self.users], arrays.b[self.users] = W, b
        if not (
            np.isfinite(W).all() and np.isfinite(b).all() and np.isfinite(arrays.sums[self._number]).all()
        ):
            raise ParameterError("the training diverges; give a smaller --item-lr, or --set lr=...")
        return CohortPass(updates=len(self._train), bytes_up=bytes_up, recovered_f1=recovered)

    def _travelled(
        self, result: LocalResult, shared: Shared, rng: np.random.Generator, size_of: _SizeOf
    ) -> tuple[Floats, int]:
        """Give the rows' change as it arrives at the server, and the size of its update."""
        settings = self._settings
        sent: Change = as_change(result)
        if settings.noise:
            noisy = add_laplace_noise(sent.change, settings.noise, rng)
            sent = SparseChange(rows=result.rows, change=noisy)
        encoding = ENCODINGS[settings.encoding]
        try:
            body = encoding.encode(sent)
        except EncodingError as error:
            raise ParameterError(f"the training diverges ({error}); give a smaller --item-lr") from error
        size = size_of({name: array.nbytes for name, array in body.items()})
        return encoding.decode(body, *shared.table.shape).change, size

    @np.errstate(over="ignore", invalid="ignore")
    def evaluate(self, round_number: int) -> None:
        """Leave the users' ranks in their own views after that round in the fleet's arrays."""
        arrays, scenario, users = self._arrays, self._scenario, self.users
        W = arrays.W[users]
        if self._settings.taste.strength:
            W = W + self._contexts(round_number)
        shared = SharedView(
            scoring=self._settings.algorithm.scoring,
            shared=arrays.shared_at(round_number + 1),
            W=W,
            b=arrays.b[users],
        )
        view = self._with_rows(shared, self._results)
        val, test = sampled_ranks(view, scenario.val[users], scenario.test[users])
        arrays.val_ranks[users], arrays.test_ranks[users] = val, test

    def final_ranks(self, round_number: int) -> dict[str, Ranks]:
        """Give the users' test ranks after that round in both views, ``own`` and ``shared``.

        In float64, from the arrays that a run's folder holds: who computes them elsewhere finds the same
        ranks, whatever the order of the sums.
        """
        arrays, scenario, users = self._arrays, self._scenario, self.users
        after = arrays.shared_at(round_number + 1)
        shared = SharedView(
            scoring=self._settings.algorithm.scoring,
            shared=Shared(table=after.table.astype(np.float64), network=after.network.astype(np.float64)),
            W=arrays.W[users].astype(np.float64),
            b=arrays.b[users].astype(np.float64),
        )
        own: View = self._with_rows(shared, [None if r is None else Float64Rows(r) for r in self._results])
        if self._settings.taste.strength:
            own = ShiftedView(base=own, contexts=self._contexts(round_number), table=after.table)
        return {
            name: Ranks(
                sampled=sampled_ranks(view, scenario.test[users])[0],
                full=full_ranks(view, self._train, scenario.split.test[users]),
            )
            for name, view in (("own", own), ("shared", shared))
        }

    def own_rows(self) -> list[tuple[Rows, Floats]]:
        """Give the own rows and values of each user."""
        nothing = (np.empty(0, dtype=np.int64), np.empty((0, self._arrays.W.shape[1]), dtype=np.float32))
        return [nothing if r is None else (r.rows, r.values) for r in self._results]

    def shift(self, round_number: int) -> Floats:
        """Give what the users' taste adds to all items' scores after that round; (n_cohort, n_items)."""
        arrays, users = self._arrays, self.users
        after = arrays.shared_at(round_number + 1)
        base = SharedView(
            scoring=self._settings.algorithm.scoring, shared=after, W=arrays.W[users], b=arrays.b[users]
        )
        view = ShiftedView(base=base, contexts=self._contexts(round_number), table=after.table)
        return np.concatenate([view.shift(block) for block in user_blocks(view)])

    def _contexts(self, round_number: int) -> Floats:
        """Give what the users' taste adds to W after that round."""
        table = self._arrays.shared_at(round_number + 1).table
        return contexts(table, self._arrays.W[self.users], self._train, self._settings.taste)

    def _with_rows(self, shared: SharedView, results: Any) -> View:
        keeps_rows = self._settings.algorithm.own_rows and not self._settings.taste.strength
        return OwnRowsView(base=shared, own=results) if keeps_rows else shared


class Float64Rows:
    """A pass's own rows in float64."""

    __slots__ = ("_result",)

    def __init__(self, result: LocalResult) -> None:
        self._result = result

    @property
    def rows(self) -> Rows:
        """See `OwnRows.rows`."""
        return self._result.rows

    @property
    def values(self) -> NDArray[np.float64]:
        """See `OwnRows.values`."""
        return self._result.values.astype(np.float64)

    def values_at(self, positions: Rows, /) -> NDArray[np.float64]:
        """See `OwnRows.values_at`; the same float32 values as all of them together give."""
        return self.values[positions]

    def products(self, w: NDArray[Any], /) -> NDArray[np.float64]:
        """See `OwnRows.products`."""
        products: NDArray[np.float64] = np.dot(self.values, w)
        return products


def _update_sizes(settings: CohortSettings, shared: Shared, round_number: int) -> _SizeOf:
    """Give what tells an encoded update's size from those of its body's arrays."""
    integers = (settings.seed, _INCARNATION, round_number, round_number - 1)
    network_bytes = shared.network.nbytes

    def size(arrays: Mapping[str, int]) -> int:
        return encoded_update_bytes(settings.encoding, arrays, integers) + network_bytes

    return size
