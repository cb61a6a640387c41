"""From a matplotlib figure to SVG that a page can hold: small, self-contained, in the page's colours.

matplotlib's own files are complete documents with identifiers that repeat from figure to figure, a creator's
address and one style for each point. What is left here is the drawing.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

INK, LINE = "#010203", "#040506"
"""Stand in a drawing for the page's colours of text and of thin lines, which follow light and dark."""
_CSS_OF = {INK: "var(--ink)", LINE: "var(--line)"}
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?\s*")

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pfedrec-edge",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
"""To be in force while a figure is drawn, too."""


def inline_svg(
    figure: Figure, prefix: str, label: str, titles: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Give a figure as an ``svg`` element.

    Parameters
    ----------
    prefix : str
        Of the identifiers; another one for each figure of a page.
    label : str
        What the picture shows, for who does not see it.
    titles : mapping of str to sequence of str
        By the `gid` of a scatter: its points' tooltips, in order.
    """
    file = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(file.getvalue())  # noqa: S314 - made by matplotlib a moment ago
    _drop_foreign(root)
    for gid, texts in (titles or {}).items():
        _add_titles(root, gid, texts)
    for element in root.iter():
        _shorten(element)
    for element in root.iter():
        _hoist_style(element)
    _rename(root, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    width = float(root.get("viewBox", "0 0 600 400").split()[2])
    root.set("style", f"max-width: {width * 4 / 3:.0f}px")
    ET.register_namespace("", _SVG[1:-1])
    return ET.tostring(root, encoding="unicode")


def _drop_foreign(root: ET.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
        parent.text = (parent.text or "").strip() or None
        parent.tail = None


def _add_titles(root: ET.Element, gid: str, texts: Sequence[str]) -> None:
    group = next(element for element in root.iter(f"{_SVG}g") if element.get("id") == gid)
    points = [each for each in group.iter() if each.tag == f"{_SVG}use"]
    if not points:  # Too few for matplotlib to define the marker once.
        points = [each for each in group.iter() if each.tag == f"{_SVG}path"]
    # Whoever draws a point that matplotlib leaves out would give the others wrong names.
    for point, text in zip(points, texts, strict=True):
        ET.SubElement(point, f"{_SVG}title").text = text


def _shorten(element: ET.Element) -> None:
    for name in ("d", "x", "y", "transform", "width", "height", "points"):
        value = element.get(name)
        if value is not None:
            element.set(name, _LONG_NUMBER.sub(r"\1", " ".join(value.split())))
    style = element.get("style")
    if style is not None:
        style = _FONT.sub("", style)
        for stand_in, css in _CSS_OF.items():
            style = style.replace(stand_in, css)
        element.set("style", style.strip().rstrip(";"))


def _hoist_style(group: ET.Element) -> None:
    """Give a style that all of a group's points share to the group."""
    points = [child for child in group if child.tag == f"{_SVG}use"]
    styles = {point.get("style") for point in points}
    if len(points) < 2 or len(points) != len(group) or len(styles) > 1 or group.get("style"):
        return
    style = styles.pop()
    if style is not None:
        group.set("style", style)
        for point in points:
            del point.attrib["style"]


def _rename(root: ET.Element, prefix: str) -> None:
    """Make references short and unique in the page, and drop identifiers that nothing refers to."""
    new: dict[str, str] = {}

    def renamed(old: str) -> str:
        return new.setdefault(old, f"{prefix}{len(new)}")

    for element in root.iter():
        target = element.attrib.pop(_XLINK_HREF, None)
        if target is not None:
            element.set("href", f"#{renamed(target[1:])}")
        for name in ("clip-path", "style"):
            value = element.get(name)
            if value is not None and "url(#" in value:
                element.set(name, _REFERENCE.sub(lambda found: f"url(#{renamed(found[1])})", value))
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in new:
            element.set("id", new[old])
