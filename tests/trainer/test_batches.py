"""Mini-batches by rows: nothing is lost or doubled, and sums over rows are sums over samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.batches import Batch, draw_batches
from trainer.errors import ParameterError
from trainer.params import Hyperparameters, Rows
from trainer.sampling import NegativeSampler

Doubles = NDArray[np.float64]
sizes = {
    "seed": st.integers(0, 2**32),
    "n_positives": st.integers(1, 40),
    "negatives": st.integers(1, 6),
    "batch_size": st.integers(1, 70),
    "n_items": st.sampled_from([41, 60, 500, 100_000]),
}


def some_batches(
    seed: int, n_positives: int, negatives: int, batch_size: int, n_items: int
) -> tuple[Rows, Rows, list[Batch]]:
    """Draw positives, and batches of them; give positives, rows and batches."""
    positives = np.random.default_rng([seed, 1]).choice(n_items, n_positives, replace=False)
    drawn = draw_batches(
        n_items,
        [positives],
        [NegativeSampler.excluding(n_items, positives)],
        Hyperparameters(negatives=negatives, batch_size=batch_size),
        np.random.default_rng(seed),
    )
    return positives, *drawn.of(0)


def samples_of(batch: Batch) -> tuple[Rows, Doubles]:
    """Give each sample's position among the rows and its label, in any order."""
    negatives = (batch.samples + batch.bias) / 2.0
    positives = (batch.samples - batch.bias) / 2.0
    position = np.arange(batch.samples.size)
    return (
        np.concatenate(
            (np.repeat(position, positives.astype(int)), np.repeat(position, negatives.astype(int)))
        ),
        np.concatenate((np.ones(int(positives.sum())), np.zeros(int(negatives.sum())))),
    )


@settings(deadline=None, max_examples=60)
@given(**sizes)
def test_every_sample_is_in_one_batch(
    seed: int, n_positives: int, negatives: int, batch_size: int, n_items: int
) -> None:
    """All batches but the last are full; each positive is there once, the negatives are other items."""
    positives, rows, batches = some_batches(seed, n_positives, negatives, batch_size, n_items)

    n_samples = n_positives * (1 + negatives)
    counts = [int(batch.samples.sum()) for batch in batches]
    assert sum(counts) == n_samples
    assert all(count == batch_size for count in counts[:-1])
    assert 1 <= counts[-1] <= batch_size
    positive_counts = sum((batch.samples - batch.bias) / 2 for batch in batches)
    np.testing.assert_array_equal(positive_counts, np.isin(rows, positives))
    total = sum(batch.samples for batch in batches)
    np.testing.assert_array_equal(np.asarray(total)[np.isin(rows, positives)], 1)
    assert np.all(np.asarray(total) >= 1)


@settings(deadline=None, max_examples=30)
@given(**sizes)
def test_rows_are_distinct_ascending_and_the_same_for_all_batches(
    seed: int, n_positives: int, negatives: int, batch_size: int, n_items: int
) -> None:
    """Also where the catalogue is so large that it is not looked through."""
    positives, rows, batches = some_batches(seed, n_positives, negatives, batch_size, n_items)

    assert np.all(np.diff(rows) > 0)
    assert rows.dtype == np.int64
    assert set(positives.tolist()) <= set(rows.tolist()) <= set(range(n_items))
    for batch in batches:
        assert batch.samples.shape == batch.bias.shape == rows.shape
        assert batch.samples.dtype == batch.bias.dtype == np.float32
        assert batch.half_mean == pytest.approx(np.array([0.5 / batch.samples.sum()]))


@settings(deadline=None, max_examples=40)
@given(**sizes)
def test_gradient_is_the_sum_over_samples(
    seed: int, n_positives: int, negatives: int, batch_size: int, n_items: int
) -> None:
    """Of sigmoid(z) - y over the batch size; `two_g` is twice the sum, from half the logits."""
    _, rows, batches = some_batches(seed, n_positives, negatives, batch_size, n_items)
    z = np.random.default_rng([seed, 2]).standard_normal(rows.size) * 3.0

    for batch in batches:
        position, labels = samples_of(batch)
        g = 1.0 / (1.0 + np.exp(-z[position])) - labels
        plain = np.bincount(position, g, minlength=rows.size)
        np.testing.assert_allclose(batch.gradient(z), plain / labels.size, rtol=1e-6, atol=1e-12)
        half_z = (0.5 * z).astype(np.float32)
        np.testing.assert_allclose(batch.two_g(half_z), 2.0 * plain, rtol=1e-4, atol=1e-5)


def test_gradient_keeps_the_dtype() -> None:
    """Float32 logits give a float32 gradient; neither function changes its argument."""
    _, rows, (batch, *_) = some_batches(0, 10, 4, 16, 60)
    z = np.linspace(-3, 3, rows.size, dtype=np.float32)
    z.setflags(write=False)

    assert batch.gradient(z).dtype == batch.two_g(z).dtype == np.float32


def test_large_logits_do_not_overflow() -> None:
    """A sure and right answer has no gradient, a sure and wrong one has one for each sample."""
    samples, bias, half_mean = (np.array(values, dtype=np.float32) for values in ([2, 3], [-2, 3], [0.5 / 5]))
    batch = Batch(samples, bias, half_mean)

    for z, expected in (([1e30, -1e30], [0.0, 0.0]), ([-1e30, 1e30], [-2 / 5, 3 / 5])):
        np.testing.assert_allclose(batch.gradient(np.array(z, dtype=np.float32)), expected, atol=1e-7)


def test_among_is_the_batch_of_some_rows() -> None:
    """Its gradient is that part of the whole one: the mean is still over all samples."""
    _, rows, batches = some_batches(1, 12, 4, 16, 60)
    z = np.linspace(-2, 2, rows.size)

    for batch in batches:
        touched = batch.samples.nonzero()[0]
        part = batch.among(touched)
        assert part.half_mean == batch.half_mean
        np.testing.assert_array_equal(part.gradient(z[touched]), batch.gradient(z)[touched])
        absent = np.setdiff1d(np.arange(rows.size), touched)
        np.testing.assert_array_equal(batch.gradient(z)[absent], 0.0)


def test_same_generator_state_gives_the_same_batches() -> None:
    """Another seed gives others."""
    one, same, other = (some_batches(seed, 12, 4, 16, 60) for seed in (3, 3, 4))

    np.testing.assert_array_equal(one[1], same[1])
    for batch, again in zip(one[2], same[2], strict=True):
        np.testing.assert_array_equal(batch.samples, again.samples)
        np.testing.assert_array_equal(batch.bias, again.bias)
    assert not np.array_equal(one[1], other[1])


def test_samples_are_shuffled() -> None:
    """Positives are spread over the batches, not all in the first."""
    _, _, batches = some_batches(5, 40, 4, 20, 500)

    per_batch = [int(((batch.samples - batch.bias) / 2).sum()) for batch in batches]
    assert len(per_batch) == 10
    assert max(per_batch) < 15
    assert sum(per_batch) == 40


@pytest.mark.parametrize(
    ("positives", "message"),
    [([], "at least one interaction"), ([2, -1], r"0\.\.19"), ([20], r"0\.\.19")],
)
def test_positives_that_do_not_fit_are_refused(positives: list[int], message: str) -> None:
    """By the reason."""
    sampler = NegativeSampler.excluding(20, np.array([0]))

    with pytest.raises(ParameterError, match=message):
        draw_batches(
            20, [np.array(positives, dtype=np.int64)], [sampler], Hyperparameters(), np.random.default_rng(0)
        )


def test_sampler_of_a_larger_table_is_refused() -> None:
    """One of a smaller table serves: the catalogue may have grown."""
    positives = np.array([1, 2])

    with pytest.raises(ParameterError, match="21 items; the table has 20"):
        draw_batches(
            20,
            [positives],
            [NegativeSampler.excluding(21, positives)],
            Hyperparameters(),
            np.random.default_rng(0),
        )
    smaller = NegativeSampler.excluding(10, positives)
    rows, _ = draw_batches(20, [positives], [smaller], Hyperparameters(), np.random.default_rng(0)).of(0)
    assert rows.max() < 10
