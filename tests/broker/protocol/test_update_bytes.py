"""The size of an update, told without making one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.encodings import ROW_ENCODINGS, SparseChange
from broker.protocol.messages import MAX_SEQ, MAX_U64, Update, encode, encoded_update_bytes, update_size
from tests.broker.protocol.strategies import updates

# Of every length that a CBOR integer has.
u64s = (
    st.integers(0, 30)
    | st.integers(0, 300)
    | st.integers(0, 2**17)
    | st.integers(0, 2**33)
    | st.integers(0, MAX_U64)
)
counters = (
    st.integers(0, 30)
    | st.integers(0, 300)
    | st.integers(0, 2**17)
    | st.integers(0, 2**33)
    | st.integers(0, MAX_SEQ)
)


@given(update=updates())
def test_size_is_that_of_the_encoded_update(update: Update) -> None:
    """For the project's own encodings and any other."""
    found = encoded_update_bytes(
        update.encoding,
        {name: array.nbytes for name, array in update.body.items()},
        (update.instance, update.incarnation, update.seq, update.base_version),
    )

    assert found == update_size(update) == len(encode(update))


@given(
    encoding=st.sampled_from(sorted(ROW_ENCODINGS)),
    n_rows=st.integers(1, 700),
    dim=st.integers(1, 70),
    instance=u64s,
    incarnation=u64s,
    seq=counters.filter(bool),
    base_version=counters,
)
def test_size_follows_from_the_numbers_of_rows_and_columns(
    encoding: str, n_rows: int, dim: int, instance: int, incarnation: int, seq: int, base_version: int
) -> None:
    """With the sizes of the arrays that the encoding itself tells, for integers of any length."""
    change = np.ones((n_rows, dim), dtype=np.float32)
    update = Update(
        instance=instance,
        incarnation=incarnation,
        seq=seq,
        base_version=base_version,
        encoding=encoding,
        body=ROW_ENCODINGS[encoding].encode(SparseChange(rows=np.arange(n_rows), change=change)),
    )

    found = encoded_update_bytes(
        encoding,
        ROW_ENCODINGS[encoding].array_bytes(n_rows, dim),
        (instance, incarnation, seq, base_version),
    )

    assert found == len(encode(update))


@pytest.mark.parametrize("edge", [23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, MAX_SEQ])
def test_size_is_right_where_an_integers_length_changes(edge: int) -> None:
    """For each of the four integers, and for an array of that many bytes where it is short enough."""
    n_bytes = edge if edge <= 65536 else 0
    body = {"x": np.zeros(n_bytes, dtype=np.int8)}
    update = Update(instance=edge, incarnation=edge, seq=edge, base_version=edge, encoding="other", body=body)

    assert encoded_update_bytes("other", {"x": n_bytes}, (edge, edge, edge, edge)) == len(encode(update))
