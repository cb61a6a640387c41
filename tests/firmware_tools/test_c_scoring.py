"""The C core's scores and rankings: what the numpy reference says, to the last bit."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.scorer import top_k
from firmware_tools import arithmetic
from firmware_tools.arithmetic import quantise_vector
from tests.firmware_tools import core
from tests.firmware_tools.core import needs_compiler
from trainer.integers import QuantisedTable, quantise_table
from trainer.params import Floats, ScoreFunction, sigmoid
from trainer.taste import TasteSettings, with_taste

pytestmark = [needs_compiler, pytest.mark.usefixtures("core_library")]

SHAPES = [(1, 1), (7, 3), (200, 32), (50, 33), (30, 600)]


def _table(rows: int, dim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def _w(dim: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_logits_are_the_references_and_within_1e6_of_numpy(rows: int, dim: int) -> None:
    """Bit for bit what the four lanes give; as scores within 1e-6 of any order of additions."""
    table, w = _table(rows, dim), _w(dim) / np.float32(np.sqrt(dim))

    found = core.logits(table, w, 0.25)

    assert found.tobytes() == arithmetic.float_logits(table, w, 0.25).tobytes()
    exact = table.astype(np.float64) @ w.astype(np.float64) + 0.25
    assert np.abs(sigmoid(found) - 1.0 / (1.0 + np.exp(-exact))).max() < 1e-6


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_logits_of_an_8_bit_table_are_the_references(rows: int, dim: int) -> None:
    """The same for a table of integers scored in floats."""
    table, w = quantise_table(_table(rows, dim)), _w(dim)
    assert core.logits(table, w, 0.25).tobytes() == arithmetic.quantised_logits(table, w, 0.25).tobytes()


@settings(max_examples=core.examples(60))
@given(
    rows=st.integers(1, 60),
    dim=st.sampled_from([1, 2, 5, 32, 512, 513, 1024]),
    seed=st.integers(0, 1 << 30),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
)
def test_integer_scores_are_exactly_the_references(rows: int, dim: int, seed: int, magnitude: float) -> None:
    """Vector, scores and ranking; also at the ends of what integers hold."""
    table = quantise_table(_table(rows, dim, seed) * np.float32(magnitude))
    if seed % 3 == 0:
        table.values[0] = 127
        table.multipliers[0] = 65535
    w = np.full(dim, -2.0, dtype=np.float32) if seed % 4 == 0 else _w(dim, seed)

    vector, scale = np.empty(dim, dtype=np.int16), np.empty(1, dtype=np.float32)
    assert (
        core.library().shim_quantise_vector(core.pointer(w), dim, core.pointer(vector), core.pointer(scale))
        == 0
    )
    expected, expected_scale = quantise_vector(w)
    assert vector.tobytes() == expected.tobytes()
    assert scale[0] == expected_scale

    scores, logits = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.float32)
    core.library().shim_integer_scores(
        *core.table_arguments(table),
        core.pointer(vector),
        ctypes.c_float(scale[0]),
        ctypes.c_float(0.5),
        core.pointer(scores),
        core.pointer(logits),
    )
    reference = arithmetic.integer_scores(table, vector)
    assert scores.tobytes() == reference.tobytes()
    assert logits.tobytes() == arithmetic.integer_logits(table, reference, scale[0], 0.5).tobytes()
    best, keys = core.recommend(table, 10, vector=vector)
    assert best.tolist() == arithmetic.best_rows(reference, 10).tolist()
    assert keys.tolist() == reference[best].tolist()


def test_the_ten_best_of_a_thousand_vectors_are_numpys() -> None:
    """In floats and in integers, with the items that the user has seen left out."""
    rng = np.random.default_rng(3)
    table = _table(600, 32)
    quantised = quantise_table(table)
    for _ in range(core.examples(1000)):
        w = rng.standard_normal(32, dtype=np.float32)
        seen = rng.choice(600, size=20, replace=False)
        best, keys = core.recommend(table, 10, w=w, b=-0.5, masked=seen)
        logits = arithmetic.float_logits(table, w, -0.5)
        assert best.tolist() == top_k(logits, 10, seen).tolist()
        assert keys.tolist() == arithmetic.keys_of_logits(logits[best]).tolist()
        vector, _ = quantise_vector(w)
        integer_best, _ = core.recommend(quantised, 10, vector=vector, masked=seen)
        scores = arithmetic.integer_scores(quantised, vector).astype(np.float64)
        scores[seen] = -np.inf
        assert integer_best.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()


def test_recommending_gives_fewer_where_fewer_are_left() -> None:
    """A mask over all but two; equal scores keep the order of rows; a NaN is never among the best."""
    table = np.zeros((9, 4), dtype=np.float32)
    table[3] = np.nan
    w = np.ones(4, dtype=np.float32)
    assert core.recommend(table, 5, w=w)[0].tolist() == [0, 1, 2, 4, 5]
    assert core.recommend(table, 5, w=w, masked=[0, 1, 2, 5, 6, 7])[0].tolist() == [4, 8]
    assert core.recommend(table, 0, w=w)[0].tolist() == []


@settings(max_examples=core.examples(100))
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_keys_order_as_logits_do(values: list[float]) -> None:
    """And give the logits back; both zeros are one."""
    logits = np.array(values, dtype=np.float32)
    keys, back = np.empty(logits.size, dtype=np.int32), np.empty_like(logits)
    core.library().shim_keys(core.pointer(logits), logits.size, core.pointer(keys), core.pointer(back))
    assert keys.tolist() == arithmetic.keys_of_logits(logits).tolist()
    assert np.array_equal(back, logits)
    assert np.array_equal(
        np.sign(np.subtract.outer(keys.astype(np.int64), keys.astype(np.int64))),
        (logits[:, None] > logits).astype(int) - (logits[:, None] < logits),
    )


@settings(max_examples=core.examples(60))
@given(
    n_items=st.integers(0, 80),
    recency=st.sampled_from([0.0, 0.5, 2.0, 30.0]),
    strength=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    seed=st.integers(0, 1000),
    form=st.sampled_from(["float32", "int8"]),
)
def test_taste_is_the_trainers(n_items: int, recency: float, strength: float, seed: int, form: str) -> None:
    """The vector that serves the own view, from a float table and from what an 8-bit one stands for."""
    table, w = _table(90, 8, seed), _w(8, seed)
    used = quantise_table(table) if form == "int8" else table
    floats = used.dequantised() if isinstance(used, QuantisedTable) else table
    items = np.random.default_rng(seed).permutation(90)[:n_items]
    mean, vector = np.empty(8, dtype=np.float32), np.empty(8, dtype=np.float32)

    assert core.library().shim_mean(*core.table_arguments(used), core.pointer(mean)) == 0
    history = core.u32(items)
    status = core.library().shim_taste(
        *core.table_arguments(used),
        core.pointer(mean),
        core.pointer(w),
        core.pointer(history),
        history.size,
        ctypes.c_float(recency),
        ctypes.c_float(strength),
        core.pointer(vector),
    )

    assert status == 0
    np.testing.assert_allclose(mean, floats.mean(axis=0), atol=1e-6)
    expected = with_taste(
        ScoreFunction(w=w, b=0.0), floats, items, TasteSettings(recency=recency, strength=strength)
    )
    np.testing.assert_allclose(vector, expected.w, atol=5e-6)
