"""What every aggregation strategy must do, whatever its formula; add a new strategy to the list."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.aggregation import (
    AggregationSettings,
    Closing,
    FedAsync,
    FedAvg,
    FedBuff,
    OpenRound,
    Pipeline,
    ServerOptimiser,
    Strategy,
)
from trainer.errors import ParameterError
from trainer.params import Floats, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping

LINEAR: list[Strategy] = [FedAvg(), FedBuff(), FedBuff(exponent=0.0), FedBuff(exponent=10.0), FedAsync()]
HARMLESS: list[Strategy] = [
    Pipeline(weighting=FedBuff(), clip=1e9),
    Pipeline(weighting=FedAvg(), clip_to_median=1000.0, similarity=0.0, centre="trimmed-mean", trim=0.0),
]
"""Pieces that alter nothing of the updates of these tests, but for what the filter leaves out."""
ROBUST: list[Strategy] = [
    AggregationSettings(clip=0.5).make(),
    AggregationSettings(clip_to_median=1.0, strategy="fedavg").make(),
    AggregationSettings(similarity=0.5).make(),
    AggregationSettings(robust="trimmed-mean", trim=0.2).make(),
    AggregationSettings(robust="median", clip_to_median=2.0, similarity=0.2).make(),
]
OPTIMISED: list[Strategy] = [
    AggregationSettings(server_optimiser="adagrad").make(),
    AggregationSettings(server_optimiser="adam", robust="median").make(),
    AggregationSettings(server_optimiser="yogi", strategy="fedavg").make(),
    Pipeline(weighting=FedBuff(), optimiser=ServerOptimiser(name="adam", beta1=0.0, beta2=0.0)),
]
ROUNDED: list[Strategy] = [
    AggregationSettings(step_encoding="int8", clip=0.5).make(),
    AggregationSettings(step_encoding="int8", server_optimiser="adam").make(),
]
MEANS: list[Strategy] = [*LINEAR, HARMLESS[0]]
STRATEGIES: list[Strategy] = [*LINEAR, *HARMLESS, *ROBUST, *OPTIMISED, *ROUNDED]

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
every_mean = pytest.mark.parametrize("strategy", MEANS, ids=repr)

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


def _round(strategy: Strategy, updates: Updates, *, n_items: int = 12, dim: int = 3) -> OpenRound:
    opened = strategy.open(n_items, dim)
    for rows, change, staleness in updates:
        opened.add(rows, change, staleness)
    return opened


def _change(strategy: Strategy, updates: Updates, population: int) -> Floats:
    return _round(strategy, updates).close(population, {}).change


def _tolerance(strategy: Strategy, change: Floats) -> float:
    """Give how far two changes may be apart that differ by rounding: one multiple of a rounded step."""
    return float(np.abs(change).max()) / 60.0 if strategy in ROUNDED else 1e-6


def _bits(closing: Closing) -> tuple[bytes, list[tuple[str, bytes]]]:
    return closing.change.tobytes(), [(name, each.tobytes()) for name, each in closing.state.items()]


@every_strategy
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12), population=st.integers(1, 100))
def test_order_of_updates_does_not_matter(strategy: Strategy, seed: int, count: int, population: int) -> None:
    """Any order of a round's updates gives the same change, up to float32 rounding."""
    updates = _updates(seed, count)
    shuffled = [updates[index] for index in np.random.default_rng(seed + 1).permutation(count)]

    change, other = (_change(strategy, each, population) for each in (updates, shuffled))

    np.testing.assert_allclose(change, other, rtol=1e-3, atol=max(1e-4, _tolerance(strategy, change)))


@every_strategy
def test_same_journal_gives_the_same_bits(strategy: Strategy) -> None:
    """Rounds added up anew, with the state that was kept, give the same tables and the same state."""
    state: Mapping[str, Floats] = {}
    again: Mapping[str, Floats] = {}
    for seed in range(4):
        first = _round(strategy, _updates(seed, 9)).close(20, state)
        again = {name: np.frombuffer(v.tobytes(), np.float32).reshape(v.shape) for name, v in again.items()}
        second = _round(strategy, _updates(seed, 9)).close(20, again)
        assert _bits(first) == _bits(second)
        assert all(each.dtype == np.float32 and each.ndim == 2 for each in first.state.values())
        state, again = first.state, second.state


@every_strategy
def test_empty_round_changes_nothing(strategy: Strategy) -> None:
    """A round without updates gives a change of zero, of the table's shape, and keeps the memory."""
    state = _round(strategy, _updates(1, 5)).close(10, {}).state

    closing = strategy.open(12, 3).close(10, state)

    assert closing.change.dtype == np.float32
    np.testing.assert_array_equal(closing.change, np.zeros((12, 3)))
    assert {name: each.tobytes() for name, each in closing.state.items()} == {
        name: each.tobytes() for name, each in state.items()
    }


@every_strategy
def test_rows_that_nobody_touched_stay(strategy: Strategy) -> None:
    """Also where moments of earlier rounds would move them."""
    state = _round(strategy, _updates(1, 8)).close(10, {}).state
    rows = np.array([2, 5])
    updates: Updates = [(rows, change[:2], s) for seed in (2, 3, 4) for _, change, s in [_full(seed)]]

    change = _round(strategy, updates).close(10, state).change

    assert np.flatnonzero(change.any(axis=1)).tolist() == [2, 5]


def _full(seed: int) -> tuple[Rows, Floats, int]:
    change = np.random.default_rng(seed).standard_normal((12, 3), dtype=np.float32)
    return np.arange(12), np.abs(change), seed % 3


@every_mean
def test_round_of_all_fresh_clients_is_their_mean(strategy: Strategy) -> None:
    """When each client sent one update of the current version, the change is the mean over clients."""
    updates = _updates(6, 8, max_staleness=0)
    expected = np.zeros((12, 3))
    for rows, update, _ in updates:
        expected[rows] += update / 8

    np.testing.assert_allclose(_change(strategy, updates, 8), expected, rtol=1e-5, atol=1e-6)


@every_strategy
def test_who_takes_no_part_counts_as_no_change(strategy: Strategy) -> None:
    """The same fresh updates move the table of a fleet ten times as large a tenth as far."""
    opened = _round(strategy, _updates(1, 5, max_staleness=0))

    many, few = (opened.close(population, {}).change for population in (50, 5))

    np.testing.assert_allclose(many, few / 10, rtol=1e-4, atol=_tolerance(strategy, few / 10))


@every_strategy
def test_closing_leaves_the_round_and_the_state_as_they_were(strategy: Strategy) -> None:
    """The change is an array of its own; altering it alters neither the round nor what is remembered."""
    state = {name: each.copy() for name, each in _round(strategy, _updates(3, 4)).close(7, {}).state.items()}
    before = {name: each.tobytes() for name, each in state.items()}
    opened = _round(strategy, _updates(2, 4))

    first = opened.close(7, state)
    kept = _bits(first)
    first.change[:] = 1e6

    assert _bits(opened.close(7, state)) == kept
    assert opened.count == 4
    assert {name: each.tobytes() for name, each in state.items()} == before


@every_strategy
def test_round_keeps_no_view_of_its_input(strategy: Strategy) -> None:
    """What was added may be overwritten afterwards, and is not altered itself."""
    opened = strategy.open(12, 3)
    rows, change, _ = _full(1)
    given_before = change.copy()
    opened.add(rows, change, 0)
    np.testing.assert_array_equal(change, given_before)
    expected = _bits(opened.close(3, {}))

    change[:] = 99

    assert _bits(opened.close(3, {})) == expected


@every_strategy
@pytest.mark.parametrize("population", [0, -1])
@pytest.mark.parametrize("count", [0, 3])
def test_population_below_one_is_refused(strategy: Strategy, population: int, count: int) -> None:
    """A fleet has at least one client, also when the round is empty."""
    with pytest.raises(ParameterError, match="population"):
        _round(strategy, _updates(0, count)).close(population, {})


@pytest.mark.parametrize(
    "strategy", [FedAvg(), FedBuff(), FedBuff(10.0), FedAsync(), FedAsync(2.0)], ids=repr
)
@settings(deadline=None)
@given(staleness=st.integers(0, 2**53), more=st.integers(0, 1000))
def test_weight_is_in_range_and_falls_with_staleness(
    strategy: FedAvg | FedBuff | FedAsync, staleness: int, more: int
) -> None:
    """A weight is above 0 and at most 1, 1 when fresh, and never grows with staleness."""
    assert strategy.weight(0) == 1.0
    assert 0.0 < strategy.weight(staleness) <= 1.0
    assert strategy.weight(staleness + more) <= strategy.weight(staleness)


@every_strategy
@pytest.mark.parametrize("staleness", [10, 1000, 100_000, 2**53])
def test_round_of_very_stale_updates_stays_finite(strategy: Strategy, staleness: int) -> None:
    """However old the updates of a round are, the change is finite."""
    change = np.full((1, 3), 1e-3, dtype=np.float32)

    assert np.isfinite(_change(strategy, [(np.array([2]), change, staleness)] * 5, 5)).all()


@every_strategy
@pytest.mark.parametrize(
    ("rows", "shape", "staleness"),
    [
        ([0, 1], (1, 3), 0),
        ([0], (1, 2), 0),
        ([0], (3,), 0),
        ([], (1, 3), 0),
        ([-1], (1, 3), 0),
        ([0, 12], (2, 3), 0),
        ([0], (1, 3), -1),
    ],
)
def test_update_that_does_not_fit_adds_nothing(
    strategy: Strategy, rows: list[int], shape: tuple[int, ...], staleness: int
) -> None:
    """Rows and changes that do not fit are refused, and the round is as if they had never come."""
    opened = _round(strategy, _updates(4, 3))
    before = (opened.count, _bits(opened.close(9, {})))

    with pytest.raises(ParameterError):
        opened.add(np.array(rows, dtype=np.int64), np.ones(shape, dtype=np.float32), staleness)

    assert (opened.count, _bits(opened.close(9, {}))) == before
