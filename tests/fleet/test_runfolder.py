"""A run's folder: exactly the files and keys that are documented, whole or not at all, and nobody else's."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.errors import AlreadyInitialisedError, DiskFullError, InUseError, NotWritableError
from edge.fleet import runfolder
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.roundbook import RoundBook
from edge.fleet.runfolder import FILES, RoundReport, RunFolder
from edge.fleet.virtual import Simulation, SimulationSettings
from tests.edge.disks import fill_disk, make_read_only, small_disk
from tests.fleet.builders import DIM, RUN_FILES, a_scenario, files_of
from trainer.metrics import metrics_from_ranks
from trainer.params import initial_score_function, paper_hyperparameters

FACTS = {"algorithm": "pfedrec", "mode": "sync", "encoding": "float32", "seed": 2}
CONFIG = {"command": "simulate", "buffer": 8}
ROUNDS = 3


class Run:
    """A small run that writes its folder."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.scenario = a_scenario()
        self.evaluator = Evaluator(self.scenario)
        self.reports: list[RoundReport] = []
        self.folder = RunFolder(path, CONFIG, overwrite=overwrite)

    def train(self) -> None:
        """Make all rounds."""
        hyperparameters = paper_hyperparameters(self.scenario.data.n_items)
        # A buffer of all devices: every round is one update of each.
        settings = SimulationSettings(
            hyperparameters=hyperparameters, dim=DIM, rounds=ROUNDS, seed=2, buffer=12
        )
        Simulation(self.scenario, settings, self.evaluator, self._on_round).run()

    def _on_round(self, report: RoundReport) -> None:
        self.reports.append(report)
        self.folder.add_round(report)

    def finish(self, *, save_users: bool = False) -> dict[str, Any]:
        """Write what is written at the end."""
        return self.folder.finish(self.scenario, self.evaluator.outcome(), FACTS, save_users=save_users)


@contextmanager
def a_run(path: Path) -> Iterator[Run]:
    """Begin a run whose folder is let go at the end."""
    run = Run(path)
    with closing(run.folder):
        yield run


def a_finished_run(path: Path, *, save_users: bool = False, overwrite: bool = False) -> Run:
    """Make a run from beginning to end."""
    run = Run(path, overwrite=overwrite)
    run.train()
    run.finish(save_users=save_users)
    return run


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """Load a file of arrays; none may need pickle."""
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def keys_of(value: Any) -> Any:
    """Give the keys of nested objects, without the values."""
    return {name: keys_of(inner) for name, inner in value.items()} if isinstance(value, dict) else None


# -- what is in it ---------------------------------------------------------------------------------


def test_folder_holds_exactly_the_documented_files(tmp_path: Path) -> None:
    """The users' own state only when it is asked for."""
    a_finished_run(tmp_path / "one")
    a_finished_run(tmp_path / "two", save_users=True)

    assert files_of(tmp_path / "one") == RUN_FILES
    assert files_of(tmp_path / "two") == RUN_FILES | {"users.npz"} == set(FILES) - {"checkpoint.npz"}


def test_config_is_what_was_given_and_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not installed has no version."""
    monkeypatch.setattr(runfolder, "_PACKAGES", ("numpy", "no-such-package"))
    a_finished_run(tmp_path / "run")

    config = json.loads((tmp_path / "run" / "config.json").read_text())

    packages = config.pop("packages")
    assert config == CONFIG
    assert set(packages) == {"python", "numpy", "no-such-package"}
    assert packages["numpy"] == np.__version__
    assert packages["no-such-package"] is None


def test_metrics_have_one_object_a_round(tmp_path: Path) -> None:
    """With exactly the documented keys, and the values of the reports."""
    run = a_finished_run(tmp_path / "run")

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    assert len(lines) == ROUNDS
    for line, report in zip(lines, run.reports, strict=True):
        assert line.pop("seconds") == pytest.approx(report.watch.total, abs=1e-6)
        assert line == {
            "round": report.number,
            "version": report.version,
            "updates": report.traffic.updates,
            "bytes_up": report.traffic.bytes_up,
            "bytes_down": report.traffic.bytes_down,
            "staleness_mean": 0.0,
            "val": {"hr": report.quality.val.hr, "ndcg": report.quality.val.ndcg},
            "test": {"hr": report.quality.test.hr, "ndcg": report.quality.test.ndcg},
        }


def test_metrics_are_written_as_the_run_goes_on(tmp_path: Path) -> None:
    """So that they can be followed; what is written at the end is not there yet."""
    run = Run(tmp_path / "run")

    run.train()

    assert files_of(tmp_path / "run") == {"config.json", "metrics.jsonl"}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == ROUNDS


def test_summary_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    """By name; the file holds what `finish` gives."""
    run = Run(tmp_path / "run")
    run.train()

    summary = run.finish()

    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    figures = {f"{name}@{k}": None for k in (5, 10, 20) for name in ("hr", "ndcg")}
    view = {"sampled": figures, "full": figures}
    assert keys_of(summary) == {
        "dataset": {"name": None, "users": None, "items": None, "interactions": None},
        "algorithm": None,
        "protocol": None,
        "mode": None,
        "encoding": None,
        "seed": None,
        "rounds": None,
        "best_round": None,
        "test": {"own": view, "shared": view},
        "seconds_per_round": {"median": None, "train": None, "aggregate": None, "evaluate": None},
        "bytes_up_per_update": None,
        "bytes_down_per_device_round": None,
        "peak_rss_mb": None,
    }


def test_summary_says_what_the_run_was(tmp_path: Path) -> None:
    """Facts, sizes, and figures per update, per device and per round."""
    run = Run(tmp_path / "run")
    run.train()

    summary = run.finish()

    data = run.scenario.data
    assert summary["dataset"] == {
        "name": "synthetic",
        "users": 12,
        "items": data.n_items,
        "interactions": data.items.size,
    }
    assert {name: summary[name] for name in FACTS} == FACTS
    assert (summary["protocol"], summary["rounds"]) == ("clean", ROUNDS)
    assert summary["best_round"] == run.evaluator.best.round
    ranks = run.evaluator.outcome().ranks["own"]
    for ranking, of_users in (("sampled", ranks.sampled), ("full", ranks.full)):
        for k in (5, 10, 20):
            metrics = metrics_from_ranks(of_users, k)
            found = summary["test"]["own"][ranking]
            assert (found[f"hr@{k}"], found[f"ndcg@{k}"]) == (metrics.hr, metrics.ndcg)
    traffic = [report.traffic for report in run.reports]
    assert summary["bytes_up_per_update"] == sum(t.bytes_up for t in traffic) / (12 * ROUNDS)
    assert summary["bytes_down_per_device_round"] == sum(t.bytes_down for t in traffic) / (12 * ROUNDS)
    seconds = np.median([report.watch.total for report in run.reports])
    assert summary["seconds_per_round"]["median"] == pytest.approx(seconds, abs=1e-6)
    assert 10.0 < summary["peak_rss_mb"] < 10_000.0


def test_model_is_the_best_rounds_table_with_its_keys(tmp_path: Path) -> None:
    """Two arrays; rows in the order of the keys."""
    run = a_finished_run(tmp_path / "run")

    arrays = arrays_of(tmp_path / "run" / "model.npz")

    assert set(arrays) == {"E", "item_keys"}
    assert arrays["E"].dtype == np.float32
    assert np.array_equal(arrays["E"], run.evaluator.best.table)
    assert tuple(arrays["item_keys"].tolist()) == run.scenario.data.item_keys


def test_candidates_are_the_scenarios(tmp_path: Path) -> None:
    """Two arrays, a line for each user."""
    run = a_finished_run(tmp_path / "run")

    arrays = arrays_of(tmp_path / "run" / "candidates.npz")

    assert set(arrays) == {"val", "test"}
    assert np.array_equal(arrays["val"], run.scenario.val)
    assert np.array_equal(arrays["test"], run.scenario.test)


def test_ranks_are_those_of_every_user(tmp_path: Path) -> None:
    """In both views and both rankings, so that any other figure can be made of them."""
    run = a_finished_run(tmp_path / "run")

    arrays = arrays_of(tmp_path / "run" / "ranks.npz")

    expected = run.evaluator.outcome().ranks
    assert set(arrays) == {"user_keys", "own_sampled", "own_full", "shared_sampled", "shared_full"}
    assert tuple(arrays["user_keys"].tolist()) == run.scenario.data.user_keys
    for view in ("own", "shared"):
        assert np.array_equal(arrays[f"{view}_sampled"], expected[view].sampled)
        assert np.array_equal(arrays[f"{view}_full"], expected[view].full)
        assert arrays[f"{view}_full"].dtype == np.int32


def test_users_are_those_of_the_best_round(tmp_path: Path) -> None:
    """Score functions, and own rows in CSR form."""
    run = a_finished_run(tmp_path / "run", save_users=True)
    best = run.evaluator.best

    arrays = arrays_of(tmp_path / "run" / "users.npz")

    assert set(arrays) == {"user_keys", "W", "b", "own_indptr", "own_rows", "own_values"}
    assert tuple(arrays["user_keys"].tolist()) == run.scenario.data.user_keys
    assert np.array_equal(arrays["W"], best.W)
    assert np.array_equal(arrays["b"], best.b)
    assert (arrays["own_values"].dtype, arrays["own_rows"].dtype) == (np.dtype("f4"), np.dtype("i8"))
    assert arrays["own_indptr"][-1] == len(arrays["own_rows"]) == len(arrays["own_values"])
    for user, result in enumerate(best.results):
        own = slice(*arrays["own_indptr"][user : user + 2])
        assert result is not None
        assert np.array_equal(arrays["own_rows"][own], result.rows)
        assert np.array_equal(arrays["own_values"][own], result.values)


def test_users_who_have_not_trained_have_no_own_rows(tmp_path: Path) -> None:
    """Their part of the CSR form is empty."""
    run = a_finished_run(tmp_path / "trained")
    first, *others = [VirtualDevice(run.scenario, user, 2) for user in range(run.scenario.n_users)]
    first.result = run.evaluator.best.results[0]
    table = run.evaluator.best.table
    start = initial_score_function(DIM, np.random.default_rng(2))
    folder = RunFolder(tmp_path / "run", CONFIG, overwrite=False)
    evaluator = Evaluator(run.scenario)
    RoundBook(evaluator, folder.add_round).end(1, table, [first, *others], start)
    folder.finish(run.scenario, evaluator.outcome(), FACTS, save_users=True)

    arrays = arrays_of(tmp_path / "run" / "users.npz")

    assert first.result is not None
    assert arrays["own_indptr"].tolist() == [0] + [first.result.rows.size] * run.scenario.n_users
    assert np.array_equal(arrays["W"][1], start.w)


# -- what was there before -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_folder_that_holds_a_run_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever is left of it; nothing is changed, and the sentence says what to do."""
    (tmp_path / name).write_bytes(b"kept")

    with pytest.raises(AlreadyInitialisedError, match=rf"holds a run already \({name}\); .* --overwrite"):
        RunFolder(tmp_path, CONFIG, overwrite=False)

    assert (tmp_path / name).read_bytes() == b"kept"
    assert files_of(tmp_path) == {name}


def test_folder_with_other_files_is_used(tmp_path: Path) -> None:
    """They stay."""
    (tmp_path / "notes.txt").write_text("kept")

    a_finished_run(tmp_path)

    assert files_of(tmp_path) == RUN_FILES | {"notes.txt"}
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_overwriting_replaces_the_whole_run_and_nothing_else(tmp_path: Path) -> None:
    """No file of the earlier run is left among those of the new one."""
    a_finished_run(tmp_path, save_users=True)
    (tmp_path / "notes.txt").write_text("kept")

    a_finished_run(tmp_path, overwrite=True)

    assert files_of(tmp_path) == RUN_FILES | {"notes.txt"}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == ROUNDS


@pytest.mark.parametrize("overwrite", [False, True])
def test_run_that_comes_to_nothing_leaves_the_folder_as_it_was(tmp_path: Path, *, overwrite: bool) -> None:
    """Until its first round is done nothing is written, and nothing of an earlier run is lost."""
    path = tmp_path / "run"
    if overwrite:
        a_finished_run(path)
    before = {name: (path / name).read_bytes() for name in files_of(path)}

    Run(path, overwrite=overwrite)

    assert {name: (path / name).read_bytes() for name in files_of(path)} == before


def test_folder_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    """Also with --overwrite: two runs would mix. When the first is closed, it may be used."""
    first = Run(tmp_path / "run")

    with pytest.raises(InUseError, match="in use by another process"):
        RunFolder(tmp_path / "run", CONFIG, overwrite=True)

    first.folder.close()
    RunFolder(tmp_path / "run", CONFIG, overwrite=True)


def test_directory_of_a_device_or_an_aggregator_is_refused(tmp_path: Path) -> None:
    """Its files are another program's."""
    (tmp_path / "config.toml").write_text("")

    with pytest.raises(AlreadyInitialisedError, match="directory of a device or an aggregator"):
        RunFolder(tmp_path, CONFIG, overwrite=True)

    assert files_of(tmp_path) == {"config.toml"}


def test_missing_folders_are_made(tmp_path: Path) -> None:
    """With their parents."""
    a_finished_run(tmp_path / "runs" / "today" / "first")

    assert files_of(tmp_path / "runs" / "today" / "first") == RUN_FILES


# -- disks -----------------------------------------------------------------------------------------


def test_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    """It is said before anything is trained."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NotWritableError, match="file/run cannot be written: not a directory"):
        RunFolder(tmp_path / "file" / "run", CONFIG, overwrite=False)


@pytest.mark.root
def test_read_only_file_system_is_named(tmp_path: Path) -> None:
    """At the beginning, and when it happens meanwhile."""
    disk = tmp_path / "disk"
    with small_disk(disk), a_run(disk / "run") as run:
        make_read_only(disk)

        with pytest.raises(NotWritableError, match="read-only file system"):
            run.train()
        with pytest.raises(NotWritableError, match="read-only file system"):
            RunFolder(disk / "other", CONFIG, overwrite=False)


@pytest.mark.root
def test_full_disk_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    """And the folder is as it was."""
    disk = tmp_path / "disk"
    with small_disk(disk):
        fill_disk(disk)

        with pytest.raises(DiskFullError, match=r"no space is left for .*/run"):
            RunFolder(disk / "run", CONFIG, overwrite=False)

        assert files_of(disk / "run") == set()


@pytest.mark.root
def test_disk_that_fills_up_during_the_rounds_is_named(tmp_path: Path) -> None:
    """Those before are on it."""
    disk = tmp_path / "disk"
    with small_disk(disk), a_run(disk / "run") as run:
        filler = fill_disk(disk)

        with pytest.raises(DiskFullError):
            run.train()

        filler.unlink()
        assert files_of(disk / "run") <= {"config.json", "metrics.jsonl"}


@pytest.mark.root
@pytest.mark.parametrize("save_users", [False, True])
def test_disk_that_is_full_at_the_end_leaves_no_half_array(tmp_path: Path, *, save_users: bool) -> None:
    """A file of arrays is there whole or not at all; the summary, which comes last, is not there."""
    disk = tmp_path / "disk"
    with small_disk(disk), a_run(disk / "run") as run:
        run.train()
        filler = fill_disk(disk)
        free = 64 * 1024 if save_users else 4 * 1024
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - free)

        with pytest.raises(DiskFullError):
            run.finish(save_users=save_users)

        left = files_of(disk / "run")
        assert left >= {"config.json", "metrics.jsonl"}
        assert left < RUN_FILES
        assert "summary.json" not in left
        for name in left & {"model.npz", "candidates.npz"}:
            assert arrays_of(disk / "run" / name)
        if save_users:
            assert "model.npz" in left
