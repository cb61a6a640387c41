import numpy as np
import pytest

from trainer.errors import DataTooSmallError
from trainer.params import Rows
from trainer.splits import Interactions, Split, leave_one_out, sampled_candidates


def _interactions(n_items: int, *users: list[int]) -> Interactions:
    return Interactions(
        user_keys=tuple(f"u{user}" for user in range(len(users))),
        item_keys=tuple(f"i{item}" for item in range(n_items)),
        indptr=np.concatenate(([0], np.cumsum([len(items) for items in users]))).astype(np.int64),
        items=np.array([item for items in users for item in items], dtype=np.int64),
    )


def _one_user(n_items: int, train: list[int], val: int, test: int) -> Split:
    return Split(
        n_items=n_items,
        train=[np.array(train, dtype=np.int64)],
        val=np.array([val], dtype=np.int64),
        test=np.array([test], dtype=np.int64),
    )


def _as_sets(candidates: Rows) -> list[set[int]]:
    return [set(line[1:].tolist()) for line in candidates]


def test_interactions_sizes_and_slices() -> None:
    """Each user's items are a slice; counts come from the keys."""
    data = _interactions(6, [5, 0, 3], [1, 2, 4, 0])

    assert (data.n_users, data.n_items) == (2, 6)
    np.testing.assert_array_equal(data.of(0), [5, 0, 3])
    np.testing.assert_array_equal(data.of(1), [1, 2, 4, 0])


def test_leave_one_out_by_hand() -> None:
    """The last item is the test, the one before it validation, the rest training, oldest first."""
    split = leave_one_out(_interactions(7, [5, 0, 3], [6, 1, 2, 4, 0]))

    assert split.n_items == 7
    assert [train.tolist() for train in split.train] == [[5], [6, 1, 2]]
    assert split.val.tolist() == [0, 4]
    assert split.test.tolist() == [3, 0]
    assert [split.known(user).tolist() for user in (0, 1)] == [[5, 0, 3], [6, 1, 2, 4, 0]]


@pytest.mark.parametrize("users", [[], [[0, 1, 2], [3, 4]]])
def test_leave_one_out_with_too_little(users: list[list[int]]) -> None:
    """No user, or one with two interactions, cannot be split."""
    with pytest.raises(DataTooSmallError, match="three"):
        leave_one_out(_interactions(5, *users))


def test_sampled_candidates_shape_and_content() -> None:
    """The positive comes first, then 99 distinct items that the user does not know."""
    users = [list(range(start, start + 8)) for start in range(0, 60, 3)]
    split = leave_one_out(_interactions(150, *users))

    val, test = sampled_candidates(split, np.random.default_rng(2))

    for candidates, positives in ((val, split.val), (test, split.test)):
        assert candidates.shape == (20, 100)
        assert candidates.dtype == np.int64
        np.testing.assert_array_equal(candidates[:, 0], positives)
        for user, negatives in enumerate(_as_sets(candidates)):
            assert len(negatives) == 99
            assert negatives <= set(range(150)) - set(users[user])


def test_sampled_candidates_are_seeded_and_independent() -> None:
    """The same generator state gives the same candidates; validation and test draw their own."""
    split = leave_one_out(_interactions(400, *[list(range(8))] * 3))

    first = sampled_candidates(split, np.random.default_rng(4))
    second = sampled_candidates(split, np.random.default_rng(4))

    np.testing.assert_array_equal(first, second)
    assert _as_sets(first[0]) != _as_sets(first[1])
    assert _as_sets(first[0])[0] != _as_sets(first[0])[1]


def test_sampled_candidates_reach_every_unknown_item() -> None:
    """With exactly 99 unknown items, all of them are the candidates."""
    val, test = sampled_candidates(_one_user(103, [0, 50], 102, 7), np.random.default_rng(0))

    unknown = set(range(103)) - {0, 50, 102, 7}
    assert _as_sets(val) == _as_sets(test) == [unknown]


def test_sampled_candidates_with_too_few_items() -> None:
    """A user who leaves 98 items is refused; the message gives the numbers."""
    with pytest.raises(DataTooSmallError, match="98 of 102"):
        sampled_candidates(_one_user(102, [0, 50], 101, 7), np.random.default_rng(0))
