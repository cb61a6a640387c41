"""Processes that share a fleet's users."""

from typing import Any

import pytest

from edge.fleet.workers import Workers


class _Numbered:
    """Stands for a cohort."""

    def __init__(self, number: int) -> None:
        self.number = number

    def scaled(self, factor: int) -> int:
        return factor * self.number


def _workers(n_workers: int) -> Workers:
    make_cohort: Any = _Numbered
    return Workers(make_cohort, 5, n_workers)


@pytest.mark.parametrize("n_workers", [1, 2, 5, 9])
def test_answers_come_in_the_order_of_the_cohorts(n_workers: int) -> None:
    """Whatever process has which."""
    workers = _workers(n_workers)
    try:
        assert workers.all("scaled", 10) == [0, 10, 20, 30, 40]
    finally:
        workers.close()


def test_peak_memory_is_the_sum_over_the_processes() -> None:
    """Nothing where this process does the work; some megabytes for each that helps."""
    peaks = []
    for n_workers in (1, 2):
        workers = _workers(n_workers)
        try:
            peaks.append(workers.peak_rss_mb())
            assert workers.all("scaled", 1) == [0, 1, 2, 3, 4]
        finally:
            workers.close()

    assert peaks[0] == 0.0
    assert 2.0 < peaks[1] < 10_000.0
