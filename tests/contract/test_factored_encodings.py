"""What the encodings do with a change that knows its factors, beside the contract of all encodings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker.errors import EncodingError
from broker.protocol import wire
from broker.protocol.encodings import ENCODINGS, Encoding, FactoredChange, SparseChange
from broker.protocol.encodings.factored import MOST_BATCHES_OF_A_ROW
from broker.protocol.encodings.gaps import packed, unpacked
from broker.protocol.messages import MAX_REASON_BYTES, Update, decode, encode

N_ITEMS, DIM = 300, 8
FACTORED = ["factored", "factored-int8"]

every_factored = pytest.mark.parametrize("encoding", [ENCODINGS[name] for name in FACTORED], ids=FACTORED)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
quick = settings(deadline=None)


@st.composite
def factored_changes(draw: st.DrawFn, scale: float | None = None) -> FactoredChange:
    """Changes of a few mini-batches, of which each moves a share of the rows; some rows may not move."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rank = draw(st.integers(1, DIM))
    rows = np.sort(rng.choice(N_ITEMS, draw(st.integers(1, N_ITEMS)), replace=False)).astype(np.int64)
    coefficients = rng.standard_normal((rank, rows.size), dtype=np.float32)
    coefficients *= rng.random(coefficients.shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    size = draw(st.sampled_from([1e-20, 1e-3, 1.0, 1e12])) if scale is None else scale
    directions = rng.standard_normal((rank, DIM), dtype=np.float32) * np.float32(size)
    return FactoredChange(rows=rows, coefficients=coefficients, directions=directions)


def a_factored_change(n_rows: int = 60) -> FactoredChange:
    """Give the change of every other row in two mini-batches, each of half of them."""
    rng = np.random.default_rng(3)
    coefficients = rng.standard_normal((2, n_rows), dtype=np.float32)
    coefficients[0, ::2] = 0.0
    coefficients[1, 1::2] = 0.0
    return FactoredChange(
        rows=np.arange(n_rows, dtype=np.int64) * 2,
        coefficients=coefficients,
        directions=rng.standard_normal((2, DIM), dtype=np.float32),
    )


def exact(change: FactoredChange) -> NDArray[np.float64]:
    """Give the change in double precision."""
    product: NDArray[np.float64] = np.dot(
        change.coefficients.T.astype(np.float64), change.directions.astype(np.float64)
    )
    return product


def refusal(encoding: Encoding, body: dict[str, Any], n_items: int = N_ITEMS, dim: int = DIM) -> str:
    """Give the text with which `body` is refused."""
    with pytest.raises(EncodingError) as caught:
        encoding.decode(body, n_items, dim)
    text = str(caught.value)
    assert text.isascii()
    assert len(text) <= MAX_REASON_BYTES
    return text


@every_encoding
@given(change=factored_changes())
@quick
def test_factors_survive_the_wire_within_the_error_bound(encoding: Encoding, change: FactoredChange) -> None:
    """Rows exactly; values within half a step of each factor, or of the row."""
    update = Update(
        instance=1, incarnation=2, seq=3, base_version=4, encoding=encoding.name, body=encoding.encode(change)
    )

    found = encoding.decode(decode(encode(update), Update).body, N_ITEMS, DIM)

    assert found.rows.tolist() == change.rows.tolist()
    C, V = np.abs(change.coefficients).astype(np.float64), np.abs(change.directions).astype(np.float64)
    bound = np.broadcast_to(1e-6 * np.dot(C.T, V) + 1e-40, found.change.shape)
    if "int" in encoding.name:
        levels = 7 if "int4" in encoding.name else 127
        # A coefficient is off by half a step of its mini-batch, a direction by half a step of its own, and
        # their product by both: the larger part where a row has little of either.
        largest_c, largest_v = C.max(axis=1, keepdims=True), V.max(axis=1, keepdims=True)
        moved_c, moved_v = np.where(C > 0, largest_c, 0.0), np.broadcast_to(largest_v, V.shape)
        of_factors = np.dot(moved_c.T, V) + np.dot(C.T, moved_v) + np.dot(moved_c.T, moved_v) * 0.51 / levels
        of_rows = np.abs(exact(change)).max(axis=1, keepdims=True)
        bound = bound + np.maximum(of_factors, of_rows) * 0.51 / levels + 1e-33
    elif encoding.name == "float16":
        largest = np.abs(exact(change)).max(axis=1, keepdims=True)
        bound = bound + np.maximum(np.abs(exact(change)) * 2.0**-11, largest * 2.0**-39) * 1.01
    assert (np.abs(found.change - exact(change)) <= bound).all()


@every_factored
@given(change=factored_changes())
@quick
def test_factors_never_take_more_than_rows(encoding: Encoding, change: FactoredChange) -> None:
    """Factors are sent where that is smaller; and the size is bounded before."""
    dense = SparseChange(rows=change.rows, change=change.change)

    found = sum(array.nbytes for array in encoding.encode(change).values())
    by_rows = sum(array.nbytes for array in encoding.encode(dense).values())

    # Rows of some hundred items need a second byte here and there.
    assert found <= by_rows + change.coefficients.shape[0]
    assert found <= encoding.most_bytes(int(change.rows[-1]) + 1, DIM)


@every_factored
@given(change=factored_changes(1.0))
@quick
def test_product_is_added_up_in_the_order_of_the_mini_batches(
    encoding: Encoding, change: FactoredChange
) -> None:
    """To the bit on every machine: single products and sums, as a plain loop over the body makes them."""
    body = encoding.encode(change)
    found = encoding.decode(body, N_ITEMS, DIM)
    content = bytes(body["gaps"].view(np.uint8))
    expected = np.zeros((N_ITEMS, DIM), dtype=np.float32)
    at = place = 0
    for batch, count in enumerate(body["counts"].tolist()):
        row = -1
        scale = body["scales"][batch] if "scales" in body else np.float32(1.0)
        for _ in range(count):
            gap = shift = 0
            while content[at] & 128:
                gap, shift, at = gap | (content[at] & 127) << shift, shift + 7, at + 1
            row += 1 + (gap | content[at] << shift)
            at += 1
            value = np.float32(body["values"][place]) * scale
            place += 1
            for column in range(DIM):
                expected[row, column] += value * np.float32(body["directions"][batch * DIM + column])

    assert (at, place) == (len(content), body["values"].size)
    np.testing.assert_array_equal(expected[found.rows], found.change)


@every_factored
@given(change=factored_changes())
@quick
def test_encoding_is_repeatable_and_changes_nothing(encoding: Encoding, change: FactoredChange) -> None:
    """The same factors give the same bytes, and stay as they were."""
    before = change.rows.tobytes(), change.coefficients.tobytes(), change.directions.tobytes()

    first, second = encoding.encode(change), encoding.encode(change)

    assert wire.dumps(first) == wire.dumps(second)
    assert before == (change.rows.tobytes(), change.coefficients.tobytes(), change.directions.tobytes())


@every_factored
@given(change=factored_changes(1.0), data=st.data())
@settings(deadline=None, max_examples=300)
def test_changed_body_gives_a_right_change_or_an_encoding_error(
    encoding: Encoding, change: FactoredChange, data: st.DataObject
) -> None:
    """Good bodies with some bytes of one array changed, or its end cut off."""
    body = encoding.encode(change)
    name = data.draw(st.sampled_from(sorted(body)))
    content = bytearray(body[name].tobytes())
    for at in data.draw(st.lists(st.integers(0, min(len(content), 30) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    keep = data.draw(st.sampled_from([len(content), len(content) // 2])) // body[name].itemsize
    changed: Any = np.frombuffer(bytes(content), dtype=body[name].dtype)[:keep]

    try:
        found = encoding.decode(body | {name: changed}, N_ITEMS, DIM)
    except EncodingError:
        return
    assert found.change.shape == (found.rows.size, DIM)
    assert np.isfinite(found.change).all()
    assert (np.diff(found.rows) > 0).all()
    assert 0 <= found.rows[0] <= found.rows[-1] < N_ITEMS


@every_factored
def test_factors_of_another_table_are_refused(encoding: Encoding) -> None:
    """Too many rows, another width."""
    body = encoding.encode(a_factored_change())

    assert refusal(encoding, body, n_items=50) == "row 118 of a table of 50"
    assert refusal(encoding, body, dim=3) == "directions has 16 values; expected 6"


@every_factored
def test_mini_batch_without_rows_is_refused(encoding: Encoding) -> None:
    """No room is made for what nothing needs."""
    body = encoding.encode(a_factored_change())

    changed = body | {"counts": np.array([60, 0], np.uint32)}
    assert refusal(encoding, changed) == "counts has a mini-batch without rows"
    changed = {name: array[:0] for name, array in body.items()}
    assert refusal(encoding, changed) == "an update without rows"


@every_factored
@pytest.mark.parametrize("counts", [[30, 31], [30, 29], [2**32 - 1, 2**32 - 1], [61, 2**32 - 1]])
def test_counts_that_do_not_fit_are_refused_before_room_is_made(
    encoding: Encoding, counts: list[int]
) -> None:
    """Announced numbers are held against what is there."""
    body = encoding.encode(a_factored_change())

    text = refusal(encoding, body | {"counts": np.array(counts, np.uint32)})

    assert text == f"values has 60 values; expected {sum(counts)}"


def a_row_in_many_batches(encoding: Encoding, count: int) -> dict[str, Any]:
    """Give the body of an update that moves row 7 so often."""
    values = np.int8 if encoding.name == "factored-int8" else np.float32
    body: dict[str, Any] = {
        "counts": np.ones(count, np.uint32),
        "gaps": np.full(count, 7, np.int8),
        "values": np.ones(count, values),
        "directions": np.ones(count * DIM, values),
    }
    return body | ({"scales": np.ones(count, np.float32)} if encoding.name == "factored-int8" else {})


@every_factored
def test_row_in_too_many_mini_batches_is_refused(encoding: Encoding) -> None:
    """They would cost the reader far more than the sender."""
    most = a_row_in_many_batches(encoding, MOST_BATCHES_OF_A_ROW)
    assert encoding.decode(most, N_ITEMS, DIM).change.tolist() == [[64.0] * DIM]

    text = refusal(encoding, a_row_in_many_batches(encoding, MOST_BATCHES_OF_A_ROW + 1))
    assert text == "a row in 65 mini-batches; at most 64 are allowed"


@every_factored
def test_pass_with_a_row_in_too_many_mini_batches_is_sent_by_rows(encoding: Encoding) -> None:
    """The reader refuses nothing that a device may send."""
    rng = np.random.default_rng(9)
    batch_of = np.arange(N_ITEMS) % (MOST_BATCHES_OF_A_ROW + 1)
    coefficients = (batch_of == np.arange(MOST_BATCHES_OF_A_ROW + 1)[:, None]).astype(np.float32)
    directions = rng.standard_normal((MOST_BATCHES_OF_A_ROW + 1, DIM), dtype=np.float32)
    change = FactoredChange(rows=np.arange(N_ITEMS), coefficients=coefficients, directions=directions)
    assert encoding.encode(change)["counts"].size == MOST_BATCHES_OF_A_ROW + 1
    coefficients[:, 0] = 1.0

    body = encoding.encode(change)

    assert body["counts"].tolist() == [1] * N_ITEMS
    found = encoding.decode(body, N_ITEMS, DIM)
    np.testing.assert_allclose(found.change, exact(change), atol=np.abs(found.change).max() / 200)


@every_factored
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_factor_that_is_not_finite_is_not_encoded(encoding: Encoding, value: float) -> None:
    """In either factor."""
    for factor in ("coefficients", "directions"):
        change = a_factored_change()
        getattr(change, factor)[1, 2] = value

        with (
            np.errstate(invalid="ignore"),
            pytest.raises(EncodingError, match="the change has a value that is not finite or beyond 1e30"),
        ):
            encoding.encode(change)


@every_factored
@pytest.mark.parametrize("size", [1e34, 1e38])
def test_large_factors_of_a_small_change_are_sent(encoding: Encoding, size: float) -> None:
    """Scaled, or by rows where a direction is too short for that; a large change is refused."""
    change = a_factored_change()
    change.coefficients[1] *= np.float32(size)
    change.directions[1] *= np.float32(0.1 / size)

    found = encoding.decode(encoding.encode(change), N_ITEMS, DIM)

    np.testing.assert_allclose(found.change, exact(change), rtol=1e-2, atol=0.03)
    change.directions[1, 2] = 1e20
    with np.errstate(over="ignore"), pytest.raises(EncodingError, match="beyond 1e30"):
        encoding.encode(change)


@every_factored
@given(change=factored_changes(1.0), power=st.integers(-20, 20))
@quick
def test_the_length_of_a_score_vector_does_not_travel(
    encoding: Encoding, change: FactoredChange, power: int
) -> None:
    """Nor its sign: of the same change, rows could not tell them."""
    factor = -np.float32(2.0**power)
    other = FactoredChange(
        rows=change.rows, coefficients=change.coefficients / factor, directions=change.directions * factor
    )

    assert wire.dumps(encoding.encode(change)) == wire.dumps(encoding.encode(other))


@every_factored
def test_product_beyond_the_bound_is_refused(encoding: Encoding) -> None:
    """Each factor may be large, both together not."""
    body = encoding.encode(a_factored_change())
    large: dict[str, Any] = {name: body[name] * np.float32(1e20) for name in ("values", "directions")}
    if encoding.name == "factored-int8":
        large = {"scales": np.full(2, 1e26, np.float32), "values": np.full(60, -128, np.int8)}
        large |= {"counts": np.array([30, 30], np.uint32), "gaps": np.zeros(60, np.int8)}
        large |= {"directions": np.full(2 * DIM, -128, np.int8)}

    text = refusal(encoding, body | large)

    assert text == "values times directions has a value that is not finite or beyond 2e30"


def test_factors_are_many_times_smaller() -> None:
    """A pass of ML-100K's kind: 480 of 1682 rows, three mini-batches, width 32."""
    rng = np.random.default_rng(0)
    coefficients = rng.standard_normal((3, 480), dtype=np.float32)
    coefficients *= np.arange(480) % 3 == np.arange(3)[:, None]
    change = FactoredChange(
        rows=np.sort(rng.choice(1682, 480, replace=False)).astype(np.int64),
        coefficients=coefficients,
        directions=rng.standard_normal((3, 32), dtype=np.float32),
    )

    sizes = {
        name: sum(array.nbytes for array in encoding.encode(change).values())
        for name, encoding in ENCODINGS.items()
    }

    assert sizes["factored"] < sizes["float32"] / 20
    assert sizes["factored-int8"] < sizes["int8"] / 15
    assert sizes["factored-int8"] < 1_100


@given(
    numbers=st.lists(
        st.integers(0, 2**35 - 1) | st.integers(0, 300) | st.sampled_from([127, 128, 2**14, 2**28]),
        min_size=1,
    )
)
@quick
def test_gaps_are_what_was_packed(numbers: list[int]) -> None:
    """Any numbers, in as few bytes as they need."""
    content = packed(np.array(numbers, dtype=np.int64))

    assert unpacked(content).tolist() == numbers
    assert content.size == sum(max(1, -(-number.bit_length() // 7)) for number in numbers)


def test_gaps_have_known_bytes() -> None:
    """The example of the DWARF standard that made the code known, 624485, and its neighbours."""
    content = packed(np.array([624485, 0, 127, 128], dtype=np.int64))

    assert content.tobytes().hex() == "e58e26007f8001"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "gaps ends within a number"),
        ("80", "gaps ends within a number"),
        ("0180", "gaps ends within a number"),
        ("808080808000", "gaps has a number of more than 5 bytes"),
        ("00ffffffffff01", "gaps has a number of more than 5 bytes"),
    ],
)
def test_gaps_that_are_no_numbers_are_refused(content: str, reason: str) -> None:
    """Cut off, or longer than any row needs."""
    with pytest.raises(EncodingError, match=reason):
        unpacked(np.frombuffer(bytes.fromhex(content), dtype=np.int8))
