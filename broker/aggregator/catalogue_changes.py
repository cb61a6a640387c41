"""Changes of a fleet's catalogue: read from a file, checked, and applied to a catalogue and its table.

Pure functions: the store keeps what they give, the service decides when. A change is checked twice, when it
is queued and when its version is made; it is applied as a whole or not at all.

New rows start at the mean of the rows that the file names for them (``like:KEY``), which scores them as those
are scored on average; without a name at the mean of all rows in use. The means are taken in float64 and
rounded once.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from broker.aggregator.catalogue import split_lines
from broker.errors import UnknownItemError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import MAX_ITEMS_IN_CATALOGUE
from trainer.datasets import checked_key
from trainer.errors import DataFormatError, ParameterError
from trainer.params import Floats

Kind = Literal["add", "retire", "rename"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_TABLE_BYTES = 1_000_000_000
"""SQLite's largest value (sqlite.org/limits.html); a head can announce a little more."""
_LIKE = "like:"
_SWALLOWED = re.compile(rf"(\t|::|\||,)\s*{_LIKE}")
"""A column that a key has swallowed, as its separator does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueChange:
    """What a file asks for.

    Attributes
    ----------
    kind : str
        ``add``: each item is a new key, then the keys that its row starts at the mean of (maybe none). A key
        that is retired comes back, in its row, as it was. ``retire``: a key. ``rename``: a key and its new
        one.
    items : tuple of tuple of str
    source : str
        What error messages call the file.
    lines : tuple of int
        Each item's line in it.
    """

    kind: Kind
    items: tuple[tuple[str, ...], ...]
    source: str
    lines: tuple[int, ...]

    def to_json(self) -> str:
        """Give the form in which the store keeps it."""
        return json.dumps(
            {"kind": self.kind, "items": self.items, "source": self.source, "lines": self.lines},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, content: str) -> "CatalogueChange":
        """Read what `to_json` gave.

        Raises
        ------
        ValueError
            When it is something else.
        """
        try:
            fields: Any = json.loads(content)
            kind = next(kind for kind in KINDS if kind == fields["kind"])
            items = tuple(tuple(map(str, item)) for item in fields["items"])
            lines = tuple(map(int, fields["lines"]))
            return cls(kind=kind, items=items, source=str(fields["source"]), lines=lines)
        except (KeyError, TypeError, StopIteration) as error:
            raise ValueError("no change of a catalogue") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A catalogue after a change.

    Attributes
    ----------
    starts : tuple of tuple of int
        For each new row the rows that it starts at the mean of; none: of all in use before it came.
    """

    catalogue: Catalogue
    starts: tuple[tuple[int, ...], ...]

    def table_from(self, table: Floats) -> Floats:
        """Give the table with the new rows after its own; shape (n_items, dim), float32.

        Raises
        ------
        ParameterError
            When it is not as large as the catalogue was before.
        """
        if len(table) + len(self.starts) != len(self.catalogue.keys):
            raise ParameterError(
                f"a table of {len(table)} rows does not grow to a catalogue of {len(self.catalogue.keys)}"
            )
        if not self.starts:
            return table
        after = np.empty((len(self.catalogue.keys), table.shape[1]), dtype=np.float32)
        after[: len(table)] = table
        used = np.ones(len(table), dtype=np.bool_)
        used[[row for row in self.catalogue.retired if row < len(table)]] = False
        middle = table[used].mean(axis=0, dtype=np.float64) if used.any() else np.zeros(table.shape[1])
        for row, like in enumerate(self.starts, len(table)):
            after[row] = after[list(like)].mean(axis=0, dtype=np.float64) if like else middle
        return after


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueStep:
    """A change that is a part of a version: its number in the store, and the catalogue after it."""

    number: int
    change: CatalogueChange
    catalogue: Catalogue

    @property
    def summary(self) -> str:
        """Say what it does, for people."""
        done = {"add": "added", "retire": "retired", "rename": "renamed"}[self.change.kind]
        return f"{len(self.change.items)} items {done}; the catalogue has {len(self.catalogue.keys)} rows"


def parse_change(kind: Kind, content: bytes, source: str) -> CatalogueChange:
    """Read a change from a file, in the columns that `broker.aggregator.catalogue` takes.

    ``add``: the key; further columns that begin with ``like:`` name items that it is like, others are
    ignored, as ``init`` ignores them; a key that holds such a column is refused. ``retire``: the key.
    ``rename``: the key and the new one.

    Raises
    ------
    DataFormatError
        With the line number.
    """
    items: list[tuple[str, ...]] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    for number, (first, *others) in split_lines(content, source, header=kind != "rename"):
        key = checked_key(first, "item key", source, number)
        if key in seen:
            raise DataFormatError(source, number, f"the item key {key!r} stands in line {seen[key]} already")
        seen[key] = number
        item = [key]
        if kind == "add":
            if (swallowed := _SWALLOWED.search(key)) is not None:
                mark = swallowed[1]
                raise DataFormatError(
                    source,
                    number,
                    f"{key!r} would be one key, as not every line has {mark!r}; end the others with {mark!r}",
                )
            names = [column[len(_LIKE) :].strip() for column in others if column.startswith(_LIKE)]
            item += [checked_key(name, "item key", source, number) for name in names]
        elif kind == "rename":
            if len(others) != 1:
                raise DataFormatError(
                    source,
                    number,
                    f"{1 + len(others)} columns; an item key and its new one were expected",
                )
            item.append(checked_key(others[0], "new item key", source, number))
        items.append(tuple(item))
        lines.append(number)
    return CatalogueChange(kind=kind, items=tuple(items), source=source, lines=tuple(lines))


def apply_change(catalogue: Catalogue, change: CatalogueChange, dim: int) -> Changed:
    """Give the catalogue after a change; `dim` is the width of its table.

    Raises
    ------
    UnknownItemError, DataFormatError
        When an item contradicts the catalogue, with its line.
    ParameterError
        When the catalogue would be too large, or have no row in use.
    """
    draft = _Draft(catalogue, change.source)
    step: Callable[[int, Sequence[str]], None] = getattr(draft, change.kind)
    for number, item in zip(change.lines, change.items, strict=True):
        step(number, item)
    n_rows = len(draft.keys)
    if n_rows > MAX_ITEMS_IN_CATALOGUE or 4 * n_rows * dim > MAX_TABLE_BYTES:
        raise ParameterError(
            f"{n_rows} items of {dim} dimensions are too many; at most {MAX_ITEMS_IN_CATALOGUE} "
            f"items, and {MAX_TABLE_BYTES // 4} values in all, can be served"
        )
    if len(draft.retired) == n_rows:
        raise ParameterError(f"{change.source} would retire every item; at least one must stay in use")
    after = Catalogue(tuple(draft.keys), frozenset(draft.retired), draft.former)
    return Changed(catalogue=after, starts=tuple(draft.starts))


class _Draft:
    """A catalogue while it is being changed; each kind of change is a method."""

    def __init__(self, catalogue: Catalogue, source: str) -> None:
        self.keys = list(catalogue.keys)
        self.retired = set(catalogue.retired)
        self.former = dict(catalogue.former)
        self.starts: list[tuple[int, ...]] = []
        self._row_of = {key: row for row, key in enumerate(self.keys)}
        self._source = source

    def add(self, number: int, item: Sequence[str]) -> None:
        key, *like = item
        row = self._row_of.get(key)
        if row is not None and row in self.retired:
            self.retired.discard(row)
            return
        self._require_free(number, key)
        self.starts.append(tuple(self._row(number, name) for name in like))
        self._row_of[key] = len(self.keys)
        self.keys.append(key)

    def retire(self, number: int, item: Sequence[str]) -> None:
        row = self._row(number, item[0])
        if row in self.retired:
            raise DataFormatError(self._source, number, f"the item {item[0]!r} is retired already")
        self.retired.add(row)

    def rename(self, number: int, item: Sequence[str]) -> None:
        key, new = item
        row = self._row(number, key)
        if self.former.get(new) == row:  # back to a name that it had
            del self.former[new]
        else:
            self._require_free(number, new)
        del self._row_of[key]
        self.former[key] = row
        self._row_of[new] = row
        self.keys[row] = new

    def _row(self, number: int, key: str) -> int:
        if key not in self._row_of:
            now = f"; its row is {self.keys[self.former[key]]!r} now" if key in self.former else ""
            raise UnknownItemError(
                f"{self._source}, line {number}: {key!r} is not in the fleet's catalogue{now}; "
                "nothing was changed"
            )
        return self._row_of[key]

    def _require_free(self, number: int, key: str) -> None:
        if key in self._row_of:
            raise DataFormatError(self._source, number, f"the item {key!r} is in the catalogue already")
        if key in self.former:
            raise DataFormatError(
                self._source,
                number,
                f"{key!r} is a former key of {self.keys[self.former[key]]!r}, which devices take it for",
            )


def rolled_back(
    old: Floats, memory: Mapping[str, Floats], current: Floats
) -> tuple[Floats, Mapping[str, Floats]]:
    """Give an older version's table, and what the strategy remembered, with the rows that have come since.

    A table never loses rows. This is what a rollback makes a version of, whoever ordered it.

    Parameters
    ----------
    old : ndarray, shape (n, dim), float32
    memory : mapping of str to ndarray
        What belongs to `old`.
    current : ndarray, shape (n or more, dim), float32
        The newest table.
    """
    table = old if len(old) == len(current) else np.concatenate((old, current[len(old) :]))
    return table, {name: with_new_rows(values, len(old), len(table)) for name, values in memory.items()}


def with_new_rows(array: Floats, n_before: int, n_after: int) -> Floats:
    """Give what a strategy remembers of each row with nothing (0) for new ones; other arrays as they are."""
    if len(array) != n_before or n_before == n_after:
        return array
    grown = np.zeros((n_after, array.shape[1]), dtype=np.float32)
    grown[:n_before] = array
    return grown
