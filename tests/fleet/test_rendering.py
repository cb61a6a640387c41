"""How tables are written."""

from pathlib import Path

import pytest

from edge.fleet.paired import Difference
from edge.fleet.rendering import FORMATS, as_latex, as_markdown, as_text, cell_text
from edge.fleet.tables.grid import Cell, Change, Figure, Grid
from tests.fleet.builders import Call
from tests.fleet.folders import ML_100K, write_run

_GRID = Grid(
    title="Title, in %",
    columns=("method", "HR", "Δ"),
    rows=[["EASE^R | a_b", Figure(0.5, 0.0123), Change(-0.0123)], ["none", None, None]],
    notes=["A note: 50 % ± 1."],
)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        ("text", "text"),
        (3, "3"),
        (Figure(0.71624), "71.62"),
        (Figure(0.7, 0.0123), "70.00 ± 1.23"),
        (Figure(0.7, 0.0), "70.00 ± 0.00"),
        (Change(0.0123), "+1.23"),
        (Change(-0.0123), "-1.23"),
        (Change(-0.000001), "0.00"),
        (Difference(mean=0.01, low=-0.01, high=0.03, seeds_sd=None), "+1.00 [-1.00, +3.00]"),
        (Difference(mean=0.01, low=None, high=None, seeds_sd=None), "+1.00"),
    ],
)
def test_cell_is_written_in_per_cent(cell: Cell, text: str) -> None:
    """Fractions become per cent, differences have a sign, nothing is a dash."""
    assert cell_text(cell) == text


def test_text_is_aligned() -> None:
    """Columns begin at the same place in every line."""
    assert as_text(_GRID) == [
        "Title, in %",
        "",
        "method        HR            Δ",
        "EASE^R | a_b  50.00 ± 1.23  -1.23",
        "none          -             -",
        "",
        "A note: 50 % ± 1.",
    ]


def test_markdown_escapes_bars() -> None:
    """A bar in a cell does not end it; figures stand at the right."""
    assert as_markdown(_GRID) == [
        "**Title, in %**",
        "",
        "| method | HR | Δ |",
        "|---|---:|---:|",
        "| EASE^R \\| a_b | 50.00 ± 1.23 | -1.23 |",
        "| none | - | - |",
        "",
        "- A note: 50 % ± 1.",
    ]


def test_latex_escapes_its_own_characters() -> None:
    """Per cent signs, underscores and minus signs are written as LaTeX wants them."""
    assert as_latex(_GRID) == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Title, in \%}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & HR & $\Delta$ \\",
        r"\midrule",
        r"EASE$^R$ $|$ a\_b & 50.00 $\pm$ 1.23 & $-$1.23 \\",
        r"none & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\footnotesize A note: 50 \% $\pm$ 1.",
        r"\end{table}",
    ]


@pytest.mark.parametrize("form", list(FORMATS))
def test_command_writes_every_format(tmp_path: Path, call: Call, form: str) -> None:
    """The option chooses how the table is written; results alone are on stdout."""
    run = write_run(tmp_path / "a", dataset=ML_100K)

    outcome = call("table", "ml-100k", run, "--format", form)

    assert (outcome.code, outcome.err) == (0, "")
    assert "PFedRec" in outcome.out
    assert "71.62" in outcome.out
