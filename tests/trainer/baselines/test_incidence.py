import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.baselines.builders import a_random_split, a_split, dense
from trainer.baselines.incidence import Incidence, cooccurrences, entries_of
from trainer.errors import DataTooSmallError


def _filled(incidence: Incidence) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    matrix = np.zeros((incidence.n_rows, incidence.n_columns))
    for row in range(incidence.n_rows):
        matrix[row, incidence.of(row)] += 1.0
    return matrix


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_matrix_its_transpose_and_its_gram_are_the_dense_ones(seed: int) -> None:
    """Training items only, each once."""
    split = a_random_split(seed)
    X = dense(split)

    by_user = Incidence.of_training(split)
    by_item = by_user.transposed()

    np.testing.assert_array_equal(_filled(by_user), X)
    np.testing.assert_array_equal(_filled(by_item), X.T)
    np.testing.assert_array_equal(by_item.counts, X.sum(axis=0))
    gram = [cooccurrences(by_user, by_item, item) for item in range(split.n_items)]
    np.testing.assert_array_equal(gram, X.T @ X)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    asked=st.lists(st.integers(0, 7), max_size=12),
)
def test_entries_of_rows_in_any_order(lengths: list[int], asked: list[int]) -> None:
    """Empty rows and repeated ones included."""
    indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    rows = np.array([row for row in asked if row < len(lengths)], dtype=np.int64)

    positions = entries_of(indptr, rows)

    expected = [position for row in rows for position in range(indptr[row], indptr[row + 1])]
    assert positions.tolist() == expected


@pytest.mark.parametrize("train", [[], [[]], [[], []]], ids=["no user", "one user", "two users"])
def test_split_without_training_items_is_refused(train: list[list[int]]) -> None:
    """There is nothing to learn from."""
    with pytest.raises(DataTooSmallError, match="no training interaction"):
        Incidence.of_training(a_split(train, 5))
