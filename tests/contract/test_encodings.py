"""What every update encoding must do; add a new encoding's error bound to the table."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker.errors import EncodingError
from broker.protocol import wire
from broker.protocol.encodings import ENCODINGS, ROW_ENCODINGS, Encoding, RowEncoding, SparseChange
from broker.protocol.messages import MAX_REASON_BYTES, Update, decode, encode
from broker.protocol.topics import checked_id
from broker.protocol.wire import TypedArray
from tests.broker.protocol.strategies import sparse_changes, typed_arrays
from trainer.params import Floats

N_ITEMS, DIM = 50, 4
SMALLEST_NORMAL = np.finfo(np.float32).tiny


def no_error(change: Floats) -> NDArray[np.float64]:
    """Float32: exact."""
    return np.zeros(change.shape)


def half_a_scale(levels: float, least: float | None = None) -> Callable[[Floats], NDArray[np.float64]]:
    """Half a scale and the rounding of a few float32 operations; rows that are nearly zero vanish."""
    vanishing = (least or levels) * SMALLEST_NORMAL

    def bounds(change: Floats) -> NDArray[np.float64]:
        scale = np.abs(change).max(axis=1, keepdims=True).astype(np.float64) / levels
        half = scale * (0.5 + levels * 2.0**-22)
        bound = np.where(scale * levels < vanishing, vanishing, half)
        return np.broadcast_to(bound, change.shape)

    return bounds


def half_precision(change: Floats) -> NDArray[np.float64]:
    """Eleven bits of each value, down to where the row's largest one or float32 makes it subnormal.

    Processors differ in what they make of float32 below 2^-126: 32-bit ARM's vector unit takes it for zero.
    """
    largest = np.abs(change).max(axis=1, keepdims=True).astype(np.float64)
    floor = np.maximum(largest * 2.0**-39, SMALLEST_NORMAL)
    return np.maximum(np.abs(change) * 2.0**-11, floor)


ERROR_BOUNDS: dict[str, Callable[[Floats], NDArray[np.float64]]] = {
    "float32": no_error,
    "int8": half_a_scale(127.0),
    "int4": half_a_scale(7.0),
    "float16": half_precision,
    "factored": no_error,
    "factored-int8": half_a_scale(127.0, least=127.0**2),
}
"""Of changes without factors; those of factors are in `test_factored_encodings`."""

DTYPES = ["<u4", "i1", "<f2", "<f4"]

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
every_row_encoding = pytest.mark.parametrize("encoding", ROW_ENCODINGS.values(), ids=ROW_ENCODINGS)
quick = settings(deadline=None)


def a_change(n_rows: int = 3) -> SparseChange:
    """Give the change of the rows 1, 3, 5 … of a table of shape (50, 4)."""
    rng = np.random.default_rng(7)
    return SparseChange(
        rows=np.arange(n_rows, dtype=np.int64) * 2 + 1,
        change=rng.standard_normal((n_rows, DIM), dtype=np.float32),
    )


def refusal(
    encoding: Encoding, body: Mapping[str, TypedArray], n_items: int = N_ITEMS, dim: int = DIM
) -> str:
    """Give the text with which `body` is refused; it must fit a receipt and a log line."""
    with pytest.raises(EncodingError) as caught:
        encoding.decode(body, n_items, dim)
    text = str(caught.value)
    assert text.isascii(), text
    assert text.isprintable(), text
    assert len(text) <= MAX_REASON_BYTES
    return text


def with_first(array: TypedArray, value: float) -> TypedArray:
    """Give a copy of a float array that begins with `value`, or infinity where the dtype cannot hold it."""
    changed = array.copy()
    with np.errstate(over="ignore"):
        changed[0] = value
    return changed


def test_every_encoding_has_an_error_bound() -> None:
    """The table above has no gap."""
    assert ERROR_BOUNDS.keys() == ENCODINGS.keys()


@every_encoding
def test_name_is_an_identifier_and_the_key(encoding: Encoding) -> None:
    """An update can name it, and the name finds it."""
    assert checked_id(encoding.name, "the encoding") == encoding.name
    assert ENCODINGS[encoding.name] is encoding


@every_encoding
@given(change=sparse_changes(N_ITEMS, DIM))
@quick
def test_change_survives_the_wire_within_the_error_bound(encoding: Encoding, change: SparseChange) -> None:
    """Rows are exact, values within the documented error, shapes and dtypes as promised."""
    update = Update(
        instance=1, incarnation=2, seq=3, base_version=4, encoding=encoding.name, body=encoding.encode(change)
    )

    found = encoding.decode(decode(encode(update), Update).body, N_ITEMS, DIM)

    assert found.rows.dtype == np.int64
    assert found.rows.tolist() == change.rows.tolist()
    assert found.change.dtype == np.float32
    assert found.change.shape == change.change.shape
    error = np.abs(found.change.astype(np.float64) - change.change)
    assert (error <= ERROR_BOUNDS[encoding.name](change.change)).all()


@every_encoding
@given(change=sparse_changes(N_ITEMS, DIM, limit=1e-36))
@quick
def test_tiny_change_survives_within_the_error_bound(encoding: Encoding, change: SparseChange) -> None:
    """Subnormal values and scales neither overflow nor warn."""
    found = encoding.decode(encoding.encode(change), N_ITEMS, DIM)

    error = np.abs(found.change.astype(np.float64) - change.change)
    assert (error <= ERROR_BOUNDS[encoding.name](change.change)).all()


@every_encoding
def test_change_at_the_limit_survives(encoding: Encoding) -> None:
    """The largest magnitude that is allowed, in either direction."""
    limit = np.float32(1e30)
    change = SparseChange(
        rows=np.array([0], dtype=np.int64), change=np.array([[limit, -limit, 0.0, 1.0]], dtype=np.float32)
    )

    found = encoding.decode(encoding.encode(change), N_ITEMS, DIM)

    np.testing.assert_allclose(found.change[0], change.change[0], rtol=1e-6, atol=float(limit) / 254)


@every_encoding
def test_zero_change_stays_zero(encoding: Encoding) -> None:
    """A row that did not move may be sent."""
    change = SparseChange(rows=np.array([4], dtype=np.int64), change=np.zeros((1, DIM), dtype=np.float32))

    assert not encoding.decode(encoding.encode(change), N_ITEMS, DIM).change.any()


@every_encoding
@pytest.mark.parametrize("dim", [1, 3, 1024])
def test_every_row_of_the_table_may_change(encoding: Encoding, dim: int) -> None:
    """The last row too, for any width."""
    rng = np.random.default_rng(1)
    change = SparseChange(
        rows=np.arange(5, dtype=np.int64), change=rng.standard_normal((5, dim), dtype=np.float32)
    )

    found = encoding.decode(encoding.encode(change), 5, dim)

    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    error = np.abs(found.change.astype(np.float64) - change.change)
    assert (error <= ERROR_BOUNDS[encoding.name](change.change)).all()


@every_encoding
@given(change=sparse_changes(N_ITEMS, DIM))
@quick
def test_encoding_is_repeatable_and_changes_nothing(encoding: Encoding, change: SparseChange) -> None:
    """The same change gives the same bytes, and stays as it was."""
    rows, values = change.rows.copy(), change.change.copy()

    first, second = encoding.encode(change), encoding.encode(change)

    assert wire.dumps(first) == wire.dumps(second)
    assert change.rows.tobytes() == rows.tobytes()
    assert change.change.tobytes() == values.tobytes()


@every_row_encoding
@pytest.mark.parametrize("n_rows", [1, 2, 25])
def test_sizes_are_known_before(encoding: RowEncoding, n_rows: int) -> None:
    """The size is known before anything is encoded."""
    body = encoding.encode(a_change(n_rows))

    assert {name: array.nbytes for name, array in body.items()} == encoding.array_bytes(n_rows, DIM)


@every_encoding
@given(change=sparse_changes(N_ITEMS, DIM))
@quick
def test_size_is_bounded_and_the_wire_carries_the_arrays(encoding: Encoding, change: SparseChange) -> None:
    """No body is larger than what an aggregator makes room for."""
    body = encoding.encode(change)

    assert sum(array.nbytes for array in body.values()) <= encoding.most_bytes(int(change.rows[-1]) + 1, DIM)
    assert all(wire.is_typed_array(array) for array in body.values())


@every_encoding
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.001e30, -1.001e30, 3e38])
def test_change_that_cannot_be_added_up_is_not_encoded(encoding: Encoding, value: float) -> None:
    """A device whose training went wrong notices before it sends."""
    change = a_change()
    change.change[1, 2] = value

    with pytest.raises(EncodingError, match="the change has a value that is not finite or beyond 1e30"):
        encoding.encode(change)


@every_encoding
def test_missing_array_is_refused(encoding: Encoding) -> None:
    """All arrays, or none of them, may be missing."""
    body = encoding.encode(a_change())

    assert f"the body has ; expected {', '.join(map(repr, sorted(body)))}" == refusal(encoding, {})
    for name in body:
        assert "the body has " in refusal(encoding, {n: array for n, array in body.items() if n != name})


@every_encoding
@pytest.mark.parametrize("name", ["extra", "", "Rows", "rows ", "\n\x00", "\U0001f600" * 200])
def test_extra_or_renamed_array_is_refused(encoding: Encoding, name: str) -> None:
    """Whatever its name."""
    body = encoding.encode(a_change())

    first = next(iter(body))
    refusal(encoding, body | {name: body[first]})
    refusal(encoding, {name if n == first else n: array for n, array in body.items()})


@every_encoding
def test_many_long_names_give_a_short_refusal(encoding: Encoding) -> None:
    """As many arrays as an update may have, with names that are long in UTF-8."""
    body: dict[str, TypedArray] = {"\U0001f600" * 100 + str(n): np.zeros(1, np.int8) for n in range(8)}

    refusal(encoding, body)


@every_encoding
def test_wrong_dtype_is_refused(encoding: Encoding) -> None:
    """Every array in every dtype that travels but its own."""
    body = encoding.encode(a_change())
    for name, array in body.items():
        for dtype in DTYPES:
            if array.dtype != np.dtype(dtype):
                changed = body | {name: np.ones(array.size, dtype=dtype)}
                assert f"{name} is " in refusal(encoding, changed)


@every_row_encoding
@pytest.mark.parametrize("last", [N_ITEMS, N_ITEMS + 1, 2**31, 2**32 - 1])
def test_row_beyond_the_table_is_refused(encoding: RowEncoding, last: int) -> None:
    """Rows begin with zero."""
    body = encoding.encode(a_change()) | {"rows": np.array([1, 3, last], np.uint32)}

    assert refusal(encoding, body) == f"row {last} of a table of {N_ITEMS}"


@every_row_encoding
@pytest.mark.parametrize("rows", [[1, 1, 3], [1, 3, 3], [3, 1, 5], [5, 3, 1], [2**32 - 1, 1, 3], [60, 3, 5]])
def test_rows_that_do_not_ascend_are_refused(encoding: RowEncoding, rows: list[int]) -> None:
    """Duplicates and any other order, also with a row beyond the table that is not the last."""
    body = encoding.encode(a_change()) | {"rows": np.array(rows, np.uint32)}

    assert refusal(encoding, body) == "the rows are not ascending and distinct"


@every_row_encoding
def test_update_without_rows_is_refused(encoding: RowEncoding) -> None:
    """Nothing to count."""
    body = {name: array[:0] for name, array in encoding.encode(a_change()).items()}

    assert refusal(encoding, body) == "an update without rows"


@every_encoding
def test_more_rows_than_the_table_has_are_refused(encoding: Encoding) -> None:
    """The number of rows is bounded before they are looked at."""
    body = encoding.encode(a_change(3))

    assert "of a table of 2" in refusal(encoding, body, n_items=2)


@every_encoding
def test_wrong_length_is_refused(encoding: Encoding) -> None:
    """Every array one shorter, one longer, and empty."""
    body = encoding.encode(a_change())
    for name, array in body.items():
        longer = np.append(array, np.ones(1, dtype=array.dtype))
        for changed in (array[:-1], longer, array[:0]) if array.size else (longer,):
            refusal(encoding, body | {name: changed})


@every_row_encoding
@pytest.mark.parametrize("dim", [1, DIM - 1, DIM + 1, 1024])
def test_body_of_another_width_is_refused(encoding: RowEncoding, dim: int) -> None:
    """An update for a table of another dim."""
    body = encoding.encode(a_change())
    name = next(reversed(body))
    found, expected = (encoding.array_bytes(3, width)[name] // body[name].itemsize for width in (DIM, dim))

    reason = refusal(encoding, body, dim=dim)

    assert found == expected or reason == f"{name} has {found} values; expected {expected}"


@every_encoding
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_values_that_cannot_be_added_up_are_refused(encoding: Encoding, value: float) -> None:
    """Not finite, or so large that a sum could overflow; in each array of floats."""
    body = encoding.encode(a_change())
    floats = [name for name, array in body.items() if array.dtype.kind == "f" and array.size]

    assert floats
    for name in floats:
        assert f"{name} has a value that is " in refusal(
            encoding, body | {name: with_first(body[name], value)}
        )


@every_encoding
@given(
    body=st.dictionaries(
        st.sampled_from(["rows", "values", "scales", "pairs", "exponents", "counts", "gaps", "directions"]),
        typed_arrays(),
        max_size=5,
    ),
    n_items=st.integers(1, 2**33),
    dim=st.integers(1, 4),
)
@settings(deadline=None, max_examples=300)
def test_any_body_gives_a_right_change_or_an_encoding_error(
    encoding: Encoding, body: dict[str, TypedArray], n_items: int, dim: int
) -> None:
    """Noise never raises anything else, and never gives a change that could not be applied."""
    try:
        found = encoding.decode(body, n_items, dim)
    except EncodingError:
        return
    assert found.change.shape == (found.rows.size, dim)
    assert np.isfinite(found.change).all()
    assert 0 <= found.rows[0] <= found.rows[-1] < n_items
    assert (np.diff(found.rows) > 0).all()


@every_encoding
@given(change=sparse_changes(N_ITEMS, DIM), data=st.data())
@quick
def test_changed_body_gives_a_right_change_or_an_encoding_error(
    encoding: Encoding, change: SparseChange, data: st.DataObject
) -> None:
    """Good bodies with some bytes of one array changed."""
    body = encoding.encode(change)
    name = data.draw(st.sampled_from(sorted(name for name, array in body.items() if array.size)))
    content = bytearray(body[name].tobytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    changed: Any = np.frombuffer(bytes(content), dtype=body[name].dtype)

    try:
        found = encoding.decode(body | {name: changed}, N_ITEMS, DIM)
    except EncodingError:
        return
    assert np.isfinite(found.change).all()
    assert (np.diff(found.rows) > 0).all()
    assert found.rows[-1] < N_ITEMS


@given(change=sparse_changes(N_ITEMS, DIM))
@quick
def test_float32_is_exact_to_the_bit(change: SparseChange) -> None:
    """Also minus zero and subnormal values."""
    float32 = ENCODINGS["float32"]

    found = float32.decode(float32.encode(change), N_ITEMS, DIM)

    assert found.change.tobytes() == change.change.tobytes()


def test_float32_refuses_the_first_value_beyond_its_limit() -> None:
    """1e30 is allowed, the next float is not."""
    float32 = ENCODINGS["float32"]
    body = float32.encode(a_change())
    limit = np.float32(1e30)

    float32.decode(body | {"values": with_first(body["values"], float(limit))}, N_ITEMS, DIM)
    refusal(
        float32, body | {"values": with_first(body["values"], float(np.nextafter(limit, np.float32(2e30))))}
    )


@pytest.mark.parametrize("scale", [-1e-30, -1.0, 1.001e28, float("nan"), float("inf"), -float("inf")])
def test_int8_refuses_a_wrong_scale(scale: float) -> None:
    """Negative, not finite, or so large that scale times value could leave the bound."""
    int8 = ENCODINGS["int8"]
    body = int8.encode(a_change())

    text = refusal(int8, body | {"scales": with_first(body["scales"], scale)})

    assert text == "scales has a value that is negative, not finite or beyond 1e28"


def test_int8_reads_every_value() -> None:
    """All 256 values of a byte times the scale, the one that its encoder never makes among them."""
    values = np.arange(-128, 128, dtype=np.int8)
    body: dict[str, TypedArray] = {
        "rows": np.array([0], np.uint32),
        "scales": np.array([0.5], np.float32),
        "values": values,
    }

    found = ENCODINGS["int8"].decode(body, 1, 256)

    assert found.change[0].tolist() == [value / 2 for value in range(-128, 128)]


def test_int8_has_known_bytes() -> None:
    """A row's largest magnitude becomes 127."""
    change = SparseChange(
        rows=np.array([2], dtype=np.int64), change=np.array([[127.0, -63.5, 0.4, -0.6]], dtype=np.float32)
    )

    body = ENCODINGS["int8"].encode(change)

    assert body["rows"].tolist() == [2]
    assert body["scales"].tolist() == [1.0]
    assert body["values"].tolist() == [127, -64, 0, -1]


def test_int4_packs_two_values_a_byte() -> None:
    """The earlier one in the lower half; an odd row ends with half a byte that must be zero."""
    int4 = ENCODINGS["int4"]
    change = SparseChange(
        rows=np.array([2], dtype=np.int64), change=np.array([[7.0, -7.0, -1.0]], dtype=np.float32)
    )

    body = int4.encode(change)

    assert body["scales"].tolist() == [1.0]
    assert body["pairs"].view(np.uint8).tolist() == [0x97, 0x0F]
    assert int4.decode(body, 3, 3).change.tolist() == [[7.0, -7.0, -1.0]]
    text = refusal(int4, body | {"pairs": np.array([0x17, 0x1F], np.int8)}, dim=3)
    assert text == "pairs has something in the half byte after a row's last value"


def test_sizes_for_a_table_of_the_papers_width() -> None:
    """Integers of 8 bits take about a quarter of float32, those of 4 bits less than a fifth."""
    sizes = {name: sum(encoding.array_bytes(1000, 32).values()) for name, encoding in ROW_ENCODINGS.items()}

    assert sizes == {"float32": 132_000, "float16": 69_000, "int8": 40_000, "int4": 24_000}
