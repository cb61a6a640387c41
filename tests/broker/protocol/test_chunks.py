"""Cutting a whole into chunks and putting it together."""

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import HashMismatchError, SchemaError, TransferError
from broker.protocol import wire
from broker.protocol.chunks import CHUNK_BYTES, Assembly, chunk_count, cut
from broker.protocol.messages import MAX_CHUNKS, MAX_TRANSFER_BYTES, Chunk, decode, encode

SIZES = [1, 2, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]


def whole_of(size: int) -> bytes:
    """Give `size` bytes of which no two chunks are equal."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


def cut_up(whole: bytes) -> list[Chunk]:
    """Cut `whole` under its own digest."""
    return list(cut(whole, sha256(whole).digest()))


def assembly_for(whole: bytes) -> Assembly:
    """Give an empty assembly that waits for `whole`."""
    return Assembly(len(whole), sha256(whole).digest())


@pytest.mark.parametrize("size", SIZES)
def test_whole_is_cut_into_the_fewest_chunks(size: int) -> None:
    """All chunks are full but the last, in order, and each fits one message."""
    whole = whole_of(size)

    chunks = cut_up(whole)

    assert len(chunks) == chunk_count(size) == -(-size // CHUNK_BYTES)
    assert b"".join(chunk.data for chunk in chunks) == whole
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert {len(chunk.data) for chunk in chunks[:-1]} <= {CHUNK_BYTES}
    for chunk in chunks:
        assert (chunk.count, chunk.size) == (len(chunks), size)
        assert chunk.digest == sha256(whole).digest()[:8]
        assert len(encode(chunk)) <= wire.MAX_MESSAGE_BYTES


def test_largest_transfer_has_an_allowed_number_of_chunks() -> None:
    """The limits of size and count agree."""
    assert chunk_count(MAX_TRANSFER_BYTES) <= MAX_CHUNKS


def test_nothing_cannot_be_cut() -> None:
    """A whole has at least one byte."""
    with pytest.raises(SchemaError, match="size"):
        cut_up(b"")


@given(size=st.sampled_from(SIZES), data=st.data())
@settings(deadline=None, max_examples=60)
def test_chunks_are_assembled_in_any_order_with_repeats(size: int, data: st.DataObject) -> None:
    """Every order of all chunks, some of them again, gives the whole exactly when the last is there."""
    whole = whole_of(size)
    chunks = [decode(encode(chunk), Chunk) for chunk in cut_up(whole)]
    repeats = data.draw(st.lists(st.sampled_from(chunks), max_size=4))
    assembly = assembly_for(whole)

    seen = set()
    for chunk in data.draw(st.permutations(chunks + repeats)):
        seen.add(chunk.index)
        assert assembly.add(chunk) == assembly.complete == (len(seen) == len(chunks))

    assert assembly.whole() == whole


@pytest.mark.parametrize("size", SIZES)
def test_eight_bytes_of_the_digest_are_enough(size: int) -> None:
    """Of an update the receiver knows no more than a chunk says."""
    whole = whole_of(size)
    chunks = cut_up(whole)
    assembly = Assembly(chunks[0].size, chunks[0].digest)
    for chunk in chunks:
        assembly.add(chunk)

    assert assembly.whole() == whole


def test_incomplete_whole_is_not_given() -> None:
    """Until the last chunk is there it is missing."""
    whole = whole_of(3 * CHUNK_BYTES)
    assembly = assembly_for(whole)
    assembly.add(cut_up(whole)[1])

    with pytest.raises(TransferError, match="2 of 3 chunks are missing"):
        assembly.whole()


def test_foreign_chunk_is_refused_and_changes_nothing() -> None:
    """A chunk of another whole of the same size."""
    whole = whole_of(2 * CHUNK_BYTES)
    foreign = cut_up(bytes(2 * CHUNK_BYTES))[0]
    assembly = assembly_for(whole)
    assembly.add(cut_up(whole)[0])

    assert not assembly.fits(foreign)
    with pytest.raises(TransferError, match="belongs to another whole"):
        assembly.add(foreign)

    assert assembly.add(cut_up(whole)[1])
    assert assembly.whole() == whole


@pytest.mark.parametrize("change", [{"size": CHUNK_BYTES + 2}, {"size": 1}, {"count": 3}])
def test_chunk_that_contradicts_the_whole_is_refused(change: dict[str, int]) -> None:
    """Right digest, wrong size or count."""
    whole = whole_of(CHUNK_BYTES + 1)
    chunk = cut_up(whole)[0]
    assembly = assembly_for(whole)

    with pytest.raises(TransferError, match="belongs to another whole"):
        assembly.add(replace(chunk, size=change.get("size", chunk.size), count=change.get("count", 2)))

    assert not assembly.complete


@pytest.mark.parametrize(
    ("index", "found", "expected"),
    [(0, 1, CHUNK_BYTES), (0, CHUNK_BYTES - 1, CHUNK_BYTES), (1, 6, 5), (1, 4, 5)],
)
def test_chunk_of_the_wrong_length_is_refused(index: int, found: int, expected: int) -> None:
    """All chunks are full but the last, which has the rest."""
    whole = whole_of(CHUNK_BYTES + 5)
    chunk = replace(cut_up(whole)[index], data=b"x" * found)
    assembly = assembly_for(whole)

    with pytest.raises(TransferError, match=f"chunk {index} has {found} bytes, not {expected}"):
        assembly.add(chunk)

    assert not assembly.complete


@pytest.mark.parametrize("prefix", [8, 32])
def test_whole_with_the_wrong_digest_is_dropped(prefix: int) -> None:
    """One changed byte is found, and what was collected is forgotten."""
    whole = whole_of(CHUNK_BYTES + 5)
    first, last = cut_up(whole)
    assembly = Assembly(len(whole), sha256(whole).digest()[:prefix])
    assembly.add(first)
    assembly.add(replace(last, data=b"xxxxx"))

    with pytest.raises(HashMismatchError, match="announced SHA-256"):
        assembly.whole()
    assert not assembly.complete

    for chunk in (first, last):
        assembly.add(chunk)
    assert assembly.whole() == whole
