"""Rounds whose change is rounded to a byte a value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.aggregation import AggregationSettings
from trainer.aggregation.rounding import exponents, rounded


# Lower powers than float32's normal ones are not used.
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), power=st.integers(-110, 110))
def test_values_become_multiples_of_a_power_of_two_nearby(seed: int, power: int) -> None:
    """At most 127 of them, each at most half of one off; zero rows stay."""
    change = np.random.default_rng(seed).standard_normal((9, 5)).astype(np.float32) * np.float32(2.0**power)
    change[3] = 0.0

    found = rounded(change)

    largest = np.abs(change).max(axis=1, keepdims=True).astype(np.float64)
    step = 2.0 ** exponents(largest[:, 0]).astype(np.float64)[:, None]
    assert found.dtype == np.float32
    assert (np.abs(found / step) <= 127.0).all()
    assert (found / step == np.rint(found / step)).all()
    assert (np.abs(found.astype(np.float64) - change) <= step / 2).all()
    assert (step[largest > 0.0] <= largest[largest > 0.0] / 63.0).all()
    assert not found[3].any()


def test_round_of_a_strategy_is_rounded() -> None:
    """The change is that of the strategy, each row to whole multiples of its own power of two."""
    opened = AggregationSettings(strategy="fedavg", step_encoding="int8").make().open(2, 2)
    opened.add(np.array([0, 1]), np.array([[1.0, 0.3], [200.0, 1.4]], dtype=np.float32), 0)

    assert opened.count == 1
    assert opened.close(1, {}).change.tolist() == [[1.0, pytest.approx(0.3, abs=2.0**-7)], [200.0, 2.0]]
