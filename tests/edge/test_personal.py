"""The personal state: what a pass makes of it, how it is seen, and the update that leaves the device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import EncodingError
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Update, decode, encode
from edge.personal import Personal, make_update
from tests.edge.builders import DIM, INCARNATION, INSTANCE, a_head, a_personal_state, a_plan, a_table
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Hyperparameters, ScoreFunction
from trainer.sampling import NegativeSampler
from trainer.taste import TasteSettings


def a_pass(table: Floats, seed: int = 0, item_lr: float = 1.0) -> LocalResult:
    """Make a pass over two items."""
    positives = np.array([1, 4], dtype=np.int64)
    return local_pass(
        table,
        ScoreFunction(w=np.full(table.shape[1], 0.5, dtype=np.float32), b=0.25),
        positives,
        NegativeSampler.excluding(len(table), positives),
        Hyperparameters(item_lr=item_lr, batch_size=4, negatives=2),
        np.random.default_rng(seed),
    )


def test_beginning_is_the_fleets_and_changes_no_item() -> None:
    """A new user sees what everybody sees."""
    head = a_head()
    personal = Personal.beginning(head.w, head.b)
    np.testing.assert_array_equal(personal.score_function.w, head.w)
    assert personal.score_function.b == head.b
    assert personal.view(a_table()).tobytes() == a_table().tobytes()


def test_view_lays_own_rows_over_the_shared_table() -> None:
    """The others are the fleet's; the table itself stays as it is."""
    table = a_table()
    personal = a_personal_state(rows=(1, 4))
    view = personal.view(table)
    np.testing.assert_array_equal(view[[1, 4]], personal.own_values)
    np.testing.assert_array_equal(view[[0, 2, 3, 5]], table[[0, 2, 3, 5]])
    assert table.tobytes() == a_table().tobytes()
    assert not view.flags.writeable
    assert view.dtype == np.float32


def test_of_takes_everything_from_the_pass() -> None:
    """Score function and own view of the touched rows."""
    result = a_pass(a_table())
    personal = Personal.of(result, TasteSettings())
    assert personal.score_function is result.score_function
    np.testing.assert_array_equal(personal.own_rows, result.rows)
    np.testing.assert_array_equal(personal.own_values, result.values)
    np.testing.assert_array_equal(personal.view(a_table())[result.rows], result.values)


def test_of_keeps_no_rows_where_the_view_is_by_taste() -> None:
    """It is made from the shared table and the interactions, whenever it is needed."""
    result = a_pass(a_table())
    personal = Personal.of(result, TasteSettings(strength=0.5))
    np.testing.assert_array_equal(personal.score_function.w, result.score_function.w)
    assert personal.score_function.b == result.score_function.b
    assert personal.view(a_table()).tobytes() == a_table().tobytes()


@settings(max_examples=30, deadline=None)
@given(encoding=st.sampled_from(sorted(ENCODINGS)), seed=st.integers(0, 1000))
def test_make_update_carries_the_change_as_the_plan_wants_it(encoding: str, seed: int) -> None:
    """It survives the codec, and names the version that the pass started from."""
    table = a_table()
    result = a_pass(table, seed)
    head = a_head(9, plan=a_plan(encoding=encoding))
    update = decode(encode(make_update(head, INCARNATION, 3, result)), Update)
    assert (update.instance, update.incarnation, update.seq) == (INSTANCE, INCARNATION, 3)
    assert (update.base_version, update.encoding) == (9, encoding)
    change = ENCODINGS[encoding].decode(update.body, len(table), DIM)
    np.testing.assert_array_equal(change.rows, result.rows)
    levels = {"int8": 127.0, "int4": 7.0, "float16": 2.0**10, "factored-int8": 60.0}
    tolerance = np.abs(result.change).max() / levels.get(encoding, 1e6)
    assert np.abs(change.change - result.change).max() <= tolerance


def test_make_update_in_an_encoding_of_a_later_release_is_exact() -> None:
    """The aggregator reads `float32` whatever it would rather have."""
    head = a_head(plan=a_plan(encoding="int1"))
    assert make_update(head, INCARNATION, 1, a_pass(a_table())).encoding == "float32"


def test_require_finite_takes_an_ordinary_state() -> None:
    """Also one without rows of its own."""
    a_personal_state().require_finite()
    Personal.beginning(np.ones(2, dtype=np.float32), 0.0).require_finite()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["w", "b", "own_values"])
def test_require_finite_of_a_state_that_diverged_is_refused(where: str, value: float) -> None:
    """One such number makes every score of the user worthless."""
    state = a_personal_state()
    w, b = state.score_function.w, state.score_function.b
    values = state.own_values
    if where == "b":
        b = value
    else:
        (w if where == "w" else values)[-1] = value
    diverged = Personal(score_function=ScoreFunction(w=w, b=b), own_rows=state.own_rows, own_values=values)
    with pytest.raises(EncodingError, match="not finite"):
        diverged.require_finite()


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_make_update_of_a_pass_that_diverged_is_refused(encoding: str) -> None:
    """It would spoil the fleet's table."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = a_pass(a_table() * np.float32(1e30), item_lr=1e9)
        with pytest.raises(EncodingError):
            make_update(a_head(plan=a_plan(encoding=encoding)), INCARNATION, 1, result)
