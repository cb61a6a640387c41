"""``edge-fleet simulate`` that is stopped: words and codes, who is left behind, and what goes on from it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.exit_codes import ExitCode
from edge.fleet.runfolder import CHECKPOINT
from tests.brokers import PATIENCE_S
from tests.edge.running import wait_until
from tests.fleet.builders import Call, files_of
from tests.fleet.test_cli import assert_refused

pytestmark = pytest.mark.process

OPTIONS = ("--data", "synthetic", "--protocol", "clean", "--dim", "8", "--rounds", "1000000")


@contextmanager
def a_run(out: Path, workers: int) -> Iterator[subprocess.Popen[str]]:
    """Start a run that does not end by itself; it has made its first round, and is ended in any case."""
    arguments = ["simulate", *OPTIONS, "--workers", str(workers), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", "from edge.fleet.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        try:
            wait_until((out / "metrics.jsonl").exists, "the first round")
            yield process
        finally:
            process.kill()


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Give the processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; it may still wait for somebody to ask for its code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# -- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_run_whose_worker_was_killed_says_so_and_ends(tmp_path: Path, victim: int) -> None:
    """One sentence, a code of its own, no worker that stays; the rounds that are done are kept."""
    with a_run(tmp_path / "run", workers=3) as process:
        workers = children_of(process)
        assert len(workers) == 3
        os.kill(workers[victim], signal.SIGKILL)
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, printed) == (ExitCode.WORKER_DIED, "")
    assert said == "edge-fleet: a worker process has ended; see whether memory ran out\n"
    assert all(map(is_gone, workers))
    assert {"config.json", "metrics.jsonl"} <= files_of(tmp_path / "run")


def test_workers_end_with_a_run_that_was_killed(tmp_path: Path) -> None:
    """Nobody is left to end them, so they do it themselves, and have nothing to say about it."""
    with a_run(tmp_path / "run", workers=3) as process:
        workers = children_of(process)
        process.kill()
        # It ends only when the workers, who have the same stderr, have closed it, too.
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, printed, said) == (-signal.SIGKILL, "", "")
    wait_until(lambda: all(map(is_gone, workers)), "the end of the workers")


def test_ctrl_c_ends_a_run_with_workers(tmp_path: Path) -> None:
    """As one without: with one sentence."""
    with a_run(tmp_path / "run", workers=3) as process:
        workers = children_of(process)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, printed) == (ExitCode.INTERRUPTED, "")
    assert said.split("\n")[-2:] == ["edge-fleet: stopped by Ctrl-C", ""]
    assert "Traceback" not in said
    assert all(map(is_gone, workers))


# -- what --resume says ----------------------------------------------------------------------------


def a_stopped_run(out: Path) -> dict[str, bytes]:
    """Kill a run after its first rounds; give its files."""
    with a_run(out, workers=1) as process:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert "summary.json" not in files_of(out)
    return contents_of(out)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Give all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--seed", "1"), ("seed 0, not 1",)),
        (("--encoding", "int8"), ("encoding 'float32', not 'int8'",)),
        (("--dim", "9"), ("dim 8, not 9",)),
        (("--protocol", "published"), ("protocol 'clean', not 'published'",)),
        (("--algorithm", "fedmf", "--preset", "paper"), ("begun with",)),
        (("--set", "decay=0.05"), ("hyperparameters",)),
    ],
)
def test_resume_with_other_options_is_a_sentence(
    call: Call, tmp_path: Path, option: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """It names what was given otherwise; the folder stays as it is."""
    before = a_stopped_run(tmp_path / "run")

    found = call("simulate", *OPTIONS, "--resume", "--out", tmp_path / "run", *option)

    assert_refused(found, ExitCode.USAGE, *words, "resume it with the same options")
    assert contents_of(tmp_path / "run") == before


def test_resume_from_a_damaged_checkpoint_is_a_sentence(call: Call, tmp_path: Path) -> None:
    """With a way out."""
    a_stopped_run(tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"PK\x03\x04 and no more")
    before = contents_of(tmp_path / "run")

    found = call("simulate", *OPTIONS, "--resume", "--out", tmp_path / "run")

    assert_refused(found, ExitCode.CORRUPT, f"{CHECKPOINT} is no checkpoint of this run", "--overwrite")
    assert contents_of(tmp_path / "run") == before


def test_resume_of_a_finished_run_is_a_sentence(call: Call, tmp_path: Path) -> None:
    """There is nothing to do."""
    short = (*OPTIONS[:-1], "2", "--out", tmp_path / "run")
    assert call("simulate", *short).code == ExitCode.OK
    before = contents_of(tmp_path / "run")

    found = call("simulate", *short, "--resume")

    assert_refused(found, ExitCode.ALREADY_INITIALISED, "holds a finished run")
    assert contents_of(tmp_path / "run") == before


def test_resume_without_anything_to_resume_begins(call: Call, tmp_path: Path) -> None:
    """So that one command line serves the first time and every other."""
    found = call("simulate", *OPTIONS[:-1], "2", "--out", tmp_path / "run", "--resume")

    assert found.code == ExitCode.OK
    assert re.search(r"^best round +\d of 2 ", found.out, re.MULTILINE)
