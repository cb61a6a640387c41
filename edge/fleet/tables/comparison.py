"""The paper's main table: methods side by side, ours beside the published figures."""

from collections.abc import Sequence

from edge.fleet.published import PublishedDataset
from edge.fleet.rungroups import METHOD_NAMES, RunGroup
from edge.fleet.tables.grid import Cell, Change, Figure, Grid

_COLUMNS = (
    "method", "HR@10", "NDCG@10", "HR@10 published", "NDCG@10 published", "Δ HR", "Δ NDCG", "seeds",
)  # fmt: skip


def comparison_table(dataset: PublishedDataset, groups: Sequence[RunGroup]) -> Grid:
    """Set own sampled figures of all groups beside what was published for their method."""
    rows: list[list[Cell]] = []
    missing = []
    for algorithm, name in METHOD_NAMES.items():
        ours = [group for group in groups if group.algorithm == algorithm]
        published = dataset.figures.get(algorithm)
        theirs = [Figure(published.hr), Figure(published.ndcg)] if published else [None, None]
        for group in ours:
            hr, ndcg = (group.spread("own", "sampled", at) for at in ("hr@10", "ndcg@10"))
            change = (
                [Change(hr[0] - published.hr), Change(ndcg[0] - published.ndcg)] if published else [None] * 2
            )
            rows.append([group.label, Figure(*hr), Figure(*ndcg), *theirs, *change, len(group.runs)])
        if not ours:
            missing.append(name)
            if published:
                rows.append([name, None, None, *theirs, None, None, 0])
    return Grid(
        title=f"{dataset.title}: own view, test item among 99 sampled negatives, in %",
        columns=_COLUMNS,
        rows=rows,
        notes=_notes(dataset, groups, missing),
    )


def _notes(dataset: PublishedDataset, groups: Sequence[RunGroup], missing: Sequence[str]) -> list[str]:
    notes = ["Ours: mean ± standard deviation over seeds. Δ: ours - published, in points of a per cent."]
    for source, sentence in dataset.sources.items():
        of_it = [METHOD_NAMES[name] for name, figure in dataset.figures.items() if figure.source == source]
        if of_it:
            notes.append(f"Published figures of {', '.join(of_it)}: {sentence}.")
    other = [group.label for group in groups if group.protocol != dataset.protocol]
    if other:
        notes.append(
            f"Published figures are by the protocol {dataset.protocol}, where training never draws held-out "
            "items as negatives, which flatters. By the protocol clean, which does draw them, so that Δ "
            f"compares unlike things: {', '.join(other)}."
        )
    if len(other) < len(groups):
        notes.append(
            "All other runs are by the protocol published."
            if other
            else "All runs are by the protocol published, where training never draws held-out items as "
            "negatives, which flatters."
        )
    buffered = [group.label for group in groups if group.runs[0].summary["mode"] == "buffered"]
    if buffered:
        notes.append(f"Asynchronous, where the paper's rounds are in step: {', '.join(buffered)}.")
    drawn = [group.label for group in groups if group.runs[0].hold_out == "random"]
    if drawn:
        which = "all runs" if len(drawn) == len(groups) else ", ".join(drawn)
        notes.append(
            "No times in the data: a user's held-out items are any two, drawn anew for each seed, where the "
            f"paper holds out the last ({which})."
        )
    sizes = sorted({run.dataset_size for group in groups for run in group.runs} - {dataset.size})
    if sizes:
        notes.append(
            f"The paper's data has {_size(dataset.size)}; "
            f"that of the runs has {' or '.join(map(_size, sizes))}."
        )
    if dataset.remark:
        notes.append(dataset.remark)
    if missing:
        notes.append(f"No run of: {', '.join(missing)}.")
    return notes


def _size(size: tuple[int, int, int]) -> str:
    return "{:,} users, {:,} items and {:,} interactions".format(*size)
