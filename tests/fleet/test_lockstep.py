"""Rounds in step: the same whatever process runs which users, and however often a run is stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker.errors import AlreadyInitialisedError, CorruptError, WorkerDiedError
from edge.fleet.cohort import MAX_COHORTS, cut_into_cohorts
from edge.fleet.lockstep import Lockstep, LockstepSettings
from edge.fleet.runfolder import CHECKPOINT, RoundReport
from edge.fleet.scenario import Scenario
from edge.fleet.simulatecommand import SimulateOptions, run_simulation
from edge.fleet.workers import Workers
from tests.fleet.builders import RUN_FILES, Call, a_scenario, files_of, recompute
from tests.passes import cohorts_passes
from trainer.algorithms import ALGORITHMS
from trainer.errors import ParameterError
from trainer.metrics import metrics_from_ranks
from trainer.params import Hyperparameters

SETTINGS = Hyperparameters(lr=0.1, item_lr=20.0, negatives=4, batch_size=64)
DEADLINE_S = 60.0


def simulated(out: Path, *, save_users: bool = True, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Run a small simulation into a folder; give its summary."""
    given: dict[str, Any] = {"data": "synthetic", "seed": 3, "preset": "paper"} | options
    overrides: dict[str, Any] = {"rounds": 5, "dim": 8} | given.pop("overrides", {})
    scenario = a_scenario(20, seed=given["seed"])
    return run_simulation(
        SimulateOptions(overrides=overrides, **given),
        out,
        save_users=save_users,
        resume=resume,
        scenario=scenario,
    ).summary


def assert_same_runs(one: Path, other: Path) -> None:
    """Assert that two folders are equal byte by byte, but for the times that the runs took."""
    assert files_of(one) == files_of(other) == RUN_FILES | {"users.npz"}
    for name in ("model.npz", "users.npz", "ranks.npz", "candidates.npz", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics_of(one) == metrics_of(other)
    first, second = (timeless(json.loads((path / "summary.json").read_text())) for path in (one, other))
    assert first == second


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Give the lines of ``metrics.jsonl`` without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """Give a summary without what depends on the machine."""
    return {
        name: value for name, value in summary.items() if name not in ("seconds_per_round", "peak_rss_mb")
    }


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """Load a file of arrays."""
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def contents_of(folder: Path) -> dict[str, bytes]:
    """Give all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def a_lockstep(
    scenario: Scenario, on_round: Callable[[RoundReport], None] = lambda _: None, **changed: Any
) -> Lockstep:
    """Make a small run by itself, without a folder of results."""
    given: dict[str, Any] = {
        "algorithm": ALGORITHMS["pfedrec"],
        "hyperparameters": SETTINGS,
        "rounds": 3,
        "dim": 4,
        "seed": 1,
    }
    return Lockstep(scenario, LockstepSettings(**(given | changed)), on_round)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


# -- how many processes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding": "int8"},
        {"preset": "device"},
        {"algorithm": "fedncf"},
        {"algorithm": "pfedrec-item", "overrides": {"noise": 0.01}},
    ],
    ids=["plain", "int8", "taste", "network", "noise"],
)
def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path, options: dict[str, Any]) -> None:
    """One process, two, or three that do not share evenly: the same to the last bit."""
    for workers in (1, 2, 3):
        simulated(tmp_path / str(workers), workers=workers, **options)

    assert_same_runs(tmp_path / "1", tmp_path / "2")
    assert_same_runs(tmp_path / "1", tmp_path / "3")


def test_more_workers_than_cohorts(tmp_path: Path) -> None:
    """The fleet has 20 users in 16 cohorts; processes without a cohort are not made."""
    simulated(tmp_path / "one")
    simulated(tmp_path / "many", workers=64)

    assert_same_runs(tmp_path / "one", tmp_path / "many")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    """On the same data, too."""
    models = []
    scenario = a_scenario(20)
    for seed in (3, 4):
        outcome = a_lockstep(scenario, seed=seed).run()
        assert outcome.model is not None
        models.append(outcome.model.W)

    assert not np.array_equal(models[0], models[1])


# -- cohorts ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 2000), min_size=1, max_size=300).filter(any))
def test_cohorts_are_a_partition_in_order(lengths: list[int]) -> None:
    """Every user is in one, none is empty, and there are as many as allowed or as there are users."""
    cuts = cut_into_cohorts(np.array(lengths, dtype=np.int64))

    assert len(cuts) == min(MAX_COHORTS, len(lengths))
    assert sorted(user for cut in cuts for user in cut.tolist()) == list(range(len(lengths)))
    assert all(cut.size for cut in cuts)
    assert [lengths[user] for cut in cuts for user in cut] == sorted(lengths)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(8, 60), min_size=200, max_size=400))
def test_cohorts_are_about_equally_large(lengths: list[int]) -> None:
    """Counted in interactions, each is within one user of its share."""
    counts = np.array(lengths, dtype=np.int64)

    sums = [int(counts[cut].sum()) for cut in cut_into_cohorts(counts)]

    assert max(sums) <= counts.sum() / MAX_COHORTS + 2 * counts.max()
    assert min(sums) >= counts.sum() / MAX_COHORTS - 2 * counts.max()


@pytest.mark.parametrize("name", ["pfedrec", "fedmf", "fedncf", "pfedrec-item"])
def test_round_is_the_mean_of_the_users_passes(name: str) -> None:
    """Table and network move by the sum of all changes over the users; drawn from the cohorts' streams."""
    scenario, algorithm = a_scenario(20), ALGORITHMS[name]
    engine = a_lockstep(scenario, algorithm=algorithm, rounds=1, scale=0.5)

    outcome = engine.run()

    rng = np.random.default_rng([1, 0])
    shared = algorithm.start(scenario.data.n_items, 4, 0.5, rng)
    W, b = algorithm.start_users(scenario.n_users, 4, rng)
    table, network = (part.astype(np.float64) for part in (shared.table, shared.network))
    cuts = cut_into_cohorts(np.array([items.size for items in scenario.split.train]))
    for number, cut in enumerate(cuts):
        rng = np.random.default_rng([1, 3, 1, number])
        for user, result in cohorts_passes(algorithm, shared, W, b, scenario, cut, SETTINGS, rng):
            table[result.rows] += result.change / scenario.n_users
            network += result.network_change / scenario.n_users
            W[user], b[user] = result.score_function.w, result.score_function.b
    assert outcome.model is not None
    assert outcome.model.shared.network.shape == network.shape
    np.testing.assert_allclose(outcome.model.shared.table, table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outcome.model.shared.network, network, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outcome.model.W, W)
    np.testing.assert_array_equal(outcome.model.b, b)


# -- what a run leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["pfedrec", "pfedrec-user", "fedmf+dualper"])
def test_ranks_follow_from_the_saved_arrays(tmp_path: Path, algorithm: str) -> None:
    """In plain float64, from users.npz, model.npz and candidates.npz alone."""
    summary = simulated(tmp_path / "run", algorithm=algorithm)

    users, model, candidates, ranks = (
        arrays_of(tmp_path / "run" / f"{name}.npz") for name in ("users", "model", "candidates", "ranks")
    )
    E = model["E"].astype(np.float64)
    found: dict[str, list[int]] = {"own": [], "shared": []}
    for user, items in enumerate(candidates["test"]):
        part = slice(*users["own_indptr"][user : user + 2])
        own_table = E.copy()
        own_table[users["own_rows"][part]] = users["own_values"][part]
        for view, table in (("own", own_table), ("shared", E)):
            scores = table[items] @ users["W"][user].astype(np.float64) + float(users["b"][user])
            found[view].append(int(np.count_nonzero(scores[1:] >= scores[0])))
    for view, of_view in found.items():
        np.testing.assert_array_equal(ranks[f"{view}_sampled"], of_view)
        figures = metrics_from_ranks(np.array(of_view))
        assert summary["test"][view]["sampled"]["hr@10"] == figures.hr
        assert summary["test"][view]["sampled"]["ndcg@10"] == figures.ndcg
    assert (users["own_rows"].size > 0) == ALGORITHMS[algorithm].own_rows


@pytest.mark.parametrize("options", [{}, {"preset": "device"}, {"algorithm": "pfedrec-item"}], ids=str)
def test_recompute_finds_the_same_figures(tmp_path: Path, options: dict[str, Any]) -> None:
    """The script that shares no code with the project agrees with a run in step."""
    simulated(tmp_path / "run", workers=2, **options)

    found = recompute(tmp_path / "run")

    assert found.code == 0, found.out + found.err


def test_best_round_is_the_one_with_the_best_validation_figure(tmp_path: Path) -> None:
    """Of equal ones the latest; its test figures are those of its line."""
    for select_by in ("hr", "ndcg"):
        out = tmp_path / select_by
        summary = simulated(out, overrides={"rounds": 12, "select_by": select_by})

        lines = metrics_of(out)
        best = max(lines, key=lambda line: (line["val"][select_by], line["round"]))
        assert summary["best_round"] == best["round"]
        assert summary["test"]["own"]["sampled"]["ndcg@10"] == pytest.approx(best["test"]["ndcg"], abs=0.05)


def test_recovered_positives_are_measured(tmp_path: Path) -> None:
    """Without noise nearly all are told from one update, with much noise few."""
    plain = simulated(tmp_path / "plain")["positives_recovered_f1"]
    noisy = simulated(tmp_path / "noisy", overrides={"noise": 1000.0})["positives_recovered_f1"]

    assert 0.0 <= noisy < 0.5
    assert 0.8 < plain <= 1.0


def test_checkpoint_is_removed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there while the run goes on, and not among the results."""
    monkeypatch.setattr("edge.fleet.lockstep._CHECKPOINT_EVERY_S", 0.0)

    simulated(tmp_path / "run")

    assert files_of(tmp_path / "run") == RUN_FILES | {"users.npz"}


def test_training_that_diverges_is_refused(tmp_path: Path) -> None:
    """In another process, too."""
    for workers in (1, 2):
        with pytest.raises(ParameterError, match="diverges"):
            simulated(tmp_path / str(workers), workers=workers, item_lr=1e9, overrides={"rounds": 30})


# -- resuming --------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Ends a run in its middle."""


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give what makes a run that is stopped after some rounds, with a checkpoint after every one."""

    def run(out: Path, rounds: int, **options: Any) -> None:
        with monkeypatch.context() as patches:
            patches.setattr("edge.fleet.lockstep._CHECKPOINT_EVERY_S", 0.0)
            original = Lockstep._round

            def counted(engine: Lockstep, number: int, workers: Workers) -> None:
                if number > rounds:
                    raise StoppedError
                original(engine, number, workers)

            patches.setattr(Lockstep, "_round", counted)
            with pytest.raises(StoppedError):
                simulated(out, **options)

    return run


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"preset": "device"}, {"algorithm": "fedncf+dualper"}], ids=str)
def test_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, stop: Callable[..., None], rounds: int, options: dict[str, Any]
) -> None:
    """To the last bit, wherever it was stopped, and with another number of workers."""
    stop(tmp_path / "stopped", rounds, **options)
    assert files_of(tmp_path / "stopped") == {"config.json", "metrics.jsonl", CHECKPOINT}

    simulated(tmp_path / "stopped", resume=True, workers=2, **options)

    simulated(tmp_path / "whole", **options)
    assert_same_runs(tmp_path / "stopped", tmp_path / "whole")


def test_run_stopped_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, stop: Callable[..., None]
) -> None:
    """So does a folder that holds nothing."""
    stop(tmp_path / "stopped", 2)
    (tmp_path / "stopped" / CHECKPOINT).unlink()

    for name in ("stopped", "nothing"):
        simulated(tmp_path / name, resume=True)

    simulated(tmp_path / "whole")
    assert_same_runs(tmp_path / "stopped", tmp_path / "whole")
    assert_same_runs(tmp_path / "nothing", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"encoding": "int8"}, "encoding"),
        ({"algorithm": "fedmf"}, "algorithm"),
        ({"item_lr": 3.0}, "hyperparameters"),
        ({"overrides": {"rounds": 6}}, "rounds"),
        ({"overrides": {"dim": 9}}, "dim"),
        ({"overrides": {"noise": 0.1}}, "noise"),
        ({"overrides": {"untimed_taste_strength": 1.0}}, "taste"),
        ({"preset": "device"}, "preset"),
    ],
    ids=str,
)
def test_resume_with_other_options_is_refused(
    tmp_path: Path, stop: Callable[..., None], options: dict[str, Any], named: str
) -> None:
    """By the option's name; nothing is changed."""
    stop(tmp_path / "run", 2)
    before = contents_of(tmp_path / "run")

    with pytest.raises(ParameterError, match=f"begun with {named} "):
        simulated(tmp_path / "run", resume=True, **options)

    assert contents_of(tmp_path / "run") == before


def test_finished_run_is_not_resumed(tmp_path: Path) -> None:
    """There is nothing to do, and nothing is changed."""
    simulated(tmp_path / "run")
    before = contents_of(tmp_path / "run")

    with pytest.raises(AlreadyInitialisedError, match="finished"):
        simulated(tmp_path / "run", resume=True)

    assert contents_of(tmp_path / "run") == before


def test_run_that_was_stopped_is_not_overwritten_by_accident(
    tmp_path: Path, stop: Callable[..., None]
) -> None:
    """It is a run, and only --resume or --overwrite touches it."""
    stop(tmp_path / "run", 2)
    before = contents_of(tmp_path / "run")

    with pytest.raises(AlreadyInitialisedError):
        simulated(tmp_path / "run")

    assert contents_of(tmp_path / "run") == before


def truncated(content: bytes) -> bytes:
    """Give the first half."""
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """Change a byte in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def a_single_array(_: bytes) -> bytes:
    """Give a file that numpy reads, and which is no archive."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4)


def otherwise_compressed(content: bytes) -> bytes:
    """Name a compression that does not exist in the archive's first directory entry."""
    at = content.index(b"PK\x01\x02") + 10
    return content[:at] + b"\x63" + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [truncated, flipped, otherwise_compressed, lambda _: b"", lambda _: b"nonsense", a_single_array],
    ids=["truncated", "flipped", "compression", "empty", "nonsense", "array"],
)
def test_damaged_checkpoint_is_refused(
    tmp_path: Path, stop: Callable[..., None], damage: Callable[[bytes], bytes]
) -> None:
    """With a way out, and nothing is changed."""
    stop(tmp_path / "run", 2)
    path = tmp_path / "run" / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    before = contents_of(tmp_path / "run")

    with pytest.raises(CorruptError, match="--overwrite"):
        simulated(tmp_path / "run", resume=True)

    assert contents_of(tmp_path / "run") == before


def test_checkpoint_of_another_run_is_refused(tmp_path: Path, stop: Callable[..., None]) -> None:
    """Although all its shapes fit."""
    for seed in (1, 2):
        stop(tmp_path / f"run-{seed}", 2, seed=seed)
    (tmp_path / "run-2" / CHECKPOINT).rename(tmp_path / "run-1" / CHECKPOINT)

    with pytest.raises(CorruptError, match="another run's"):
        simulated(tmp_path / "run-1", resume=True, seed=1)


@pytest.mark.parametrize("lines", ["", '{"round": 1}\n', "no JSON\nat all\n"], ids=["none", "one", "text"])
def test_metrics_that_do_not_fit_the_checkpoint_are_refused(
    tmp_path: Path, stop: Callable[..., None], lines: str
) -> None:
    """The rounds before the checkpoint must be there."""
    stop(tmp_path / "run", 2)
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)

    with pytest.raises(CorruptError, match=r"metrics\.jsonl"):
        simulated(tmp_path / "run", resume=True)


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_run_that_was_killed_is_resumed(tmp_path: Path, call: Call, workers: int) -> None:
    """A real process, killed with -9 in mid-run: afterwards the files are those of an undisturbed run."""

    def arguments(out: str, *more: str) -> list[str]:
        return [
            *("simulate", "--data", "synthetic", "--protocol", "clean", "--seed", "5", "--dim", "16"),
            *("--rounds", "300", "--workers", str(workers), "--save-users", "--out", str(tmp_path / out)),
            *more,
        ]

    whole = call(*arguments("whole"))
    assert whole.code == 0, whole.err
    command = [sys.executable, "-c", "from edge.fleet.cli import main; main()", *arguments("killed")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            # The rounds take more than two seconds, after which the first checkpoint is written.
            wait_until((tmp_path / "killed" / CHECKPOINT).exists, "a checkpoint")
            process.kill()
        finally:
            process.kill()
            process.wait(DEADLINE_S)
    assert process.returncode == -signal.SIGKILL
    assert "summary.json" not in files_of(tmp_path / "killed")

    resumed = call(*arguments("killed", "--resume"))

    assert resumed.code == 0, resumed.err
    assert_same_runs(tmp_path / "killed", tmp_path / "whole")


# -- workers ---------------------------------------------------------------------------------------


class Pidful:
    """In place of a cohort: tells its process and its number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def place(self) -> tuple[int, int]:
        """Give process and number."""
        return os.getpid(), self._number

    def die(self) -> None:
        """End the process that has cohort 1."""
        if self._number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        """Refuse, from the second on."""
        if self._number:
            raise ParameterError(f"cohort {self._number} refuses")


def some_workers(n_cohorts: int, n_workers: int) -> Workers:
    """Start workers whose cohorts are none: all that counts is that they have methods."""
    make_cohort: Any = Pidful
    return Workers(make_cohort, n_cohorts, n_workers)


@pytest.fixture
def three_workers() -> Iterator[Workers]:
    """Give three processes that share seven cohorts."""
    workers = some_workers(7, 3)
    yield workers
    workers.close()


def test_answers_are_in_the_order_of_the_cohorts(three_workers: Workers) -> None:
    """Whoever gives them; each cohort stays in its process."""
    places = three_workers.all("place")

    assert [number for _, number in places] == list(range(7))
    assert len({pid for pid, _ in places} - {os.getpid()}) == 3
    assert three_workers.all("place") == places


def test_one_worker_is_this_process() -> None:
    """Nothing is started."""
    workers = some_workers(4, 1)

    assert workers.all("place") == [(os.getpid(), number) for number in range(4)]
    workers.close()


def test_error_of_a_cohort_is_raised_and_the_workers_go_on(three_workers: Workers) -> None:
    """All have answered by then, so that the next question gets its own answers."""
    with pytest.raises(ParameterError, match="refuses"):
        three_workers.all("fail")

    assert [number for _, number in three_workers.all("place")] == list(range(7))


def test_worker_that_has_ended_is_noticed(three_workers: Workers) -> None:
    """Instead of waiting for it for ever; the others end as always."""
    victim = three_workers._processes[1]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(DEADLINE_S)

    with pytest.raises(WorkerDiedError, match="memory"):
        three_workers.all("place")


def test_worker_that_ends_at_its_work_is_noticed(three_workers: Workers) -> None:
    """It has read the question, and gives no answer."""
    with pytest.raises(WorkerDiedError, match="memory"):
        three_workers.all("die")


def test_worker_that_is_killed_before_it_reads_is_noticed(three_workers: Workers) -> None:
    """The question lies unread then, and a pipe that ends so is an error, not an end of file."""
    victim = three_workers.all("place")[1][0]
    os.kill(victim, signal.SIGSTOP)

    def unread() -> bool:
        count = bytearray(4)
        fcntl.ioctl(three_workers._pipes[1].fileno(), termios.TIOCOUTQ, count)
        return any(count)

    def kill_when_asked() -> None:
        wait_until(unread, "a question in the pipe")
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_asked)
    killer.start()
    try:
        with pytest.raises(WorkerDiedError, match="memory"):
            three_workers.all("place")
    finally:
        killer.join(DEADLINE_S)


def test_run_whose_worker_was_killed_ends(tmp_path: Path) -> None:
    """With an error, and without processes that stay behind."""
    scenario = a_scenario(20)
    engine = a_lockstep(scenario, workers=3, rounds=1000)
    seen: list[Workers] = []
    make = engine._make_workers

    def noted() -> Workers:
        workers = make()
        seen.append(workers)
        return workers

    engine._make_workers = noted  # type: ignore[assignment]
    rounds = 0

    def on_round(report: RoundReport) -> None:
        nonlocal rounds
        rounds = report.number
        if rounds == 2:
            os.kill(seen[0]._processes[2].pid, signal.SIGKILL)

    engine._on_round = on_round
    with pytest.raises(WorkerDiedError):
        engine.run()

    assert rounds < 10
    assert not any(process.is_alive() for process in seen[0]._processes)
