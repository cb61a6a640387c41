"""Who is served how well: users by their activity, and by the popularity of their test item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.fleet.finishedrun import RANKINGS, FinishedRun, SavedRanks
from edge.fleet.paired import difference, gains
from edge.fleet.rundata import RunData
from edge.fleet.rungroups import RunGroup
from edge.fleet.tables.grid import Cell, Grid, over_seeds
from trainer.metrics import TOP_K

_COLUMNS = (
    "runs", "users by", "from", "to", "users", "ranking", "own HR@10", "shared HR@10",
    "own NDCG@10", "shared NDCG@10", "own - shared NDCG@10 [95 % interval]",
)  # fmt: skip
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UserCounts:
    """What users are sorted by, each of shape (n_users,), int64.

    Attributes
    ----------
    activity : ndarray
        How many interactions a user trains with.
    popularity : ndarray
        How many users train with the user's test item.
    """

    activity: Counts
    popularity: Counts


def user_counts(data: RunData) -> UserCounts:
    """Count for the users of a run; popularity is that among them."""
    popular = np.bincount(np.concatenate(list(data.train)), minlength=data.n_items)
    return UserCounts(
        activity=np.array([items.size for items in data.train], dtype=np.int64),
        popularity=popular[data.test].astype(np.int64),
    )


def tertiles(counts: Counts) -> list[NDArray[np.bool_]]:
    """Cut users into three by their count; equal counts stay together, so that a third may be empty."""
    ordered = np.sort(counts)
    low, high = (int(ordered[min(counts.size - 1, -(-counts.size * part // 3) - 1)]) for part in (1, 2))
    return [counts <= low, (counts > low) & (counts <= high), counts > high]


def users_table(groups: Sequence[RunGroup], counts: Mapping[FinishedRun, UserCounts]) -> Grid:
    """Give both views' figures for tertiles of users."""
    rows: list[list[Cell]] = []
    for group in groups:
        saved = [run.ranks() for run in group.runs]
        for by in ("activity", "popularity"):
            of_runs = [getattr(counts[run], by) for run in group.runs]
            parts = [tertiles(of_run) for of_run in of_runs]
            for third in range(3):
                masks = [part[third] for part in parts]
                if all(mask.any() for mask in masks):
                    rows += _third(group, saved, by, of_runs, masks)
    return Grid(
        title="Users by the interactions they train with (activity), and by how many users train with their "
        "test item (popularity); in %",
        columns=_COLUMNS,
        rows=rows,
        notes=[
            "Thirds of the users, equal counts kept together. Mean ± standard deviation over seeds.",
            (
                "Interval: mean ± 1.96 standard errors over the users of each user's difference, averaged "
                "over the seeds."
            ),
            *(f"{group.label}: {group.runs[0].dataset_name}, protocol {group.protocol}." for group in groups),
        ],
    )


def _third(
    group: RunGroup,
    saved: Sequence[SavedRanks],
    by: str,
    of_runs: Sequence[Counts],
    masks: Sequence[NDArray[np.bool_]],
) -> list[list[Cell]]:
    inside = np.concatenate([of_run[mask] for of_run, mask in zip(of_runs, masks, strict=True)])
    rows: list[list[Cell]] = []
    for ranking in RANKINGS:
        of: dict[tuple[str, str], list[NDArray[Any]]] = {
            (view, name): [
                gains(each.by_view[view, ranking][mask], name, TOP_K)
                for each, mask in zip(saved, masks, strict=True)
            ]
            for name in ("hr", "ndcg")
            for view in ("own", "shared")
        }
        differs = difference(
            [a - b for a, b in zip(of["own", "ndcg"], of["shared", "ndcg"], strict=True)],
            # Where held-out items are drawn, a user's test item is another under another seed.
            same_users=group.same_users and all(np.array_equal(mask, masks[0]) for mask in masks),
        )
        n_users = round(float(np.mean([int(mask.sum()) for mask in masks])))
        figures = [over_seeds(values) for values in of.values()]
        rows.append(
            [group.label, by, int(inside.min()), int(inside.max()), n_users, ranking, *figures, differs]
        )
    return rows
