"""Downloads: chunks in any order, of several versions, damaged or not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import HashMismatchError, SchemaError, TransferError
from broker.protocol.chunks import CHUNK_BYTES
from broker.protocol.messages import Chunk, Head
from broker.protocol.topics import Address, FleetTopics
from broker.protocol.versions import table_bytes
from edge.download import Download, all_filters
from tests.edge.builders import ITEM_KEYS, a_head, a_table, catalogue_chunks, table_chunks
from trainer.params import Floats

SNAPSHOT = Address("snapshot")
CATALOGUE = Address("catalogue")
SIZE = 100
"""Bytes of a chunk on the wire, as far as these tests care."""


def add_all(download: Download, kind: Address, chunks: list[Chunk]) -> bool:
    """Add chunks; tell what the last one led to."""
    complete = False
    for chunk in chunks:
        complete = download.add(kind, chunk, SIZE)
    return complete


def large() -> tuple[Head, Floats, list[Chunk]]:
    """Give a table of three chunks."""
    table = a_table(1000, 70)
    chunks = table_chunks(table)
    assert len(chunks) == 3
    return a_head(4, table=table, item_keys=[f"item-{row}" for row in range(1000)]), table, chunks


def test_filters_name_the_slot_and_the_catalogue_if_it_is_wanted() -> None:
    """Nothing is subscribed to for nothing."""
    topics = FleetTopics("shop")
    head = a_head(3)
    assert Download(head, catalogue=False).filters(topics) == ["pfedrec/1/shop/snapshot/1/+"]
    assert Download(head, catalogue=True).filters(topics) == [
        "pfedrec/1/shop/snapshot/1/+",
        "pfedrec/1/shop/catalogue/+",
    ]


def test_all_filters_are_those_of_any_download() -> None:
    """So that the rest of one can be cleared away without knowing it."""
    topics = FleetTopics("shop")
    downloads = [Download(a_head(version), catalogue=True) for version in range(4)]
    assert {each for download in downloads for each in download.filters(topics)} == set(all_filters(topics))


def test_result_is_the_table_and_the_keys() -> None:
    """Both are needed to be complete, in either order."""
    table = a_table()
    for first, second in ((SNAPSHOT, CATALOGUE), (CATALOGUE, SNAPSHOT)):
        download = Download(a_head(), catalogue=True)
        chunks = {SNAPSHOT: table_chunks(table), CATALOGUE: catalogue_chunks()}
        assert not add_all(download, first, chunks[first])
        assert add_all(download, second, chunks[second])
        found, keys = download.result()
        assert table_bytes(found) == table_bytes(table)
        assert not found.flags.writeable
        assert keys == ITEM_KEYS


def test_result_without_catalogue_has_no_keys() -> None:
    """Those on the device are right still; chunks of the catalogue are not looked at."""
    download = Download(a_head(), catalogue=False)
    assert not add_all(download, CATALOGUE, catalogue_chunks())
    assert add_all(download, SNAPSHOT, table_chunks(a_table()))
    assert download.result()[1] is None


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, 2), max_size=10), seed=st.integers(0, 100))
def test_add_takes_chunks_in_any_order_and_repeated(order: list[int], seed: int) -> None:
    """MQTT may repeat them."""
    head, table, chunks = large()
    missing = [0, 1, 2]
    random.Random(seed).shuffle(missing)
    download = Download(head, catalogue=False)
    seen = set()
    for index in [*order, *missing]:
        seen.add(index)
        assert download.add(SNAPSHOT, chunks[index], SIZE) == (seen == {0, 1, 2})
    assert table_bytes(download.result()[0]) == table_bytes(table)


def test_add_leaves_chunks_of_other_versions_alone() -> None:
    """A slot can hold an older or a newer table for a moment."""
    download = Download(a_head(2), catalogue=False)
    assert not add_all(download, SNAPSHOT, table_chunks(a_table(seed=5)))
    assert download.bytes_received == 0
    assert add_all(download, SNAPSHOT, table_chunks(a_table()))
    assert download.bytes_received == SIZE


def test_add_counts_every_byte_on_the_wire() -> None:
    """Repetitions, too."""
    download = Download(a_head(), catalogue=True)
    add_all(download, CATALOGUE, catalogue_chunks() * 2)
    assert download.bytes_received == 2 * SIZE


def test_add_of_chunk_that_contradicts_the_head_is_refused() -> None:
    """Its digest fits, its size does not."""
    head, _, chunks = large()
    download = Download(head, catalogue=False)
    bad = Chunk(digest=chunks[0].digest, index=0, count=3, size=head.table_bytes + 4, data=chunks[0].data)
    with pytest.raises(TransferError):
        download.add(SNAPSHOT, bad, SIZE)
    cut_short = Chunk(
        digest=chunks[0].digest, index=0, count=3, size=chunks[0].size, data=chunks[0].data[:-1]
    )
    with pytest.raises(TransferError):
        download.add(SNAPSHOT, cut_short, SIZE)
    assert add_all(download, SNAPSHOT, chunks)


def test_result_before_the_last_chunk_is_refused() -> None:
    """Nobody should ask."""
    head, _, chunks = large()
    download = Download(head, catalogue=False)
    download.add(SNAPSHOT, chunks[0], SIZE)
    with pytest.raises(TransferError, match="2 of 3 chunks are missing"):
        download.result()


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, CHUNK_BYTES - 1), which=st.integers(0, 2))
def test_result_with_a_changed_byte_is_refused(at: int, which: int) -> None:
    """Whichever it is."""
    head, _, chunks = large()
    data = bytearray(chunks[which].data)
    data[at % len(data)] ^= 1
    broken = chunks[which]
    chunks[which] = Chunk(digest=broken.digest, index=which, count=3, size=broken.size, data=bytes(data))
    download = Download(head, catalogue=False)
    assert add_all(download, SNAPSHOT, chunks)
    with pytest.raises(HashMismatchError):
        download.result()


def test_result_with_values_that_are_no_numbers_is_refused() -> None:
    """Even when the aggregator means it."""
    table = a_table().copy()
    table[2, 1] = float("nan")
    download = Download(a_head(table=table), catalogue=False)
    add_all(download, SNAPSHOT, table_chunks(table))
    with pytest.raises(SchemaError, match="not finite"):
        download.result()


def test_result_with_a_repeated_key_is_refused() -> None:
    """Two rows cannot be the same item."""
    keys = ("fig", *ITEM_KEYS[1:])
    download = Download(a_head(item_keys=keys), catalogue=True)
    add_all(download, SNAPSHOT, table_chunks(a_table()))
    add_all(download, CATALOGUE, catalogue_chunks(keys))
    with pytest.raises(SchemaError, match="distinct"):
        download.result()
