"""Updates in chunks: put together for each device, refused when wrong, and bounded in memory."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.aggregator import reassembly
from broker.aggregator.reassembly import Reassembly
from broker.errors import HashMismatchError, TransferError
from broker.protocol.chunks import CHUNK_BYTES, cut
from broker.protocol.messages import Chunk

LARGE = 3 * CHUNK_BYTES + 17


def content(seed: int, size: int = LARGE) -> bytes:
    """Give bytes that differ from those of another seed from the beginning."""
    return bytes([seed]) * size


def chunks_of(whole: bytes) -> list[Chunk]:
    """Cut as a device does."""
    return list(cut(whole, hashlib.sha256(whole).digest()))


def add_all(target: Reassembly, device: str, chunks: list[Chunk]) -> list[bytes]:
    """Add chunks and give each whole that came out."""
    results = [target.add(device, chunk) for chunk in chunks]
    return [whole for whole in results if whole is not None]


def test_chunks_in_order_give_the_whole_with_the_last() -> None:
    """Nothing comes out before the last chunk is in."""
    target = Reassembly(LARGE)
    *first, last = chunks_of(content(1))

    assert add_all(target, "pi", first) == []
    assert target.add("pi", last) == content(1)


@settings(deadline=None, max_examples=25)
@given(
    order=st.permutations(
        [(device, index) for device in ("a", "b", "c") for index in range(4) for _ in range(1 + index % 2)]
    )
)
def test_chunks_of_many_devices_in_any_order_with_repeats(order: list[tuple[str, int]]) -> None:
    """Devices do not disturb each other, and a chunk that comes twice is no error."""
    target = Reassembly(LARGE)
    wholes = {device: content(number) for number, device in enumerate("abc")}
    chunks = {device: chunks_of(whole) for device, whole in wholes.items()}
    found: dict[str, list[bytes]] = {device: [] for device in wholes}

    for device, index in order:
        whole = target.add(device, chunks[device][index])
        if whole is not None:
            found[device].append(whole)

    for device, whole in wholes.items():
        assert found[device]
        assert set(found[device]) == {whole}


def test_device_that_sends_another_update_gives_the_first_one_up() -> None:
    """A device has one update on its way; a new digest begins a new one."""
    target = Reassembly(LARGE)
    old, new = chunks_of(content(1)), chunks_of(content(2))
    add_all(target, "pi", old[:-1])

    assert add_all(target, "pi", new) == [content(2)]
    assert add_all(target, "pi", old[-1:]) == []


def test_update_above_the_limit_is_refused_at_its_first_chunk() -> None:
    """What cannot fit the table is not collected."""
    with pytest.raises(TransferError, match=f"{LARGE} bytes; at most 100"):
        Reassembly(100).add("pi", chunks_of(content(1))[0])


@pytest.mark.parametrize(
    "wrong",
    [{"size": LARGE - 1}, {"size": LARGE - CHUNK_BYTES}, {"count": 5}, {"data": b"short"}],
    ids=str,
)
def test_chunk_that_contradicts_the_others_is_refused(wrong: dict[str, int | bytes]) -> None:
    """A chunk of the same update with other figures is an error, and the update can be sent again."""
    target = Reassembly(LARGE)
    chunks = chunks_of(content(1))
    target.add("pi", chunks[0])

    with pytest.raises(TransferError):
        target.add("pi", replace(chunks[1], **wrong))  # type: ignore[arg-type] # as a foreign sender could

    assert add_all(target, "pi", chunks) == [content(1)]


def test_whole_with_another_hash_is_refused_and_can_be_sent_again() -> None:
    """A damaged chunk is found out when the update is whole."""
    target = Reassembly(LARGE)
    chunks = chunks_of(content(1))
    damaged = replace(chunks[2], data=content(9, CHUNK_BYTES))

    with pytest.raises(HashMismatchError):
        add_all(target, "pi", [*chunks[:2], damaged, chunks[3]])

    assert add_all(target, "pi", chunks) == [content(1)]


def test_oldest_updates_make_room_for_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that never become whole cost a bounded amount of memory; who was active last stays."""
    monkeypatch.setattr(reassembly, "TOTAL_BYTES", 4 * CHUNK_BYTES)
    target = Reassembly(LARGE)
    chunks = {device: chunks_of(content(number)) for number, device in enumerate("abc")}
    target.add("a", chunks["a"][0])
    target.add("b", chunks["b"][0])
    target.add("b", chunks["b"][1])
    target.add("a", chunks["a"][1])

    target.add("c", chunks["c"][0])

    assert add_all(target, "a", chunks["a"][2:]) == [content(0)]
    assert add_all(target, "c", chunks["c"][1:]) == [content(2)]
    assert add_all(target, "b", chunks["b"][2:]) == []
    assert add_all(target, "b", chunks["b"]) == [content(1)]


def test_what_waits_too_long_is_given_up_and_counted() -> None:
    """Chunks without end cost room for two minutes at most; an announced size costs none."""
    target = Reassembly(LARGE)
    chunks = {device: chunks_of(content(number)) for number, device in enumerate("abc")}
    for number, device in enumerate("abc"):
        target.add(device, chunks[device][0], float(number))
    assert target.given_up(reassembly.GIVEN_UP_AFTER_S) == 0
    assert target.given_up(reassembly.GIVEN_UP_AFTER_S + 1.5) == 2
    assert target.given_up(reassembly.GIVEN_UP_AFTER_S + 1.5) == 0
    assert add_all(target, "c", chunks["c"][1:]) == [content(2)]
    target.add("a", chunks["a"][0])
    target.add("a", chunks["b"][0])
    assert target.given_up(0.0) == 1


def test_number_of_unfinished_updates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each has next to nothing."""
    monkeypatch.setattr(reassembly, "MOST_OPEN", 2)
    target = Reassembly(LARGE)
    for device in "abc":
        target.add(device, chunks_of(content(1))[-1])
    assert target.given_up(0.0) == 1


def test_update_larger_than_all_room_is_still_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that the table allows can arrive, however little room there is for others."""
    monkeypatch.setattr(reassembly, "TOTAL_BYTES", LARGE - 1)
    target = Reassembly(LARGE)

    assert add_all(target, "pi", chunks_of(content(1))) == [content(1)]
