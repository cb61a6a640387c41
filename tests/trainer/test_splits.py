from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import DataTooSmallError
from trainer.params import Rows
from trainer.splits import Interactions, Split, leave_one_out, sampled_candidates


def _interactions(n_items: int, *users: list[int], timed: bool = True) -> Interactions:
    return Interactions(
        user_keys=tuple(f"u{user}" for user in range(len(users))),
        item_keys=tuple(f"i{item}" for item in range(n_items)),
        indptr=np.concatenate(([0], np.cumsum([len(items) for items in users]))).astype(np.int64),
        items=np.array([item for items in users for item in items], dtype=np.int64),
        timed=timed,
    )


def _split(data: Interactions, seed: int = 0) -> Split:
    return leave_one_out(data, np.random.default_rng(seed))


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
    """With times the last item is the test, the one before it validation, the rest training, oldest first."""
    split = _split(_interactions(7, [5, 0, 3], [6, 1, 2, 4, 0]))

    assert split.n_items == 7
    assert [train.tolist() for train in split.train] == [[5], [6, 1, 2]]
    assert split.val.tolist() == [0, 4]
    assert split.test.tolist() == [3, 0]
    assert [split.known(user).tolist() for user in (0, 1)] == [[5, 0, 3], [6, 1, 2, 4, 0]]


@pytest.mark.parametrize("users", [[], [[0, 1, 2], [3, 4]]])
def test_leave_one_out_with_too_little(users: list[list[int]]) -> None:
    """No user, or one with two interactions, cannot be split."""
    with pytest.raises(DataTooSmallError, match="three"):
        _split(_interactions(5, *users))


def test_leave_one_out_by_time_draws_nothing() -> None:
    """What the generator gives afterwards is what it would have given before."""
    rng = np.random.default_rng(1)

    leave_one_out(_interactions(7, [5, 0, 3], [6, 1, 2, 4, 0]), rng)

    assert rng.random() == np.random.default_rng(1).random()


_USERS = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=12, unique=True), min_size=1, max_size=8)


@settings(max_examples=200)
@given(users=_USERS, seed=st.integers(0, 2**32))
def test_leave_one_out_without_times_splits_each_users_items(users: list[list[int]], seed: int) -> None:
    """Two different items of the user are held out; the others stay, in the order in which they were."""
    data = _interactions(31, *users, timed=False)

    split = _split(data, seed)

    assert (split.n_items, len(split.train), data.hold_out) == (31, len(users), "random")
    assert split.val.dtype == split.test.dtype == np.int64
    for user, items in enumerate(users):
        held_out = {int(split.val[user]), int(split.test[user])}
        assert len(held_out) == 2
        assert held_out <= set(items)
        assert split.train[user].tolist() == [item for item in items if item not in held_out]


@given(users=_USERS, n_users=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_leave_one_out_without_times_is_seeded_user_by_user(
    users: list[list[int]], n_users: int, seed: int
) -> None:
    """The same state gives the same split, and the first users the same, however many follow."""
    whole = _split(_interactions(31, *users, timed=False), seed)
    part = _split(_interactions(31, *users[:n_users], timed=False), seed)

    np.testing.assert_array_equal(part.test, whole.test[:n_users])
    np.testing.assert_array_equal(part.val, whole.val[:n_users])


@given(users=_USERS, seed=st.integers(0, 2**32))
def test_leave_one_out_by_time_is_the_same_for_every_seed(users: list[list[int]], seed: int) -> None:
    """Always the last two."""
    data = _interactions(31, *users)

    split = _split(data, seed)

    assert data.hold_out == "last"
    assert [split.known(user).tolist() for user in range(len(users))] == users


def test_leave_one_out_without_times_is_uniform() -> None:
    """Of five items, each of the twenty ordered pairs is held out as often as any other."""
    n_users = 20_000
    split = _split(_interactions(5, *[list(range(5))] * n_users, timed=False))

    counts = Counter(zip(split.test.tolist(), split.val.tolist(), strict=True))

    assert len(counts) == 20
    # Five standard deviations of a binomial count.
    assert max(abs(count - n_users / 20) for count in counts.values()) < 5 * np.sqrt(n_users * 0.05 * 0.95)


def test_sampled_candidates_shape_and_content() -> None:
    """The positive comes first, then 99 distinct items that the user does not know."""
    users = [list(range(start, start + 8)) for start in range(0, 60, 3)]
    split = _split(_interactions(150, *users))

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
    split = _split(_interactions(400, *[list(range(8))] * 3))

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
