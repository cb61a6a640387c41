"""What a fleet learns from: files and generated data, the users taken, the protocols, the seeds."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge.fleet.scenario import Scenario, load_scenario
from tests.fleet.builders import a_scenario, write_ratings
from trainer.errors import DataFormatError, DataTooSmallError, ParameterError, PFedRecError
from trainer.sampling import PROTOCOLS, Protocol


def equal(one: Scenario, other: Scenario) -> bool:
    """Tell whether two scenarios hold the same."""
    return (
        one.data.user_keys == other.data.user_keys
        and one.data.item_keys == other.data.item_keys
        and np.array_equal(one.data.items, other.data.items)
        and np.array_equal(one.val, other.val)
        and np.array_equal(one.test, other.test)
    )


# -- where the data comes from ---------------------------------------------------------------------


def test_file_gives_its_users_name_and_digest(tmp_path: Path) -> None:
    """The name is that of the file and its folder; the digest is that of its bytes."""
    folder = tmp_path / "shop"
    folder.mkdir()
    path = write_ratings(folder / "ratings.csv", n_users=8)

    scenario = load_scenario(str(path), "clean", 0)

    assert scenario.name == "shop/ratings.csv"
    assert scenario.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(scenario.data.user_keys) == [f"u{user}" for user in range(8)]
    assert scenario.n_users == 8
    assert "rare" not in scenario.data.item_keys


def test_generated_data_has_no_digest() -> None:
    """It is named for what it is, and made from the seed."""
    scenario = load_scenario("synthetic", "clean", 0)

    assert (scenario.name, scenario.sha256) == ("synthetic", None)
    assert (scenario.n_users, scenario.data.n_items) == (200, 400)


@pytest.mark.parametrize("n_users", [1, 20, 99, 100, 250])
def test_generated_data_has_as_many_users_as_asked_for(n_users: int) -> None:
    """Few or many, each has enough items to be split, and leaves enough to be ranked against."""
    scenario = load_scenario("synthetic", "clean", 0, n_users)

    assert scenario.n_users == n_users == len(scenario.val) == len(scenario.test)
    assert int(np.diff(scenario.data.indptr).min()) >= 12


@pytest.mark.parametrize("n_users", [1, 5, 8])
def test_first_users_of_a_file_keep_all_that_is_theirs(tmp_path: Path, n_users: int) -> None:
    """The catalogue stays whole, so that a larger fleet can be joined later."""
    path = str(write_ratings(tmp_path / "ratings.csv", n_users=8))
    whole = load_scenario(path, "clean", 0).data

    part = load_scenario(path, "clean", 0, n_users).data

    assert part.user_keys == whole.user_keys[:n_users]
    assert part.item_keys == whole.item_keys
    for user in range(n_users):
        assert part.of(user).tolist() == whole.of(user).tolist()


@pytest.mark.parametrize("n_users", [0, 9, 1000])
def test_more_users_than_the_file_has_are_refused(tmp_path: Path, n_users: int) -> None:
    """The sentence has both numbers."""
    path = str(write_ratings(tmp_path / "ratings.csv", n_users=8))

    with pytest.raises(ParameterError, match=f"^{n_users} devices were asked for; the data has 8 users$"):
        load_scenario(path, "clean", 0, n_users)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("", DataFormatError, "the file is empty"),
        ("u1,i1\nu1,i2\n", DataTooSmallError, "none of its 1 users has 10 interactions or more"),
        ("".join(f"u1,i{i}\n" for i in range(40)), DataTooSmallError, "one user leaves 0 of 40"),
        ("u1,i1,5\nu1,i2,x\n", DataFormatError, "line 2"),
    ],
)
def test_file_that_is_no_use_is_refused(
    tmp_path: Path, content: str, kind: type[PFedRecError], words: str
) -> None:
    """With what is wrong."""
    path = tmp_path / "ratings.csv"
    path.write_text(content)

    with pytest.raises(kind, match=words):
        load_scenario(str(path), "clean", 0)


# -- split and candidates --------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
def test_candidates_are_the_held_out_item_and_unknown_ones(tmp_path: Path, *, timed: bool) -> None:
    """First the positive, then 99 different items that the user has nothing to do with."""
    path = write_ratings(tmp_path / "ratings.csv", timed=timed)

    scenario = load_scenario(str(path), "clean", 0)

    assert scenario.data.timed == timed
    split = scenario.split
    for user in range(scenario.n_users):
        history = scenario.data.of(user).tolist()
        if timed:
            assert split.known(user).tolist() == history
        held_out = (split.val[user], split.test[user])
        assert split.train[user].tolist() == [item for item in history if item not in held_out]
        for rows, positive in zip((scenario.val[user], scenario.test[user]), held_out, strict=True):
            assert rows[0] == positive
            assert len(set(rows.tolist())) == len(rows) == 100
            assert not set(rows[1:].tolist()) & set(history)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocol_decides_what_negatives_avoid(protocol: Protocol) -> None:
    """Published avoids the held-out items, too; clean draws them like any other."""
    scenario = a_scenario(protocol=protocol)
    rng = np.random.default_rng(1)
    for user in range(scenario.n_users):
        train, held_out = scenario.split.train[user], {scenario.split.val[user], scenario.split.test[user]}

        drawn = set(scenario.sampler(user).draw(20_000, rng).tolist())

        avoided = set(range(scenario.data.n_items)) - drawn
        assert avoided == set(train.tolist()) | (held_out if protocol == "published" else set())


# -- seeds -----------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_scenario(tmp_path: Path) -> None:
    """Generated or from a file."""
    path = str(write_ratings(tmp_path / "ratings.csv"))
    for source in ("synthetic", path):
        assert equal(load_scenario(source, "clean", 4), load_scenario(source, "clean", 4))


def test_other_seed_gives_other_data_and_candidates() -> None:
    """Nothing of one run is in another by accident."""
    one, other = a_scenario(seed=4), a_scenario(seed=5)

    assert not np.array_equal(one.data.items, other.data.items)
    assert not np.array_equal(one.test[:, 1:], other.test[:, 1:])


def test_other_seed_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    """Only the negatives that it is ranked against are drawn."""
    path = str(write_ratings(tmp_path / "ratings.csv"))
    one, other = load_scenario(path, "clean", 4), load_scenario(path, "clean", 5)

    assert np.array_equal(one.data.items, other.data.items)
    assert np.array_equal(one.test[:, 0], other.test[:, 0])
    assert not np.array_equal(one.test, other.test)


def test_other_seed_holds_out_other_items_where_there_are_no_times(tmp_path: Path) -> None:
    """Of the same data; of which the first users have the same ones held out as in the whole."""
    path = str(write_ratings(tmp_path / "ratings.csv", timed=False))
    one, other = load_scenario(path, "clean", 4), load_scenario(path, "clean", 5)
    part = load_scenario(path, "clean", 4, 3)

    assert np.array_equal(one.data.items, other.data.items)
    assert not np.array_equal(one.split.test, other.split.test)
    assert not np.array_equal(one.split.val, other.split.val)
    assert np.array_equal(part.split.test, one.split.test[:3])
    assert np.array_equal(part.split.val, one.split.val[:3])


def test_items_are_held_out_as_documented() -> None:
    """So that others can draw the same: two whole numbers for each user, from a stream of their own."""
    scenario = a_scenario(seed=6)
    rng = np.random.default_rng([6, 7])

    for user in range(scenario.n_users):
        history = scenario.data.of(user).tolist()
        test = history.pop(rng.integers(0, len(history)))
        val = history.pop(rng.integers(0, len(history)))
        assert (scenario.split.val[user], scenario.split.test[user]) == (val, test)
        assert scenario.split.train[user].tolist() == history


def test_protocol_changes_no_data_and_no_candidate() -> None:
    """The two are compared on the same ranking."""
    assert equal(a_scenario(protocol="clean"), a_scenario(protocol="published"))


def test_rarely_drawn_candidates_are_not_favoured() -> None:
    """Each unknown item is as likely as any other: none is in many more lists than chance would have it."""
    scenario = a_scenario(n_users=150)
    counts = Counter(scenario.test[:, 1:].ravel().tolist())

    assert max(counts.values()) < 2.0 * 150 * 99 / scenario.data.n_items
