"""When a device trains: every reason, and what no combination of facts may lead to."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.messages import Head
from edge.scheduler import Decision, Pass, Progress, decide
from tests.edge.builders import INSTANCE, a_head, a_table


@dataclass
class Facts:
    """What `decide` is told; as it stands, a device that contributes."""

    has_table: bool = True
    n_known: int = 3
    version: int = 5
    revision: int = 10
    progress: Progress = field(
        default_factory=lambda: Progress(
            contributed_version=4, trained_revision=10, contributed_revision=10, idle_passes=1
        )
    )
    outbox_empty: bool = True
    check_in_due: bool = True
    max_idle_passes: int = 3

    def decide(self) -> Decision:
        """Ask."""
        return decide(**vars(self))


def progress(**changes: int) -> Progress:
    """Give the progress of a device that has contributed to version 4 and knows revision 10."""
    values = {"contributed_version": 4, "trained_revision": 10, "contributed_revision": 10, "idle_passes": 1}
    return Progress(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({}, Pass.CONTRIBUTING, "contributing to the newest version"),
        ({"has_table": False}, Pass.NONE, "waiting for the first table"),
        ({"n_known": 0}, Pass.NONE, "no interactions with items of the catalogue yet"),
        ({"outbox_empty": False}, Pass.NONE, "an update waits for its receipt"),
        ({"outbox_empty": False, "check_in_due": False}, Pass.NONE, "an update waits for its receipt"),
        ({"check_in_due": False}, Pass.NONE, "waiting for the next check-in"),
        ({"version": 4}, Pass.NONE, "waiting for a new version"),
        ({"version": 3}, Pass.NONE, "waiting for a new version"),
        (
            {"progress": progress(idle_passes=3)},
            Pass.NONE,
            "resting: no new interactions for many versions",
        ),
        ({"revision": 11, "check_in_due": False}, Pass.LOCAL, "new interactions"),
        ({"revision": 11, "outbox_empty": False}, Pass.LOCAL, "new interactions"),
    ],
)
def test_decide_tells_the_reason(changes: dict[str, Any], kind: Pass, reason: str) -> None:
    """One fact that is otherwise decides."""
    assert Facts(**changes).decide() == Decision(kind, reason)


def test_decide_of_new_interactions_contributes_to_the_same_version_again() -> None:
    """There is something new to say about a version that was contributed to."""
    assert Facts(version=4, revision=11).decide().kind is Pass.CONTRIBUTING


def test_decide_of_new_interactions_ends_the_rest() -> None:
    """However many passes were made without one."""
    rested = progress(idle_passes=99)
    assert Facts(revision=11, progress=rested).decide().kind is Pass.CONTRIBUTING


def test_decide_after_a_local_pass_still_contributes_the_news() -> None:
    """The local pass knew the newest interaction, the fleet does not."""
    trained = progress(trained_revision=11)
    assert Facts(version=4, revision=11, progress=trained).decide().kind is Pass.CONTRIBUTING


def test_decide_for_a_new_device_contributes_to_the_first_version() -> None:
    """Nothing was done yet; interactions and version 0 are both news."""
    assert Progress() == Progress(
        contributed_version=-1, trained_revision=0, contributed_revision=0, idle_passes=0
    )
    first = Facts(version=0, revision=0, progress=Progress())
    assert first.decide().kind is Pass.CONTRIBUTING


def test_progress_with_a_newer_table_is_as_before() -> None:
    """It is to be contributed to."""
    assert progress().with_table(a_head(5), a_head(4)) == progress()


def test_progress_with_the_table_that_was_held_before_is_as_before() -> None:
    """It was in memory only, and was fetched again."""
    assert progress().with_table(a_head(4), a_head(4)) == progress()


@pytest.mark.parametrize("held", [4, 5, 9])
@pytest.mark.parametrize(("version", "contributed"), [(3, 2), (0, -1)])
def test_progress_with_an_older_table_may_contribute_again(held: int, version: int, contributed: int) -> None:
    """What the aggregator has counted since is gone."""
    found = progress().with_table(a_head(version), a_head(held))
    assert found == progress(contributed_version=contributed)


def test_progress_with_another_table_of_the_same_number_may_contribute_again() -> None:
    """The aggregator was set back, and went on from there."""
    other = a_head(4, table=a_table(seed=9))
    assert progress().with_table(other, a_head(4)) == progress(contributed_version=3)


@pytest.mark.parametrize("held", [None, a_head(4, instance=INSTANCE + 1)])
def test_progress_with_the_table_of_another_aggregator_begins_anew(held: Head | None) -> None:
    """There everything is news."""
    assert progress().with_table(a_head(9), held) == Progress()


revisions = st.integers(0, 5)
versions = st.integers(-1, 5)
all_facts = st.builds(
    Facts,
    has_table=st.booleans(),
    n_known=st.integers(0, 2),
    version=versions,
    revision=revisions,
    progress=st.builds(
        Progress,
        contributed_version=versions,
        trained_revision=revisions,
        contributed_revision=revisions,
        idle_passes=st.integers(0, 5),
    ),
    outbox_empty=st.booleans(),
    check_in_due=st.booleans(),
    max_idle_passes=st.integers(1, 5),
)


@given(facts=all_facts)
def test_decide_contributes_only_when_all_is_there(facts: Facts) -> None:
    """Table, known items, an empty outbox and a due check-in; and something new to say."""
    if facts.decide().kind is Pass.CONTRIBUTING:
        assert facts.has_table
        assert facts.n_known > 0
        assert facts.outbox_empty
        assert facts.check_in_due
        new_interactions = facts.revision > facts.progress.contributed_revision
        new_version = facts.version > facts.progress.contributed_version
        assert new_interactions or (new_version and facts.progress.idle_passes < facts.max_idle_passes)


@given(facts=all_facts)
def test_decide_trains_locally_only_with_news(facts: Facts) -> None:
    """A local pass without a new interaction would only wear the device out."""
    if facts.decide().kind is Pass.LOCAL:
        assert facts.has_table
        assert facts.n_known > 0
        assert facts.revision > facts.progress.trained_revision
        assert not (facts.outbox_empty and facts.check_in_due)


@given(facts=all_facts)
def test_decide_never_leaves_new_interactions_alone(facts: Facts) -> None:
    """With a table, an interaction that no pass knew leads to a pass, at once."""
    new = facts.revision > max(facts.progress.trained_revision, facts.progress.contributed_revision)
    if facts.has_table and facts.n_known and new:
        assert facts.decide().kind is not Pass.NONE


@given(facts=all_facts)
def test_decide_is_done_after_the_pass_that_it_wants(facts: Facts) -> None:
    """The same pass is not wanted twice for the same facts."""
    before = facts.progress
    match facts.decide().kind:
        case Pass.NONE:
            return
        case Pass.LOCAL:
            idle, version, contributed = (
                before.idle_passes,
                before.contributed_version,
                before.contributed_revision,
            )
        case Pass.CONTRIBUTING:
            idle, version, contributed = before.idle_passes + 1, facts.version, facts.revision
    facts.progress = Progress(
        contributed_version=version,
        trained_revision=facts.revision,
        contributed_revision=contributed,
        idle_passes=idle,
    )
    assert facts.decide().kind is Pass.NONE
