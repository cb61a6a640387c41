"""The catalogue: the item keys in row order, which rows are retired, and what keys were called before.

Append-only: a row keeps its place for ever. A *retired* row is neither recommended nor drawn as a negative,
but keeps its key and its values: who liked the item still has liked it. A *renamed* row has a new key and
keeps the former one as a name, so that a device finds its user's older interactions, however many versions it
has missed.

As bytes there is one line for each row: the key; a tab and ``-`` if it is retired; a tab, ``=`` and the key
for each former one. No key holds a tab, so a catalogue without retired or renamed rows is its keys alone.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from broker.errors import SchemaError
from trainer.datasets import MAX_KEY_BYTES
from trainer.params import Rows

if TYPE_CHECKING:
    from collections.abc import Iterable

_RETIRED, _FORMER = "-", "="


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The item keys of a table's rows.

    Attributes
    ----------
    keys : tuple of str
        In row order, each once.
    retired : frozenset of int
        Rows.
    former : dict of str to int
        Former keys with their rows; none is the key of a row, and no two rows had the same.
    """

    keys: tuple[str, ...]
    retired: frozenset[int] = frozenset()
    former: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: "Catalogue | Iterable[str]") -> "Catalogue":
        """Give a catalogue; of keys alone, one without retired or renamed rows."""
        return keys if isinstance(keys, Catalogue) else cls(tuple(keys))

    @property
    def retired_rows(self) -> Rows:
        """The retired rows, ascending; shape (n,), int64."""
        return np.array(sorted(self.retired), dtype=np.int64)

    def to_bytes(self) -> bytes:
        """Give the lines, UTF-8, each ended by a line feed."""
        if not self.retired and not self.former:
            return "".join(f"{key}\n" for key in self.keys).encode()
        marks: dict[int, list[str]] = {row: [_RETIRED] for row in self.retired}
        for key, row in sorted(self.former.items()):
            marks.setdefault(row, []).append(_FORMER + key)
        return "".join(
            "\t".join((key, *marks.get(row, ()))) + "\n" for row, key in enumerate(self.keys)
        ).encode()


def read_catalogue(content: bytes, n_rows: int) -> Catalogue:
    """Read a catalogue of `n_rows` rows.

    Raises
    ------
    SchemaError
        When the bytes are not that many lines with distinct, printable keys, and marks as above.
    """
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise SchemaError("the catalogue is not UTF-8") from None
    if lines.pop() or len(lines) != n_rows:
        raise SchemaError(f"the catalogue is not {n_rows} distinct lines")
    keys: list[str] = []
    retired: set[int] = set()
    former: dict[str, int] = {}
    for row, line in enumerate(lines):
        key, *marks = line.split("\t") if "\t" in line else (line,)
        keys.append(_checked(key))
        if marks and marks[0] == _RETIRED:
            retired.add(row)
            del marks[0]
        for mark in marks:
            if mark[:1] != _FORMER or mark[1:] in former:
                raise SchemaError(f"{ascii(mark)[:42]} is no mark of a row, or stands there twice")
            former[_checked(mark[1:])] = row
    distinct = set(keys)
    if len(distinct) != n_rows or not distinct.isdisjoint(former):
        raise SchemaError(f"the catalogue is not {n_rows} distinct lines")
    return Catalogue(tuple(keys), frozenset(retired), former)


def _checked(key: str) -> str:
    if not key or not key.isprintable() or len(key.encode()) > MAX_KEY_BYTES:
        raise SchemaError(f"{ascii(key)[:42]} is no item key")
    return key
