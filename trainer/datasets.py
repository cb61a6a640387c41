"""Rating files in the shapes that the field's data sets come in.

Comma, tab, ``::`` or white space between fields, with or without a header, two to four columns: user,
item, and optionally a weight and a time. Bytes in, interactions out: opening the file is the caller's.
docs/data.md tells users what is read, dropped and refused.

A file is read in blocks of lines. Of a block that is plain (the same number of fields in every line, no
quotes, numbers where numbers belong) whole columns are converted at once. Any other is read line by line,
which is what decides whether it can be read, and names the first line that cannot.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import methodcaller

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataFormatError, DataTooSmallError
from trainer.params import Rows
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


_LINE_END = re.compile(rb"\r\n?|\n")
_BLOCK_BYTES = 1 << 18
"""Of a file, in memory as Python objects at a time."""
_LEAST_MINIMUM = 3
"""What leave-one-out needs of a user."""

Column = NDArray[np.int32]


def parse_ratings(content: bytes, source: str, *, min_interactions: int = MIN_INTERACTIONS) -> Interactions:
    """Read interactions; the separator and the header are recognised from the first line.

    The first column is the user, the second the item. A third and a fourth are numbers: a rating, which
    is checked and not used, and the time, unless a header names the time's column.

    Every line is one implicit interaction, whatever its rating. Of repeated (user, item) pairs the
    first in time counts. Users with fewer than `min_interactions` are dropped, then items that nobody
    is left for. Users and items are numbered in the order of the file; a user's items are ordered by
    time, ties by file order; files without times, or with equal ones only, by file order, and the result
    says that this order is not one of time.

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
    return _interactions(
        _read(_line_blocks(content, source), source), source, max(min_interactions, _LEAST_MINIMUM)
    )


def decoded_lines(content: bytes, source: str) -> list[str]:
    """Cut a text file into lines, UTF-8 or else Latin-1.

    Raises
    ------
    DataFormatError
        When it is empty or binary.
    """
    return list(chain.from_iterable(_line_blocks(content, source)))


def _line_blocks(content: bytes, source: str) -> Iterator[list[str]]:
    """Cut a text file into lists of lines, the first of which is not blank throughout.

    Raises
    ------
    DataFormatError
        When it is empty or binary.
    """
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataFormatError(source, line, "a NUL byte; this is a binary file, not text")
    encoding = _encoding(content)
    leading: list[str] = []
    begun = False
    for block in _byte_blocks(content):
        text = block.decode(encoding)
        if not leading and not begun and encoding == "utf-8":
            text = text.removeprefix("\ufeff")
        # Only these line ends: str.splitlines() would also split at characters that occur inside keys.
        lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        begun = begun or any(map(str.strip, lines))
        if begun:
            yield leading + lines
            leading = []
        else:
            leading += lines
    if not begun:
        raise DataFormatError(source, None, "the file is empty")


def _encoding(content: bytes) -> str:
    try:
        # Cut at line ends, so that no character is cut.
        for block in () if content.isascii() else _byte_blocks(content):
            block.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _byte_blocks(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = _LINE_END.search(content, start + _BLOCK_BYTES)
        stop = len(content) if end is None else end.end()
        yield content[start:stop]
        start = stop


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


class _Numbering(dict[str, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __init__(self, what: str, source: str) -> None:
        super().__init__()
        self._what = what
        self._source = source

    def __missing__(self, key: str) -> int:
        number = self[checked_key(key, self._what, self._source, None)] = len(self)
        return number


@dataclass(slots=True)
class _Columns:
    """All lines of data so far: users and items by number, and times; a block each."""

    source: str
    n_fields: int
    separator: str | None
    time_column: int | None
    user_of: _Numbering
    item_of: _Numbering
    users: list[Column] = field(default_factory=list)
    items: list[Column] = field(default_factory=list)
    times: list[NDArray[np.float64]] = field(default_factory=list)

    def add_block(self, lines: list[str], first: int) -> None:
        """Add lines, the number of the first of which is `first`."""
        if not self._add_columns(lines):
            self._add_line_by_line(lines, first)

    def _add_columns(self, lines: list[str]) -> bool:
        """Add a block column by column; tell whether it was plain. If not, nothing is added."""
        lines = list(filter(str.strip, lines))
        if not lines:
            return True
        if self.separator == "," and any('"' in line for line in lines):
            return False
        separator = self.separator
        if separator is None:
            separator = " "
            lines = [_WHITE_SPACE.sub(separator, line.strip()) for line in lines]
        if set(map(methodcaller("count", separator), lines)) != {self.n_fields - 1}:
            return False
        # One flat list: a list for each line would take ten times as long.
        fields = "\n".join(lines).replace(separator, "\n").split("\n")
        columns = [fields[column :: self.n_fields] for column in range(self.n_fields)]
        del fields
        times = np.zeros(len(lines))
        try:
            for number in range(2, self.n_fields):
                values = np.fromiter(map(float, columns[number]), dtype=np.float64, count=len(lines))
                if not np.isfinite(values).all():
                    return False
                if number == self.time_column:
                    times = values
            # Keys last: they stay numbered if one is refused, in the same order as line by line.
            users = self._numbers(columns[0], self.user_of)
            items = self._numbers(columns[1], self.item_of)
        except (ValueError, DataFormatError):
            return False
        self._add(users, items, times)
        return True

    def _numbers(self, keys: list[str], number_of: _Numbering) -> Column:
        # As in `_fields`: where blanks separate, what other blanks there are belongs to the keys.
        stripped = keys if self.separator is None else map(str.strip, keys)
        return np.fromiter(map(number_of.__getitem__, stripped), dtype=np.int32, count=len(keys))

    def _add_line_by_line(self, lines: Iterable[str], first: int) -> None:
        users: list[int] = []
        items: list[int] = []
        times: list[float] = []
        for number, line in enumerate(lines, first):
            if not line or line.isspace():
                continue
            fields = _fields(line, self.separator, self.source, number)
            if len(fields) != self.n_fields:
                found = _counted(len(fields))
                raise DataFormatError(
                    self.source, number, f"{found} where the first line has {self.n_fields}"
                )
            time = 0.0
            for column in range(2, self.n_fields):
                if column == self.time_column:
                    time = _number(fields[column], "time", self.source, number)
                else:
                    _number(fields[column], "rating", self.source, number)
            user = checked_key(fields[0], "user", self.source, number)
            users.append(self.user_of[user])
            items.append(self.item_of[checked_key(fields[1], "item", self.source, number)])
            times.append(time)
        self._add(np.array(users, dtype=np.int32), np.array(items, dtype=np.int32), np.array(times))

    def _add(self, users: Column, items: Column, times: NDArray[np.float64]) -> None:
        self.users.append(users)
        self.items.append(items)
        self.times.append(times)


def _read(blocks: Iterator[list[str]], source: str) -> _Columns:
    lines = next(blocks)
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
    columns = _Columns(
        source=source,
        n_fields=n_fields,
        separator=separator,
        time_column=_time_column(header, n_fields),
        user_of=_Numbering("user", source),
        item_of=_Numbering("item", source),
    )
    columns.add_block(lines[start:], start + 1)
    n_lines = len(lines)
    for block in blocks:
        columns.add_block(block, n_lines + 1)
        n_lines += len(block)
    if not columns.user_of:
        raise DataFormatError(source, None, "there is a header but no line of data")
    return columns


def _interactions(columns: _Columns, source: str, min_interactions: int) -> Interactions:
    users, items = np.concatenate(columns.users), np.concatenate(columns.items)
    times = np.concatenate(columns.times)
    timed = bool((times != times[0]).any())
    # Stable, so that lines of the same time stay in the order of the file.
    order = np.lexsort((times, users)) if timed else np.argsort(users, kind="stable")
    del times
    users, items = users[order], items[order]
    del order
    first = _first_of_each_pair(users, items, len(columns.item_of))
    users, items = users[first], items[first]
    lengths = np.bincount(users, minlength=len(columns.user_of))
    kept = lengths >= min_interactions
    if not kept.any():
        raise DataTooSmallError(
            f"{source}: none of its {kept.size} users has {min_interactions} interactions or more; "
            "give a larger file"
        )
    items = items[kept[users]]
    used = np.zeros(len(columns.item_of), dtype=np.bool_)
    used[items] = True
    row_of = np.cumsum(used, dtype=np.int64) - 1
    return Interactions(
        user_keys=tuple(key for key, stays in zip(columns.user_of, kept.tolist(), strict=True) if stays),
        item_keys=tuple(key for key, stays in zip(columns.item_of, used.tolist(), strict=True) if stays),
        indptr=np.concatenate(([0], np.cumsum(lengths[kept]))).astype(np.int64),
        items=row_of[items],
        timed=timed,
    )


def _first_of_each_pair(users: Column, items: Column, n_items: int) -> Rows:
    """Give the positions, ascending, at which each pair of user and item stands for the first time."""
    pairs = users.astype(np.int64)
    pairs *= n_items
    pairs += items
    _, first = np.unique(pairs, return_index=True)
    first.sort()
    return first
