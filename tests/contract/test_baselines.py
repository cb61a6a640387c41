"""What every baseline must do, whatever its model; add a new baseline to the list."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.baselines.builders import a_random_split, a_split, a_structured_split, clean_samplers
from trainer.baselines import (
    BASELINES,
    Baseline,
    Ease,
    Ials,
    ItemKnn,
    Mf,
    Ncf,
    Popularity,
    best_fit,
)
from trainer.baselines.descent import DescentSettings
from trainer.errors import DataTooSmallError, ParameterError
from trainer.evaluation import full_ranks, sampled_ranks
from trainer.metrics import metrics_from_ranks
from trainer.params import MAX_DIM, Floats
from trainer.splits import Split

SMALL: list[Baseline] = [
    Popularity(),
    ItemKnn(neighbours=(5, 40), shrinkages=(0.0, 5.0)),
    Ease(penalties=(20.0, 100.0)),
    Ials(unobserved=(0.1,), penalties=(0.01, 0.03), sweeps=4),
    Mf(grid=tuple(DescentSettings(epochs=8, lr=0.02, decay=decay, batch_size=512) for decay in (0.0, 0.01))),
    Ncf(grid=(DescentSettings(epochs=10, lr=0.01, decay=0.01, batch_size=512),)),
]
"""Grids that take a moment on a small data set."""

every_baseline = pytest.mark.parametrize("baseline", SMALL, ids=lambda baseline: baseline.name)
with_embeddings = pytest.mark.parametrize("baseline", SMALL[3:], ids=lambda baseline: baseline.name)

EVERYBODY = slice(0, 1_000_000)


def _all_scores(baseline: Baseline, split: Split, seed: int = 0, dim: int = 8) -> list[tuple[str, Floats]]:
    """Give every candidate's scores of everybody, taken as soon as it is there."""
    fitted = baseline.fits(split, clean_samplers(split), dim, np.random.default_rng(seed))
    return [(description, scorer.scores(EVERYBODY)) for description, scorer in fitted]


def test_registry_names_every_baseline() -> None:
    """By its own name; and every one of them is tested here."""
    assert list(BASELINES) == ["popularity", "item-knn", "ease", "ials", "mf", "ncf"]
    assert [baseline.name for baseline in BASELINES.values()] == list(BASELINES)
    assert [baseline.name for baseline in SMALL] == list(BASELINES)


@every_baseline
def test_structure_is_found(baseline: Baseline) -> None:
    """Users favour groups of items: all but popularity itself rank better than popularity."""
    split, val, test = a_structured_split()
    rng = np.random.default_rng(0)
    popularity = best_fit(Popularity(), split, clean_samplers(split), 8, val, rng)

    best = best_fit(baseline, split, clean_samplers(split), 8, val, rng)

    margin = 0.0 if baseline.name == "popularity" else 0.05
    assert best.val.ndcg >= popularity.val.ndcg + margin
    reached = metrics_from_ranks(sampled_ranks(best.view, test)[0])
    assert reached.ndcg >= metrics_from_ranks(sampled_ranks(popularity.view, test)[0]).ndcg + margin
    full, popular = (
        metrics_from_ranks(full_ranks(fit.view, split.train, split.test)) for fit in (best, popularity)
    )
    assert full.ndcg >= popular.ndcg + margin / 5


@every_baseline
def test_candidates_have_distinct_descriptions_and_finite_scores(baseline: Baseline) -> None:
    """One row for each user, one column for each item, also for items that nobody has."""
    split = a_split([[1, 2], [2, 3, 4], [1, 4]], 9)

    candidates = _all_scores(baseline, split)

    assert len({description for description, _ in candidates}) == len(candidates) >= 1
    for _, scores in candidates:
        assert scores.shape == (3, 9)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


@every_baseline
def test_candidate_stays_as_it_is_when_the_next_is_made(baseline: Baseline) -> None:
    """The caller keeps the best and goes on."""
    split = a_random_split(1)
    fitted = list(baseline.fits(split, clean_samplers(split), 8, np.random.default_rng(0)))

    late = [scorer.scores(EVERYBODY) for _, scorer in fitted]

    for scores, (_, early) in zip(late, _all_scores(baseline, split), strict=True):
        np.testing.assert_array_equal(scores, early)


@every_baseline
def test_scores_belong_to_the_caller(baseline: Baseline) -> None:
    """Writing into them, as the evaluation does, changes no later answer."""
    split = a_random_split(2)
    for _, scorer in baseline.fits(split, clean_samplers(split), 8, np.random.default_rng(0)):
        first = scorer.scores(EVERYBODY)
        kept = first.copy()
        first[:] = -np.inf
        np.testing.assert_array_equal(scorer.scores(EVERYBODY), kept)


@every_baseline
def test_blocks_of_users_give_what_all_at_once_give(baseline: Baseline) -> None:
    """A block may end beyond the last user, or hold one, or none."""
    split = a_random_split(3)
    *_, (_, scorer) = baseline.fits(split, clean_samplers(split), 8, np.random.default_rng(0))
    whole = scorer.scores(slice(0, 12))

    blocks = [scorer.scores(users) for users in (slice(0, 5), slice(5, 6), slice(6, 256))]

    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=1e-5, atol=1e-6)
    assert scorer.scores(slice(12, 268)).shape == (0, 9)


@every_baseline
def test_same_generator_state_gives_the_same_bits(baseline: Baseline) -> None:
    """And nothing else is random."""
    split = a_random_split(4)
    first, second = _all_scores(baseline, split, seed=5), _all_scores(baseline, split, seed=5)
    for (text, scores), (other_text, others) in zip(first, second, strict=True):
        assert text == other_text
        np.testing.assert_array_equal(scores, others)


@with_embeddings
def test_another_generator_state_gives_another_fit(baseline: Baseline) -> None:
    """Embeddings start at random."""
    split = a_random_split(4)
    (_, scores), *_ = _all_scores(baseline, split, seed=5)
    (_, others), *_ = _all_scores(baseline, split, seed=6)
    assert not np.array_equal(scores, others)


@every_baseline
def test_held_out_items_have_no_influence(baseline: Baseline) -> None:
    """With the same samplers, other validation and test items give the same bits."""
    split = a_random_split(5)
    moved = replace(split, val=split.val + 3, test=split.test + 7)
    for (_, scores), (_, others) in zip(
        _all_scores(baseline, split), _all_scores(baseline, moved), strict=True
    ):
        np.testing.assert_array_equal(scores, others)


@every_baseline
def test_split_is_not_changed(baseline: Baseline) -> None:
    """Read-only arrays serve."""
    split = a_random_split(6)
    for array in (*split.train, split.val, split.test):
        array.setflags(write=False)
    assert _all_scores(baseline, split)


@every_baseline
def test_user_without_training_items_gets_scores_too(baseline: Baseline) -> None:
    """They say little, but they are there."""
    split = a_split([[1, 2], [], [2, 3, 4]], 9)
    for _, scores in _all_scores(baseline, split):
        assert np.isfinite(scores[1]).all()


@every_baseline
def test_split_without_training_items_is_refused(baseline: Baseline) -> None:
    """There is nothing to fit."""
    with pytest.raises(DataTooSmallError):
        _all_scores(baseline, a_split([[], []], 9))


@with_embeddings
@pytest.mark.parametrize("dim", [0, MAX_DIM + 1])
def test_bad_widths_are_refused(baseline: Baseline, dim: int) -> None:
    """Wherever there are embeddings."""
    with pytest.raises(ParameterError, match=f"dim is {dim}"):
        _all_scores(baseline, a_random_split(7), dim=dim)


@pytest.mark.parametrize(
    "baseline",
    [
        Popularity(),
        ItemKnn(neighbours=(5,), shrinkages=(0.0,)),
        Ials(unobserved=(0.1,), penalties=(0.01,), sweeps=1),
        Mf(grid=(DescentSettings(epochs=1, lr=0.01, batch_size=8192),)),
        Ncf(grid=(DescentSettings(epochs=1, lr=0.01, batch_size=8192),)),
    ],
    ids=lambda baseline: baseline.name,
)
def test_many_users_and_items_need_no_dense_matrix(baseline: Baseline) -> None:
    """Users x items floats would be 1.6 GB. All but EASE, which is items x items and says so."""
    rng = np.random.default_rng(8)
    first = rng.integers(0, 20_000, 20_000)
    split = a_split(np.stack((first, (first + 1) % 20_000, (first + 77) % 20_000), axis=1).tolist(), 20_000)
    tracemalloc.start()

    ((_, scorer),) = baseline.fits(split, clean_samplers(split), 8, rng)
    block = scorer.scores(slice(19_990, 20_256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert block.shape == (10, 20_000)
    assert peak < 120e6
