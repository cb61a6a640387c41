"""Reads the interactions from the pages of a damaged database, without SQLite.

SQLite finds a table's rows by a tree of pages; where one of them is bad, or the first page of the file, it
finds nothing. The rows themselves lie in leaf pages, each of which can be read alone. This file looks at
every page, the newest committed frames of the write-ahead log laid over the file, and takes what looks
like a row of the interactions: a leaf cell with the columns NULL (the id), text and a number
(https://www.sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4). No other table has such rows. Rows
that were deleted are in no cell and are not taken.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_SIZES = tuple(1 << power for power in range(9, 17))
_DEFAULT_PAGE_SIZE = 4096
_MAGIC = b"SQLite format 3\0"
_FILE_HEADER, _LOG_HEADER, _FRAME_HEADER = 100, 32, 24
_TABLE_LEAF = 0x0D
_LOG_MAGIC = 0x377F0682
"""Its lowest bit tells the byte order of the checksums."""
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_LATEST = 253402300800.0  # the year 10000, as `edge.events` has it
_LONGEST_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Interaction:
    """One row of the interactions."""

    id: int
    item: str
    at: float


def salvage(database: Path) -> list[Interaction]:
    """Give the interactions that can be read, by id. Nothing is written; missing files have none."""
    content = _read(database)
    log = _read(database.with_name(f"{database.name}-wal"))
    size = _page_size(content, log)
    pages = {number: content[start : start + size] for number, start in _starts(len(content), size)}
    newer, count = _committed(log, size)
    pages = {number: page for number, page in (pages | newer).items() if count is None or number <= count}
    found: dict[int, Interaction] = {}
    for number, page in sorted(pages.items()):
        for row in _rows(page, _FILE_HEADER if number == 1 else 0):
            found.setdefault(row.id, row)
    return [found[id_] for id_ in sorted(found)]


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _starts(length: int, size: int) -> Iterator[tuple[int, int]]:
    return enumerate(range(0, length, size), 1)


def _page_size(content: bytes, log: bytes) -> int:
    if content.startswith(_MAGIC) and len(content) >= _FILE_HEADER:
        size = int.from_bytes(content[16:18], "big")
        size = 65_536 if size == 1 else size
        if size in PAGE_SIZES:
            return size
    if len(log) >= _LOG_HEADER:
        size = int.from_bytes(log[8:12], "big")
        if size in PAGE_SIZES:
            return size
    return _DEFAULT_PAGE_SIZE


def _committed(log: bytes, size: int) -> tuple[dict[int, bytes], int | None]:
    """Give the newest pages that a write-ahead log has committed, and how many the file has then."""
    if len(log) < _LOG_HEADER:
        return {}, None
    magic, _, page_size = struct.unpack(">III", log[:12])
    if magic & ~1 != _LOG_MAGIC or page_size != size:
        return {}, None
    order = ">" if magic & 1 else "<"
    sums = _checksum(log[:24], (0, 0), order)
    if sums != struct.unpack(">II", log[24:32]):
        return {}, None
    salts = log[16:24]
    committed: dict[int, bytes] = {}
    open_: dict[int, bytes] = {}
    count: int | None = None
    for start in range(_LOG_HEADER, len(log) - _FRAME_HEADER - size + 1, _FRAME_HEADER + size):
        header = log[start : start + _FRAME_HEADER]
        page = log[start + _FRAME_HEADER : start + _FRAME_HEADER + size]
        sums = _checksum(page, _checksum(header[:8], sums, order), order)
        number, pages_after = struct.unpack(">II", header[:8])
        if header[8:16] != salts or sums != struct.unpack(">II", header[16:24]):
            break
        open_[number] = page
        if pages_after:  # the last frame of a transaction
            committed |= open_
            open_, count = {}, pages_after
    return committed, count


def _checksum(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _rows(page: bytes, offset: int) -> Iterator[Interaction]:
    """Give the interactions in a page, none if it is no leaf of a table."""
    if len(page) < offset + 8 or page[offset] != _TABLE_LEAF:
        return
    [count] = struct.unpack_from(">H", page, offset + 3)
    for place in range(count):
        pointer = offset + 8 + 2 * place
        if pointer + 2 > len(page):
            return
        [start] = struct.unpack_from(">H", page, pointer)
        try:
            row = _interaction(page, start)
        except (IndexError, ValueError):  # past the page's end, or no UTF-8
            continue
        if row is not None:
            yield row


def _interaction(page: bytes, start: int) -> Interaction | None:
    length, start = _varint(page, start)
    id_, start = _varint(page, start)
    header_length, place = _varint(page, start)
    end_of_header = start + header_length
    types: list[int] = []
    while place < end_of_header and len(types) <= 3:
        kind, place = _varint(page, place)
        types.append(kind)
    if len(types) != 3 or place != end_of_header or start + length > len(page):
        return None
    id_type, item_type, at_type = types
    item_bytes = (item_type - 13) // 2
    if id_type != 0 or item_type < 13 or item_type % 2 == 0 or not 0 < item_bytes <= _LONGEST_KEY_BYTES:
        return None
    at = _number(page, place + item_bytes, at_type, start + length)
    if at is None or not 0 < id_ < 1 << 63 or not (math.isfinite(at) and 0.0 <= at < _LATEST):
        return None
    return Interaction(id_, page[place : place + item_bytes].decode(), at)


def _number(page: bytes, start: int, kind: int, end: int) -> float | None:
    """Give a column's value; SQLite keeps a whole number in a REAL column as an integer."""
    if kind in (8, 9):
        return float(kind - 8) if start == end else None
    size = 8 if kind == 7 else _INTEGER_BYTES.get(kind)
    if size is None or start + size != end:
        return None
    content = page[start:end]
    if kind == 7:
        [value] = struct.unpack(">d", content)
        return float(value)
    return float(int.from_bytes(content, "big", signed=True))


def _varint(page: bytes, start: int) -> tuple[int, int]:
    """Give a number of 1 to 9 bytes, and where the next thing starts."""
    value = 0
    for place in range(start, start + 8):
        value = value << 7 | page[place] & 0x7F
        if page[place] < 0x80:
            return value, place + 1
    return value << 8 | page[start + 8], start + 9
