import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ParameterError
from trainer.params import as_index
from trainer.sampling import NegativeSampler, draw_for_each


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw a catalogue size and excluded items, unordered and repeated, that leave something over."""
    n_items = draw(st.integers(1, 120))
    excluded = draw(st.lists(st.integers(0, n_items - 1), max_size=2 * n_items))
    if len(set(excluded)) == n_items:
        kept = draw(st.integers(0, n_items - 1))
        excluded = [item for item in excluded if item != kept]
    return n_items, excluded


@settings(deadline=None)
@given(catalogues(), st.integers(0, 300), st.integers(0, 2**32))
def test_draw_only_allowed_items(catalogue: tuple[int, list[int]], count: int, seed: int) -> None:
    """As many items as asked for, within the catalogue, none of them excluded."""
    n_items, excluded = catalogue

    drawn = NegativeSampler.excluding(n_items, np.array(excluded)).draw(count, np.random.default_rng(seed))

    assert drawn.shape == (count,)
    assert drawn.dtype == np.int64
    assert set(drawn.tolist()) <= set(range(n_items)) - set(excluded)


@settings(deadline=None)
@given(catalogues(), st.integers(0, 2**32))
def test_draw_equals_choosing_from_a_list(catalogue: tuple[int, list[int]], seed: int) -> None:
    """The sparse sampler draws what an index into the list of allowed items draws."""
    n_items, excluded = catalogue
    allowed = np.setdiff1d(np.arange(n_items), excluded)

    drawn = NegativeSampler.excluding(n_items, np.array(excluded)).draw(50, np.random.default_rng(seed))

    by_list = allowed[(np.random.default_rng(seed).random(50) * allowed.size).astype(int)]
    np.testing.assert_array_equal(drawn, by_list)


@settings(deadline=None)
@given(
    st.lists(st.tuples(catalogues(), st.integers(0, 200)), min_size=1, max_size=6),
    st.sampled_from([120, 5_000, 10**9]),
    st.integers(0, 2**32),
)
def test_drawing_for_each_is_drawing_for_one_after_the_other(
    users: list[tuple[tuple[int, list[int]], int]], stride: int, seed: int
) -> None:
    """Whether the allowed items are listed or searched for, and whatever the others exclude."""
    samplers = [NegativeSampler.excluding(n_items, np.array(excluded)) for (n_items, excluded), _ in users]
    counts = np.array([count for _, count in users])

    drawn = draw_for_each(samplers, counts, stride, np.random.default_rng(seed))

    rng = np.random.default_rng(seed)
    in_turn = [
        user * stride + sampler.draw(int(count), rng)
        for user, (sampler, count) in enumerate(zip(samplers, counts, strict=True))
    ]
    np.testing.assert_array_equal(drawn, np.concatenate(in_turn))
    assert drawn.dtype == np.int64


def test_draw_is_uniform() -> None:
    """Chi-square over 40 allowed items stays far below what a skew of a few per cent would give."""
    excluded = np.array([0, 1, 2, 10, 20, 21, 22, 35, 48, 49])
    allowed = np.setdiff1d(np.arange(50), excluded)
    count = 40_000

    drawn = NegativeSampler.excluding(50, excluded).draw(count, np.random.default_rng(11))

    observed = np.bincount(as_index(drawn), minlength=50)[allowed]
    expected = count / allowed.size
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    degrees = allowed.size - 1
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_published_protocol_gives_the_held_out_items_away() -> None:
    """After 100 passes the held-out items are the only ones never drawn; on the clean protocol they are."""
    train, held_out = np.arange(20), np.array([20, 21])
    published = NegativeSampler.excluding(200, np.concatenate((train, held_out)))
    clean = NegativeSampler.excluding(200, train)
    rng = np.random.default_rng(5)

    drawn = {
        name: set(sampler.draw(100 * 4 * train.size, rng).tolist())
        for name, sampler in (("published", published), ("clean", clean))
    }

    unknown = set(range(20, 200))
    assert unknown - drawn["published"] == set(held_out.tolist())
    assert unknown - drawn["clean"] == set()


def test_draw_without_exclusions() -> None:
    """With nothing excluded the whole catalogue is drawn from."""
    drawn = NegativeSampler.excluding(5, np.array([], dtype=np.int64)).draw(500, np.random.default_rng(0))

    assert set(drawn.tolist()) == set(range(5))


def test_sampler_memory_is_that_of_the_excluded_items() -> None:
    """For a catalogue of 100 million items the sampler holds one number for each excluded item."""
    sampler = NegativeSampler.excluding(100_000_000, np.array([99_999_999, 0, 5, 5]))

    assert sampler.gaps.shape == (3,)


@pytest.mark.parametrize("excluded", [[-1], [4], [0, 4]])
def test_excluding_an_item_outside_the_catalogue(excluded: list[int]) -> None:
    """Excluded items must be rows of the table."""
    with pytest.raises(ParameterError, match=r"0\.\.3"):
        NegativeSampler.excluding(4, np.array(excluded))


@pytest.mark.parametrize(("n_items", "excluded"), [(3, [2, 0, 1, 1]), (0, [])])
def test_excluding_everything(n_items: int, excluded: list[int]) -> None:
    """When nothing is left to draw, that is said at once and not in the first pass."""
    with pytest.raises(ParameterError, match="none is left"):
        NegativeSampler.excluding(n_items, np.array(excluded, dtype=np.int64))
