"""A sweep: a simulation for every combination of listed settings, several side by side.

Every run is a run folder of its own, named after its values, and a process of its own that this one forks
when the data is read. What is done is known from the folders alone: a run with a summary is finished, one
with a checkpoint goes on from it. So a sweep that was stopped in whatever way is called again, and goes on.

Combinations are compared by validation. Test figures are not even written unless they are asked for.
"""

import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from broker.embedded import end_with_parent
from broker.errors import AlreadyInitialisedError, PFedRecError
from broker.exit_codes import ExitCode, exit_code_of
from broker.storage import exclusive, make_directory, write_atomically
from edge.fleet.progress import Progress
from edge.fleet.scenario import Scenario, load_scenario
from edge.fleet.simulatecommand import run_simulation
from edge.fleet.sweepgrid import SweepOptions, SweepRun, combinations
from edge.fleet.sweepresults import Failure, Sweep, results_of

RESULTS = "sweep.json"


def run_sweep(
    options: SweepOptions,
    out: Path,
    *,
    jobs: int,
    show_test: bool = False,
    progress: Callable[[int, str], Progress] = Progress,
) -> Sweep:
    """Make all runs that are not finished yet, then compare.

    Parameters
    ----------
    jobs : int
        Runs at a time; the results do not depend on it.
    show_test : bool
        Give and write test figures, too.

    Raises
    ------
    ParameterError
        When an option is wrong, or `out` holds runs with other data or settings; nothing is run.
    AlreadyInitialisedError
        When `out` is a run's own folder.
    InUseError
        When another sweep works in `out`.
    """
    found = combinations(options)
    scenarios = {seed: load_scenario(options.data, options.protocol, seed) for seed in options.seeds}
    if (out / "config.json").exists():
        raise AlreadyInitialisedError(f"{out} is the folder of a single run; choose another --out")
    make_directory(out)
    # Forked runs hold the lock, too: it is free only when the last of them has ended.
    with exclusive(out):
        grid = [
            (combination, [SweepRun(options, combination, seed, out) for seed in options.seeds])
            for combination in found
        ]
        runs = [run for _, of_it in grid for run in of_it]
        for run in runs:
            run.require_same(scenarios[run.seed])
        failures: list[Failure] = []

        def write() -> dict[str, Any]:
            sha256 = scenarios[options.seeds[0]].sha256
            content = results_of(options, sha256, grid, failures, show_test=show_test)
            write_atomically(out / RESULTS, (json.dumps(content, indent=2) + "\n").encode())
            return content

        def on_end(failure: Failure | None) -> None:
            failures.extend([] if failure is None else [failure])
            write()

        pending = [run for run in runs if run.figures() is None]
        if pending:
            _run_all(pending, scenarios, jobs, on_end, progress)
        order = {run.name: place for place, run in enumerate(runs)}
        failures.sort(key=lambda failure: order[failure.folder])
        return Sweep(content=write(), failures=failures)


def _run_all(
    pending: Sequence[SweepRun],
    scenarios: Mapping[int, Scenario],
    jobs: int,
    on_end: Callable[[Failure | None], None],
    progress: Callable[[int, str], Progress],
) -> None:
    """Make the runs, `jobs` at a time; `on_end` is told of the end of each."""
    done = {run.name: run.rounds_done() for run in pending}
    before = sum(done.values())
    bar = progress(max(1, sum(run.preset.rounds for run in pending) - before), "rounds")
    waiting, active = deque(pending), dict[Connection, tuple[SweepRun, Any]]()
    n_ended = n_failed = 0
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                pipe, process = _start(run, scenarios[run.seed])
                active[pipe] = run, process
            ready = wait(list(active))
            for pipe in [pipe for pipe in active if pipe in ready]:
                run, process = active[pipe]
                message = _received(pipe)
                if isinstance(message, int):
                    # The last round counts when all is written.
                    done[run.name] = min(message, run.preset.rounds - 1)
                else:
                    del active[pipe]
                    pipe.close()
                    process.join()
                    done[run.name] = run.preset.rounds
                    sentence, code = message
                    failed = code != ExitCode.OK
                    n_ended, n_failed = n_ended + 1, n_failed + failed
                    on_end(Failure(folder=run.name, sentence=sentence, code=code) if failed else None)
                note = f"{n_ended} of {len(pending)} runs{f', {n_failed} failed' if n_failed else ''}"
                bar.update(sum(done.values()) - before, note)
    finally:
        bar.close()
        for pipe, (_, process) in active.items():
            process.kill()
            process.join()
            pipe.close()


def _start(run: SweepRun, scenario: Scenario) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(ours, theirs, os.getpid(), run, scenario), daemon=True)
    with _without_ctrl_c():
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back; a process that is forked meanwhile never hears of it, its parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(ours: Connection, theirs: Connection, parent: int, run: SweepRun, scenario: Scenario) -> None:
    """Make one run, in a process of its own that does not outlive its parent."""
    ours.close()
    end_with_parent()
    if os.getppid() != parent:
        return
    sentence, code = "", ExitCode.OK
    try:
        run.tidy()
        run_simulation(
            run.options, run.path, resume=True, scenario=scenario, progress=lambda *_: _Told(theirs)
        )
    except PFedRecError as error:
        sentence, code = str(error), exit_code_of(error)
    except Exception as error:  # noqa: BLE001 - the others go on; this one is named
        sentence, code = f"unexpected {type(error).__name__}: {error}", ExitCode.UNEXPECTED
    theirs.send((sentence, code))


def _received(pipe: Connection) -> Any:
    """Give the number of a round that is done, or at the end a sentence and an exit code."""
    try:
        return pipe.recv()
    except EOFError:
        return "its process has ended; see whether memory ran out", ExitCode.WORKER_DIED


class _Told(Progress):
    """Tells the sweep instead of the user."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(1, "rounds")
        self._pipe = pipe

    def update(self, done: int, note: str = "") -> None:  # noqa: ARG002
        self._pipe.send(done)

    def close(self) -> None:
        pass
