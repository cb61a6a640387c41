"""``--data synthetic:USERSxITEMS[xMEAN]``: generated data of any size."""

import numpy as np
import pytest

from edge.fleet.scenario import load_scenario
from trainer.errors import ParameterError


@pytest.mark.parametrize(
    ("source", "n_users", "n_items", "mean"),
    [
        ("synthetic:300x500", 300, 500, 30),
        ("synthetic:300x500x60", 300, 500, 60),
        ("synthetic:5x160x12", 5, 160, 12),
    ],
)
def test_sizes_are_those_asked_for(source: str, n_users: int, n_items: int, mean: int) -> None:
    """Users and items exactly, interactions in the mean; the name is the whole source."""
    scenario = load_scenario(source, "clean", 0)

    assert (scenario.name, scenario.sha256) == (source, None)
    assert (scenario.n_users, scenario.data.n_items) == (n_users, n_items)
    # Five standard errors of a Poisson mean.
    assert abs(scenario.data.items.size / n_users - mean) < 5 * np.sqrt(mean / n_users)


def test_same_seed_gives_the_same_data_and_another_does_not() -> None:
    """As with all generated data."""
    first, second, other = (load_scenario("synthetic:50x200", "clean", seed).data for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.items, second.items)
    assert not np.array_equal(first.items, other.items)


def test_first_users_are_those_of_the_whole() -> None:
    """A smaller fleet is a part of the larger one."""
    whole, part = (load_scenario("synthetic:50x200", "clean", 1, n).data for n in (None, 20))

    assert part.user_keys == whole.user_keys[:20]
    np.testing.assert_array_equal(part.items, whole.items[: part.items.size])


@pytest.mark.parametrize(
    "source",
    [
        "synthetic:", "synthetic:100", "synthetic:100x", "synthetic:axb", "synthetic:100x400x",
        "synthetic:-1x400", "synthetic:100x400x30x2", "synthetic:100 x 400", "synthetic:100000000x400",
        "synthetic:1e3x400",
    ],
)  # fmt: skip
def test_what_is_no_size_is_refused(source: str) -> None:
    """The sentence says what to give instead."""
    with pytest.raises(ParameterError, match="is no size of generated data; give synthetic:USERSxITEMS or"):
        load_scenario(source, "clean", 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("synthetic:0x400", "n_users is 0"),
        ("synthetic:10x5", "n_groups and n_items"),
        ("synthetic:10x40", "mean_interactions is 30; it must lie between 12 and a quarter of n_items, 10"),
        ("synthetic:10x400x101", "mean_interactions is 101"),
    ],
)
def test_size_that_cannot_be_generated_is_refused(source: str, words: str) -> None:
    """With the limit."""
    with pytest.raises(ParameterError, match=words):
        load_scenario(source, "clean", 0)
