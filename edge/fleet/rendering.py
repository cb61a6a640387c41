"""Tables as text, Markdown or LaTeX: how a figure is written, and nothing about what it means."""

from collections.abc import Callable, Sequence

from edge.fleet.paired import Difference
from edge.fleet.tables.grid import Cell, Change, Figure, Grid
from edge.fleet.texttable import aligned

NOTHING = "-"

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


def cell_text(cell: Cell) -> str:
    """Write a cell for people; fractions become per cent."""
    match cell:
        case None:
            return NOTHING
        case Figure(mean=mean, sd=None):
            return f"{100 * mean:.2f}"
        case Figure(mean=mean, sd=sd):
            return f"{100 * mean:.2f} ± {100 * (sd or 0.0):.2f}"
        case Change(value=value):
            return _signed(value)
        case Difference(mean=mean, low=low, high=high):
            ends = "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"
            return _signed(mean) + ends
        case _:
            return str(cell)


def _signed(value: float) -> str:
    text = f"{100 * value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _cells(table: Grid, written: Callable[[Cell], str]) -> list[list[str]]:
    return [[written(cell) for cell in line] for line in (table.columns, *table.rows)]


def as_text(table: Grid) -> list[str]:
    """Write aligned columns, the title above and the notes below."""
    return [table.title, "", *aligned(_cells(table, cell_text)), "", *table.notes]


def as_markdown(table: Grid) -> list[str]:
    """Write a table of GitHub's Markdown."""
    head, *rows = _cells(table, _markdown)
    sides = ["---" if _is_text(table.rows, column) else "---:" for column in range(len(head))]
    lines = [_piped(head), f"|{'|'.join(sides)}|", *map(_piped, rows)]
    return [f"**{table.title}**", "", *lines, "", *(f"- {note}" for note in table.notes)]


def _markdown(cell: Cell) -> str:
    return cell_text(cell).replace("\\", "\\\\").replace("|", "\\|")


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_latex(table: Grid) -> list[str]:
    """Write a ``table`` environment for the package booktabs."""
    head, *rows = _cells(table, _latex_cell)
    sides = "".join("l" if _is_text(table.rows, column) else "r" for column in range(len(head)))
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell_text(cell))
    if cell is None:
        return "--"
    return text if isinstance(cell, str) else text.replace("-", "$-$")


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace(r"EASE\textasciicircum{}R", "EASE$^R$")


def _is_text(rows: Sequence[Sequence[Cell]], column: int) -> bool:
    return all(isinstance(row[column], str) for row in rows)


FORMATS: dict[str, Callable[[Grid], list[str]]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
}
