"""Two runs against each other: paired differences per user, where both ranked the same candidates."""

from collections.abc import Sequence

import numpy as np

from broker.errors import NothingYetError
from edge.fleet.finishedrun import RANKINGS, FinishedRun
from edge.fleet.outcome import VIEWS
from edge.fleet.paired import Difference, difference, gains
from edge.fleet.rungroups import RunGroup
from edge.fleet.tables.grid import Cell, Figure, Grid, plural
from trainer.errors import ParameterError
from trainer.metrics import TOP_K

Pair = tuple[FinishedRun, FinishedRun]


def seed_pairs(a: RunGroup, b: RunGroup) -> list[Pair]:
    """Give the runs of both groups by seed; seeds that only one of them has are left out.

    Raises
    ------
    NothingYetError
        When they have no seed in common.
    ParameterError
        When users or candidates of a pair differ.
    """
    of_seed = {run.seed: run for run in b.runs}
    pairs = [(run, of_seed[run.seed]) for run in a.runs if run.seed in of_seed]
    if not pairs:
        raise NothingYetError(
            f"{a.runs[0].path} and {b.runs[0].path} have no seed in common; make runs with the same --seed"
        )
    for one, other in pairs:
        _require_comparable(one, other)
    return pairs


def _require_comparable(one: FinishedRun, other: FinishedRun) -> None:
    mine, theirs = one.ranks().keys, other.ranks().keys
    if mine != theirs:
        raise ParameterError(
            f"{one.path} and {other.path} have different users ({len(mine)} and {len(theirs)}); only runs on "
            "the same data can be compared user by user"
        )
    if not np.array_equal(one.candidates()[1], other.candidates()[1]):
        raise ParameterError(
            f"{one.path} and {other.path} rank different candidates; only runs of the same data and seed can "
            "be compared user by user"
        )


def pair_difference(
    pairs: Sequence[Pair], view: str, ranking: str, name: str, *, same_users: bool
) -> Difference:
    """Give the mean of a - b, `name` at k 10."""
    of_seeds = [
        gains(a.ranks().by_view[view, ranking], name, TOP_K)
        - gains(b.ranks().by_view[view, ranking], name, TOP_K)
        for a, b in pairs
    ]
    return difference(of_seeds, same_users=same_users)


def pair_table(a: RunGroup, b: RunGroup) -> Grid:
    """Compare two groups of runs; their seeds are paired.

    Raises
    ------
    NothingYetError, ParameterError
        See `seed_pairs`.
    """
    pairs = seed_pairs(a, b)
    rows: list[list[Cell]] = []
    for view in VIEWS:
        for ranking in RANKINGS:
            for name in ("hr", "ndcg"):
                means = [
                    float(
                        np.mean(
                            [
                                gains(pair[side].ranks().by_view[view, ranking], name, TOP_K).mean()
                                for pair in pairs
                            ]
                        )
                    )
                    for side in (0, 1)
                ]
                differs = pair_difference(pairs, view, ranking, name, same_users=a.same_users)
                spread = None if differs.seeds_sd is None else Figure(differs.seeds_sd)
                rows.append([view, ranking, f"{name.upper()}@{TOP_K}", *map(Figure, means), differs, spread])
    n_users = len(pairs[0][0].ranks().keys)
    return Grid(
        title=f"A: {_named(a)}; B: {_named(b)}; in %",
        columns=("view", "ranking", "figure", "A", "B", "A - B [95 % interval]", "sd over seeds"),
        rows=rows,
        notes=[
            (
                f"Paired by user: {plural(n_users, 'user')}, {plural(len(pairs), 'seed')} "
                f"({', '.join(str(one.seed) for one, _ in pairs)}), the same candidates."
            ),
            INTERVAL_NOTE,
        ],
    )


INTERVAL_NOTE = (
    "Interval: mean ± 1.96 standard errors over users of each user's difference, averaged over the seeds; "
    "it does not cover what another seed would change, which the sd over seeds shows."
)


def _named(group: RunGroup) -> str:
    return f"{group.label}, {group.protocol}, {group.runs[0].path}" + (" …" if len(group.runs) > 1 else "")
