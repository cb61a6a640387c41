"""Steps between versions: exact, and refused where they are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import SchemaError
from broker.protocol.deltas import delta_bytes, with_delta
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
    """To the last bit, in the size of the changed and new rows alone; nothing is changed in place."""
    before, after = step
    copy = before.copy()

    content = delta_bytes(before, after)
    reached = with_delta(before, content, len(after))

    assert reached.tobytes() == after.tobytes()
    np.testing.assert_array_equal(before, copy)
    n_changed = int((after[: len(before)] != before).any(axis=1).sum()) + len(after) - len(before)
    assert len(content) == max(1, n_changed) * (4 + 4 * before.shape[1])


@settings(deadline=None)
@given(steps())
def test_step_made_twice_is_the_step(step: tuple[Floats, Floats]) -> None:
    """It holds new values, not differences."""
    before, after = step
    content = delta_bytes(before, after)

    again = with_delta(with_delta(before, content, len(after)), content, len(after))

    np.testing.assert_array_equal(again, after)


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
