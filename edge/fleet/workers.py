"""Processes that run cohorts side by side; one worker is this process itself."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from broker.errors import PFedRecError, WorkerDiedError
from edge.fleet.cohort import Cohort

MakeCohort = Callable[[int], Cohort]
_PEAK_MEMORY = "peak memory"
"""What a worker is asked about itself, not about its cohorts."""


class Workers:
    """Runs a method of every cohort, and gives the answers in the order of the cohorts.

    Parameters
    ----------
    make_cohort : callable
        Makes a cohort by number; called in the process that is going to run it.
    n_workers : int
        Processes. Never more than cohorts.
    """

    def __init__(self, make_cohort: MakeCohort, n_cohorts: int, n_workers: int) -> None:
        n_workers = min(n_workers, n_cohorts)
        self._local: list[Cohort] = []
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._order: list[int] = list(range(n_cohorts))
        if n_workers == 1:
            self._local = [make_cohort(number) for number in range(n_cohorts)]
            return
        context = multiprocessing.get_context("fork")
        shares = [list(range(worker, n_cohorts, n_workers)) for worker in range(n_workers)]
        self._order = [number for share in shares for number in share]
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, [ours, *self._pipes], make_cohort, share), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def all(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        """Call ``cohort.method(*arguments, **options)`` of every cohort.

        Raises
        ------
        PFedRecError
            Whatever a cohort raises.
        WorkerDiedError
        """
        if self._local:
            return [getattr(cohort, method)(*arguments, **options) for cohort in self._local]
        answers = [answer for share in self._ask(method, arguments, options) for answer in share]
        return [
            answer for _, answer in sorted(zip(self._order, answers, strict=True), key=lambda pair: pair[0])
        ]

    def peak_rss_mb(self) -> float:
        """Give the sum of the worker processes' peak memory, in MiB; 0 when this process does the work.

        Memory that processes share is counted in each that has used it.

        Raises
        ------
        WorkerDiedError
        """
        return sum(self._ask(_PEAK_MEMORY, (), {}), 0.0)

    def _ask(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
        """Have all processes do the same, and give their answers."""
        for pipe in self._pipes:
            try:
                pipe.send((method, arguments, options))
            except OSError:
                raise WorkerDiedError("a worker process has ended; see whether memory ran out") from None
        answers: list[Any] = []
        failure: BaseException | None = None
        for pipe in self._pipes:
            try:
                outcome = pipe.recv()
            # One that dies with a question unread resets the pipe instead of ending it.
            except (EOFError, OSError):
                raise WorkerDiedError("a worker process has ended; see whether memory ran out") from None
            if isinstance(outcome, BaseException):
                failure = failure or outcome
            else:
                answers.append(outcome)
        if failure is not None:
            raise failure
        return answers

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _serve(
    pipe: Connection, others: Sequence[Connection], make_cohort: MakeCohort, numbers: list[int]
) -> None:
    """Run cohorts as the parent asks, until it closes the pipe or is gone."""
    for other in others:
        # Inherited by the fork: as long as this process has them open, the others' ends would not come.
        other.close()
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cohorts = [make_cohort(number) for number in numbers]
    while True:
        try:
            method, arguments, options = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        outcome: Any
        try:
            if method == _PEAK_MEMORY:
                outcome = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            else:
                outcome = [getattr(cohort, method)(*arguments, **options) for cohort in cohorts]
        except PFedRecError as error:
            outcome = error
        try:
            pipe.send(outcome)
        except OSError:
            # Nobody is waiting for the answer any more.
            os._exit(0)
