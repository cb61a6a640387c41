"""What every aggregation strategy must do, whatever its formula; add a new strategy to the list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.aggregation import Accumulator, FedAvg, FedBuff, Strategy
from trainer.errors import ParameterError
from trainer.params import Floats, Rows

STRATEGIES: list[Strategy] = [FedAvg(), FedBuff(), FedBuff(exponent=0.0), FedBuff(exponent=10.0)]

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)

Updates = list[tuple[Rows, Floats, int]]


def _updates(seed: int, count: int, *, n_items: int = 12, dim: int = 3, max_staleness: int = 10) -> Updates:
    """Draw rows, change and staleness of `count` updates."""
    rng = np.random.default_rng(seed)
    result: Updates = []
    for _ in range(count):
        rows = np.sort(rng.choice(n_items, rng.integers(0, n_items + 1), replace=False))
        change = rng.standard_normal((rows.size, dim), dtype=np.float32)
        result.append((rows, change, int(rng.integers(0, max_staleness + 1))))
    return result


def _accumulated(strategy: Strategy, updates: Updates, *, n_items: int = 12, dim: int = 3) -> Accumulator:
    accumulator = Accumulator(n_items, dim)
    for rows, change, staleness in updates:
        accumulator.add(rows, change, strategy.weight(staleness))
    return accumulator


@every_strategy
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12), population=st.integers(1, 100))
def test_order_of_updates_does_not_matter(strategy: Strategy, seed: int, count: int, population: int) -> None:
    """Any order of a round's updates gives the same change, up to float32 rounding."""
    updates = _updates(seed, count)
    shuffled = [updates[index] for index in np.random.default_rng(seed + 1).permutation(count)]

    change = strategy.change(_accumulated(strategy, updates), population)
    other = strategy.change(_accumulated(strategy, shuffled), population)

    np.testing.assert_allclose(change, other, rtol=1e-4, atol=1e-5)


@every_strategy
def test_same_order_gives_the_same_bits(strategy: Strategy) -> None:
    """The same journal gives the same table, so that a restart changes nothing."""
    updates = _updates(3, 9)

    change = strategy.change(_accumulated(strategy, updates), 20)

    np.testing.assert_array_equal(change, strategy.change(_accumulated(strategy, updates), 20))


@every_strategy
def test_empty_round_changes_nothing(strategy: Strategy) -> None:
    """A round without updates gives a change of zero, of the table's shape."""
    change = strategy.change(Accumulator(5, 4), 10)

    assert change.dtype == np.float32
    np.testing.assert_array_equal(change, np.zeros((5, 4)))


@every_strategy
def test_round_of_all_fresh_clients_is_their_mean(strategy: Strategy) -> None:
    """When each client sent one update of the current version, the change is the mean over clients."""
    updates = _updates(6, 8, max_staleness=0)
    expected = np.zeros((12, 3))
    for rows, update, _ in updates:
        expected[rows] += update / 8

    change = strategy.change(_accumulated(strategy, updates), 8)

    np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-6)


@every_strategy
def test_who_takes_no_part_counts_as_no_change(strategy: Strategy) -> None:
    """The same fresh updates move the table of a fleet ten times as large a tenth as far."""
    accumulator = _accumulated(strategy, _updates(1, 5, max_staleness=0))

    np.testing.assert_allclose(
        strategy.change(accumulator, 50), strategy.change(accumulator, 5) / 10, rtol=1e-5, atol=1e-7
    )


@every_strategy
def test_change_leaves_the_round_as_it_was(strategy: Strategy) -> None:
    """The change is an array of its own; altering it does not alter the round's sum."""
    accumulator = _accumulated(strategy, _updates(2, 4))

    first = strategy.change(accumulator, 7)
    kept = first.copy()
    first[:] = 1e6

    np.testing.assert_array_equal(strategy.change(accumulator, 7), kept)
    assert accumulator.count == 4


@every_strategy
@pytest.mark.parametrize("population", [0, -1])
@pytest.mark.parametrize("count", [0, 3])
def test_population_below_one_is_refused(strategy: Strategy, population: int, count: int) -> None:
    """A fleet has at least one client, also when the round is empty."""
    with pytest.raises(ParameterError, match="population"):
        strategy.change(_accumulated(strategy, _updates(0, count)), population)


@every_strategy
@settings(deadline=None)
@given(staleness=st.integers(0, 2**53), more=st.integers(0, 1000))
def test_weight_is_in_range_and_falls_with_staleness(strategy: Strategy, staleness: int, more: int) -> None:
    """A weight is above 0 and at most 1, 1 when fresh, and never grows with staleness."""
    assert strategy.weight(0) == 1.0
    assert 0.0 < strategy.weight(staleness) <= 1.0
    assert strategy.weight(staleness + more) <= strategy.weight(staleness)


@every_strategy
@pytest.mark.parametrize("staleness", [10, 1000, 100_000, 2**53])
def test_round_of_very_stale_updates_stays_finite(strategy: Strategy, staleness: int) -> None:
    """However old the updates of a round are, the change is finite and not lost to rounding."""
    change = np.full((1, 3), 1e-3, dtype=np.float32)
    accumulator = _accumulated(strategy, [(np.array([2]), change, staleness)] * 2)

    np.testing.assert_allclose(strategy.change(accumulator, 2)[2], change[0], rtol=1e-4)


@every_strategy
@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        ([0, 1], (1, 3)),
        ([0], (1, 2)),
        ([0], (3,)),
        ([], (1, 3)),
        ([-1], (1, 3)),
        ([0, 12], (2, 3)),
    ],
)
def test_update_of_another_shape_adds_nothing(
    strategy: Strategy, rows: list[int], shape: tuple[int, ...]
) -> None:
    """Rows and changes that do not fit are refused, and the round is as if they had never come."""
    accumulator = _accumulated(strategy, _updates(4, 3))
    before = (accumulator.count, accumulator.weight, strategy.change(accumulator, 9).tobytes())

    with pytest.raises(ParameterError):
        accumulator.add(np.array(rows, dtype=np.int64), np.ones(shape, dtype=np.float32), strategy.weight(0))

    assert (accumulator.count, accumulator.weight, strategy.change(accumulator, 9).tobytes()) == before
