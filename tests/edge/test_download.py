"""Downloads: chunks in any order, of several versions, damaged or not."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import HashMismatchError, SchemaError, TransferError
from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import CHUNK_BYTES, cut
from broker.protocol.deltas import delta_bytes
from broker.protocol.messages import Chunk, Delta, Head
from broker.protocol.topics import Address, FleetTopics
from broker.protocol.versions import sha256, table_bytes
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


def stepped(
    base: Floats, tables: list[Floats], version: int
) -> tuple[Head, tuple[Delta, ...], list[tuple[int, list[Chunk]]]]:
    """Give the head of the last of some tables, the steps that lead there from `base`, and their chunks."""
    deltas, chunks = [], []
    for number, (before, after) in enumerate(pairwise([base, *tables])):
        content = delta_bytes(before, after)
        step = version - len(tables) + 1 + number
        deltas.append(Delta(version=step, size=len(content), digest=sha256(content)[:8]))
        chunks.append((step, list(cut(content, sha256(content)))))
    keys = [f"item-{row}" for row in range(len(tables[-1]))]
    return a_head(version, table=tables[-1], item_keys=keys), tuple(deltas), chunks


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
    downloads = [Download(a_head(version), catalogue=True) for version in range(2)]
    for version in range(1, 17):
        head, steps, _ = stepped(a_table(), [a_table(seed=1)], version)
        downloads.append(Download(head, catalogue=False, steps=steps, base=a_table()))
    assert {each for download in downloads for each in download.filters(topics)} == set(all_filters(topics))


def test_result_is_the_table_and_the_keys() -> None:
    """Both are needed to be complete, in either order."""
    table = a_table()
    for first, second in ((SNAPSHOT, CATALOGUE), (CATALOGUE, SNAPSHOT)):
        download = Download(a_head(), catalogue=True)
        chunks = {SNAPSHOT: table_chunks(table), CATALOGUE: catalogue_chunks()}
        assert not add_all(download, first, chunks[first])
        assert add_all(download, second, chunks[second])
        found, catalogue = download.result()
        assert table_bytes(found) == table_bytes(table)
        assert not found.flags.writeable
        assert catalogue == Catalogue(tuple(ITEM_KEYS))


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


# -- steps -----------------------------------------------------------------------------------------


def some_tables(n_tables: int, n_items: int = 400, dim: int = 70) -> list[Floats]:
    """Give a table and later versions of it, each with 300 other rows and one more."""
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((n_items, dim), dtype=np.float32)]
    for _ in range(n_tables):
        after = np.concatenate((tables[-1], rng.standard_normal((1, dim), dtype=np.float32)))
        after[rng.choice(n_items, 300, replace=False)] += 1.0
        tables.append(after)
    return tables


@given(order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_steps_lead_to_the_table(order: random.Random) -> None:
    """Several of them, in any order, to the last bit; only their slots are subscribed to."""
    base, *later = some_tables(3)
    head, steps, chunks = stepped(base, later, 20)
    download = Download(head, catalogue=False, steps=steps, base=base)
    assert download.filters(FleetTopics("shop")) == [f"pfedrec/1/shop/delta/{slot}/+" for slot in (2, 3, 4)]
    arriving = [(Address("delta", slot=step), chunk) for step, parts in chunks for chunk in parts]
    order.shuffle(arriving)

    complete = [download.add(address, chunk, SIZE) for address, chunk in arriving]

    assert complete == [False] * (len(arriving) - 1) + [True]
    table, keys = download.result()
    assert table_bytes(table) == table_bytes(later[-1])
    assert keys is None


def test_steps_from_another_table_are_not_used() -> None:
    """The hash is that of the outcome."""
    base, *later = some_tables(1)
    head, steps, [(_, chunks)] = stepped(base, later, 20)
    other = base.copy()
    untouched = (base[:400] == later[0][:400]).all(axis=1).nonzero()[0]
    other[untouched[0]] += 1.0
    download = Download(head, catalogue=False, steps=steps, base=other)
    assert add_all(download, Address("delta"), chunks)

    with pytest.raises(HashMismatchError):
        download.result()


def test_chunks_of_the_table_do_not_matter_to_steps() -> None:
    """Nor those of steps to a whole table."""
    base, *later = some_tables(1)
    head, steps, [(_, chunks)] = stepped(base, later, 20)
    by_steps = Download(head, catalogue=False, steps=steps, base=base)
    whole = Download(head, catalogue=False)

    assert not add_all(by_steps, SNAPSHOT, table_chunks(later[0]))
    assert not add_all(whole, Address("delta"), chunks)
    assert (by_steps.bytes_received, whole.bytes_received) == (0, 0)


# -- going on --------------------------------------------------------------------------------------


def test_download_that_goes_on_asks_for_the_missing_chunks_only() -> None:
    """One by one, of the table, of steps and of the catalogue."""
    topics = FleetTopics("shop")
    head, table, chunks = large()
    download = Download(head, catalogue=True)
    download.add(SNAPSHOT, chunks[1], SIZE)
    add_all(download, CATALOGUE, catalogue_chunks([f"item-{row}" for row in range(1000)]))

    assert download.filters(topics) == ["pfedrec/1/shop/snapshot/0/0", "pfedrec/1/shop/snapshot/0/2"]
    assert download.goes_on_with(head, catalogue=True, steps=())
    assert not download.complete
    assert download.add(SNAPSHOT, chunks[0], SIZE) is False
    assert download.add(SNAPSHOT, chunks[2], SIZE)
    np.testing.assert_array_equal(download.result()[0], table)


def test_download_does_not_go_on_with_another() -> None:
    """Another version, another table of the same number, other steps, or the catalogue as well."""
    base, *later = some_tables(1)
    head, steps, _ = stepped(base, later, 20)
    download = Download(head, catalogue=False, steps=steps, base=base)

    assert download.goes_on_with(head, catalogue=False, steps=steps)
    assert not download.goes_on_with(head, catalogue=True, steps=steps)
    assert not download.goes_on_with(head, catalogue=False, steps=())
    assert not download.goes_on_with(replace(head, version=21), catalogue=False, steps=steps)
    assert not download.goes_on_with(replace(head, sha256=bytes(32)), catalogue=False, steps=steps)
    assert not download.goes_on_with(replace(head, instance=1), catalogue=False, steps=steps)
