import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import Doubles, a_random_split, a_split, clean_samplers, dense
from trainer.baselines import Ials
from trainer.baselines.ials import LeastSquares, half_sweep
from trainer.baselines.incidence import Incidence
from trainer.errors import ParameterError
from trainer.params import Floats


def _objective(X: Doubles, P: Doubles, Q: Doubles, weights: LeastSquares) -> float:
    """Give the objective of the module, over all pairs."""
    fitted = P @ Q.T
    c, power = weights.unobserved, weights.power
    per_user = (X.sum(axis=1) + c * X.shape[1]) ** power
    per_item = (X.sum(axis=0) + c * X.shape[0]) ** power
    penalty = per_user @ (P**2).sum(axis=1) + per_item @ (Q**2).sum(axis=1)
    return float((X * (1 - fitted) ** 2).sum() + c * (fitted**2).sum() + weights.penalty * penalty)


def _factors(seed: int, count: int, dim: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(1, 6),
    unobserved=st.sampled_from([0.05, 1.0]),
    penalty=st.sampled_from([0.01, 0.3]),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_half_sweep_solves_the_normal_equations_of_each_user(
    seed: int, dim: int, unobserved: float, penalty: float, power: float
) -> None:
    """Summed pair by pair, in float64: every pair with weight c, the observed ones with 1 more."""
    split = a_random_split(seed)
    X = dense(split)
    Q = _factors(seed, split.n_items, dim)
    weights = LeastSquares(unobserved=unobserved, penalty=penalty, power=power)

    solved = half_sweep(Q, Incidence.of_training(split), weights)

    for user, observed in enumerate(X):
        system = np.diag(np.full(dim, penalty * (observed.sum() + unobserved * split.n_items) ** power))
        right = np.zeros(dim)
        for item, one in enumerate(observed):
            q = Q[item].astype(np.float64)
            system += (one + unobserved) * np.outer(q, q)
            right += one * q
        np.testing.assert_allclose(solved[user], np.linalg.solve(system, right), rtol=2e-3, atol=2e-4)


def test_half_sweeps_do_not_raise_the_objective() -> None:
    """Each minimises over one side, from wherever the other is."""
    split = a_random_split(7, n_users=40, n_items=25)
    X = dense(split)
    by_user = Incidence.of_training(split)
    weights = LeastSquares(unobserved=0.2, penalty=0.02)
    P, Q = _factors(1, 40, 4), _factors(2, 25, 4)
    values = [_objective(X, P.astype(np.float64), Q.astype(np.float64), weights)]

    for _ in range(4):
        P = half_sweep(Q, by_user, weights)
        values.append(_objective(X, P.astype(np.float64), Q.astype(np.float64), weights))
        Q = half_sweep(P, by_user.transposed(), weights)
        values.append(_objective(X, P.astype(np.float64), Q.astype(np.float64), weights))

    assert np.all(np.diff(values) <= 1e-4 * values[0])
    assert values[-1] < 0.5 * values[1]


def test_users_of_very_different_lengths_are_solved_as_each_alone() -> None:
    """Padding to the longest of a batch, and batches of their own for long rows, change nothing."""
    rng = np.random.default_rng(4)
    lengths = [3000, 0, 1, 2500, 17, 2999, *rng.integers(1, 40, 600)]
    split = a_split([rng.permutation(4000)[:length].tolist() for length in lengths], 4000)
    Q, weights = _factors(3, 4000, 64), LeastSquares(unobserved=0.1, penalty=0.1)

    together = half_sweep(Q, Incidence.of_training(split), weights)

    np.testing.assert_array_equal(together[1], 0.0)
    for user in (0, 2, 3, 4, 5, 300, 605):
        alone = half_sweep(Q, Incidence.of_training(a_split([split.train[user].tolist()], 4000)), weights)
        np.testing.assert_allclose(together[user], alone[0], rtol=1e-3, atol=1e-5)


def test_candidates_are_every_sweep_of_every_pair() -> None:
    """A setting gives the same whatever was fitted before it."""
    split = a_random_split(4)
    grid = Ials(unobserved=(0.1, 1.0), penalties=(0.25,), sweeps=2)

    found = list(grid.fits(split, clean_samplers(split), 3, np.random.default_rng(0)))

    assert [description for description, _ in found] == [
        "unobserved 0.1, penalty 0.25, sweep 1",
        "unobserved 0.1, penalty 0.25, sweep 2",
        "unobserved 1, penalty 0.25, sweep 1",
        "unobserved 1, penalty 0.25, sweep 2",
    ]
    second = Ials(unobserved=(1.0,), penalties=(0.25,), sweeps=2)
    *_, (_, alone) = second.fits(split, clean_samplers(split), 3, np.random.default_rng(0))
    np.testing.assert_array_equal(found[3][1].scores(slice(0, 99)), alone.scores(slice(0, 99)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unobserved", 0.0),
        ("unobserved", float("nan")),
        ("penalty", -0.1),
        ("penalty", float("inf")),
        ("power", -0.5),
        ("power", 3.0),
    ],
)
def test_bad_weights_are_refused(field: str, value: float) -> None:
    """The sentence names the argument and what was found."""
    with pytest.raises(ParameterError, match=f"{field} is {value}"):
        LeastSquares(**{"unobserved": 0.1, "penalty": 0.1, field: value})


def test_bad_grids_are_refused() -> None:
    """Nothing to choose from, no sweep, or a value of the grid out of range."""
    with pytest.raises(ParameterError, match="at least one value"):
        Ials(unobserved=())
    with pytest.raises(ParameterError, match="at least one value"):
        Ials(penalties=())
    with pytest.raises(ParameterError, match="sweeps is 0"):
        Ials(sweeps=0)
    with pytest.raises(ParameterError, match="penalty is 0"):
        Ials(penalties=(0.1, 0.0))


def test_factors_of_another_catalogue_are_refused() -> None:
    """They would be read as those of other items."""
    with pytest.raises(ParameterError, match="5 fixed factors for 9 columns"):
        half_sweep(
            _factors(0, 5, 2),
            Incidence.of_training(a_random_split(0)),
            LeastSquares(unobserved=0.1, penalty=0.1),
        )
