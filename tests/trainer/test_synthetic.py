import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trainer.aggregation import Accumulator, FedAvg
from trainer.algorithms import Shared
from trainer.algorithms.linear import LinearScoring
from trainer.errors import ParameterError
from trainer.evaluation import OwnRowsView, SharedView, popularity_metrics, sampled_ranks
from trainer.local import local_pass
from trainer.metrics import metrics_from_ranks
from trainer.params import as_index, initial_score_function, initial_table, paper_hyperparameters
from trainer.sampling import NegativeSampler
from trainer.splits import MIN_INTERACTIONS, Interactions, leave_one_out, sampled_candidates
from trainer.synthetic import SyntheticSettings, generate, generate_large

Generate = Callable[[SyntheticSettings, np.random.Generator], Interactions]
_BOTH = pytest.mark.parametrize("generator", [generate, generate_large])


@_BOTH
def test_generate_is_deterministic(generator: Generate) -> None:
    """The same settings and seed give the same data; another seed does not."""
    first, second, other = (generator(SyntheticSettings(), np.random.default_rng(s)) for s in (4, 4, 5))

    assert (first.user_keys, first.item_keys) == (second.user_keys, second.item_keys)
    np.testing.assert_array_equal(first.indptr, second.indptr)
    np.testing.assert_array_equal(first.items, second.items)
    assert not np.array_equal(first.items, other.items)


@_BOTH
@pytest.mark.parametrize(
    "settings",
    [
        SyntheticSettings(),
        SyntheticSettings(n_users=1, n_items=48, mean_interactions=12),
        SyntheticSettings(n_users=40, loyalty=0.0),
        SyntheticSettings(n_users=40, loyalty=1.0),
        SyntheticSettings(n_users=40, n_items=60, n_groups=10, loyalty=1.0, mean_interactions=15),
    ],
    ids=repr,
)
def test_generate_is_well_formed(generator: Generate, settings: SyntheticSettings) -> None:
    """Every user has at least twelve distinct items of the catalogue."""
    data = generator(settings, np.random.default_rng(0))

    assert (data.n_users, data.n_items) == (settings.n_users, settings.n_items)
    assert data.indptr[0] == 0
    assert data.indptr[-1] == data.items.size
    for user in range(data.n_users):
        items = data.of(user)
        assert items.size >= 12 > MIN_INTERACTIONS
        assert np.unique(items).size == items.size
        assert 0 <= items.min() <= items.max() < data.n_items


@_BOTH
def test_generate_keys_sort_as_numbers(generator: Generate) -> None:
    """Keys are padded to a common width and distinct."""
    small = generator(
        SyntheticSettings(n_users=2, n_items=48, mean_interactions=12), np.random.default_rng(0)
    )
    large = generator(SyntheticSettings(n_users=2, n_items=12_345), np.random.default_rng(0))

    assert small.user_keys == ("user-0001", "user-0002")
    assert (large.user_keys[0], large.item_keys[-1]) == ("user-00001", "item-12345")
    assert list(large.item_keys) == sorted(set(large.item_keys))


@_BOTH
def test_generate_mean_interactions(generator: Generate) -> None:
    """The mean of a user's interactions is the one asked for."""
    data = generator(SyntheticSettings(n_users=500, mean_interactions=30), np.random.default_rng(1))

    # Poisson with a variance of 18: five standard errors.
    assert abs(data.items.size / 500 - 30) < 5 * np.sqrt(18 / 500)


@_BOTH
def test_generate_has_popular_items(generator: Generate) -> None:
    """The most popular tenth of the items has far more than a tenth of the interactions."""
    data = generator(SyntheticSettings(), np.random.default_rng(2))

    counts = np.sort(np.bincount(as_index(data.items), minlength=data.n_items))[::-1]
    assert counts[:40].sum() > 0.2 * data.items.size


@_BOTH
def test_generate_orders_a_history_at_random(generator: Generate) -> None:
    """The held-out last items are as popular as the others: order in time tells nothing."""
    data = generator(SyntheticSettings(n_users=1000), np.random.default_rng(3))
    counts = np.bincount(as_index(data.items), minlength=data.n_items)
    excess = [counts[data.of(user)[-1]] - counts[data.of(user)].mean() for user in range(data.n_users)]

    # Five standard errors of the mean.
    assert abs(np.mean(excess)) < 5 * np.std(excess) / np.sqrt(data.n_users)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_users": 0}, "n_users"),
        ({"favourite_groups": 0}, "favourite_groups"),
        ({"favourite_groups": 11}, "favourite_groups"),
        ({"n_groups": 401}, "favourite_groups"),
        ({"mean_interactions": 11}, "mean_interactions"),
        ({"mean_interactions": 101}, "mean_interactions"),
        ({"n_items": 40, "mean_interactions": 12}, "mean_interactions"),
        ({"loyalty": -0.1}, "loyalty"),
        ({"loyalty": 1.1}, "loyalty"),
        ({"loyalty": float("nan")}, "loyalty"),
        ({"loyalty": 1.0, "n_groups": 100}, "favourite groups must hold at least 12"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    """Sizes that cannot be generated are refused, and the message names what is wrong."""
    with pytest.raises(ParameterError, match=message):
        SyntheticSettings(**values)


def test_generate_gives_what_it_always_gave() -> None:
    """The default data set is the one that documents quote figures of."""
    data = generate(SyntheticSettings(), np.random.default_rng([0, 1]))

    digest = hashlib.sha256(data.indptr.astype("<i8").tobytes() + data.items.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "a2a844c02a72c2ae"


def _popularity_by_rank(data: Interactions) -> Any:
    counts = np.sort(np.bincount(as_index(data.items), minlength=data.n_items))[::-1]
    return counts.reshape(10, -1).sum(axis=1) / data.items.size


@pytest.mark.parametrize("loyalty", [0.0, 0.5, 0.9, 1.0])
def test_generate_large_has_the_distribution_of_generate(loyalty: float) -> None:
    """Interactions spread over popular and rare items, and over a user's groups, as in the small one."""
    settings = SyntheticSettings(n_users=2000, loyalty=loyalty, mean_interactions=60)
    one, other = (g(settings, np.random.default_rng(6)) for g in (generate, generate_large))

    np.testing.assert_allclose(_popularity_by_rank(one), _popularity_by_rank(other), atol=0.01)
    # Two users of the same favourites share more items than others: the spread of what pairs share.
    shared = []
    for data in (one, other):
        has = np.zeros((data.n_users, data.n_items))
        has[np.repeat(np.arange(data.n_users), as_index(np.diff(data.indptr))), data.items] = 1
        shared.append(np.quantile(has[:1000] @ has[1000:].T, [0.1, 0.5, 0.9, 0.99]))
    np.testing.assert_allclose(shared[0], shared[1], atol=2)


def test_generate_large_completes_what_draws_leave_missing() -> None:
    """Users who want nearly all of their groups get them, each item once."""
    settings = SyntheticSettings(
        n_users=50, n_items=400, n_groups=20, favourite_groups=1, loyalty=1.0, mean_interactions=100
    )
    data = generate_large(settings, np.random.default_rng(0))

    groups = {tuple(sorted(data.of(user).tolist())) for user in range(50)}
    assert {len(group) for group in groups} == {20}
    assert len(groups) <= 20
    assert len(set().union(*groups)) == 20 * len(groups)


def test_generate_large_reaches_every_item() -> None:
    """No item of the catalogue is left out, the last of a group included."""
    data = generate_large(SyntheticSettings(n_users=5000), np.random.default_rng(0))

    assert np.unique(data.items).size == 400


def _hit_ratios(seed: int, *, rounds: int) -> tuple[float, float, float]:
    """Train as in the paper on the clean protocol; HR@10 of own view, shared table and popularity."""
    rng = np.random.default_rng(seed)
    data = generate(SyntheticSettings(), rng)
    split = leave_one_out(data, rng)
    _, candidates = sampled_candidates(split, rng)
    hyperparameters = paper_hyperparameters(data.n_items)
    table = initial_table(data.n_items, 32, rng)
    functions = [initial_score_function(32, rng)] * data.n_users
    samplers = [NegativeSampler.excluding(data.n_items, train) for train in split.train]
    server = FedAvg()
    for _ in range(rounds):
        updates = Accumulator(*table.shape)
        results = [
            local_pass(table, function, positives, sampler, hyperparameters, rng)
            for function, positives, sampler in zip(functions, split.train, samplers, strict=True)
        ]
        for result in results:
            updates.add(result.rows, result.change, server.weight(0))
        functions = [result.score_function for result in results]
        trained_on, table = table, table + server.change(updates, data.n_users)
    W = np.stack([function.w for function in functions])
    b = np.array([function.b for function in functions], dtype=np.float32)
    before, after = (
        SharedView(scoring=LinearScoring(), shared=Shared(table=each), W=W, b=b)
        for each in (trained_on, table)
    )
    own, shared = (
        metrics_from_ranks(sampled_ranks(view, candidates)[0]).hr
        for view in (OwnRowsView(base=before, own=results), after)
    )
    return own, shared, popularity_metrics(split, candidates).hr


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_rounds_beat_popularity(seed: int) -> None:
    """The whole method learns: shared table and own view hit clearly more often than popularity."""
    own, shared, popularity = _hit_ratios(seed, rounds=40)

    # Over 30 seeds the gains were 0.27 to 0.38 (shared) and 0.10 to 0.31 (own).
    assert shared > popularity + 0.2
    assert own > popularity + 0.07


def test_training_is_what_beats_popularity() -> None:
    """After one round the model is far from there: the data do not give the answer away."""
    _, shared, popularity = _hit_ratios(0, rounds=1)

    assert shared < popularity + 0.05
