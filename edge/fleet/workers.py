"""Processes that run cohorts side by side; one worker is this process itself."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from broker.errors import PFedRecError, WorkerDiedError
from edge.fleet.cohort import Cohort

MakeCohort = Callable[[int], Cohort]


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
            except EOFError:
                raise WorkerDiedError("a worker process has ended; see whether memory ran out") from None
            if isinstance(outcome, BaseException):
                failure = failure or outcome
            else:
                answers += outcome
        if failure is not None:
            raise failure
        return [
            answer for _, answer in sorted(zip(self._order, answers, strict=True), key=lambda pair: pair[0])
        ]

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
    cohorts = [make_cohort(number) for number in numbers]
    while True:
        try:
            method, arguments, options = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            outcome: Any = [getattr(cohort, method)(*arguments, **options) for cohort in cohorts]
        except PFedRecError as error:
            outcome = error
        pipe.send(outcome)
