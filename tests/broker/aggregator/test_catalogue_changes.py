"""Changes of a catalogue: what files say, what becomes of the catalogue and of the table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.aggregator.catalogue_changes import (
    CatalogueChange,
    Kind,
    apply_change,
    parse_change,
    rolled_back,
    with_new_rows,
)
from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, CoreState, RoundSettings
from broker.errors import UnknownItemError
from broker.protocol.catalogue import Catalogue
from broker.protocol.encodings import SparseChange
from tests.broker.aggregator.builders import INSTANCE, a_change, a_table, an_update
from trainer.aggregation import FedAvg
from trainer.errors import DataFormatError, ParameterError, PFedRecError

CATALOGUE = Catalogue(("a", "b", "c", "d"), frozenset({3}), {"old b": 1})


def a_file(kind: Kind, text: str) -> CatalogueChange:
    """Read a change."""
    return parse_change(kind, text.encode(), "items.txt")


def after(kind: Kind, text: str, catalogue: Catalogue = CATALOGUE) -> Catalogue:
    """Give the catalogue after a file."""
    return apply_change(catalogue, a_file(kind, text), 3).catalogue


def test_added_items_stand_at_the_end() -> None:
    """In the order of the file, whatever other columns it has; what is retired comes back."""
    assert after("add", "e\nf\n").keys == ("a", "b", "c", "d", "e", "f")
    assert after("add", "item\ttitle\ne\te title\nf\tlike f\n").keys[4:] == ("e", "f")
    back = after("add", "d\n")
    assert (back.keys, back.retired) == (CATALOGUE.keys, frozenset())


def test_retired_item_keeps_its_row() -> None:
    """It is marked and nothing else."""
    assert after("retire", "a\n") == Catalogue(CATALOGUE.keys, frozenset({0, 3}), {"old b": 1})


def test_renamed_item_keeps_its_row_and_its_former_keys() -> None:
    """However often; back to a former key is allowed, another's former key is not."""
    once = after("rename", "b\tbb\n")
    assert (once.keys, once.former) == (("a", "bb", "c", "d"), {"old b": 1, "b": 1})
    back = after("rename", "bb,b\n", once)
    assert (back.keys, back.former) == (("a", "b", "c", "d"), {"old b": 1, "bb": 1})
    with pytest.raises(DataFormatError, match="former key of 'b'"):
        after("rename", "a,bb\n", back)


@pytest.mark.parametrize(
    ("kind", "text", "error", "words"),
    [
        ("add", "e\na\n", DataFormatError, "line 2.*already"),
        ("add", "e\ne\n", DataFormatError, "line 2.*stands in line 1"),
        ("add", "old b\n", DataFormatError, "former key of 'b'"),
        ("add", "e\tlike:nobody\n", UnknownItemError, "line 1.*'nobody' is not in the fleet's catalogue"),
        ("add", "new-1,like:a\nnew-2\n", DataFormatError, "line 1.*not every line has ','"),
        ("add", "new-2\nnew-1|like:a\n", DataFormatError, r"line 2.*not every line has '\|'"),
        ("add", "", DataFormatError, "empty"),
        ("add", "\0\n", DataFormatError, "items.txt"),
        ("retire", "a\nnobody\n", UnknownItemError, "line 2"),
        ("retire", "old b\n", UnknownItemError, "its row is 'b' now"),
        ("retire", "d\n", DataFormatError, "retired already"),
        ("retire", "a\nb\nc\n", ParameterError, "every item"),
        ("rename", "a\n", DataFormatError, "1 columns"),
        ("rename", "a\tb\n", DataFormatError, "already"),
        ("rename", "nobody\tz\n", UnknownItemError, "nobody"),
    ],
)  # fmt: skip
def test_file_with_a_mistake_is_refused(kind: Kind, text: str, error: type[PFedRecError], words: str) -> None:
    """With its name and the line."""
    with pytest.raises(error, match=words):
        after(kind, text)


def test_too_large_a_catalogue_is_refused() -> None:
    """Before anything is stored."""
    with pytest.raises(ParameterError, match="too many"):
        apply_change(CATALOGUE, a_file("add", "e\n"), 250_000_000)


def test_new_rows_start_where_their_like_are_or_at_the_mean() -> None:
    """A like item may stand earlier in the file; the mean is of the rows in use."""
    change = a_file("add", "e\tlike:a\tlike:c\nf\tx\ng\tlike:e\tlike:d\n".replace("f\tx\n", "f\tx\ty\n"))
    table = a_table(n_items=4)

    grown = apply_change(CATALOGUE, change, 3).table_from(table)

    expected = table.astype(np.float64)
    np.testing.assert_array_equal(grown[:4], table)
    np.testing.assert_array_equal(grown[4], ((expected[0] + expected[2]) / 2).astype(np.float32))
    np.testing.assert_array_equal(grown[5], expected[:3].mean(axis=0).astype(np.float32))
    np.testing.assert_allclose(grown[6], (grown[4] + table[3]) / 2, rtol=1e-6)
    with pytest.raises(ParameterError):
        apply_change(CATALOGUE, change, 3).table_from(a_table(n_items=5))


@given(
    st.lists(st.tuples(st.sampled_from(["add", "retire", "rename"]), st.integers(0, 9), st.integers(0, 9)))
)
def test_whatever_comes_rows_keep_their_places(steps: list[tuple[Kind, int, int]]) -> None:
    """A refused change changes nothing; an accepted one survives as JSON and leaves names distinct."""
    catalogue = CATALOGUE
    for kind, one, other in steps:
        names = [*catalogue.keys, *catalogue.former, "new 1", "new 2"]
        columns = [names[one % len(names)]] + [names[other % len(names)]] * (kind == "rename")
        change = CatalogueChange(kind=kind, items=(tuple(columns),), source="f", lines=(1,))
        assert CatalogueChange.from_json(change.to_json()) == change
        try:
            changed = apply_change(catalogue, change, 3).catalogue
        except PFedRecError:
            continue
        row_of = {key: row for row, key in enumerate(changed.keys)} | changed.former
        for row, key in enumerate(catalogue.keys):
            assert row_of[key] == row
        assert row_of.keys() >= catalogue.former.keys()
        assert len(row_of) == len(changed.keys) + len(changed.former)
        assert len(changed.retired) < len(changed.keys)
        catalogue = changed


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"kind": "eat", "items": [], "source": "", "lines": []}']
)
def test_other_json_is_no_change(content: str) -> None:
    """What the store's queue may hold."""
    with pytest.raises(ValueError, match=r"catalogue|Expecting"):
        CatalogueChange.from_json(content)


def test_older_table_keeps_the_rows_that_have_come_since() -> None:
    """A table never loses rows; what a strategy remembers of new rows is nothing."""
    old, current = a_table(1, n_items=4), a_table(2, n_items=6)
    table, memory = rolled_back(old, {"moment": old, "count": old[:1]}, current)
    np.testing.assert_array_equal(table, np.concatenate((old, current[4:])))
    assert [len(memory[name]) for name in ("moment", "count")] == [6, 1]
    assert rolled_back(old, {}, a_table(2, n_items=4)) == (old, {})
    assert with_new_rows(old, 4, 6)[4:].tolist() == [[0.0] * 3] * 2
    assert with_new_rows(a_table(n_items=1), 4, 6).shape == (1, 3)


def a_core(catalogue: Catalogue = CATALOGUE) -> AggregatorCore:
    """Give a core of two devices whose rounds close with two updates."""
    state = CoreState(instance=INSTANCE, version=0, table=a_table(n_items=4), catalogue=catalogue)
    return AggregatorCore(RoundSettings(buffer=2, population=2), FedAvg(), state)


def test_change_takes_the_open_round_with_it() -> None:
    """One version has both; updates made on the smaller table are taken afterwards."""
    core = a_core()
    before, change = core.table, a_change(n_items=3)
    core.update_received("pi", an_update(change=change), b"", 0.0)

    (closed, _) = core.change_catalogue(7, a_file("add", "e\n"))

    assert isinstance(closed, CloseRound)
    assert (closed.round.version, closed.round.updates, core.buffered) == (1, 1, 0)
    assert closed.round.catalogue_step is not None
    assert closed.round.catalogue_step.number == 7
    expected = before.copy()
    expected[change.rows] += change.change * np.float32(0.5)
    np.testing.assert_array_equal(core.table[:4], expected)
    for seq in (2, 3):
        core.update_received("pi", an_update(seq=seq, change=change), b"", 1.0)
    assert core.version == 2
    assert core.table.shape == (5, 3)


def test_retired_row_does_not_move() -> None:
    """An update that touches it is accepted; the rest of it counts."""
    core = a_core()
    before = core.table
    change = SparseChange(rows=np.array([0, 3]), change=np.ones((2, 3), dtype=np.float32))
    for seq in (1, 2):
        core.update_received("pi", an_update(seq=seq, change=change), b"", 0.0)
    np.testing.assert_array_equal(core.table[3], before[3])
    assert (core.table[0] != before[0]).all()


def test_refused_change_closes_no_round() -> None:
    """It contradicts the catalogue by the time that it is its turn."""
    core = a_core()
    with pytest.raises(DataFormatError):
        core.change_catalogue(1, a_file("add", "a\n"))
    assert (core.version, core.catalogue) == (0, CATALOGUE)
