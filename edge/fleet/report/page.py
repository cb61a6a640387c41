"""A self-contained HTML page: headings, sentences, tables and pictures, for light and dark."""

from collections.abc import Mapping, Sequence
from html import escape

from edge.fleet.rendering import cell_text
from edge.fleet.tables.grid import Cell

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2027; --soft: #57606a; --line: #c9d1d9;
  --paper: #ffffff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #3b434c; --paper: #14171b; --band: #1d2127; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink);  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .25rem; } p, figcaption, li { max-width: 46rem; }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); font-size: .92rem; }
figure { margin: .75rem 0 1.25rem; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; }
svg * { stroke-linejoin: round; } svg text { font-family: system-ui, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { vertical-align: bottom; background: var(--band); } th.text, td.text { text-align: left; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap;
  gap: .15rem 1rem; margin: .5rem 0; font-size: .9rem; }
.dot { display: inline-block; width: .75rem; height: .75rem; border-radius: 50%; margin-right: .35rem; }
""".strip()


class Page:
    """Gathers a page's parts in order; all text is escaped, pictures are taken as they are."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def sentence(self, text: str, *, soft: bool = False) -> None:
        """Add a paragraph."""
        self._parts.append(f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>")

    def picture(self, svg: str, caption: str) -> None:
        """Add an ``svg`` element and what is to be said about it."""
        self._parts.append(f'<figure tabindex="0">{svg}<figcaption>{escape(caption)}</figcaption></figure>')

    def legend(self, colours: Mapping[str, str]) -> None:
        """Say what colours mean."""
        entries = "".join(
            f'<li><span class="dot" style="background: {colour}"></span>{escape(name)}</li>'
            for name, colour in colours.items()
        )
        self._parts.append(f'<ul class="legend">{entries}</ul>')

    def table(self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Add a table that scrolls where the window is too narrow."""
        texts = [all(isinstance(row[place], str) for row in rows) for place in range(len(columns))]
        sides = [' class="text"' if text else "" for text in texts]
        head = "".join(
            f'<th scope="col"{side}>{escape(name)}</th>' for name, side in zip(columns, sides, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{side}>{escape(cell_text(cell))}</td>" for cell, side in zip(row, sides, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        # Focusable, so that it scrolls without a mouse, too.
        self._parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def html(self) -> str:
        """Give the whole page; it is well-formed XML, too."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            f"<title>{escape(self._title)}</title>\n<style>\n{_STYLE}\n</style></head>\n<body>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )
