"""Table and catalogue as bytes, and how a receiver knows that they are right."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import HashMismatchError, SchemaError
from broker.protocol.chunks import chunk_count
from broker.protocol.messages import Head
from broker.protocol.versions import (
    catalogue_bytes,
    catalogue_from_bytes,
    sha256,
    table_bytes,
    table_from_bytes,
)
from tests.broker.protocol.golden import HEAD, ITEM_KEYS, TABLE
from tests.broker.protocol.strategies import float_arrays
from trainer.params import Floats

item_keys = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable),
    min_size=1,
    max_size=20,
    unique=True,
)


@st.composite
def tables(draw: st.DrawFn) -> Floats:
    """Small tables of any finite values."""
    rows, dim = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return draw(float_arrays(rows * dim)).reshape(rows, dim)


def head_of_table(content: bytes, rows: int, dim: int) -> Head:
    """Give the head that announces `content` as a table."""
    w = np.zeros(dim, np.float32)
    return replace(
        HEAD,
        rows=rows,
        dim=dim,
        sha256=sha256(content),
        chunks=chunk_count(4 * rows * dim),
        catalogue_rows=rows,
        w=w,
    )


def head_of_catalogue(content: bytes, rows: int) -> Head:
    """Give the head that announces `content` as a catalogue of `rows` keys."""
    return replace(
        HEAD,
        rows=1,
        catalogue_rows=rows,
        catalogue_bytes=len(content),
        catalogue_chunks=chunk_count(len(content)),
        catalogue_sha256=sha256(content),
    )


@given(tables())
@settings(deadline=None)
def test_table_survives_as_bytes(table: Floats) -> None:
    """Same bits, right shape and dtype, read-only."""
    content = table_bytes(table)

    found = table_from_bytes(content, head_of_table(content, *table.shape))

    assert len(content) == table.nbytes
    assert found.dtype == np.float32
    assert found.shape == table.shape
    assert found.tobytes() == table.tobytes()
    assert not found.flags.writeable


def test_table_bytes_are_little_endian_row_by_row() -> None:
    """Whatever the memory order, the bytes are the same."""
    expected = bytes.fromhex("0000003f 000080bf 0000803e 00000040 6f12833a 000060c0")

    assert table_bytes(TABLE) == expected
    assert table_bytes(np.asfortranarray(TABLE)) == expected
    assert table_bytes(TABLE.astype(">f4")) == expected


@pytest.mark.parametrize("size", [0, 4, 23, 25, 28, 48])
def test_table_of_the_wrong_size_is_refused(size: int) -> None:
    """Even when its hash is the announced one."""
    content = bytes(size)

    with pytest.raises(HashMismatchError, match="the table of version 41"):
        table_from_bytes(content, replace(HEAD, sha256=sha256(content)))


def test_table_with_a_flipped_bit_is_refused() -> None:
    """The hash covers every bit."""
    content = table_bytes(TABLE)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1
        with pytest.raises(HashMismatchError):
            table_from_bytes(bytes(flipped), HEAD)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_table_that_is_not_finite_is_refused(value: float) -> None:
    """A right hash does not make a usable table."""
    table = TABLE.copy()
    table[2, 1] = value
    content = table_bytes(table)

    with pytest.raises(SchemaError, match="values that are not finite"):
        table_from_bytes(content, head_of_table(content, *table.shape))


@given(item_keys)
@settings(deadline=None)
def test_catalogue_survives_as_bytes(keys: list[str]) -> None:
    """Same keys, same order."""
    content = catalogue_bytes(keys)

    assert catalogue_from_bytes(content, head_of_catalogue(content, len(keys))).keys == tuple(keys)


def test_catalogue_bytes_are_lines() -> None:
    """UTF-8, each key ended by a line feed."""
    assert catalogue_bytes(ITEM_KEYS) == "item-1\nAmélie (2001)\n映画\n".encode()


@pytest.mark.parametrize("size", [1, 100])
def test_catalogue_of_the_wrong_size_is_refused(size: int) -> None:
    """Even when its hash is the announced one."""
    content = b"a\n" * size
    head = replace(head_of_catalogue(content, size), catalogue_bytes=2 * size + 1)

    with pytest.raises(HashMismatchError, match="the catalogue"):
        catalogue_from_bytes(content, head)


def test_catalogue_with_a_changed_byte_is_refused() -> None:
    """The hash covers every byte."""
    content = catalogue_bytes(ITEM_KEYS)

    with pytest.raises(HashMismatchError, match="the catalogue"):
        catalogue_from_bytes(content.replace(b"1", b"2", 1), HEAD)


@pytest.mark.parametrize(
    ("content", "rows", "problem"),
    [
        (b"caf\xe9\n", 1, "is not UTF-8"),
        (b"\xed\xa0\x80\n", 1, "is not UTF-8"),
        (b"a", 1, "is not 1 distinct lines"),
        (b"a\nb", 2, "is not 2 distinct lines"),
        (b"a\nb\n", 1, "is not 1 distinct lines"),
        (b"a\nb\n", 3, "is not 3 distinct lines"),
        (b"a\nb\na\n", 3, "is not 3 distinct lines"),
        (b"a\n\n", 1, "is not 1 distinct lines"),
        (b"a\n\n", 2, "'' is no item key"),
        (b"\n", 1, "'' is no item key"),
        (b"a\r\n", 1, r"'a\\r' is no item key"),
        (b"a\tb\n", 1, "'b' is no mark of a row"),
        (b"a\x00\n", 1, r"'a\\x00' is no item key"),
        ("\u200b\n".encode(), 1, r"'\\u200b' is no item key"),
        (b"x" * 257 + b"\n", 1, "'xxx.* is no item key"),
        ("é".encode() * 129 + b"\n", 1, r"'\\xe9.* is no item key"),
    ],
)
def test_catalogue_that_is_none_is_refused(content: bytes, rows: int, problem: str) -> None:
    """A right hash does not make a usable catalogue."""
    with pytest.raises(SchemaError, match=problem):
        catalogue_from_bytes(content, head_of_catalogue(content, rows))


def test_longest_item_key_is_allowed() -> None:
    """256 bytes, as everywhere in the project."""
    content = catalogue_bytes(["é" * 128])

    assert catalogue_from_bytes(content, head_of_catalogue(content, 1)).keys == ("é" * 128,)
