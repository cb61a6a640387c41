import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.aggregation import Accumulator, FedAvg, FedBuff
from trainer.errors import ParameterError
from trainer.params import Floats


def _change(*values: float) -> Floats:
    return np.array([values], dtype=np.float32)


def test_accumulator_sums_weighted_sparse_rows() -> None:
    """Each change goes to its own rows, times its weight; count and weight are running sums."""
    updates = Accumulator(4, 2)
    updates.add(np.array([1, 3]), np.array([[1, 2], [3, 4]], dtype=np.float32), 1.0)
    updates.add(np.array([3]), _change(10, 20), 0.5)

    assert (updates.count, updates.weight) == (2, 1.5)
    np.testing.assert_array_equal(updates.scaled(2.0), [[0, 0], [2, 4], [0, 0], [16, 28]])


def test_accumulator_of_an_update_without_rows() -> None:
    """An update that touched nothing still counts as one."""
    updates = Accumulator(2, 3)
    updates.add(np.array([], dtype=np.int64), np.zeros((0, 3), dtype=np.float32), 1.0)

    assert updates.count == 1
    np.testing.assert_array_equal(updates.scaled(1.0), np.zeros((2, 3)))


def test_accumulator_keeps_no_view_of_its_input() -> None:
    """The change that was added may be altered afterwards, and is not altered itself."""
    updates = Accumulator(2, 2)
    change = _change(1, 2)
    updates.add(np.array([0]), change, 1.0)
    change[:] = 99

    np.testing.assert_array_equal(updates.scaled(1.0), [[1, 2], [0, 0]])


def test_fedavg_divides_by_all_clients() -> None:
    """Two of four clients took part; the sum is divided by four, untouched rows stay."""
    strategy, updates = FedAvg(), Accumulator(3, 2)
    updates.add(np.array([0]), _change(4, 8), strategy.weight(0))
    updates.add(np.array([0]), _change(-2, 0), strategy.weight(0))

    np.testing.assert_allclose(strategy.change(updates, 4), [[0.5, 2.0], [0.0, 0.0], [0.0, 0.0]])


def test_fedavg_weighs_all_updates_alike() -> None:
    """Staleness does not occur in synchronous rounds."""
    assert [FedAvg().weight(staleness) for staleness in (0, 1, 50)] == [1.0, 1.0, 1.0]


def test_fedbuff_by_hand() -> None:
    """ΔE = (n/N) · Σ s ΔE / Σ s, with s = 1 and (1 + 3)^-1/2 = 1/2."""
    strategy, updates = FedBuff(), Accumulator(2, 1)
    updates.add(np.array([0]), _change(6), strategy.weight(0))
    updates.add(np.array([0]), _change(3), strategy.weight(3))

    change = strategy.change(updates, 10)

    np.testing.assert_allclose(change, [[2 / 10 * (1 * 6 + 0.5 * 3) / 1.5], [0.0]], rtol=1e-6)


def test_fedbuff_weight_by_hand() -> None:
    """(1 + s)^-a for several s and a."""
    assert FedBuff(0.5).weight(8) == pytest.approx(1 / 3)
    assert FedBuff(1.0).weight(4) == pytest.approx(1 / 5)
    assert FedBuff(0.0).weight(7) == 1.0


def test_fedbuff_with_more_updates_than_clients() -> None:
    """A fleet that answers twice in one round moves the table no further than one full round."""
    strategy, updates = FedBuff(), Accumulator(1, 1)
    for _ in range(4):
        updates.add(np.array([0]), _change(3), 1.0)

    np.testing.assert_allclose(strategy.change(updates, 2), [[3]])


@settings(deadline=None)
@given(st.integers(0, 100_000), st.floats(0, 10))
def test_fedbuff_common_staleness_cancels(staleness: int, exponent: float) -> None:
    """When all updates are equally old, the round moves the table as if they were fresh."""
    strategy, updates = FedBuff(exponent), Accumulator(1, 2)
    updates.add(np.array([0]), _change(1, -3), strategy.weight(staleness))
    updates.add(np.array([0]), _change(5, 1), strategy.weight(staleness))

    np.testing.assert_allclose(strategy.change(updates, 4), [[1.5, -0.5]], rtol=1e-5)


@pytest.mark.parametrize("exponent", [-0.1, 10.1, float("nan"), float("inf")])
def test_fedbuff_exponent_out_of_range(exponent: float) -> None:
    """The exponent lies between 0 and 10."""
    with pytest.raises(ParameterError, match="exponent"):
        FedBuff(exponent)


def test_fedbuff_update_from_the_future() -> None:
    """A negative staleness is refused."""
    with pytest.raises(ParameterError, match="later version"):
        FedBuff().weight(-1)
