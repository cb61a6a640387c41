"""What every federated algorithm must do: one suite over all of `trainer.algorithms.ALGORITHMS`."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes import one_pass
from trainer.algorithms import ALGORITHMS, Algorithm, Shared
from trainer.algorithms.fedncf import FedNCF
from trainer.errors import ParameterError
from trainer.local import LocalResult
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler

Doubles = NDArray[np.float64]

N_ITEMS, DIM, N_USERS = 40, 6, 4
POSITIVES = np.array([3, 0, 7, 11, 12, 5], dtype=np.int64)
SETTINGS = Hyperparameters(lr=0.1, item_lr=2.0, negatives=4, batch_size=8)

pytestmark = pytest.mark.parametrize("name", sorted(ALGORITHMS))


def a_start(algorithm: Algorithm, seed: int = 1) -> tuple[Shared, Floats, Floats]:
    """Draw what the fleet shares, and where its users start."""
    rng = np.random.default_rng(seed)
    shared = algorithm.start(N_ITEMS, DIM, 0.5, rng)
    W, b = algorithm.start_users(N_USERS, DIM, rng)
    return shared, W, b


def a_pass(
    algorithm: Algorithm, seed: int = 0, *, user: int = 0, positives: Rows = POSITIVES
) -> tuple[Shared, LocalResult]:
    """Run one pass of a user from the start."""
    shared, W, b = a_start(algorithm)
    result = one_pass(
        algorithm,
        shared,
        ScoreFunction(w=W[user], b=float(b[user])),
        positives,
        NegativeSampler.excluding(N_ITEMS, POSITIVES),
        SETTINGS,
        np.random.default_rng(seed),
    )
    return shared, result


def a_trained_fleet(algorithm: Algorithm) -> tuple[Shared, Floats, Floats]:
    """Let each user make a pass, so that nothing is zero or the same for all."""
    shared, W, b = a_start(algorithm)
    table, network = shared.table.copy(), shared.network.copy()
    for user in range(N_USERS):
        _, result = a_pass(algorithm, user, user=user)
        table[result.rows] += result.change
        network += result.network_change
        W[user], b[user] = result.score_function.w, result.score_function.b
    return Shared(table=table, network=network), W, b


def plain_logit(algorithm: Algorithm, w: Doubles, b: float, row: Doubles, network: Doubles) -> float:
    """Score one row in float64, as the papers write it."""
    if isinstance(algorithm, FedNCF):
        h, at = np.concatenate((w, row)), 0
        sizes = [*algorithm.widths, 1]
        for n_out in sizes:
            A = network[at : at + h.size * n_out].reshape(h.size, n_out)
            at += A.size
            h = A.T @ h + network[at : at + n_out]
            at += n_out
            if at < network.size:
                h = np.maximum(h, 0.0)
        return float(h[0])
    if network.size:
        w, b = network[:-1], float(network[-1])
    return float(w @ row + b)


def plain_scores(algorithm: Algorithm, W: Floats, b: Floats, shared: Shared) -> Doubles:
    """Score all rows of the table for all users, one by one."""
    table, network = shared.table.astype(np.float64), shared.network.astype(np.float64)
    return np.array(
        [
            [plain_logit(algorithm, w, float(own_b), row, network) for row in table]
            for w, own_b in zip(W.astype(np.float64), b, strict=True)
        ]
    )


def test_table_has_it_under_its_name(name: str) -> None:
    """The key is the algorithm's own name; DualPer and PFedRec keep rows of their own."""
    algorithm = ALGORITHMS[name]

    assert algorithm.name == name
    assert algorithm.own_rows == (
        name.endswith("+dualper") or name in ("pfedrec", "pfedrec-joint", "pfedrec-item")
    )


def test_start_is_drawn_from_the_generator(name: str) -> None:
    """Float32 of the documented shapes, the table of the scale asked for; the same seed gives the same."""
    algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(0)

    shared = algorithm.start(5000, DIM, 0.25, rng)
    W, b = algorithm.start_users(N_USERS, DIM, rng)

    assert shared.table.shape == (5000, DIM)
    assert shared.network.ndim == 1
    assert W.shape == (N_USERS, DIM)
    assert b.shape == (N_USERS,)
    assert {array.dtype for array in (shared.table, shared.network, W, b)} == {np.dtype(np.float32)}
    assert float(shared.table.std()) == pytest.approx(0.25, rel=0.03)
    again, other = a_start(algorithm), a_start(algorithm, seed=2)
    for one, two in zip(a_start(algorithm)[1:], again[1:], strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(a_start(algorithm)[0].network, again[0].network)
    assert not np.array_equal(again[0].table, other[0].table)
    assert not np.array_equal(again[1], other[1])


def test_start_is_writable_and_each_users_own(name: str) -> None:
    """A change of one user's vector is no change of another's."""
    _, W, _ = a_start(ALGORITHMS[name])
    before = W[1].copy()

    W[0] += 1.0

    np.testing.assert_array_equal(W[1], before)


def test_pass_gives_float32_of_the_touched_rows(name: str) -> None:
    """Rows are ascending and hold every positive; the network's change has the network's shape."""
    shared, result = a_pass(ALGORITHMS[name])

    assert np.all(np.diff(result.rows) > 0)
    assert set(POSITIVES.tolist()) <= set(result.rows.tolist())
    assert result.rows.dtype == np.int64
    assert result.change.shape == result.values.shape == (result.rows.size, DIM)
    assert result.score_function.w.shape == (DIM,)
    assert isinstance(result.score_function.b, float)
    assert result.network_change.shape == shared.network.shape
    arrays = (result.change, result.values, result.score_function.w, result.network_change)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in arrays)
    assert np.any(result.change)
    assert shared.network.size == 0 or np.any(result.network_change)


def test_change_is_values_less_the_tables_rows(name: str) -> None:
    """All that a result says of its rows agrees: values, some of them, their products, the change."""
    shared, result = a_pass(ALGORITHMS[name])

    np.testing.assert_allclose(result.change, result.values - shared.table[result.rows], atol=1e-6)
    some = np.array([3, 0, result.rows.size - 1])
    np.testing.assert_allclose(result.values_at(some), result.values[some], atol=1e-6)
    w = result.score_function.w
    np.testing.assert_allclose(result.products(w), result.values @ w, rtol=1e-4, atol=1e-5)


def test_same_generator_state_gives_the_same_bits(name: str) -> None:
    """Two passes are equal to the last bit; another seed is another pass."""
    algorithm = ALGORITHMS[name]
    (_, first), (_, second), (_, other) = a_pass(algorithm, 5), a_pass(algorithm, 5), a_pass(algorithm, 6)

    for part in ("rows", "values", "change", "network_change"):
        assert getattr(first, part).tobytes() == getattr(second, part).tobytes()
    assert first.score_function.w.tobytes() == second.score_function.w.tobytes()
    assert first.score_function.b == second.score_function.b
    assert first.change.tobytes() != other.change.tobytes()


def test_no_argument_is_changed(name: str) -> None:
    """Read-only arrays serve, and have afterwards the values that they had."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_start(algorithm)
    positives = POSITIVES.copy()
    arrays: list[NDArray[Any]] = [shared.table, shared.network, W, positives]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    sampler = NegativeSampler.excluding(N_ITEMS, positives)

    result = one_pass(
        algorithm,
        shared,
        ScoreFunction(w=W[0], b=float(b[0])),
        positives,
        sampler,
        SETTINGS,
        np.random.default_rng(0),
    )
    algorithm.scoring.of_table(W, b, shared)
    algorithm.scoring.of_own(W[0], b[0], result, shared)

    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not np.shares_memory(result.score_function.w, W)


def test_loss_falls_over_passes(name: str) -> None:
    """Thirty passes of a user alone bring the loss over the whole catalogue well down."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_start(algorithm)
    function = ScoreFunction(w=W[0], b=float(b[0]))
    sampler, rng = NegativeSampler.excluding(N_ITEMS, POSITIVES), np.random.default_rng(3)
    labels = np.isin(np.arange(N_ITEMS), POSITIVES).astype(np.float64)
    losses = []
    for _ in range(31):
        z = plain_scores(algorithm, function.w[None], np.array([function.b], dtype=np.float32), shared)[0]
        losses.append(float(np.mean(np.logaddexp(0.0, z) - labels * z)))
        result = one_pass(algorithm, shared, function, POSITIVES, sampler, SETTINGS, rng)
        function = result.score_function
        table = shared.table.copy()
        table[result.rows] = result.values
        shared = Shared(table=table, network=shared.network + result.network_change)

    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[15] < losses[0]


def test_no_positive_is_refused(name: str) -> None:
    """There is nothing to learn from."""
    with pytest.raises(ParameterError, match="at least one interaction"):
        a_pass(ALGORITHMS[name], positives=np.array([], dtype=np.int64))


@pytest.mark.parametrize("outside", [-1, N_ITEMS])
def test_row_outside_the_table_is_refused(name: str, outside: int) -> None:
    """Before anything is trained."""
    with pytest.raises(ParameterError, match="rows of the table"):
        a_pass(ALGORITHMS[name], positives=np.array([2, outside]))


def test_scores_are_the_plain_ones(name: str) -> None:
    """The whole table at once, given rows and a float64 computation, row by row, agree."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_trained_fleet(algorithm)

    of_table = algorithm.scoring.of_table(W, b, shared)
    rows = np.random.default_rng(4).permuted(np.tile(np.arange(N_ITEMS), (N_USERS, 1)), axis=1)[:, :9]
    of_rows = algorithm.scoring.of_rows(W, b, shared.table[rows], shared)

    plain = plain_scores(algorithm, W, b, shared)
    assert of_table.dtype == of_rows.dtype == np.float32
    np.testing.assert_allclose(of_table, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_rows, np.take_along_axis(plain, rows, axis=1), rtol=1e-4, atol=1e-5)


def test_scores_in_float64_are_float64(name: str) -> None:
    """So that others find the same ranks in their own way."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_trained_fleet(algorithm)
    wide = Shared(table=shared.table.astype(np.float64), network=shared.network.astype(np.float64))

    scores = algorithm.scoring.of_table(W.astype(np.float64), b.astype(np.float64), wide)

    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, plain_scores(algorithm, W, b, shared), rtol=1e-12, atol=1e-12)


def test_own_rows_score_as_rows_do(name: str) -> None:
    """A user's own rows score as the same values given to anybody; the result itself can be asked."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_trained_fleet(algorithm)
    _, result = a_pass(algorithm, 9, user=2)

    own = algorithm.scoring.of_own(W[2], b[2], result, shared)

    rows = algorithm.scoring.of_rows(W[2:3], b[2:3], result.values[None], shared)
    assert own.shape == (result.rows.size,)
    np.testing.assert_allclose(own, rows[0], rtol=1e-4, atol=1e-5)


def test_scores_may_be_changed(name: str) -> None:
    """What is given is a new array: evaluation writes into it."""
    algorithm = ALGORITHMS[name]
    shared, W, b = a_trained_fleet(algorithm)

    first = algorithm.scoring.of_table(W, b, shared)
    kept = first.copy()
    first[:] = -np.inf

    np.testing.assert_array_equal(algorithm.scoring.of_table(W, b, shared), kept)
