"""The ablation: PFedRec without one of its two sides, or with both stepping at once."""

from collections.abc import Sequence

from broker.errors import NothingYetError
from edge.fleet.paired import Difference
from edge.fleet.rungroups import RunGroup
from edge.fleet.tables.grid import Cell, Figure, Grid
from edge.fleet.tables.pairwise import INTERVAL_NOTE, pair_difference, seed_pairs
from trainer.errors import ParameterError

_COLUMNS = (
    "variant", "HR@10", "NDCG@10", "HR@10 full", "NDCG@10 full",
    "Δ NDCG@10 [95 % interval]", "sd over seeds", "seeds",
)  # fmt: skip


def ablation_table(groups: Sequence[RunGroup]) -> Grid:
    """Give a line for each variant, with the paired difference to PFedRec itself."""
    rows: list[list[Cell]] = []
    for group in groups:
        figures = [
            Figure(*group.spread("own", ranking, at))
            for ranking in ("sampled", "full")
            for at in ("hr@10", "ndcg@10")
        ]
        differs = _to_reference(group, groups)
        spread = None if differs is None or differs.seeds_sd is None else Figure(differs.seeds_sd)
        rows.append([group.label, *figures, differs, spread, len(group.runs)])
    protocols = sorted({group.protocol for group in groups})
    return Grid(
        title=f"Ablation on {groups[0].runs[0].dataset_name}: own view, in %",
        columns=_COLUMNS,
        rows=rows,
        notes=[
            "Mean ± standard deviation over seeds; full: among all items outside the user's training set.",
            (
                "Δ: the variant - PFedRec with the same protocol, mode, encoding and preset, sampled "
                "ranking, paired by user and seed."
            ),
            INTERVAL_NOTE,
            f"Protocol: {' and '.join(protocols)}.",
        ],
    )


def _to_reference(group: RunGroup, groups: Sequence[RunGroup]) -> Difference | None:
    """Pair with PFedRec; None for itself, and where there is none that ranked the same."""
    if group.algorithm == "pfedrec":
        return None
    for other in groups:
        if other.algorithm == "pfedrec" and _conditions(other) == _conditions(group):
            try:
                pairs = seed_pairs(group, other)
            except (NothingYetError, ParameterError):
                continue
            return pair_difference(pairs, "own", "sampled", "ndcg", same_users=group.same_users)
    return None


def _conditions(group: RunGroup) -> list[object]:
    run = group.runs[0]
    return [*(run.summary[key] for key in ("protocol", "mode", "encoding")), run.config.get("preset")]
