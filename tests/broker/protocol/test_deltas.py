"""Steps between versions: exact, and refused where they are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import SchemaError
from broker.protocol.deltas import delta_bytes, with_delta
from trainer.aggregation.rounding import rounded
from trainer.params import Floats


@st.composite
def steps(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Draw a table and the next one: some rows are others, some are new."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_before, n_new, dim = draw(st.integers(1, 40)), draw(st.integers(0, 5)), draw(st.integers(1, 8))
    before = rng.standard_normal((n_before, dim), dtype=np.float32)
    after = np.concatenate((before, rng.standard_normal((n_new, dim), dtype=np.float32)))
    changed = rng.random(n_before) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    after[:n_before][changed] += 1.0
    return before, after


@settings(deadline=None)
@given(steps())
def test_step_leads_from_one_table_to_the_next(step: tuple[Floats, Floats]) -> None:
    """To the last bit, in at most the size of the changed and new rows; nothing is changed in place."""
    before, after = step
    copy = before.copy()

    content = delta_bytes(before, after)
    reached = with_delta(before, content, len(after))

    assert reached.tobytes() == after.tobytes()
    np.testing.assert_array_equal(before, copy)
    n_changed = int((after[: len(before)] != before).any(axis=1).sum()) + len(after) - len(before)
    assert len(content) <= max(1, n_changed) * (4 + 4 * before.shape[1])


@settings(deadline=None)
@given(steps())
def test_step_made_twice_is_the_step(step: tuple[Floats, Floats]) -> None:
    """It holds new values, not differences, unless they are rounded."""
    before, after = step
    after[: len(before)] *= np.float32(np.pi)
    content = delta_bytes(before, after)

    again = with_delta(with_delta(before, content, len(after)), content, len(after))

    np.testing.assert_array_equal(again, after)


@st.composite
def rounded_steps(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Draw a table and what a rounded step makes of it, large and small ones; some rows are new."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_rows, n_new, dim = draw(st.integers(1, 60)), draw(st.integers(0, 3)), draw(st.integers(1, 12))
    before = rng.standard_normal((n_rows, dim), dtype=np.float32)
    size = draw(st.sampled_from([1e-40, 1e-7, 1e-3, 1.0, 1e3, 1e30]))
    change = rng.standard_normal(before.shape, dtype=np.float32) * np.float32(size)
    change[rng.random(n_rows) < 0.3] = 0.0
    # Rows whose largest value is just where the next power of two begins to be needed.
    change[rng.random(n_rows) < 0.3] = np.float32(size * draw(st.sampled_from([127.0, 127.25, 127.5, 64.0])))
    after = before + rounded(change)
    return before, np.concatenate((after, rng.standard_normal((n_new, dim), dtype=np.float32)))


@settings(deadline=None, max_examples=300)
@given(rounded_steps())
def test_rounded_step_leads_from_one_table_to_the_next(step: tuple[Floats, Floats]) -> None:
    """To the last bit, whatever the sizes of table and step."""
    before, after = step

    content = delta_bytes(before, after)

    assert with_delta(before, content, len(after)).tobytes() == after.tobytes()


def test_rounded_step_takes_a_byte_a_value() -> None:
    """For steps as they are in training; rows that did not move take nothing."""
    rng = np.random.default_rng(5)
    before = rng.standard_normal((1000, 32), dtype=np.float32)
    change = rng.standard_normal(before.shape, dtype=np.float32) * np.float32(0.01)
    change[::2] = 0.0

    content = delta_bytes(before, before + rounded(change))

    assert len(content) == 12 + 500 * (5 + 32)


def test_rounded_step_has_known_bytes() -> None:
    """Two rows that take a step, and one that is new."""
    before = np.array([[1.0, 2.0, 0.5], [1.0, 1.0, 1.0]], dtype=np.float32)
    after = np.array([[1.25, 2.0, 0.5], [1.5, 0.0, 1.0], [0.25, 0.0, 0.0]], dtype=np.float32)

    content = delta_bytes(before, after)

    assert content == bytes.fromhex(
        "ffffffff 02000000 01000000"
        "00000000 01000000 02000000 0000803e 00000000 00000000"
        "f8 fa 40 00 00 20 c0 00"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("ffffffff", "4 bytes are no step"),
        ("ffffffff 00000000 00000000", "a step of 0 and 0 rows has 12 bytes, not 12"),
        ("ffffffff ffffffff ffffffff", "a step of 4294967295 and 4294967295 rows has"),
        ("ffffffff 01000000 00000000 05000000 00 01 01", "must be ascending and below 5"),
        ("ffffffff 01000000 00000000 04000000 79 01 01", "the exponents of a step must lie in -126..120"),
        ("ffffffff 01000000 00000000 04000000 81 01 01", "the exponents of a step must lie in -126..120"),
        ("ffffffff 01000000 00000000 04000000 00 01", "has 19 bytes, not 18"),
        ("ffffffff 00000000 01000000 06000000 0000803f 0000803f", "must be ascending and below 6"),
    ],
)
def test_rounded_step_that_does_not_fit_is_refused(content: str, reason: str) -> None:
    """Announced numbers are held against the length before room is made."""
    with pytest.raises(SchemaError, match=reason):
        with_delta(np.zeros((5, 2), dtype=np.float32), bytes.fromhex(content), 6)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3), st.integers(0, 2))
def test_arbitrary_rounded_bytes_are_a_step_or_refused(content: bytes, stepped: int, replaced: int) -> None:
    """Never anything else."""
    header = np.array([2**32 - 1, stepped, replaced], dtype="<u4").tobytes()
    length = stepped * 7 + replaced * 12
    try:
        after = with_delta(np.zeros((5, 2), dtype=np.float32), header + content[:length], 6)
    except SchemaError:
        return
    assert after.shape == (6, 2)


def test_minus_zero_is_another_value() -> None:
    """Tables are equal by their bytes, as their hash is of these."""
    before = np.zeros((3, 2), dtype=np.float32)
    after = before.copy()
    after[1, 0] = -0.0

    assert with_delta(before, delta_bytes(before, after), 3).tobytes() == after.tobytes()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_step_or_refused(content: bytes) -> None:
    """Never anything else."""
    before = np.zeros((5, 2), dtype=np.float32)

    try:
        after = with_delta(before, content, 6)
    except SchemaError:
        return
    assert after.shape == (6, 2)


@pytest.mark.parametrize(
    ("rows", "n_rows"), [([0, 0], 5), ([2, 1], 5), ([5], 5), ([2**32 - 1], 5), ([0], 4)], ids=str
)
def test_rows_that_do_not_fit_are_refused(rows: list[int], n_rows: int) -> None:
    """Repeated, out of order, beyond the table; or a table that loses rows."""
    content = np.array(rows, dtype="<u4").tobytes() + np.zeros((len(rows), 2), dtype="<f4").tobytes()

    with pytest.raises(SchemaError):
        with_delta(np.zeros((5, 2), dtype=np.float32), content, n_rows)
