"""When devices are told to come back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.aggregator.decisions import RoundSettings
from broker.aggregator.pacing import EASY_LOAD, LONGEST_CHECK_IN_S, MOST_SLOWED, Pacing
from tests.broker.aggregator.builders import a_core, an_update
from tests.broker.aggregator.test_core import receipt_of, round_of, send
from trainer.errors import ParameterError

pacings = st.builds(
    Pacing,
    check_in_s=st.floats(0.0, LONGEST_CHECK_IN_S),
    updates_per_s=st.none() | st.floats(1e-6, 1e9),
)
loads = st.floats(0.0, 1e6)
populations = st.integers(1, 10**9)


@given(
    pacing=pacings, population=populations, load=loads, more=st.floats(0.0, 1.0), others=st.integers(0, 10**6)
)
def test_check_in_never_falls_with_load_or_population(
    pacing: Pacing, population: int, load: float, more: float, others: int
) -> None:
    """And is what a receipt can say, never sooner than configured."""
    said = pacing.check_in(population, load)

    assert pacing.check_in_s <= said <= LONGEST_CHECK_IN_S
    assert pacing.check_in(population + others, load + more) >= said


@given(population=populations, rate=st.floats(0.01, 1e6), check_in_s=st.floats(0.0, 1000.0))
def test_fleet_without_load_sends_what_is_wanted(population: int, rate: float, check_in_s: float) -> None:
    """N devices that come every T seconds are N/T a second."""
    said = Pacing(check_in_s=check_in_s, updates_per_s=rate).check_in(population, EASY_LOAD)

    if said < LONGEST_CHECK_IN_S:
        assert population / said <= rate * 1.000001


@given(load=loads)
def test_slowing_is_bounded(load: float) -> None:
    """A full queue slows devices down sixteen times, and no more."""
    assert 30.0 <= Pacing(check_in_s=30.0).check_in(5, load) <= 30.0 * MOST_SLOWED
    assert Pacing(check_in_s=30.0).check_in(5, 1.0) == 30.0 * MOST_SLOWED


@given(rate=st.floats(1.0, 1000.0), devices=st.integers(1, 10_000))
@example(rate=502.0, devices=8011)
def test_overload_ends_by_pacing(rate: float, devices: int) -> None:
    """A service that works off `rate` a second, told of no rate, comes to a queue that no longer grows."""
    pacing, capacity = Pacing(check_in_s=1.0), 20_000.0
    queue, interval = 0.0, 1.0
    grown = []
    for _ in range(3000):
        interval = 0.9 * interval + 0.1 * pacing.check_in(devices, queue / capacity)
        before, queue = queue, max(0.0, queue + devices / interval - rate)
        grown.append(queue - before)
    # Near sixteen times too many the queue settles almost full, and runs over on its way there.
    beyond_pacing = devices / rate > 0.9 * MOST_SLOWED
    assert queue < capacity or beyond_pacing
    assert abs(grown[-1]) < 0.01 * capacity or beyond_pacing


@pytest.mark.parametrize(
    ("values", "message"), [({"check_in_s": -1.0}, "check_in_s"), ({"updates_per_s": 0.0}, "updates_per_s")]
)
def test_pace_that_cannot_be_is_refused(values: dict[str, float], message: str) -> None:
    """With the value and its range."""
    with pytest.raises(ParameterError, match=message):
        Pacing(**values)


def test_receipts_tell_the_pace() -> None:
    """Twelve devices at two updates a second come every six seconds; later while the queue is long."""
    core = a_core(RoundSettings(buffer=9, check_in_s=1.0, updates_per_s=2.0, population=12))

    assert receipt_of(send(core, an_update(seq=1))).check_in_s == 6.0
    core.load = 1.0
    assert receipt_of(send(core, an_update(seq=2))).check_in_s == 6.0 * MOST_SLOWED


def test_deadline_waits_for_the_least_updates() -> None:
    """Too few make no version at the deadline; with the one that makes them enough, the next tick does."""
    core = a_core(RoundSettings(buffer=9, deadline_s=10.0, least_updates=3))
    send(core, an_update(seq=1), now=0.0)
    send(core, an_update(seq=2), now=1.0)

    waits = core.wake_at
    assert core.tick(100.0) == []
    send(core, an_update(seq=3), now=200.0)
    assert (waits, core.wake_at) == (None, 10.0)
    closed = round_of(core.tick(200.0))
    assert (closed.updates, closed.by_deadline) == (3, True)


def test_least_updates_lie_within_the_buffer() -> None:
    """A round could otherwise never be closed by its deadline."""
    with pytest.raises(ParameterError, match="least_updates"):
        RoundSettings(buffer=4, least_updates=5)
