"""A cohort by itself: memory that processes share, and what a cohort writes there, counts and keeps."""

import multiprocessing
from typing import Any

import numpy as np
import pytest

from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Update, encode
from edge.fleet.cohort import Cohort, CohortSettings, FleetArrays, shared_array
from edge.fleet.scenario import Scenario
from edge.personal import as_change
from tests.fleet.builders import a_scenario
from tests.passes import cohorts_passes
from trainer.algorithms import ALGORITHMS
from trainer.errors import ParameterError
from trainer.params import Hyperparameters
from trainer.taste import TasteSettings

N_USERS, DIM, SEED = 12, 4, 1
CUTS = [np.arange(0, 5), np.arange(5, 9), np.arange(9, N_USERS)]
SETTINGS = Hyperparameters(lr=0.1, item_lr=20.0, negatives=4, batch_size=64)


def a_fleet(scenario: Scenario, algorithm: str = "pfedrec", scale: float = 0.5) -> FleetArrays:
    """Draw a fleet's first state."""
    rng = np.random.default_rng(7)
    shared = ALGORITHMS[algorithm].start(scenario.data.n_items, DIM, scale, rng)
    return FleetArrays(shared, *ALGORITHMS[algorithm].start_users(N_USERS, DIM, rng), len(CUTS))


def a_cohort(
    number: int, scenario: Scenario, arrays: FleetArrays, algorithm: str = "pfedrec", **changed: Any
) -> Cohort:
    """Make one of the fleet's cohorts."""
    given: dict[str, Any] = {
        "algorithm": ALGORITHMS[algorithm],
        "hyperparameters": SETTINGS,
        "taste": TasteSettings(),
        "encoding": "float32",
        "noise": 0.0,
        "seed": SEED,
    }
    return Cohort(number, CUTS[number], scenario, CohortSettings(**(given | changed)), arrays)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (7,), (0,), (2, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_shared_array_is_zeros(shape: tuple[int, ...], dtype: type) -> None:
    """Of the shape and type asked for, also without any element, and it can be written."""
    array = shared_array(shape, dtype)

    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(array, 0)
    array[...] = 1
    np.testing.assert_array_equal(array, 1)


def test_processes_that_are_forked_see_the_same_memory() -> None:
    """What either writes is there for the other; an ordinary array is a copy."""
    shared, ordinary = shared_array((4,), np.float32), np.zeros(4, dtype=np.float32)
    shared[0] = 1.0

    def in_child() -> None:
        shared[1] = shared[0] + 1.0
        ordinary[1] = 2.0

    process = multiprocessing.get_context("fork").Process(target=in_child)
    process.start()
    process.join()

    assert process.exitcode == 0
    np.testing.assert_array_equal(shared, [1.0, 2.0, 0.0, 0.0])
    np.testing.assert_array_equal(ordinary, 0.0)


@pytest.mark.parametrize("algorithm", ["pfedrec", "fedncf"])
def test_fleet_starts_from_copies(algorithm: str) -> None:
    """In the slot that round 1 reads; what was given is not changed with them."""
    scenario = a_scenario(N_USERS)
    rng = np.random.default_rng(7)
    shared = ALGORITHMS[algorithm].start(scenario.data.n_items, DIM, 0.5, rng)
    W, b = ALGORITHMS[algorithm].start_users(N_USERS, DIM, rng)

    arrays = FleetArrays(shared, W, b, 3)

    first = arrays.shared_at(1)
    pairs = [(first.table, shared.table), (first.network, shared.network), (arrays.W, W), (arrays.b, b)]
    for there, given in pairs:
        np.testing.assert_array_equal(there, given)
        assert not np.shares_memory(there, given)
    assert arrays.sums.shape == (3, *shared.table.shape)
    assert arrays.network_sums.shape == (3, *shared.network.shape)
    assert arrays.val_ranks.shape == arrays.test_ranks.shape == (N_USERS,)


def test_a_round_reads_what_the_one_before_has_left() -> None:
    """Two slots in turn: a round never writes what it reads."""
    arrays = a_fleet(a_scenario(N_USERS))

    for number in (1, 2, 7):
        now, after = arrays.shared_at(number), arrays.shared_at(number + 1)
        assert not np.shares_memory(now.table, after.table)
        assert np.shares_memory(now.table, arrays.shared_at(number + 2).table)


# -- a round of a cohort ---------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["pfedrec", "fedncf", "pfedrec-item"])
def test_cohort_writes_only_what_is_its_own(algorithm: str) -> None:
    """Its users' state and its sums; what all read while they train stays as it is."""
    scenario = a_scenario(N_USERS)
    arrays, untouched = a_fleet(scenario, algorithm), a_fleet(scenario, algorithm)
    others = np.r_[0:5, 9:N_USERS]

    a_cohort(1, scenario, arrays, algorithm).train(1)

    np.testing.assert_array_equal(arrays.tables, untouched.tables)
    np.testing.assert_array_equal(arrays.networks, untouched.networks)
    np.testing.assert_array_equal(arrays.W[others], untouched.W[others])
    np.testing.assert_array_equal(arrays.b[others], untouched.b[others])
    for number in (0, 2):
        np.testing.assert_array_equal(arrays.sums[number], 0.0)
        np.testing.assert_array_equal(arrays.network_sums[number], 0.0)
    assert not np.array_equal(arrays.W[5:9], untouched.W[5:9])
    assert np.any(arrays.sums[1])


def test_cohorts_do_not_depend_on_their_order() -> None:
    """Each draws from a stream of its own, whoever has trained before."""
    scenario = a_scenario(N_USERS)
    forwards, backwards = a_fleet(scenario), a_fleet(scenario)

    for arrays, order in ((forwards, (0, 1, 2)), (backwards, (2, 1, 0))):
        for number in order:
            a_cohort(number, scenario, arrays).train(1)

    for name in ("W", "b", "sums"):
        assert getattr(forwards, name).tobytes() == getattr(backwards, name).tobytes()


def test_round_that_is_made_again_is_the_same() -> None:
    """From the same state; its sums are those of the round alone. Another round draws anew."""
    scenario = a_scenario(N_USERS)
    arrays, other = a_fleet(scenario), a_fleet(scenario)
    cohort, W = a_cohort(0, scenario, arrays), arrays.W.copy()

    cohort.train(1)
    first = arrays.sums[0].copy()
    arrays.W[:], arrays.b[:] = W, a_fleet(scenario).b
    cohort.train(1)

    assert arrays.sums[0].tobytes() == first.tobytes()
    # Slot 1 is what round 3 reads, too.
    a_cohort(0, scenario, other).train(3)
    assert other.sums[0].tobytes() != first.tobytes()


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("algorithm", ["pfedrec", "fedncf"])
def test_bytes_up_are_those_of_encoded_updates(algorithm: str, encoding: str) -> None:
    """As a fleet of devices would send them; a network goes beside the rows as it is."""
    scenario = a_scenario(N_USERS)
    arrays, start = a_fleet(scenario, algorithm), a_fleet(scenario, algorithm)

    done = a_cohort(0, scenario, arrays, algorithm, encoding=encoding).train(1)

    shared, rng = start.shared_at(1), np.random.default_rng([SEED, 3, 1, 0])
    size = 0
    passes = cohorts_passes(ALGORITHMS[algorithm], shared, start.W, start.b, scenario, CUTS[0], SETTINGS, rng)
    for _, result in passes:
        update = Update(
            instance=SEED,
            incarnation=2**53 - 1,
            seq=1,
            base_version=0,
            encoding=encoding,
            body=ENCODINGS[encoding].encode(as_change(result)),
        )
        size += len(encode(update)) + result.network_change.nbytes
    assert (done.updates, done.bytes_up) == (5, size)


def test_int8_sums_what_arrives() -> None:
    """The rounding is in the sum, and not in the users' own state."""
    scenario = a_scenario(N_USERS)
    exact, rounded = a_fleet(scenario), a_fleet(scenario)

    a_cohort(0, scenario, exact).train(1)
    a_cohort(0, scenario, rounded, encoding="int8").train(1)

    np.testing.assert_array_equal(exact.W, rounded.W)
    error = np.abs(exact.sums[0] - rounded.sums[0]).max()
    assert 0.0 < error < 0.05 * np.abs(exact.sums[0]).max()


def test_attack_is_made_only_when_asked_for() -> None:
    """One figure for each user; it changes nothing of the round."""
    scenario = a_scenario(N_USERS)
    plain, attacked = a_fleet(scenario), a_fleet(scenario)

    assert a_cohort(2, scenario, plain).train(1).recovered_f1 == []
    recovered = a_cohort(2, scenario, attacked).train(1, attack=True).recovered_f1

    assert len(recovered) == 3
    assert all(0.0 <= f1 <= 1.0 for f1 in recovered)
    assert plain.sums.tobytes() == attacked.sums.tobytes()


@pytest.mark.parametrize(
    ("algorithm", "taste", "kept"),
    [
        ("pfedrec", TasteSettings(), True),
        ("pfedrec", TasteSettings(strength=1.0), False),
        ("pfedrec-user", TasteSettings(), False),
        ("fedmf+dualper", TasteSettings(), True),
    ],
)
def test_rows_are_kept_where_they_are_the_own_view(
    algorithm: str, taste: TasteSettings, *, kept: bool
) -> None:
    """For each user of the cohort; empty, of the right width, where there is another view or none."""
    scenario = a_scenario(N_USERS)
    cohort = a_cohort(1, scenario, a_fleet(scenario, algorithm), algorithm, taste=taste)

    cohort.train(1)

    own = cohort.own_rows()
    assert len(own) == 4
    for rows, values in own:
        assert values.shape == (rows.size, DIM)
        assert (rows.size > 0) == kept


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_pass_that_diverges_is_refused(encoding: str) -> None:
    """With what to change, however updates are encoded."""
    scenario = a_scenario(N_USERS)
    cohort = a_cohort(
        0,
        scenario,
        a_fleet(scenario, scale=50.0),
        encoding=encoding,
        hyperparameters=Hyperparameters(lr=1e9, item_lr=1e9, batch_size=4),
    )

    def train_on() -> None:
        for _ in range(20):
            cohort.train(1)

    with pytest.raises(ParameterError, match="--item-lr"):
        train_on()
