"""Rating files in the shapes that the field's data sets come in.

Comma, tab, ``::`` or white space between fields, with or without a header, two to four columns: user,
item, and optionally a weight and a time. Bytes in, interactions out: opening the file is the caller's.
"""

import csv
import re
from dataclasses import dataclass

import numpy as np

from trainer.errors import DataFormatError, DataTooSmallError
from trainer.splits import MIN_INTERACTIONS, Interactions

MAX_KEY_BYTES = 256
"""Longest user or item key; the catalogue's wire format has the same limit."""

_USER_NAMES = {"user", "userid", "user_id", "uid", "reviewerid"}
_ITEM_NAMES = {
    "item", "itemid", "item_id", "iid", "movieid", "movie_id", "artistid", "artist_id", "asin",
}  # fmt: skip
_TIME_NAMES = {"timestamp", "time"}
_HEADER_NAMES = _USER_NAMES | _ITEM_NAMES | _TIME_NAMES | {"rating", "weight"}
_WHITE_SPACE = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class _Record:
    user: str
    item: str
    time: float


def parse_ratings(content: bytes, source: str, *, min_interactions: int = MIN_INTERACTIONS) -> Interactions:
    """Read interactions; the separator and the header are recognised from the first line.

    The first column is the user, the second the item. A third and a fourth are numbers: a rating, which
    is checked and not used, and the time, unless a header names the time's column.

    Every line is one implicit interaction, whatever its rating. Of repeated (user, item) pairs the
    first in time counts. Users with fewer than `min_interactions` are dropped, then items that nobody
    is left for. Users and items are numbered in the order of the file; a user's items are ordered by
    time, ties (and files without a time) by file order.

    Parameters
    ----------
    content : bytes
        UTF-8, or Latin-1 where it is not valid UTF-8.
    source : str
        What error messages call the file.

    Raises
    ------
    DataFormatError
        With the line number, when the file is empty, binary, or has a line that does not fit.
    DataTooSmallError
        When no user has enough interactions.
    """
    records = _records(decoded_lines(content, source), source)
    return _interactions(records, source, max(min_interactions, 3))


def decoded_lines(content: bytes, source: str) -> list[str]:
    """Cut a text file into lines, UTF-8 or else Latin-1.

    Raises
    ------
    DataFormatError
        When it is empty or binary.
    """
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataFormatError(source, line, "a NUL byte; this is a binary file, not text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if not text.strip():
        raise DataFormatError(source, None, "the file is empty")
    # Only these line ends: str.splitlines() would also split at characters that occur inside keys.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _separator(line: str) -> str | None:
    """Find what separates the fields of `line`; None means white space."""
    for separator in ("::", "\t", ","):
        if separator in line:
            return separator
    return None


def _fields(text: str, separator: str | None, source: str, line: int) -> list[str]:
    if separator is None:
        return _WHITE_SPACE.split(text.strip())
    if separator != "," or '"' not in text:
        return [field.strip() for field in text.split(separator)]
    try:
        return [field.strip() for field in next(csv.reader([text], skipinitialspace=True))]
    except csv.Error as error:
        raise DataFormatError(source, line, f"the quoted fields cannot be read ({error})") from None


def _header(fields: list[str], source: str, line: int) -> list[str]:
    """Give the names of the columns, lower case; none when `fields` are data."""
    names = [field.lower() for field in fields]
    if not set(names[:2]) <= _HEADER_NAMES:
        return []
    if names[0] not in _USER_NAMES or names[1] not in _ITEM_NAMES:
        raise DataFormatError(
            source,
            line,
            f"the columns begin with {names[0]}, {names[1]}; the first must be the user, then the item",
        )
    return names


def _time_column(header: list[str], n_fields: int) -> int | None:
    named = [column for column, name in enumerate(header) if name in _TIME_NAMES]
    if named:
        return named[0]
    return 3 if n_fields == 4 else None


def _number(text: str, what: str, source: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataFormatError(source, line, f"the {what} is {text[:40]!r}, not a number") from None
    if not np.isfinite(value):
        raise DataFormatError(source, line, f"the {what} is {text[:40]!r}; it must be finite")
    return value


def checked_key(text: str, what: str, source: str, line: int | None) -> str:
    """Give `text` back if it can be a user or item key.

    Raises
    ------
    DataFormatError
        When it is empty, longer than `MAX_KEY_BYTES` or not printable.
    """
    if not text:
        raise DataFormatError(source, line, f"the {what} is empty")
    if not text.isprintable():
        raise DataFormatError(source, line, f"the {what} {text[:40]!r} holds control characters")
    if len(text.encode()) > MAX_KEY_BYTES:
        raise DataFormatError(source, line, f"the {what} is longer than {MAX_KEY_BYTES} bytes")
    return text


def _counted(n_fields: int) -> str:
    return f"{n_fields} field{'s' * (n_fields != 1)}"


def _records(lines: list[str], source: str) -> list[_Record]:
    first = next(number for number, line in enumerate(lines, 1) if line.strip())
    separator = _separator(lines[first - 1])
    first_fields = _fields(lines[first - 1], separator, source, first)
    n_fields = len(first_fields)
    if not 2 <= n_fields <= 4:
        raise DataFormatError(
            source,
            first,
            f"{_counted(n_fields)} where 2 to 4 are expected (user, item, rating, time); "
            "the fields may be separated by comma, tab, :: or white space",
        )
    header = _header(first_fields, source, first)
    start = first if header else first - 1
    time_column = _time_column(header, n_fields)
    records = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line or line.isspace():
            continue
        fields = _fields(line, separator, source, number)
        if len(fields) != n_fields:
            found = _counted(len(fields))
            raise DataFormatError(source, number, f"{found} where the first line has {n_fields}")
        time = 0.0
        for column in range(2, n_fields):
            if column == time_column:
                time = _number(fields[column], "time", source, number)
            else:
                _number(fields[column], "rating", source, number)
        user = checked_key(fields[0], "user", source, number)
        records.append(_Record(user, checked_key(fields[1], "item", source, number), time))
    if not records:
        raise DataFormatError(source, None, "there is a header but no line of data")
    return records


def _interactions(records: list[_Record], source: str, min_interactions: int) -> Interactions:
    by_user: dict[str, dict[str, float]] = {}
    for record in records:
        times = by_user.setdefault(record.user, {})
        if record.time < times.get(record.item, np.inf):
            # Taken out first, so that the item moves to this record's place in the order of the file.
            times.pop(record.item, None)
            times[record.item] = record.time
    kept = {user: times for user, times in by_user.items() if len(times) >= min_interactions}
    if not kept:
        raise DataTooSmallError(
            f"{source}: none of its {len(by_user)} users has {min_interactions} interactions or more; "
            "give a larger file"
        )
    used = {item for times in kept.values() for item in times}
    row_of: dict[str, int] = {}
    for record in records:
        if record.item in used and record.item not in row_of:
            row_of[record.item] = len(row_of)
    items = [row_of[item] for times in kept.values() for item in sorted(times, key=lambda item: times[item])]
    lengths = [len(times) for times in kept.values()]
    return Interactions(
        user_keys=tuple(kept),
        item_keys=tuple(row_of),
        indptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        items=np.array(items, dtype=np.int64),
        timed=any(record.time != records[0].time for record in records),
    )
