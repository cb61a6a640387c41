"""The interactions that a run was made from: read or generated again, and proved to be the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.storage import read_file
from edge.fleet.finishedrun import FinishedRun
from edge.fleet.scenario import SYNTHETIC, load_scenario, split_of
from trainer.datasets import parse_ratings
from trainer.errors import ParameterError
from trainer.params import Rows
from trainer.splits import Interactions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunData:
    """The training items and the test item of a run's users, in the run's order.

    Attributes
    ----------
    train : sequence of ndarray, int64
        Item rows.
    test : ndarray, shape (n_users,), int64
    """

    n_items: int
    train: Sequence[Rows]
    test: Rows


def load_run_data(source: str, runs: Sequence[FinishedRun]) -> dict[FinishedRun, RunData]:
    """Read `source` once, or generate each run's data anew, and split it as the runs did.

    Parameters
    ----------
    source : str
        As the runs' ``--data``.

    Raises
    ------
    FileUnreadableError, DataFormatError, DataTooSmallError
        About the file.
    ParameterError
        When a run was made from other data, or split otherwise.
    """
    if source.split(":", maxsplit=1)[0] == SYNTHETIC:
        return {run: _of_run(_generated(source, run), run) for run in runs}
    data = parse_ratings(read_file(Path(source)), source)
    return {run: _of_run(data, run) for run in runs}


def _generated(source: str, run: FinishedRun) -> Interactions:
    if run.dataset_name != source:
        raise ParameterError(f"{run.path} was made from {run.dataset_name}; give that as --data")
    # A live fleet's number of devices decides what is generated.
    devices = run.config.get("devices")
    return load_scenario(source, "clean", run.seed, None if devices is None else int(devices)).data


def _of_run(data: Interactions, run: FinishedRun) -> RunData:
    if run.hold_out != data.hold_out:
        raise ParameterError(
            f"{run.path} was made with hold_out {run.hold_out}, where this --data is split with hold_out "
            f"{data.hold_out}; give the run's own data, or make the run anew"
        )
    split = split_of(data, run.seed)
    place = {key: user for user, key in enumerate(data.user_keys)}
    keys = run.ranks().keys
    tests = run.candidates()[1][:, 0]
    # A run may be on the first users only.
    users = [place[key] for key in keys if key in place]
    if len(users) < len(keys) or not np.array_equal(split.test[users], tests):
        raise ParameterError(f"{run.path} was not made from this --data: its users or test items differ")
    return RunData(n_items=data.n_items, train=[split.train[user] for user in users], test=split.test[users])
