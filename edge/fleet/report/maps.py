"""Maps of item embeddings: which items are shown, where, in which colour, and what is marked on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edge.fleet.report.charts import COLOURS
from edge.fleet.report.itemnames import OTHER, ItemNames
from edge.fleet.report.projection import Components, Plane, principal_components, tsne
from edge.fleet.report.svg import INK, RC, inline_svg
from trainer.params import Rows

MOST_GENRES = 8
_OTHER_COLOUR = "#8b949e"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShownItems:
    """The items that the maps of a run show.

    Attributes
    ----------
    rows : ndarray, shape (n,), int64
        Ascending.
    names : list of str
        Of each, for its tooltip.
    classes : list of str
        Of each, what its colour says.
    """

    rows: Rows
    names: list[str]
    classes: list[str]

    def colours(self) -> dict[str, str]:
        """Give each class its colour, in the order of a legend."""
        ordered = sorted(set(self.classes) - {OTHER, ""})
        chosen = dict(zip(ordered, COLOURS, strict=False))
        rest = {name: _OTHER_COLOUR for name in (OTHER,) if name in self.classes}
        return chosen | rest | ({"": COLOURS[0]} if "" in self.classes else {})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MappedUser:
    """A user whose view is drawn.

    Attributes
    ----------
    positives : ndarray, int64
        Item rows to ring: what the user trained with, where that is known.
    held_out : ndarray, int64
        Item rows to mark as held out.
    w : ndarray, shape (dim,)
    table : ndarray, shape (n_items, dim)
        The user's own view.
    """

    key: str
    positives: Rows
    held_out: Rows
    w: NDArray[np.float32]
    table: NDArray[np.float32]


def shown_items(
    item_keys: Sequence[str], names: ItemNames, users: Sequence[MappedUser], most: int
) -> ShownItems:
    """Choose the items to show: all, or the users' own and others at even places, as many as may be."""
    chosen = np.empty(0, dtype=np.int64)
    held_out, positives = (
        np.unique(np.concatenate([chosen, *(getattr(user, name) for user in users)]))
        for name in ("held_out", "positives")
    )
    for wanted in (held_out, positives, np.arange(len(item_keys))):
        chosen = np.union1d(chosen, _evenly(np.setdiff1d(wanted, chosen), most - chosen.size))
    rows: Rows = chosen.astype(np.int64)
    classes = names.classes(item_keys, MOST_GENRES)
    return ShownItems(
        rows=rows,
        names=[names.name(item_keys[row]) for row in rows],
        classes=[classes[row] for row in rows],
    )


def _evenly(rows: Rows, most: int) -> Rows:
    """Take at most so many, at even places."""
    return rows if rows.size <= most else rows[np.linspace(0, rows.size - 1, most).astype(np.int64)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Planes:
    """Where the shown items lie by one table: its principal components, and each map's title and places."""

    components: Components
    maps: list[tuple[str, Plane]]


def planes_of(table: NDArray[np.float32], items: ShownItems, *, with_tsne: bool) -> Planes:
    """Place the shown items by `table`, shape (n_items, dim)."""
    components = principal_components(table)
    shown = table[items.rows]
    maps = [(f"PCA ({100 * components.share:.0f} % of variance)", components.of(shown))]
    return Planes(components=components, maps=maps + ([("t-SNE", tsne(shown))] if with_tsne else []))


def shared_map(shared: Planes, items: ShownItems, prefix: str) -> str:
    """Draw the shared table."""
    titles: dict[str, list[str]] = {}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 4.6))
        for number, (title, plane) in enumerate(shared.maps):
            axes = figure.add_subplot(1, 2, number + 1)
            _items(axes, plane, items, f"i{number}-", titles)
            axes.set_title(f"shared table, {title}")
        return inline_svg(figure, prefix, f"Map of {len(items.rows)} items by the shared table", titles)


def n_shown(items: ShownItems, user: MappedUser) -> int:
    """Tell how many of a user's training items are shown."""
    return int(np.isin(items.rows, user.positives).sum())


def user_map(shared: Planes, own: Planes, user: MappedUser, items: ShownItems, prefix: str) -> str:
    """Draw the same items by the shared table and by a user's own view, the user's positives marked."""
    titles: dict[str, list[str]] = {}
    n_lines = len(own.maps)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 4.6 * n_lines))
        for side, (name, planes) in enumerate((("shared table", shared), ("own view", own))):
            for line, (title, plane) in enumerate(planes.maps):
                axes = figure.add_subplot(n_lines, 2, 1 + side + 2 * line)
                _items(axes, plane, items, f"u{side}{line}-", titles)
                _mark(axes, plane, items, user, f"m{side}{line}-", titles)
                if line == 0:
                    _arrow(axes, planes.components.axes.T @ user.w)
                axes.set_title(f"{name}, {title}")
        label = (
            f"Maps of {len(items.rows)} items for user {user.key}, by the shared table and by the own view; "
            f"{n_shown(items, user)} items trained with are ringed, held-out ones are diamonds"
        )
        return inline_svg(figure, prefix, label, titles)


def _items(axes: Axes, plane: Plane, items: ShownItems, gid: str, titles: dict[str, list[str]]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    classes = np.array(items.classes)
    for number, (name, colour) in enumerate(items.colours().items()):
        inside = (classes == name).nonzero()[0]
        axes.scatter(
            plane[inside, 0],
            plane[inside, 1],
            s=12,
            color=colour,
            alpha=0.75,
            linewidths=0,
            gid=f"{gid}{number}",
        )
        titles[f"{gid}{number}"] = [items.names[place] for place in inside]


def _mark(
    axes: Axes, plane: Plane, items: ShownItems, user: MappedUser, gid: str, titles: dict[str, list[str]]
) -> None:
    for number, (rows, told, size, marker) in enumerate(
        ((user.positives, "trained with", 26, "o"), (user.held_out, "held out", 70, "D"))
    ):
        places = np.isin(items.rows, rows).nonzero()[0]
        if places.size:
            name = f"{gid}{number}"
            axes.scatter(
                plane[places, 0], plane[places, 1], s=size, marker=marker, facecolors="none", edgecolors=INK,
                linewidths=0.8 if number == 0 else 1.6, gid=name,
            )  # fmt: skip
            titles[name] = [f"{items.names[place]} ({told})" for place in places]


def _arrow(axes: Axes, direction: NDArray[np.float64]) -> None:
    """Show from the panel's corner where the user's score rises, as far as that lies in the plane."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = float(direction[0]) / (right - left), float(direction[1]) / (top - bottom)
    length = float(np.hypot(x, y))
    if length == 0.0:
        return
    x, y = 0.09 * x / length, 0.09 * y / length
    axes.annotate(
        "", (0.12 + x, 0.12 + y), xytext=(0.12 - x, 0.12 - y), xycoords="axes fraction",
        arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.6},
    )  # fmt: skip
    axes.text(0.02, 0.0, "score rises along the arrow", transform=axes.transAxes, fontsize=7.5, va="bottom")
