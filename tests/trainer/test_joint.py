"""Local passes other than PFedRec's own: joint steps, no bias, decay; and the algorithms made of them."""

from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.passes import one_pass
from trainer.aggregation import Accumulator
from trainer.algorithms import ALGORITHMS, Algorithm, Shared
from trainer.algorithms.dualper import dualper
from trainer.algorithms.fedmf import FedMF
from trainer.algorithms.fedncf import FedNCF
from trainer.algorithms.fedrecon import FedRecon
from trainer.batches import count_batches, users_alike
from trainer.errors import ParameterError
from trainer.local import LocalResult, local_pass, local_passes
from trainer.params import Hyperparameters, Rows, ScoreFunction, initial_score_function, initial_table
from trainer.sampling import NegativeSampler

Doubles = NDArray[np.float64]

N_ITEMS, DIM = 30, 5
POSITIVES = np.array([3, 0, 7, 11, 12, 5, 29], dtype=np.int64)
SETTINGS = Hyperparameters(lr=0.3, item_lr=4.0, negatives=3, batch_size=9)


class Model(NamedTuple):
    """A table, a score function, and the items of a pass's samples."""

    table: Doubles
    w: Doubles
    b: float
    items: Rows


def dense_pass(
    start: Model,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
    *,
    joint: bool,
    bias: bool,
) -> Model:
    """Train sample by sample over the whole table, in float64, drawing from `rng` as a local pass does."""
    table, w, b = start.table.copy(), start.w, start.b
    lr, decay = hyperparameters.lr, hyperparameters.decay
    items = np.concatenate((positives, sampler.draw(hyperparameters.negatives * positives.size, rng)))
    labels = (np.arange(items.size) < positives.size).astype(np.float64)
    batch_of = np.zeros(items.size, dtype=np.int64)
    if items.size > hyperparameters.batch_size:
        batch_of = rng.permutation(items.size) // hyperparameters.batch_size
    for number in range(batch_of.max() + 1):
        samples = np.flatnonzero(batch_of == number)
        batch, y = items[samples], labels[samples]
        error = 1.0 / (1.0 + np.exp(-(table[batch] @ w + b))) - y
        new_w = w - lr * ((table[batch] * error[:, None]).mean(axis=0) + decay * w)
        new_b = b - lr * float(error.mean()) if bias else b
        if not joint:
            w, b = new_w, new_b
            error = 1.0 / (1.0 + np.exp(-(table[batch] @ w + b))) - y
        row_gradient = np.zeros_like(table)
        for item, g in zip(batch, error, strict=True):
            row_gradient[item] += g * w / batch.size
        table -= hyperparameters.item_lr * row_gradient
        w, b = new_w, new_b
    return Model(table, w, b, items)


def assert_close(result: LocalResult, expected: Model) -> None:
    """Assert that a float32 pass is the dense float64 one."""
    np.testing.assert_array_equal(result.rows, np.unique(expected.items))
    np.testing.assert_allclose(result.values, expected.table[result.rows], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(result.score_function.w, expected.w, rtol=1e-3, atol=2e-4)
    assert result.score_function.b == pytest.approx(expected.b, rel=1e-3, abs=2e-4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_positives=st.integers(1, 40),
    negatives=st.integers(1, 6),
    batch_size=st.integers(1, 70),
    n_items=st.sampled_from([41, 60, 500, 10_000]),
    dim=st.integers(1, 12),
    joint=st.booleans(),
    bias=st.booleans(),
    decay=st.sampled_from([0.0, 0.1, 2.0]),
)
def test_pass_agrees_with_a_dense_float64_pass(
    seed: int,
    n_positives: int,
    negatives: int,
    batch_size: int,
    n_items: int,
    dim: int,
    *,
    joint: bool,
    bias: bool,
    decay: float,
) -> None:
    """Joint or one after the other, with and without bias and decay, over any number of mini-batches."""
    model = np.random.default_rng(seed)
    table, start = initial_table(n_items, dim, model), initial_score_function(dim, model)
    positives = model.choice(n_items, n_positives, replace=False)
    sampler = NegativeSampler.excluding(n_items, positives)
    hyperparameters = Hyperparameters(
        lr=0.1, item_lr=2.0, negatives=negatives, batch_size=batch_size, decay=decay
    )

    result = local_pass(
        table,
        start,
        positives,
        sampler,
        hyperparameters,
        np.random.default_rng(seed),
        joint=joint,
        bias=bias,
    )

    expected = dense_pass(
        Model(table.astype(np.float64), start.w.astype(np.float64), start.b, positives),
        positives,
        sampler,
        hyperparameters,
        np.random.default_rng(seed),
        joint=joint,
        bias=bias,
    )
    assert_close(result, expected)


class _Replay:
    """A generator that gives one user's part of what was drawn for several together."""

    def __init__(self, uniform: Doubles, place: Rows) -> None:
        self._uniform, self._place = uniform, place

    def random(self, count: int) -> Doubles:
        assert count == self._uniform.size
        return self._uniform

    def permutation(self, count: int) -> Rows:
        assert count == self._place.size
        return self._place


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_users=st.integers(2, 6),
    n_positives=st.integers(1, 40),
    batch_size=st.integers(1, 70),
    n_items=st.sampled_from([41, 60, 500, 10_000]),
    joint=st.booleans(),
    bias=st.booleans(),
)
def test_passes_together_are_those_of_each_user_alone(
    seed: int, n_users: int, n_positives: int, batch_size: int, n_items: int, *, joint: bool, bias: bool
) -> None:
    """From the same draws, to the last bits of float32: nobody sees who else is there."""
    rng = np.random.default_rng(seed)
    dim, negatives = 7, 3
    table = initial_table(n_items, dim, rng)
    W = rng.standard_normal((n_users, dim), dtype=np.float32)
    b = rng.standard_normal(n_users, dtype=np.float32)
    hyperparameters = Hyperparameters(
        lr=0.1, item_lr=2.0, negatives=negatives, batch_size=batch_size, decay=0.1
    )
    # Equally many batches are the condition, not equally many positives.
    n_batches = -(-n_positives * (1 + negatives) // batch_size)
    fewer = next(n for n in range(1, n_positives + 1) if -(-n * (1 + negatives) // batch_size) == n_batches)
    sizes = rng.integers(fewer, n_positives + 1, n_users)
    positives = [rng.choice(n_items, size, replace=False) for size in sizes]
    samplers = [NegativeSampler.excluding(n_items, items) for items in positives]

    passes = local_passes(
        table, W, b, positives, samplers, hyperparameters, np.random.default_rng(seed), joint=joint, bias=bias
    )

    rng = np.random.default_rng(seed)
    uniform = [rng.random(negatives * size) for size in sizes]
    places = [rng.permutation((1 + negatives) * size) if n_batches > 1 else sizes[:0] for size in sizes]
    total = Accumulator(n_items, dim)
    assert len(passes) == n_users
    for user, together in enumerate(passes):
        alone = local_pass(
            table,
            ScoreFunction(w=W[user], b=float(b[user])),
            positives[user],
            samplers[user],
            hyperparameters,
            cast("np.random.Generator", _Replay(uniform[user], places[user])),
            joint=joint,
            bias=bias,
        )
        np.testing.assert_array_equal(together.rows, alone.rows)
        np.testing.assert_allclose(together.values, alone.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.score_function.w, alone.score_function.w, rtol=1e-4, atol=1e-5)
        assert together.score_function.b == pytest.approx(alone.score_function.b, rel=1e-4, abs=1e-5)
        w = together.score_function.w
        np.testing.assert_allclose(together.products(w), together.values @ w, rtol=1e-3, atol=1e-4)
        total.add(alone.rows, alone.change, 1.0)
    summed = Accumulator(n_items, dim)
    passes.add_to(summed)
    assert (summed.count, summed.weight) == (n_users, n_users)
    np.testing.assert_allclose(summed.scaled(1.0), total.scaled(1.0), rtol=1e-4, atol=1e-4)


def test_users_with_other_numbers_of_batches_are_refused() -> None:
    """They cannot be drawn together."""
    rng = np.random.default_rng(0)
    positives = [np.arange(3), np.arange(20)]
    samplers = [NegativeSampler.excluding(100, items) for items in positives]
    W, b = np.zeros((2, DIM), dtype=np.float32), np.zeros(2, dtype=np.float32)

    with pytest.raises(ParameterError, match="equally many batches"):
        local_passes(initial_table(100, DIM, rng), W, b, positives, samplers, SETTINGS, rng)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=200),
    batch_size=st.sampled_from([1, 64, 256]),
    n_items=st.sampled_from([50, 2000, 10**6]),
)
def test_users_who_are_alike_can_be_drawn_together(sizes: list[int], batch_size: int, n_items: int) -> None:
    """Each user is in one group; all of a group have equally many batches, and not too many rows."""
    settings_of_all = Hyperparameters(batch_size=batch_size)
    n_positives = np.array(sizes)

    groups = users_alike(n_positives, n_items, settings_of_all)

    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    n_batches = count_batches(n_positives, settings_of_all)
    for group in groups:
        assert np.ptp(n_batches[group]) == 0
        rows = np.minimum(5 * n_positives[group], n_items)
        assert group.size == 1 or group.size * rows.max() <= 10_000


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("batch_size", "dim"), [(1000, 8), (32, 8), (16, 32)])
@pytest.mark.parametrize("seed", range(5))
def test_pass_is_the_float64_one_to_a_millionth(seed: int, batch_size: int, dim: int, *, joint: bool) -> None:
    """As far as float32 goes: change and w as vectors, with decay, in one mini-batch and in many."""
    rng = np.random.default_rng(seed)
    table, start = initial_table(200, dim, rng), initial_score_function(dim, rng)
    positives = rng.choice(200, 30, replace=False)
    sampler = NegativeSampler.excluding(200, positives)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=2.0, negatives=4, batch_size=batch_size, decay=0.1)

    result = local_pass(
        table, start, positives, sampler, hyperparameters, np.random.default_rng(seed), joint=joint
    )

    wide = table.astype(np.float64)
    expected = dense_pass(
        Model(wide, start.w.astype(np.float64), start.b, positives),
        positives,
        sampler,
        hyperparameters,
        np.random.default_rng(seed),
        joint=joint,
        bias=True,
    )
    change = (expected.table - wide)[result.rows]
    assert np.linalg.norm(result.change - change) < 1e-6 * np.linalg.norm(change)
    assert np.linalg.norm(result.score_function.w - expected.w) < 1e-6 * np.linalg.norm(expected.w)
    assert result.score_function.b == pytest.approx(expected.b, rel=1e-6, abs=1e-7)


def a_model(seed: int = 0) -> tuple[Shared, ScoreFunction, NegativeSampler]:
    """Draw a table and a score function."""
    rng = np.random.default_rng(seed)
    return (
        Shared(table=initial_table(N_ITEMS, DIM, rng)),
        initial_score_function(DIM, rng),
        NegativeSampler.excluding(N_ITEMS, POSITIVES),
    )


def a_pass(
    *, joint: bool = False, bias: bool = True, hyperparameters: Hyperparameters = SETTINGS
) -> LocalResult:
    """Run a pass of plain `local_pass`."""
    shared, function, sampler = a_model()
    table, rng = initial_table(N_ITEMS, DIM, np.random.default_rng(0)), np.random.default_rng(7)
    np.testing.assert_array_equal(table, shared.table)
    return local_pass(table, function, POSITIVES, sampler, hyperparameters, rng, joint=joint, bias=bias)


def a_pass_of(algorithm: Algorithm, hyperparameters: Hyperparameters = SETTINGS) -> LocalResult:
    """Run the same pass of an algorithm."""
    shared, function, sampler = a_model()
    return one_pass(
        algorithm, shared, function, POSITIVES, sampler, hyperparameters, np.random.default_rng(7)
    )


def assert_same(one: LocalResult, other: LocalResult) -> None:
    """Assert that two passes are equal to the last bit."""
    for name in ("rows", "values", "change", "network_change"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.score_function.w.tobytes() == other.score_function.w.tobytes()
    assert one.score_function.b == other.score_function.b


def test_without_bias_b_stays() -> None:
    """Whatever it is: it still enters the logits."""
    _, function, _ = a_model()

    assert a_pass(bias=False).score_function.b == pytest.approx(function.b, rel=1e-6)
    assert a_pass(bias=False, joint=True).score_function.b == pytest.approx(function.b, rel=1e-6)
    assert a_pass().score_function.b != pytest.approx(function.b, rel=1e-3)


def test_joint_pass_is_another_one() -> None:
    """The first mini-batch's w is the same; its rows step along the old w, not along the new one."""
    whole = replace(SETTINGS, batch_size=1000)
    joint, alternating = a_pass(joint=True, hyperparameters=whole), a_pass(hyperparameters=whole)
    _, function, _ = a_model()

    np.testing.assert_allclose(joint.score_function.w, alternating.score_function.w, rtol=1e-6)
    for result, along in ((joint, function.w), (alternating, alternating.score_function.w)):
        multiples = result.change @ along / np.dot(along, along)
        np.testing.assert_allclose(result.change, multiples[:, None] * along, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_decay_shrinks_w_alone(*, joint: bool) -> None:
    """Without gradient steps of the rows and in one batch, w loses lr · decay of itself, b nothing."""
    plain = replace(SETTINGS, item_lr=0.0, batch_size=1000)
    _, function, _ = a_model()

    without = a_pass(joint=joint, hyperparameters=plain).score_function
    with_decay = a_pass(joint=joint, hyperparameters=replace(plain, decay=0.5)).score_function

    np.testing.assert_allclose(without.w - with_decay.w, 0.3 * 0.5 * function.w, rtol=1e-4, atol=1e-6)
    assert with_decay.b == without.b


# -- the algorithms that are made of it ------------------------------------------------------------


def test_pfedrec_is_the_alternating_pass() -> None:
    """Its ablations are the same pass, or the joint one."""
    assert_same(a_pass_of(ALGORITHMS["pfedrec"]), a_pass())
    assert_same(a_pass_of(ALGORITHMS["pfedrec-user"]), a_pass())
    assert_same(a_pass_of(ALGORITHMS["pfedrec-joint"]), a_pass(joint=True))


def test_fedmf_is_the_joint_pass_without_bias() -> None:
    """And with DualPer the alternating one."""
    assert_same(a_pass_of(ALGORITHMS["fedmf"]), a_pass(joint=True, bias=False))
    assert_same(a_pass_of(ALGORITHMS["fedmf+dualper"]), a_pass(bias=False))


@pytest.mark.parametrize("base", [FedMF(), FedNCF(), FedRecon()], ids=lambda base: base.name)
def test_dualper_is_alternating_and_own_rows(base: FedMF | FedNCF | FedRecon) -> None:
    """And nothing else: the starts and all other settings are the base's."""
    personal = dualper(base)

    assert personal == replace(base, name=f"{base.name}+dualper", joint=False, own_rows=True)
    assert (base.joint, base.own_rows) == (True, False)
    assert ALGORITHMS[personal.name] == personal
    one, other = (a.start(N_ITEMS, DIM, 1.0, np.random.default_rng(1)) for a in (base, personal))
    np.testing.assert_array_equal(one.table, other.table)
    np.testing.assert_array_equal(one.network, other.network)


def test_dualper_of_fedncf_steps_the_rows_afterwards() -> None:
    """In one batch the user vector and the network are the base's, and the rows are not."""
    rng = np.random.default_rng(5)
    shared = FedNCF().start(N_ITEMS, DIM, 1.0, rng)
    p = ScoreFunction(w=rng.standard_normal(DIM, dtype=np.float32), b=0.0)
    sampler, whole = NegativeSampler.excluding(N_ITEMS, POSITIVES), replace(SETTINGS, batch_size=1000)

    base, personal = (
        one_pass(algorithm, shared, p, POSITIVES, sampler, whole, np.random.default_rng(2))
        for algorithm in (FedNCF(), dualper(FedNCF()))
    )

    np.testing.assert_array_equal(base.score_function.w, personal.score_function.w)
    np.testing.assert_array_equal(base.network_change, personal.network_change)
    assert not np.allclose(base.change, personal.change, rtol=1e-3)


@pytest.mark.parametrize("personal", [False, True])
@pytest.mark.parametrize("batch_size", [9, 1000])
def test_fedrecon_agrees_with_dense_float64_passes(*, personal: bool, batch_size: int) -> None:
    """Passes of the user vector from zero on a table that stays, then one that moves the rows."""
    hyperparameters = replace(SETTINGS, batch_size=batch_size)
    algorithm = ALGORITHMS["fedrecon+dualper" if personal else "fedrecon"]
    shared, _, sampler = a_model()

    result = a_pass_of(algorithm, hyperparameters)

    rng = np.random.default_rng(7)
    model = Model(shared.table.astype(np.float64), np.zeros(DIM), 0.0, POSITIVES)
    user_only = replace(hyperparameters, item_lr=0.0)
    for _ in range(10):
        model = dense_pass(model, POSITIVES, sampler, user_only, rng, joint=False, bias=False)
    rebuilt = model.w
    last = hyperparameters if personal else replace(hyperparameters, lr=0.0)
    model = dense_pass(model, POSITIVES, sampler, last, rng, joint=not personal, bias=False)
    assert_close(result, model)
    assert personal or np.array_equal(model.w, rebuilt)


def test_fedrecon_keeps_no_state() -> None:
    """The user's vector of the last round is nothing to it."""
    shared, _, sampler = a_model()
    results = [
        one_pass(
            FedRecon(),
            shared,
            ScoreFunction(w=np.full(DIM, value, dtype=np.float32), b=value),
            POSITIVES,
            sampler,
            SETTINGS,
            np.random.default_rng(0),
        )
        for value in (0.0, 9.0)
    ]

    assert_same(*results)


@pytest.mark.parametrize("name", ["pfedrec-item", "pfedrec-neither"])
def test_global_score_trains_the_fleets_score_function(name: str) -> None:
    """The pass starts from the network, whatever the user has, and sends the change of w and b."""
    algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(6)
    shared = algorithm.start(N_ITEMS, DIM, 1.0, rng)
    sampler = NegativeSampler.excluding(N_ITEMS, POSITIVES)
    first = ScoreFunction(w=shared.network[:-1], b=float(shared.network[-1]))

    result = one_pass(
        algorithm,
        shared,
        ScoreFunction(w=np.full(DIM, 99.0, dtype=np.float32), b=-5.0),
        POSITIVES,
        sampler,
        SETTINGS,
        np.random.default_rng(1),
    )

    plain = local_pass(
        np.asarray(shared.table, dtype=np.float32),
        first,
        POSITIVES,
        sampler,
        SETTINGS,
        np.random.default_rng(1),
    )
    assert shared.network.shape == (DIM + 1,)
    np.testing.assert_array_equal(result.change, plain.change)
    np.testing.assert_array_equal(result.score_function.w, plain.score_function.w)
    np.testing.assert_array_equal(
        shared.network[:-1] + result.network_change[:-1],
        shared.network[:-1] + (plain.score_function.w - shared.network[:-1]),
    )
    assert result.network_change[-1] == pytest.approx(plain.score_function.b - first.b, abs=1e-6)


@pytest.mark.parametrize("name", ["pfedrec-item", "pfedrec-neither"])
def test_global_score_scores_all_users_alike(name: str) -> None:
    """Users' own vectors are not looked at; the network is."""
    algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(6)
    shared = algorithm.start(N_ITEMS, DIM, 1.0, rng)
    W = rng.standard_normal((3, DIM), dtype=np.float32)

    scores = algorithm.scoring.of_table(W, W[:, 0], shared)

    for line in scores:
        np.testing.assert_allclose(
            line, shared.table @ shared.network[:-1] + shared.network[-1], rtol=1e-5, atol=1e-6
        )
    assert np.ptp(scores[0]) > 0
