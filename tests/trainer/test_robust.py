"""The pieces against harmful updates, and the server optimisers, by hand."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.aggregation import AggregationSettings, FedAsync, FedBuff, Pipeline, ServerOptimiser
from trainer.aggregation.optimisers import OPTIMISERS, OptimiserName
from trainer.aggregation.robust import WeighedUpdate, agreements, clipped, median_limits, norms, robust_sum
from trainer.errors import ParameterError

if TYPE_CHECKING:
    from trainer.params import Floats


def _of(*values: float, rows: tuple[int, ...] = (0,), weight: float = 1.0) -> WeighedUpdate:
    change = np.array(values, dtype=np.float32).reshape(len(rows), -1)
    return WeighedUpdate(np.array(rows), change, weight)


def test_clipping_keeps_direction_and_short_updates() -> None:
    """(3, 4) becomes (0.6, 0.8) under a limit of 1; what is shorter stays."""
    updates = [_of(3, 4), _of(0.3, 0.4)]

    long, short = clipped(updates, norms(updates), np.array([1.0, 1.0]))

    np.testing.assert_allclose(long.change, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(short.change, np.array([[0.3, 0.4]], dtype=np.float32))


def test_limit_of_the_median_leaves_out_empty_updates() -> None:
    """Devices that had nothing to say do not press the limit down."""
    assert median_limits(norms([_of(0), _of(0), _of(1), _of(2), _of(9)]), 1.5).tolist() == [3.0] * 5


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 9), trim=st.floats(0.0, 0.49))
def test_centres_lie_within_their_samples(seed: int, count: int, trim: float) -> None:
    """Each coordinate is between the least and greatest value sent for it, times those who sent it."""
    rng = np.random.default_rng(seed)
    updates = [
        WeighedUpdate(
            np.sort(rng.choice(5, rng.integers(1, 6), replace=False)), np.empty((0, 2), np.float32), 1.0
        )
        for _ in range(count)
    ]
    updates = [
        WeighedUpdate(
            u.rows, rng.standard_normal((u.rows.size, 2), dtype=np.float32), float(rng.uniform(0.1, 1))
        )
        for u in updates
    ]
    for centre in ("trimmed-mean", "median"):
        total = robust_sum(updates, centre, trim, 5, 2)
        for row in range(5):
            touching = [(u.change[u.rows == row][0], u.weight) for u in updates if row in u.rows]
            if not touching:
                np.testing.assert_array_equal(total[row], 0.0)
                continue
            sample = np.array([change for change, _ in touching])
            share = sum(weight for _, weight in touching)
            assert (total[row] >= share * sample.min(axis=0) - 1e-5).all()
            assert (total[row] <= share * sample.max(axis=0) + 1e-5).all()


def test_median_and_trimmed_mean_by_hand() -> None:
    """Of five, an outlier moves neither; row 1, which two touched, has their mean, weighed as two."""
    updates = [_of(1), _of(2), _of(3), _of(4, 1, rows=(0, 1)), _of(1e6, 3, rows=(0, 1))]

    np.testing.assert_allclose(robust_sum(updates, "median", 0.0, 2, 1), [[5 * 3], [2 * 2]])
    np.testing.assert_allclose(robust_sum(updates, "trimmed-mean", 0.2, 2, 1), [[5 * 3], [2 * 2]])
    np.testing.assert_allclose(robust_sum(updates, "mean", 0.2, 2, 1), np.array([[1e6 + 10], [4]]))


def test_agreement_is_with_the_others() -> None:
    """An opposite update has cosine -1 with the rest; one alone on its rows agrees with nobody."""
    updates = [_of(1, 0), _of(2, 0), _of(-5, 0), _of(7, 7, rows=(1,))]

    np.testing.assert_allclose(agreements(updates, 2, 2), [0.0, 0.0, -1.0, 0.0], atol=1e-9)


def test_filter_drops_who_is_against_the_round_and_keeps_its_pace() -> None:
    """Four agree, one is against them: the mean of the four moves the table as far as five would."""
    opened = Pipeline(weighting=FedBuff(), similarity=0.2).open(1, 2)
    for change in ([1, 0], [1, 0.1], [1, -0.1], [1, 0], [-9, 0]):
        opened.add(np.array([0]), np.array([change], dtype=np.float32), 0)

    np.testing.assert_allclose(opened.close(10, {}).change, [[0.5, 0.0]], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), scale=st.floats(1.0, 1e6))
def test_no_update_of_a_clipped_round_has_more_than_its_share(seed: int, scale: float) -> None:
    """One update of ten, however large, moves the table by no more than the limit over ten."""
    rng = np.random.default_rng(seed)
    honest = [rng.standard_normal((4, 3), dtype=np.float32) for _ in range(9)]
    harmful = rng.standard_normal((4, 3), dtype=np.float32) * np.float32(scale)
    changes = []
    for last in (np.zeros((4, 3), dtype=np.float32), harmful):
        opened = Pipeline(weighting=FedBuff(), clip_to_median=1.5).open(4, 3)
        for change in [*honest, last]:
            opened.add(np.arange(4), change, 0)
        changes.append(opened.close(10, {}).change)

    longest = float(norms([WeighedUpdate(np.arange(4), each, 1.0) for each in honest]).max())
    assert np.linalg.norm(changes[1] - changes[0]) <= 2 * 1.5 * longest


def test_adam_by_hand() -> None:
    """Two rounds of one coordinate, whole fleet."""
    optimiser = ServerOptimiser(name="adam", lr=0.1, beta1=0.5, beta2=0.5, tau=0.1)
    one = optimiser.close(np.array([[1.0], [0.0]], dtype=np.float32), 1.0, {})
    two = optimiser.close(np.array([[3.0], [0.0]], dtype=np.float32), 0.5, one.state)

    v1 = 0.5 * 0.01 + 0.5 * 1.0
    m2, v2 = 0.5 * 0.5 + 0.5 * 3.0, 0.5 * v1 + 0.5 * 9.0
    np.testing.assert_allclose(one.change, [[0.1 * 0.5 / (v1**0.5 + 0.1)], [0.0]], rtol=1e-5)
    np.testing.assert_allclose(two.change, [[0.05 * m2 / (v2**0.5 + 0.1)], [0.0]], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("size", [1e18, 3e19, 1e30])
def test_huge_changes_leave_an_optimiser_finite(name: OptimiserName, size: float) -> None:
    """Whose squares no float32 holds: rounds of them, and the rounds after."""
    optimiser = ServerOptimiser(name=name, beta2=0.0)
    state: dict[str, Floats] = {}
    with np.errstate(all="raise", under="ignore"):
        for scale in (size, -size, size, 0.5, 0.5):
            closing = optimiser.close(np.full((2, 3), scale, dtype=np.float32), 1.0, state)
            state = dict(closing.state)
            assert np.isfinite(closing.change).all()
            assert all(np.isfinite(values).all() for values in state.values())


def test_optimiser_of_an_earlier_release_whose_moments_overflowed_goes_on() -> None:
    """Nothing is not finite any more after a round, in rows that it did not touch either."""
    state = {"m": np.ones((2, 3), dtype=np.float32), "v": np.full((2, 3), np.inf, dtype=np.float32)}
    state["v"][0, 0] = np.nan
    for name in OPTIMISERS:
        change = np.array([[1, 1, 1], [0, 0, 0]], dtype=np.float32)
        closing = ServerOptimiser(name=name).close(change, 1.0, state)
        assert np.isfinite(closing.change).all()
        assert all(np.isfinite(values).all() for values in closing.state.values())


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e5, 1e18])
def test_changes_whose_squares_are_finite_are_worked_on_as_ever(name: OptimiserName, size: float) -> None:
    """To the bit: the versions of earlier releases are proved with the optimiser of this one."""
    rng = np.random.default_rng(3)
    optimiser = ServerOptimiser(name=name)
    state: dict[str, Floats] = {}
    one, beta1, beta2 = np.float32(1.0), np.float32(0.9), np.float32(0.99)
    m, v = np.zeros((5, 4), dtype=np.float32), np.full((5, 4), np.float32(1e-3) ** 2, dtype=np.float32)
    for _ in range(4):
        change = rng.standard_normal((5, 4), dtype=np.float32) * np.float32(size)
        m, square = beta1 * m + (one - beta1) * change, change * change
        v = {
            "adagrad": v + square,
            "adam": beta2 * v + (one - beta2) * square,
            "yogi": v - (one - beta2) * square * np.sign(v - square),
        }[name]
        closing = optimiser.close(change, 0.5, state)
        state = dict(closing.state)
        step = np.float32(0.05) * m / (np.sqrt(np.maximum(v, 0.0)) + np.float32(1e-3))
        assert closing.change.tobytes() == step.tobytes()
        assert (state["m"].tobytes(), state["v"].tobytes()) == (m.tobytes(), v.tobytes())


def test_adagrad_and_yogi_by_hand() -> None:
    """The second moment grows by the square; or goes towards it by a part of the square."""
    change = np.array([[2.0]], dtype=np.float32)
    adagrad = ServerOptimiser(name="adagrad", beta1=0.0, tau=1.0).close(change, 1.0, {})
    yogi = ServerOptimiser(name="yogi", beta2=0.9, tau=1.0).close(change, 1.0, {})

    assert adagrad.state["v"][0, 0] == pytest.approx(1.0 + 4.0)
    assert yogi.state["v"][0, 0] == pytest.approx(1.0 + 0.1 * 4.0)


def test_moments_of_another_table_begin_anew() -> None:
    """What a strategy before, or another width, left is not used."""
    optimiser = ServerOptimiser(name="yogi")
    change = np.ones((2, 3), dtype=np.float32)
    strange = {"m": np.ones((5, 3), dtype=np.float32), "v": np.ones((5, 3), dtype=np.float32)}

    assert (
        optimiser.close(change, 1.0, strange).change.tobytes()
        == optimiser.close(change, 1.0, {}).change.tobytes()
    )


def test_fedasync_by_hand() -> None:
    """μ (1 + s)^-a of the update, whatever the population."""
    opened = FedAsync(1.0, 0.6).open(1, 1)
    opened.add(np.array([0]), np.array([[10.0]], dtype=np.float32), 2)

    assert opened.close(1000, {}).change.item() == pytest.approx(0.6 / 3 * 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "fedprox"}, "strategy is 'fedprox'.*fedbuff, fedavg, fedasync"),
        ({"robust": "krum"}, "trimmed-mean, median"),
        ({"server_optimiser": "sgd"}, "adagrad, adam, yogi"),
        ({"step_encoding": "int4"}, "step_encoding is 'int4'; it must be one of float32, int8"),
        ({"trim": 0.5}, "trim"),
        ({"clip": -1.0}, "clip"),
        ({"clip_to_median": 1e4}, "clip_to_median"),
        ({"similarity": 2.0}, "similarity"),
        ({"mixing": 2.0, "strategy": "fedasync"}, "mixing"),
        ({"server_optimiser": "adam", "server_lr": 0.0}, "server_lr"),
        ({"strategy": "fedasync", "robust": "median"}, "use fedbuff, or clip"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    """Each with its name and what it may be."""
    with pytest.raises(ParameterError, match=message):
        AggregationSettings(**values)  # type: ignore[arg-type]


def test_fedasync_closes_a_round_with_every_update() -> None:
    """Whatever buffer was asked for."""
    assert AggregationSettings(strategy="fedasync").buffer(32) == 1
    assert AggregationSettings().buffer(32) == 32
