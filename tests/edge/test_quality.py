"""A device's report: both tables rank the newest item against the same others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.messages import Quality
from edge.quality import CANDIDATES, compare
from tests.edge.builders import a_head, a_plan
from trainer.params import Floats, Rows, ScoreFunction

N_ITEMS = 200
NEWEST = np.array([5, 9, 3, 7], dtype=np.int64)
NONE = np.empty(0, dtype=np.int64)
PLAN = a_plan(guard=1.0)


def compared(
    table: Floats,
    before: Floats,
    *,
    newest: Rows = NEWEST,
    retired: Rows = NONE,
    seed: int = 0,
    version: int = 8,
) -> Quality | None:
    """Compare for a user whose w is (1, 0), and whose device has version 6."""
    head = a_head(version, table=table, plan=PLAN, item_keys=[str(row) for row in range(len(table))])
    start = ScoreFunction(w=np.array([1, 0], dtype=np.float32), b=0.0)
    return compare(head, table, 6, before, start, newest, retired, np.random.default_rng(seed))


def first_at(score: float) -> Floats:
    """Give a table with which the newest item has this score, and the others 0.001 to 0.2."""
    table = np.zeros((N_ITEMS, 2), dtype=np.float32)
    table[:, 0] = np.arange(1, N_ITEMS + 1) / 1000
    table[NEWEST[-1], 0] = score
    return table


def test_report_has_both_sides_figures() -> None:
    """Above all others before, below all now."""
    report = compared(first_at(0.0), first_at(1.0))
    assert report is not None
    assert (report.version, report.version_before, report.candidates) == (8, 6, CANDIDATES)
    assert (report.hits, report.beaten, report.ndcg) == (0, 0, 0.0)
    assert (report.hits_before, report.beaten_before, report.ndcg_before) == (1, CANDIDATES, 1.0)
    assert report.loss > report.loss_before > 0.0


@given(st.integers(0, 2**32 - 1))
def test_same_tables_give_the_same_figures(seed: int) -> None:
    """What is compared differs in the table alone."""
    table = np.random.default_rng(seed).standard_normal((N_ITEMS, 2), dtype=np.float32)
    report = compared(table, table.copy(), seed=seed)
    assert report is not None
    assert (report.hits, report.beaten, report.ndcg, report.loss) == (
        report.hits_before,
        report.beaten_before,
        report.ndcg_before,
        report.loss_before,
    )


@pytest.mark.parametrize("version", [6, 5])
def test_no_report_where_the_fleet_was_set_back(version: int) -> None:
    """A broker that lost its newest state offers what it had before; nothing can be said of that."""
    assert compared(first_at(0.0), first_at(1.0), version=version) is None


def test_candidates_are_items_in_use_that_the_user_does_not_have() -> None:
    """And that both tables have: rows 0 and 1 alone are left to draw here."""
    retired = np.arange(2, N_ITEMS, dtype=np.int64)
    table = first_at(0.0015)
    report = compared(table, table[:100], retired=retired)
    assert report is not None
    assert 0 < report.beaten < CANDIDATES
    assert compared(table, table, retired=np.arange(N_ITEMS, dtype=np.int64)) is None


def test_nothing_is_reported_where_there_is_nothing_to_compare() -> None:
    """Too few items, or tables of another width."""
    table = first_at(0.1)
    assert compared(table, table, newest=NEWEST[:2]) is None
    assert compared(table, np.zeros((N_ITEMS, 3), dtype=np.float32)) is None


def test_values_beyond_all_bounds_are_reported_all_the_same() -> None:
    """Such a table is what the guard looks for."""
    report = compared(np.full((N_ITEMS, 2), 3e38, dtype=np.float32), first_at(1.0))
    assert report is not None
    assert report.beaten == 0


def test_head_asks_by_device_and_version() -> None:
    """Nobody where the plan does not ask."""
    head = a_head(8, plan=a_plan(guard=0.5))
    asked = [head.asks(f"pi-{number}") for number in range(40)]
    assert 5 < sum(asked) < 35
    assert asked != [replace(head, version=9, slot=1).asks(f"pi-{number}") for number in range(40)]
    assert not a_head(8).asks("pi-0")
