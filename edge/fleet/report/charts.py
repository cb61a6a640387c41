"""Curves over rounds and bars of the ablation, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edge.fleet.report.svg import INK, RC, inline_svg
from edge.fleet.rungroups import RunGroup

COLOURS = (
    "#4c8dd6", "#e07b39", "#3fa36b", "#d1588e", "#9a7bd0", "#b8972b", "#3ca6a6", "#c65353", "#7f8c99",
    "#6b9e2e",
)  # fmt: skip
"""Of a middling lightness, so that they show on white and on black."""
MOST_RUNS = 12
_MOST_POINTS = 300
Rounds = Sequence[Mapping[str, Any]]
Curves = Sequence[tuple[str, int, Rounds]]
"""Of each run: its name, the round whose model was kept, and its rounds."""


def quality_svg(curves: Curves, prefix: str) -> str:
    """Draw HR@10 and NDCG@10 over rounds, validation and test."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 3.6 + 0.2 * len(curves)))
        for place, (name, title) in enumerate((("hr", "HR@10"), ("ndcg", "NDCG@10"))):
            axes = figure.add_subplot(1, 2, place + 1)
            for number, (label, best, rounds) in enumerate(curves):
                colour = COLOURS[number % len(COLOURS)]
                shown = _thinned(rounds)
                numbers = [each["round"] for each in shown]
                axes.plot(
                    numbers, [100 * each["test"][name] for each in shown], color=colour, lw=1.5, label=label
                )
                axes.plot(numbers, [100 * each["val"][name] for each in shown], color=colour, lw=1.0, ls=":")
                for kept in rounds:
                    if kept["round"] == best:
                        axes.plot(best, 100 * kept["test"][name], "o", color=colour, ms=5)
            axes.set_title(f"{title}, own view, sampled ranking, %")
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure)
        label = "HR@10 and NDCG@10 over rounds, solid for test and dotted for validation: " + "; ".join(
            f"{label} ends at {100 * rounds[-1]['test']['hr']:.1f} and {100 * rounds[-1]['test']['ndcg']:.1f}"
            for label, _, rounds in curves
        )
        return inline_svg(figure, prefix, label)


def cost_svg(curves: Curves, prefix: str) -> str:
    """Draw traffic and time of each round."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 3.2 + 0.2 * len(curves)))
        panels = (
            ("bytes_up", 1e-6, "sent by devices, MB"),
            ("bytes_down", 1e-6, "sent to devices, MB"),
            ("seconds", 1.0, "time, s"),
        )
        for place, (name, unit, title) in enumerate(panels):
            axes = figure.add_subplot(1, 3, place + 1)
            for number, (label, _, rounds) in enumerate(curves):
                shown = _thinned(rounds)
                axes.plot(
                    [each["round"] for each in shown],
                    [unit * each[name] for each in shown],
                    color=COLOURS[number % len(COLOURS)],
                    lw=1.2,
                    label=label,
                )
            most = max(unit * each[name] for _, _, rounds in curves for each in rounds)
            axes.set_ylim(0, 1.08 * most or 1.0)
            axes.set_title(title)
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure)
        return inline_svg(
            figure, prefix, "Bytes sent and received, and seconds, of each round; see the table of runs"
        )


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)


def _thinned(rounds: Rounds) -> Rounds:
    """Keep every n-th round and the last, so that long runs make no large drawing."""
    step = -(-len(rounds) // _MOST_POINTS)
    return [each for place, each in enumerate(rounds) if place % step == 0 or place == len(rounds) - 1]


def ablation_svg(groups: Sequence[RunGroup], prefix: str) -> str:
    """Draw a bar for each variant, with the standard deviation over its seeds."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 1.2 + 0.4 * len(groups)))
        told = []
        for place, (name, title) in enumerate((("hr@10", "HR@10, %"), ("ndcg@10", "NDCG@10, %"))):
            axes = figure.add_subplot(1, 2, place + 1)
            axes.grid(visible=False, axis="y")
            for line, group in enumerate(groups):
                mean, sd = group.spread("own", "sampled", name)
                axes.barh(
                    line,
                    100 * mean,
                    xerr=None if sd is None else 100 * sd,
                    color=COLOURS[0],
                    height=0.65,
                    error_kw={"ecolor": INK, "elinewidth": 1.2},
                )
                axes.annotate(
                    f"{100 * mean:.1f}", (0, line), xytext=(4, 0), textcoords="offset points", va="center",
                    color="#000000", fontweight="bold",
                )  # fmt: skip
                told.append(f"{group.label} {name.upper()} {100 * mean:.1f}")
            axes.set_yticks(range(len(groups)), [group.label for group in groups] if place == 0 else [])
            axes.invert_yaxis()
            axes.set_title(title)
        return inline_svg(figure, prefix, f"Ablation, in %: {'; '.join(told)}")
