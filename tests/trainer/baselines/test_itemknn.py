import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import a_random_split, a_split, clean_samplers, dense
from trainer.baselines import ItemKnn, Scorer
from trainer.baselines.incidence import Incidence
from trainer.baselines.itemknn import nearest_neighbours
from trainer.errors import ParameterError
from trainer.splits import Split


def _only(baseline: ItemKnn, split: Split) -> Scorer:
    ((_, scorer),) = baseline.fits(split, clean_samplers(split), 8, np.random.default_rng(0))
    return scorer


def test_scores_by_hand() -> None:
    """Items 0 and 1 share two users, 1 and 2 one; item 3 has no user."""
    split = a_split([[0, 1], [1, 0, 2], [0]], 4)
    near, far, same = 2 / np.sqrt(6), 1 / np.sqrt(2), 1 / np.sqrt(3)

    scorer = _only(ItemKnn(neighbours=(10,), shrinkages=(0.0,)), split)

    expected = [
        [near, near, far + same, 0],
        [near + same, near + far, far + same, 0],
        [0, near, same, 0],
    ]
    np.testing.assert_allclose(scorer.scores(slice(0, 3)), expected, rtol=1e-6)


def test_neighbourhood_of_one_keeps_the_nearest() -> None:
    """Item 1 is the nearest of both others; item 0 is that of item 1."""
    split = a_split([[0, 1], [1, 0, 2], [0]], 4)
    near, far = 2 / np.sqrt(6), 1 / np.sqrt(2)

    scorer = _only(ItemKnn(neighbours=(1,), shrinkages=(0.0,)), split)

    np.testing.assert_allclose(
        scorer.scores(slice(0, 3)), [[near, near, far, 0], [near, near, far, 0], [0, near, 0, 0]], rtol=1e-6
    )


def test_shrinkage_prefers_the_neighbour_with_more_users() -> None:
    """One common user of two items that have only one is no longer worth more than two of many."""
    split = a_split([[0, 1], [0, 2], [0, 2], [2], [3]], 4)
    by_user = Incidence.of_training(split)

    plain, shrunk = nearest_neighbours(by_user, 2, (0.0, 5.0))

    assert plain.items[plain.indptr[0] : plain.indptr[1]].tolist() == [2, 1]
    np.testing.assert_allclose(plain.similarities[:2], [2 / 3, 1 / np.sqrt(3)], rtol=1e-6)
    np.testing.assert_allclose(shrunk.similarities[:2], [2 / 8, 1 / (np.sqrt(3) + 5)], rtol=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 10), shrinkage=st.sampled_from([0.0, 1.0, 7.5]))
def test_scores_are_those_of_the_dense_matrix(seed: int, size: int, shrinkage: float) -> None:
    """Similarities beyond an item's nearest are zero; ties go by the number of the item."""
    split = a_random_split(seed)
    X = dense(split)
    gram = X.T @ X
    norms = np.sqrt(np.diagonal(gram))
    with np.errstate(invalid="ignore"):
        similarity = np.nan_to_num(gram / (np.outer(norms, norms) + shrinkage)).astype(np.float32)
    np.fill_diagonal(similarity, 0.0)
    for line in similarity:
        line[np.argsort(-line, kind="stable")[size:]] = 0.0

    scorer = _only(ItemKnn(neighbours=(size,), shrinkages=(shrinkage,)), split)

    np.testing.assert_allclose(scorer.scores(slice(0, 99)), X @ similarity.T, rtol=1e-5, atol=1e-6)


def test_candidates_are_every_pair_of_the_grid() -> None:
    """Each with its description, and each as if it were alone."""
    split = a_random_split(4)
    grid = ItemKnn(neighbours=(1, 3), shrinkages=(0.0, 2.5))

    found = list(grid.fits(split, clean_samplers(split), 8, np.random.default_rng(0)))

    assert [description for description, _ in found] == [
        "neighbours 1, shrinkage 0",
        "neighbours 3, shrinkage 0",
        "neighbours 1, shrinkage 2.5",
        "neighbours 3, shrinkage 2.5",
    ]
    alone = _only(ItemKnn(neighbours=(3,), shrinkages=(2.5,)), split)
    np.testing.assert_array_equal(found[3][1].scores(slice(0, 99)), alone.scores(slice(0, 99)))


@pytest.mark.parametrize("neighbours", [(), (0,), (10, -1)])
def test_bad_neighbourhoods_are_refused(neighbours: tuple[int, ...]) -> None:
    """The sentence names the argument."""
    with pytest.raises(ParameterError, match="neighbours"):
        ItemKnn(neighbours=neighbours)


@pytest.mark.parametrize("shrinkages", [(), (-1.0,), (0.0, float("nan")), (float("inf"),)])
def test_bad_shrinkages_are_refused(shrinkages: tuple[float, ...]) -> None:
    """The sentence names the argument."""
    with pytest.raises(ParameterError, match="shrinkages"):
        ItemKnn(shrinkages=shrinkages)
