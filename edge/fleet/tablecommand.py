"""``edge-fleet table``: from the folders that were named to one table."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

from broker.errors import NothingYetError
from edge.fleet.finishedrun import FinishedRun, read_runs
from edge.fleet.published import PublishedDataset, load_published
from edge.fleet.rundata import load_run_data
from edge.fleet.rungroups import ABLATION_NAMES, METHOD_NAMES, RunGroup, group_runs
from edge.fleet.tables.ablation import ablation_table
from edge.fleet.tables.comparison import comparison_table
from edge.fleet.tables.grid import Grid
from edge.fleet.tables.pairwise import pair_table
from edge.fleet.tables.usergroups import user_counts, users_table
from edge.fleet.tables.views import views_table
from trainer.errors import ParameterError

NAMES = METHOD_NAMES | {
    name: f"PFedRec, {text}" for name, text in ABLATION_NAMES.items() if name != "pfedrec"
}
Say = Callable[[str], None]


def run_table(name: str, folders: Sequence[Path], data: str | None, say: Say) -> Grid:
    """Make the table `name`.

    Parameters
    ----------
    say : callable
        Gets a sentence for each folder that is left out.

    Raises
    ------
    NothingYetError
        When none of the runs is fit for the table.
    ParameterError
        When options do not fit, or runs that cannot be compared are to be.
    FileUnreadableError, CorruptError
        About a folder.
    """
    if (data is not None) != (name == "users"):
        raise ParameterError(
            "the table users needs --data, the ratings that the runs were made from"
            if name == "users"
            else f"--data is for the table users; {name} is made from the folders alone"
        )
    if name == "compare":
        return _compare(folders, say)
    runs, left_out = read_runs(folders)
    tell(left_out, say)
    published = load_published()
    if name in published:
        return _comparison(published[name], runs, say)
    if name == "ablation":
        runs = _only(runs, ABLATION_NAMES, "is no part of the ablation", say)
        return ablation_table(_groups(_one_dataset(runs, say), name, say, ABLATION_NAMES))
    runs = [run for run in runs if _has_views(run, say)]
    if name == "views":
        return views_table(_groups(runs, name, say))
    groups = _groups(runs, name, say)
    of_runs = load_run_data(str(data), [run for group in groups for run in group.runs])
    return users_table(groups, {run: user_counts(of_run) for run, of_run in of_runs.items()})


def tell(left_out: Sequence[str], say: Say) -> None:
    """Name what is left out."""
    for sentence in left_out:
        say(f"left out: {sentence}")


def _groups(
    runs: Sequence[FinishedRun], table: str, say: Say, names: dict[str, str] | None = None
) -> list[RunGroup]:
    if not runs:
        raise NothingYetError(
            f"none of the folders holds a finished run for the table {table}; "
            "make runs with edge-fleet simulate"
        )
    groups, left_out = group_runs(runs, names or NAMES)
    tell(left_out, say)
    return groups


def _comparison(dataset: PublishedDataset, runs: Sequence[FinishedRun], say: Say) -> Grid:
    ours = []
    for run in runs:
        if dataset.is_of(run):
            ours.append(run)
        else:
            say(f"left out: {run.path} is about {run.dataset_name}, not {dataset.name}")
    return comparison_table(
        dataset, _groups(_only(ours, METHOD_NAMES, "is not in the comparison", say), dataset.name, say)
    )


def _only(
    runs: Sequence[FinishedRun], algorithms: Container[str], reason: str, say: Say
) -> list[FinishedRun]:
    for run in runs:
        if run.algorithm not in algorithms:
            say(f"left out: {run.path}: {run.algorithm} {reason}")
    return [run for run in runs if run.algorithm in algorithms]


def _one_dataset(runs: Sequence[FinishedRun], say: Say) -> list[FinishedRun]:
    """Keep the runs about what the first one is about."""
    first = runs[0].dataset_name if runs else ""
    for run in runs:
        if run.dataset_name != first:
            say(f"left out: {run.path} is about {run.dataset_name}, not {first}")
    return [run for run in runs if run.dataset_name == first]


def _has_views(run: FinishedRun, say: Say) -> bool:
    if run.summary["mode"] == "central":
        say(f"left out: {run.path}: {run.algorithm} has no own view")
        return False
    return True


def _compare(folders: Sequence[Path], say: Say) -> Grid:
    if len(folders) != 2:
        raise ParameterError(f"compare takes two folders; {len(folders)} were given")
    sides = []
    for folder in folders:
        runs, left_out = read_runs([folder])
        tell(left_out, say)
        groups = _groups(runs, "compare", say)
        if len(groups) > 1:
            raise ParameterError(
                f"{folder} holds runs of {len(groups)} kinds ({'; '.join(group.label for group in groups)}); "
                "give a folder whose runs differ in their seed alone"
            )
        sides.append(groups[0])
    return pair_table(sides[0], sides[1])
