"""``edge-fleet report``: what a page about runs has on it, and in which order."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from broker.errors import NothingYetError
from broker.storage import read_file, write_atomically
from edge.fleet.finishedrun import FinishedRun, SavedModel, read_runs
from edge.fleet.report.charts import MOST_RUNS, Curves, ablation_svg, cost_svg, quality_svg
from edge.fleet.report.itemnames import ItemNames, parse_item_names
from edge.fleet.report.maps import MappedUser, n_shown, planes_of, shared_map, shown_items, user_map
from edge.fleet.report.ownviews import OwnViews, has_own_views, load_own_views
from edge.fleet.report.page import Page
from edge.fleet.report.projection import has_tsne
from edge.fleet.report.separation import DEFINITIONS, measured, separations
from edge.fleet.rundata import RunData, load_run_data
from edge.fleet.rungroups import ABLATION_NAMES, RunGroup, group_runs
from edge.fleet.tablecommand import NAMES, tell
from edge.fleet.tables.grid import Cell, Figure

_MOST_MAPPED = 2
"""Groups of runs whose embeddings are drawn; the first run of each."""
_MAPPED_USERS = 3
_MOST_POINTS = 20_000
"""Of all maps together: about 100 bytes each, and a page is to stay below 5 MB."""
_MOST_ITEMS = 700
_VIEWS = (("own", "sampled"), ("shared", "sampled"), ("own", "full"), ("shared", "full"))


def run_report(
    folders: Sequence[Path], out: Path, items: Path | None, data: str | None, say: Callable[[str], None]
) -> None:
    """Write a page about the runs in `folders`.

    Parameters
    ----------
    items : Path, optional
        Names and genres.
    data : str, optional
        What the runs were made from, as their ``--data``.
    say : callable
        Gets a sentence for each folder that is left out.

    Raises
    ------
    NothingYetError
        When no run is finished.
    FileUnreadableError, CorruptError, DataFormatError, ParameterError
        About what was given.
    DiskFullError, NotWritableError
        About `out`.
    """
    runs, left_out = read_runs(folders)
    tell(left_out, say)
    if not runs:
        raise NothingYetError("none of the folders holds a finished run; make one with edge-fleet simulate")
    groups, left_out = group_runs(runs, NAMES)
    tell(left_out, say)
    names = parse_item_names(read_file(items), str(items)) if items else ItemNames()
    kept = [run for group in groups for run in group.runs]
    of_runs = load_run_data(data, kept) if data else {}

    page = Page(f"pfedrec-edge: {len(kept)} run{'s' * (len(kept) > 1)}")
    _about(page, groups)
    _curves(page, groups)
    _ablation(page, groups)
    _separation(page, groups, of_runs)
    _maps(page, groups, of_runs, names)
    write_atomically(out, page.html().encode())


def _about(page: Page, groups: Sequence[RunGroup]) -> None:
    page.heading("Runs")
    columns = ["runs", "data", "protocol", "mode", "encoding", "seed", "best round"]
    columns += [f"{view} {ranking} {at}@10, %" for view, ranking in _VIEWS for at in ("HR", "NDCG")]
    columns += ["kB an update", "kB down a round", "s a round", "peak MB", "F1 of what an update reveals"]
    rows: list[list[Cell]] = []
    for group in groups:
        for run in group.runs:
            summary = run.summary
            facts: list[Cell] = [
                group.label, run.dataset_name,
                *(str(summary[key]) for key in ("protocol", "mode", "encoding")),
                run.seed, f"{summary['best_round']} of {summary['rounds']}",
            ]  # fmt: skip
            facts += [
                Figure(run.figure(view, ranking, f"{at}@10"))
                for view, ranking in _VIEWS
                for at in ("hr", "ndcg")
            ]
            revealed = summary.get("positives_recovered_f1")
            facts += [
                f"{summary['bytes_up_per_update'] / 1e3:.1f}",
                f"{summary['bytes_down_per_device_round'] / 1e3:.1f}",
                f"{summary['seconds_per_round']['median']:.3f}",
                f"{summary['peak_rss_mb']:.0f}",
                None if revealed is None else f"{revealed:.2f}",
            ]
            rows.append(facts)
    page.table("The runs", columns, rows)
    page.sentence(
        "Own: each user's own view of the items; shared: the shared table. Sampled: the test item among 99 "
        "sampled negatives; full: among all items outside the user's training set. kB an update: sent by a "
        "device; kB down a round: received by a device in a round.",
        soft=True,
    )
    if any(group.protocol == "published" for group in groups):
        page.sentence(
            "Protocol published: training never draws held-out items as negatives, which flatters.",
            soft=True,
        )
    if any(group.runs[0].hold_out == "random" for group in groups):
        page.sentence(
            "Where data has no times, a user's held-out items are any two, drawn anew for each seed.",
            soft=True,
        )


def _curves(page: Page, groups: Sequence[RunGroup]) -> None:
    shown = [(group, run) for group in groups for run in group.runs if run.summary["mode"] != "central"]
    curves: Curves = [
        (f"{group.label}, seed {run.seed}", int(run.summary["best_round"]), run.rounds())
        for group, run in shown[:MOST_RUNS]
    ]
    if not curves:
        return
    page.heading("Over rounds")
    rest = len(shown) - len(curves)
    page.picture(
        quality_svg(curves, "q"),
        "Solid: test; dotted: validation; dot: the round whose model was kept, by validation."
        + (f" The first {MOST_RUNS} runs; {rest} more are in the table alone." if rest else ""),
    )
    page.heading("Traffic and time")
    page.picture(
        cost_svg(curves, "c"),
        "All devices together, message payloads. Time: training, aggregation and evaluation.",
    )


def _ablation(page: Page, groups: Sequence[RunGroup]) -> None:
    """Draw bars where variants of PFedRec were run."""
    datasets = dict.fromkeys(group.runs[0].dataset_name for group in groups)
    for number, dataset in enumerate(datasets):
        variants = [
            group
            for group in groups
            if group.algorithm in ABLATION_NAMES and group.runs[0].dataset_name == dataset
        ]
        if any(group.algorithm != "pfedrec" for group in variants):
            page.heading(f"Ablation on {dataset}")
            page.picture(
                ablation_svg(variants, f"a{number}x"),
                "Own view, sampled ranking; mean over seeds, whiskers: standard deviation over seeds where "
                "there are several.",
            )


def _separation(page: Page, groups: Sequence[RunGroup], data: dict[FinishedRun, RunData]) -> None:
    page.heading("What the own view does to the items")
    rows: list[list[Cell]] = []
    for group in groups:
        saved = [
            measured(run, load_own_views(run), data.get(run)) for run in group.runs if has_own_views(run)
        ]
        if saved:
            for one in separations(saved, same_users=group.same_users):
                figures: list[Cell] = [Figure(one.own), Figure(one.shared), one.gain]
                rows.append([group.label, one.positives, one.measure, *figures, len(saved)])
    if not rows:
        page.sentence(
            "Users' own views are not saved in these runs' folders; make a run with edge-fleet simulate "
            "--save-users, and report on it, to see them."
        )
        return
    columns = ("runs", "positives", "measure", "own, %", "shared, %", "own - shared [95 % interval]", "seeds")
    page.table("How far views separate positives from negatives", columns, rows)
    for measure, definition in DEFINITIONS.items():
        page.sentence(f"{measure}: {definition}.", soft=True)
    page.sentence(
        "Held out: the user's validation and test item, which training did not see as positives."
        + (
            " Trained with: the user's training items."
            if data
            else " With --data, training items are measured, too."
        ),
        soft=True,
    )


def _maps(
    page: Page,
    groups: Sequence[RunGroup],
    data: dict[FinishedRun, RunData],
    names: ItemNames,
) -> None:
    mapped = [(group, run, model) for group, run in _first_runs(groups) if (model := run.model()) is not None]
    if not mapped:
        return
    page.heading("Maps of the items")
    with_tsne = has_tsne()
    if not with_tsne:
        page.sentence(
            "t-SNE is left out, as scikit-learn is not installed; "
            "install it with: pip install 'pfedrec-edge[report]'"
        )
    rest = sum(1 for group in groups if group.runs[0].summary["mode"] != "central") - len(mapped)
    if rest > 0:
        page.sentence(f"Of {rest} more kinds of runs there is no map, to keep this page small.", soft=True)
    panels = sum((2 + 4 * _MAPPED_USERS * has_own_views(run)) for _, run, _ in mapped)
    most = min(_MOST_ITEMS, _MOST_POINTS // panels)
    for number, (group, run, model) in enumerate(mapped):
        page.heading(f"{group.label}, {run.dataset_name}, seed {run.seed}", level=3)
        users = _mapped_users(run, load_own_views(run), data.get(run)) if has_own_views(run) else []
        _run_maps(page, model, users, names, most, f"r{number}", with_tsne=with_tsne)


def _first_runs(groups: Sequence[RunGroup]) -> list[tuple[RunGroup, FinishedRun]]:
    """Give a run of each group, one with users where there is one; groups with such a run come first."""
    firsts = []
    for group in groups:
        with_users = [run for run in group.runs if has_own_views(run)]
        if group.runs[0].summary["mode"] != "central":
            firsts.append((group, (with_users or list(group.runs))[0]))
    return sorted(firsts, key=lambda first: not has_own_views(first[1]))[:_MOST_MAPPED]


def _mapped_users(run: FinishedRun, views: OwnViews, data: RunData | None) -> list[MappedUser]:
    """Take users at even places of the file: not chosen by how their maps look."""
    val, test = run.candidates()
    n_users = len(views.users.keys)
    places = np.unique(np.linspace(0, n_users - 1, _MAPPED_USERS + 2).astype(np.int64)[1:-1])
    return [
        MappedUser(
            key=views.users.keys[user],
            positives=np.empty(0, dtype=np.int64) if data is None else data.train[user],
            held_out=np.array([val[user, 0], test[user, 0]], dtype=np.int64),
            w=views.users.W[user],
            table=views.own_table(int(user)),
        )
        for user in places
    ]


def _run_maps(
    page: Page, model: SavedModel, users: Sequence[MappedUser], names: ItemNames, most: int, prefix: str, *,
    with_tsne: bool,
) -> None:  # fmt: skip
    items = shown_items(model.item_keys, names, users, most)
    n_items = len(model.item_keys)
    if len(items.rows) < n_items:
        page.sentence(
            f"{len(items.rows)} of {n_items} items are shown: those of the users below, and others evenly.",
            soft=True,
        )
    if names.genres:
        page.legend(items.colours())
    shared = planes_of(model.table, items, with_tsne=with_tsne)
    page.picture(
        shared_map(shared, items, f"{prefix}s"),
        "A dot is an item; its name shows under the pointer."
        + (" Colour: the rarest of its common genres." if names.genres else ""),
    )
    for number, user in enumerate(users):
        own = planes_of(user.table, items, with_tsne=with_tsne)
        known = user.positives.size
        rings = (
            f"Rings: {n_shown(items, user)} of the {known} items that the user trained with"
            if known
            else "What the user trained with is not known without --data"
        )
        page.picture(
            user_map(shared, own, user, items, f"{prefix}u{number}"),
            f"User {user.key}: the same items by the shared table and by the user's own view. "
            f"{rings}. Diamonds: validation and test item.",
        )
