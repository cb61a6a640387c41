"""A table before it is text: typed cells, so that a program can read what a person sees."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from edge.fleet.paired import Difference, Values


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as a fraction, and its standard deviation over seeds; people see per cent."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A difference of fractions; people see points of a per cent, with a sign."""

    value: float


Cell = str | int | Figure | Change | Difference | None
"""None: there is nothing to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table.

    Attributes
    ----------
    rows : sequence of sequence of Cell
        As long as `columns`.
    notes : sequence of str
        Sentences to stand under it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def content(self) -> dict[str, Any]:
        """Give the table as JSON has it; figures stay fractions."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [
                [cell if isinstance(cell, (str, int, type(None))) else asdict(cell) for cell in row]
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


def over_seeds(of_seeds: Sequence[Values]) -> Figure:
    """Average users' gains, shape (n_users,) for each seed, and tell how the seeds' means spread."""
    means = [float(values.mean()) for values in of_seeds]
    return Figure(mean(means), stdev(means) if len(means) > 1 else None)


def plural(n: int, noun: str) -> str:
    """Give ``1 seed``, ``2 seeds``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
