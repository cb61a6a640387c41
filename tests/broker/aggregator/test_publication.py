"""What is offered with a version: steps as long as they are worth it."""

import numpy as np
import pytest

from broker.aggregator.publication import Publication
from broker.protocol.chunks import Assembly
from broker.protocol.deltas import with_delta
from broker.protocol.messages import MAX_DELTAS
from tests.edge.builders import a_plan
from trainer.aggregation.rounding import rounded
from trainer.params import Floats, ScoreFunction

N_ITEMS, DIM = 1000, 40


def a_publication() -> tuple[Publication, list[Floats]]:
    """Give a publication and the table that it begins with."""
    start = ScoreFunction(w=np.zeros(DIM, dtype=np.float32), b=0.0)
    publication = Publication([f"item {row}" for row in range(N_ITEMS)], a_plan(), start)
    table = np.random.default_rng(0).standard_normal((N_ITEMS, DIM), dtype=np.float32)
    publication.begin(table)
    return publication, [table]


def close(publication: Publication, tables: list[Floats], n_changed: int) -> None:
    """Close a round that changes so many rows."""
    table = tables[-1].copy()
    rows = np.random.default_rng(len(tables)).choice(N_ITEMS, n_changed, replace=False)
    table[rows] += np.random.default_rng(7).standard_normal((n_changed, DIM), dtype=np.float32)
    tables.append(table)
    publication.add_step(len(tables) - 1, table)


def offered(publication: Publication, after: int = 0) -> dict[int, bytes]:
    """Give the steps on offer, put together from their chunks."""
    assemblies: dict[int, Assembly] = {}
    for version, chunk in publication.step_chunks(after):
        assemblies.setdefault(version, Assembly(chunk.size, chunk.digest)).add(chunk)
    return {version: assembly.whole() for version, assembly in assemblies.items()}


def test_steps_lead_from_each_version_to_the_next() -> None:
    """To the last bit, also where a step takes several chunks."""
    publication, tables = a_publication()
    for n_changed in (3, 450, 5):
        close(publication, tables, n_changed)

    steps = offered(publication)

    assert list(steps) == [1, 2, 3]
    assert len(steps[2]) > 60_000
    for version, content in steps.items():
        after = with_delta(tables[version - 1], content, N_ITEMS)
        assert after.tobytes() == tables[version].tobytes()
    assert list(offered(publication, 2)) == [3]


def test_large_step_ends_the_chain() -> None:
    """Nobody gets over it for less than a table; what comes after it is offered again."""
    publication, tables = a_publication()
    close(publication, tables, 5)
    close(publication, tables, 800)
    assert offered(publication) == {}

    close(publication, tables, 5)

    assert list(offered(publication)) == [3]


def test_rounded_steps_of_the_whole_table_are_offered() -> None:
    """A byte a value is less than half of the table; what they lead to is the table, to the last bit."""
    publication, tables = a_publication()
    rng = np.random.default_rng(8)
    for version in (1, 2, 3):
        change = rng.standard_normal((N_ITEMS, DIM), dtype=np.float32) * np.float32(0.01)
        tables.append(tables[-1] + rounded(change))
        publication.add_step(version, tables[-1])

    steps = offered(publication)

    assert list(steps) == [1, 2, 3]
    assert max(map(len, steps.values())) < 0.3 * tables[0].nbytes
    reached = tables[0]
    for content in steps.values():
        reached = with_delta(reached, content, N_ITEMS)
    assert reached.tobytes() == tables[-1].tobytes()


@pytest.mark.parametrize(("n_changed", "kept"), [(1, MAX_DELTAS), (300, 3)])
def test_oldest_steps_are_given_up(n_changed: int, kept: int) -> None:
    """There are at most eight, and together they are smaller than the table."""
    publication, tables = a_publication()
    for _ in range(MAX_DELTAS + 4):
        close(publication, tables, n_changed)

    assert list(offered(publication)) == list(range(len(tables) - kept, len(tables)))
    assert sum(map(len, offered(publication).values())) <= tables[0].nbytes


def test_publication_without_a_first_table_offers_nothing() -> None:
    """There is nothing to step from."""
    start = ScoreFunction(w=np.zeros(DIM, dtype=np.float32), b=0.0)
    publication = Publication(["item"], a_plan(), start)

    publication.add_step(1, np.zeros((1, DIM), dtype=np.float32))

    assert offered(publication) == {}
