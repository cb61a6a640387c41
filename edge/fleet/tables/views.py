"""Own view against shared view: whether personalising the items helps, in every ranking and at every k."""

from collections.abc import Sequence

from edge.fleet.finishedrun import RANKINGS
from edge.fleet.paired import difference, gains
from edge.fleet.rungroups import RunGroup
from edge.fleet.tables.grid import Cell, Figure, Grid, over_seeds
from edge.fleet.tables.pairwise import INTERVAL_NOTE
from trainer.metrics import TOP_KS

_COLUMNS = (
    "runs", "ranking", "figure", "own", "shared", "own - shared [95 % interval]", "sd over seeds", "seeds",
)  # fmt: skip


def views_table(groups: Sequence[RunGroup]) -> Grid:
    """Give the figures of both views, and their paired differences."""
    rows: list[list[Cell]] = []
    for group in groups:
        ranks = [run.ranks().by_view for run in group.runs]
        for ranking in RANKINGS:
            for name in ("hr", "ndcg"):
                for k in TOP_KS:
                    own, shared = (
                        [gains(of_run[view, ranking], name, k) for of_run in ranks]
                        for view in ("own", "shared")
                    )
                    differs = difference(
                        [a - b for a, b in zip(own, shared, strict=True)], same_users=group.same_users
                    )
                    means = [over_seeds(own), over_seeds(shared)]
                    spread = None if differs.seeds_sd is None else Figure(differs.seeds_sd)
                    label = f"{name.upper()}@{k}"
                    rows.append([group.label, ranking, label, *means, differs, spread, len(group.runs)])
    return Grid(
        title="Own view and shared table, in %",
        columns=_COLUMNS,
        rows=rows,
        notes=[
            "Own, shared: mean ± standard deviation over seeds. sd over seeds: of the difference.",
            INTERVAL_NOTE,
            *(f"{group.label}: {group.runs[0].dataset_name}, protocol {group.protocol}." for group in groups),
        ],
    )
