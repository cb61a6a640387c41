"""``edge-fleet sweep``: every combination once, whatever stops it in between; chosen by validation alone."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from broker.exit_codes import ExitCode
from broker.storage import exclusive
from edge.fleet.sweepgrid import SweepOptions, combinations
from tests.brokers import PATIENCE_S, children_of, kill_and_wait, wait_for_end
from tests.edge.running import wait_until
from tests.fleet.builders import RUN_FILES, Call, Outcome, files_of, write_ratings

QUICK = ("--data", "synthetic", "--protocol", "clean", "--set", "dim=8")
GRID = ("--set", "lr=0.05,0.1", "--set", "negatives=2", "--seeds", "0,1", "--rounds", 3)
FOLDERS = [
    f"pfedrec,dim=8,lr={lr},negatives=2,rounds=3,seed={seed}" for lr in ("0.05", "0.1") for seed in (0, 1)
]
DIVERGING = "1000000"


def assert_refused(found: Outcome, code: ExitCode, *words: str) -> None:
    """Check the code, and that there is one sentence with these words on stderr and nothing on stdout."""
    assert (found.code, found.out) == (code, "")
    assert re.fullmatch(r"edge-fleet: [^\n]+\n", found.err), found.err
    for word in words:
        assert word in found.err


def results_in(out: Path) -> list[dict[str, Any]]:
    """Read what ``sweep.json`` has of each combination."""
    results: list[dict[str, Any]] = json.loads((out / "sweep.json").read_text())["results"]
    return results


def rounds_in(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics, without the times, which differ from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def folders_in(out: Path) -> list[Path]:
    """Give the folders of runs."""
    return sorted(path for path in out.iterdir() if path.is_dir())


@contextmanager
def a_process(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run ``edge-fleet`` as a process that Ctrl-C reaches, with a checkpoint after every round."""
    program = (
        "from edge.fleet import lockstep; lockstep._CHECKPOINT_EVERY_S = 0.0; "
        "from edge.fleet.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


# -- what is run -----------------------------------------------------------------------------------


def test_every_combination_gets_a_run_folder_named_after_its_values(call: Call, tmp_path: Path) -> None:
    """Each as ``simulate`` leaves it, and with the values that its name says."""
    found = call("sweep", *QUICK, *GRID, "--jobs", 2, "--out", tmp_path)

    assert found.code == ExitCode.OK, found.err
    assert [path.name for path in folders_in(tmp_path)] == FOLDERS
    assert all(files_of(folder) == RUN_FILES | {"ranks.npz"} for folder in folders_in(tmp_path))
    config = json.loads((tmp_path / FOLDERS[1] / "config.json").read_text())
    assert (config["hyperparameters"]["lr"], config["hyperparameters"]["negatives"]) == (0.05, 2)
    assert (config["dim"], config["rounds"], config["seed"]) == (8, 3, 1)


def test_a_run_of_a_sweep_is_what_simulate_gives(call: Call, tmp_path: Path) -> None:
    """To the last bit."""
    call("sweep", *QUICK, *GRID, "--jobs", 2, "--out", tmp_path / "sweep")
    call(
        "simulate", *QUICK, "--set", "lr=0.1", "--set", "negatives=2", "--seed", 1, "--rounds", 3,
        "--out", tmp_path / "run",
    )  # fmt: skip

    for name in ("model.npz", "candidates.npz", "ranks.npz"):
        swept = tmp_path / "sweep" / FOLDERS[3] / name
        assert swept.read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_names_are_the_same_however_values_are_written_and_ordered() -> None:
    """Numbers by their value, keys in order; no space and no slash."""
    one = SweepOptions(data="x", values={"lr": (1, 0.5), "decay": (0.0,)})
    other = SweepOptions(data="x", values={"decay": (0,), "lr": (1.0, 0.50)})

    names = [combination.folder_of(7) for combination in combinations(one)]

    assert names == ["pfedrec,decay=0,lr=1,seed=7", "pfedrec,decay=0,lr=0.5,seed=7"]
    assert names == [combination.folder_of(7) for combination in combinations(other)]


def test_algorithms_are_swept_too(call: Call, tmp_path: Path) -> None:
    """Those without a fleet included."""
    found = call(
        "sweep", *QUICK, "--preset", "paper", "--rounds", 2, "--out", tmp_path,
        "--algorithm", "pfedrec, fedmf+dualper,popularity",
    )  # fmt: skip

    assert found.code == ExitCode.OK, found.err
    assert {result["algorithm"] for result in results_in(tmp_path)} == {
        "pfedrec",
        "fedmf+dualper",
        "popularity",
    }


# -- what it comes to ------------------------------------------------------------------------------


def test_table_has_the_best_by_mean_validation_first(call: Call, tmp_path: Path) -> None:
    """With mean and sample standard deviation over the seeds, from the best rounds of the runs' own files."""
    found = call("sweep", *QUICK, *GRID, "--out", tmp_path)

    expected = []
    for lr in ("0.05", "0.1"):
        best = []
        for folder in (tmp_path / name for name in FOLDERS if f"lr={lr}," in name):
            number = json.loads((folder / "summary.json").read_text())["best_round"]
            best.append(rounds_in(folder)[number - 1]["val"])
        shown = [
            f"{mean(figures):.4f} ± {stdev(figures):.4f}"
            for figures in ([each["hr"] for each in best], [each["ndcg"] for each in best])
        ]
        expected.append((mean(each["ndcg"] for each in best), ["pfedrec", "8", lr, "2", "3", *shown, "2"]))
    expected.sort(reverse=True)
    header, *lines = (re.split(r" {2,}", line) for line in found.out.splitlines())
    assert header == [
        "algorithm", "dim", "lr", "negatives", "rounds", "validation HR@10", "validation NDCG@10", "seeds",
    ]  # fmt: skip
    assert lines == [cells for _, cells in expected]


def test_test_figures_are_given_only_when_asked_for(call: Call, tmp_path: Path) -> None:
    """Neither printed nor written before; then they are those of the summaries."""
    hidden = call("sweep", *QUICK, "--rounds", 2, "--out", tmp_path)
    assert "test" not in hidden.out
    assert "test" not in (tmp_path / "sweep.json").read_text()

    shown = call("sweep", *QUICK, "--rounds", 2, "--show-test", "--out", tmp_path)

    assert shown.code == ExitCode.OK
    (folder,) = folders_in(tmp_path)
    own = json.loads((folder / "summary.json").read_text())["test"]["own"]
    header, line = (re.split(r" {2,}", line) for line in shown.out.splitlines())
    cells = dict(zip(header, line, strict=True))
    assert cells["test NDCG@10"] == f"{own['sampled']['ndcg@10']:.4f}"
    assert cells["test, full ranking HR@10"] == f"{own['full']['hr@10']:.4f}"
    (result,) = results_in(tmp_path)
    assert result["test"]["hr@10"] == {"mean": own["sampled"]["hr@10"], "sd": None}


def test_order_follows_the_preset_s_figure(call: Call, tmp_path: Path) -> None:
    """HR where it says so."""
    call("sweep", *QUICK, *GRID, "--set", "select_by=hr", "--out", tmp_path)

    content = json.loads((tmp_path / "sweep.json").read_text())
    means = [result["validation"]["hr@10"]["mean"] for result in content["results"]]
    assert content["sorted_by"] == "validation hr@10"
    assert means == sorted(means, reverse=True)


def test_json_is_the_file(call: Call, tmp_path: Path) -> None:
    """One document on stdout, with all options."""
    found = call("sweep", *QUICK, "--rounds", 2, "--seeds", "3", "--json", "--out", tmp_path)

    printed = json.loads(found.out)
    assert printed == json.loads((tmp_path / "sweep.json").read_text())
    assert printed["options"] == {
        "data": "synthetic",
        "data_sha256": None,
        "algorithms": ["pfedrec"],
        "preset": "device",
        "protocol": "clean",
        "values": {"dim": [8], "rounds": [2]},
        "seeds": [3],
    }


def test_results_do_not_depend_on_the_number_of_jobs(call: Call, tmp_path: Path) -> None:
    """Every model is the same to the last bit, and so is the file of results."""
    one, two = tmp_path / "one", tmp_path / "two"

    outcomes = [
        call("sweep", *QUICK, *GRID, "--jobs", jobs, "--out", out) for jobs, out in ((1, one), (2, two))
    ]

    assert outcomes[0].out == outcomes[1].out != ""
    assert (one / "sweep.json").read_bytes() == (two / "sweep.json").read_bytes()
    for name in FOLDERS:
        assert (one / name / "model.npz").read_bytes() == (two / name / "model.npz").read_bytes()


# -- again -----------------------------------------------------------------------------------------


def test_a_finished_sweep_is_only_shown_again(call: Call, tmp_path: Path) -> None:
    """No run is made again, and nothing is said."""
    first = call("sweep", *QUICK, *GRID, "--out", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}

    again = call("sweep", *QUICK, *GRID, "--out", tmp_path)

    assert (again.code, again.out, again.err) == (ExitCode.OK, first.out, "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before


def test_more_seeds_leave_the_finished_runs_alone(call: Call, tmp_path: Path) -> None:
    """Only the new one is run."""
    call("sweep", *QUICK, "--rounds", 2, "--seeds", "0", "--out", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}

    found = call("sweep", *QUICK, "--rounds", 2, "--seeds", "0,1", "--out", tmp_path)

    assert found.code == ExitCode.OK
    assert "2/2 rounds" in found.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(folders_in(tmp_path)) == 2


def test_a_summary_that_was_cut_short_is_made_again(call: Call, tmp_path: Path) -> None:
    """As a kill at that very moment leaves it; so are files half written."""
    call("sweep", *QUICK, *GRID, "--out", tmp_path)
    folder = tmp_path / FOLDERS[2]
    model, results = (folder / "model.npz").read_bytes(), (tmp_path / "sweep.json").read_bytes()
    (folder / "summary.json").write_text('{"dataset": ')
    (folder / ".checkpoint.npz.4711").write_bytes(b"half")
    (folder / "model.npz").write_bytes(b"")

    found = call("sweep", *QUICK, *GRID, "--out", tmp_path)

    assert found.code == ExitCode.OK, found.err
    assert (folder / "model.npz").read_bytes() == model
    assert (tmp_path / "sweep.json").read_bytes() == results
    assert files_of(folder) == RUN_FILES | {"ranks.npz"}


LONG = (*QUICK, "--set", "lr=0.05,0.1,0.2", "--rounds", 60, "--jobs", 2)


@pytest.mark.process
def test_sweep_that_is_killed_goes_on_to_the_same_results(call: Call, tmp_path: Path) -> None:
    """Rounds up to the last checkpoint are kept, and every model is that of an undisturbed sweep."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with a_process("sweep", *LONG, "--out", killed) as process:
        wait_until(lambda: len(list(killed.glob("*/checkpoint.npz"))) == 2, "two checkpoints")
        handles = [os.pidfd_open(pid) for pid in children_of(process.pid)]
        kill_and_wait(process.pid)
        for handle in handles:
            wait_for_end(handle)
            os.close(handle)
    checkpoints = sorted(killed.glob("*/checkpoint.npz"))
    assert checkpoints
    kept = {}
    for path in checkpoints:
        done = int(np.load(path)["done"])
        kept[path.parent] = (path.parent / "metrics.jsonl").read_text().splitlines()[:done]
        assert 0 < done < 60

    resumed = call("sweep", *LONG, "--out", killed)
    expected = call("sweep", *LONG, "--out", undisturbed)

    assert (resumed.code, resumed.out) == (ExitCode.OK, expected.out)
    assert (killed / "sweep.json").read_bytes() == (undisturbed / "sweep.json").read_bytes()
    for folder in folders_in(undisturbed):
        assert files_of(killed / folder.name) == RUN_FILES | {"ranks.npz"}
        for name in ("model.npz", "ranks.npz"):
            assert (killed / folder.name / name).read_bytes() == (folder / name).read_bytes()
        assert rounds_in(killed / folder.name) == rounds_in(folder)
    for folder, lines in kept.items():
        # With the seconds that they took: they are the very same rounds.
        assert (folder / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


@pytest.mark.process
def test_ctrl_c_ends_all_runs(call: Call, tmp_path: Path) -> None:
    """With a documented code; no process is left, and what is done is kept."""
    endless = [*LONG[:-4], "--rounds", 1_000_000, "--jobs", 2, "--out", tmp_path]
    with a_process("sweep", *endless) as process:
        wait_until(lambda: len(list(tmp_path.glob("*/metrics.jsonl"))) == 2, "two runs")
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == ExitCode.INTERRUPTED
    assert (printed, said.splitlines()[-1]) == ("", "edge-fleet: stopped by Ctrl-C")
    assert len(children) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


# -- failures --------------------------------------------------------------------------------------


def test_a_combination_that_fails_is_named_and_the_others_go_on(call: Call, tmp_path: Path) -> None:
    """Here it diverges; it is tried again when the sweep is."""
    arguments = ("sweep", *QUICK, "--rounds", 6, "--set", "lr=1", "--set", f"lr_eta=80,{DIVERGING}")

    found = call(*arguments, "--out", tmp_path)

    assert found.code == ExitCode.USAGE
    good, bad = (f"pfedrec,dim=8,lr=1,lr_eta={value},rounds=6,seed=0" for value in ("80", DIVERGING))
    assert found.err.splitlines()[-1] == (
        f"edge-fleet: {bad}: the training diverges; give a smaller --item-lr, or --set lr=..."
    )
    assert (tmp_path / good / "summary.json").exists()
    _, first, last = (re.split(r" {2,}", line) for line in found.out.splitlines())
    assert (first[3], first[-1]) == ("80", "1")
    assert last == ["pfedrec", "8", "1", DIVERGING, "6", "failed", "failed", "0 of 1"]
    assert results_in(tmp_path)[1]["runs"] == [
        {
            "seed": 0,
            "folder": bad,
            "error": "the training diverges; give a smaller --item-lr, or --set lr=...",
        }
    ]
    again = call(*arguments, "--out", tmp_path)
    assert (again.code, again.out) == (found.code, found.out)


@pytest.mark.process
def test_a_run_whose_process_dies_is_named(tmp_path: Path) -> None:
    """As when memory runs out; the other one is finished."""
    with a_process(
        "sweep", *QUICK, "--set", "lr=0.05,0.1", "--rounds", 60, "--jobs", 2, "--out", tmp_path
    ) as process:
        wait_until(lambda: len(list(tmp_path.glob("*/metrics.jsonl"))) == 2, "two runs")
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == ExitCode.WORKER_DIED
    assert said.splitlines()[-1].endswith(",seed=0: its process has ended; see whether memory ran out")
    assert len(list(tmp_path.glob("*/summary.json"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "speed=1,2"), "unknown entry 'speed'; known are rounds, dim,"),
        (("--set", "lr=0.1,fast"), "lr must be a number, not 'fast'"),
        (("--set", "lr=0.1,"), "lr must be a number, not ''"),
        (("--set", "negatives=4,0"), "negatives is 0; it must lie between 1 and 1000"),
        (("--set", "lr=1", "--set", "lr_eta=80,1e6", "--set", "dim=8,2000"), "dim is 2000; it must lie"),
        (("--set", "lr=0.1,10", "--set", "lr_eta=1e6"), "item_lr is 3999999990.0; it must lie between"),
        (("--set", "lr=0.1,0.10"), "is listed twice; give each value once"),
        (("--set", "lr=0.1", "--set", "lr=0.2"), "lr is given twice; list all its values once"),
        (("--set", "rounds=5", "--rounds", 6), "rounds is given twice"),
        (("--seeds", "0,one"), "--seeds is '0,one'; it must be whole numbers"),
        (("--seeds", ""), "--seeds is ''"),
        (("--seeds", "1,1"), "is listed twice"),
        (("--seeds", "-1"), "--seeds is '-1'"),
        (("--algorithm", "pfedrec,magic"), "unknown algorithm 'magic'; known are pfedrec,"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_run(
    call: Call, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    """In one sentence, also where only the last combination is wrong."""
    found = call("sweep", "--data", "synthetic", "--protocol", "clean", *options, "--out", tmp_path / "out")

    assert_refused(found, ExitCode.USAGE, words)
    assert files_of(tmp_path / "out") <= {"lock"}


def test_a_file_that_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    """With its own code."""
    found = call("sweep", "--data", tmp_path / "none", "--protocol", "clean", "--out", tmp_path / "out")

    assert_refused(found, ExitCode.FILE_UNREADABLE, "none cannot be read")


def test_runs_with_other_data_or_settings_are_not_mixed(call: Call, tmp_path: Path) -> None:
    """Their names would not tell them apart."""
    out = tmp_path / "out"
    data = write_ratings(tmp_path / "ratings.csv")
    call("sweep", *QUICK, "--rounds", 2, "--out", out)
    before = (out / "sweep.json").read_bytes()

    for other, words in (
        (("--data", data, "--protocol", "clean"), "was run with data_sha256 None, not '"),
        (("--data", "synthetic", "--protocol", "published"), "with protocol 'clean', not 'published'"),
        (("--data", "synthetic", "--protocol", "clean", "--preset", "paper"), "with scale 0.1, not 1.0"),
    ):
        found = call("sweep", *other, "--set", "dim=8", "--rounds", 2, "--out", out)
        assert_refused(found, ExitCode.USAGE, words, "choose another --out")

    assert (out / "sweep.json").read_bytes() == before


def test_runs_held_out_otherwise_are_not_taken(call: Call, tmp_path: Path) -> None:
    """Those from before it was written down held out the last items, which suits data with times alone."""
    timed, untimed = (
        (
            "--data",
            write_ratings(tmp_path / f"{each}.csv", timed=each),
            "--protocol",
            "clean",
            "--set",
            "dim=8",
        )
        for each in (True, False)
    )
    for options, name in ((timed, "timed"), (untimed, "untimed")):
        call("sweep", *options, "--rounds", 2, "--out", tmp_path / name)
        (config,) = (tmp_path / name).glob("*/config.json")
        content = json.loads(config.read_text())
        del content["hold_out"]
        config.write_text(json.dumps(content))

    taken = call("sweep", *timed, "--rounds", 2, "--out", tmp_path / "timed")
    refused = call("sweep", *untimed, "--rounds", 2, "--out", tmp_path / "untimed")

    assert taken.code == ExitCode.OK, taken.err
    assert_refused(refused, ExitCode.USAGE, "with hold_out 'last', not 'random'", "choose another --out")


def test_two_sweeps_do_not_share_a_folder(call: Call, tmp_path: Path) -> None:
    """The second is told so, and changes nothing."""
    with exclusive(tmp_path):
        found = call("sweep", *QUICK, "--rounds", 2, "--out", tmp_path)

    assert_refused(found, ExitCode.IN_USE, "is in use by another process")
    assert files_of(tmp_path) == {"lock"}


def test_the_folder_of_a_single_run_is_refused(call: Call, tmp_path: Path) -> None:
    """It holds a run, not runs."""
    call("simulate", *QUICK, "--rounds", 2, "--out", tmp_path)

    found = call("sweep", *QUICK, "--rounds", 2, "--out", tmp_path)

    assert_refused(found, ExitCode.ALREADY_INITIALISED, "is the folder of a single run")
