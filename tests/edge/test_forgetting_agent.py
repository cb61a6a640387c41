"""The agent when the user forgets while it runs, and when its database is older than what it has sent."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.config import DATABASE_NAME
from edge.erasure import Erased, Selection
from tests.brokers import RunningBroker
from tests.edge.builders import a_head, a_plan, a_table
from tests.edge.running import (
    PlayedAggregator,
    RunningAgent,
    a_directory,
    looking_at,
    record,
    told,
    wait_until,
)

pytestmark = pytest.mark.mqtt

FLEET = "shop"
QUICK = a_plan(check_in_s=0.2)


@pytest.fixture
def directory(tmp_path: Path, mosquitto: RunningBroker) -> Path:
    """Give the directory of a device that belongs to the played aggregator's fleet."""
    return a_directory(tmp_path / "device", FLEET, mosquitto.url)


@pytest.fixture
def aggregator(mosquitto: RunningBroker) -> Iterator[PlayedAggregator]:
    """Give an aggregator that the test plays."""
    with PlayedAggregator(mosquitto, FLEET) as played:
        yield played


def forget(directory: Path, *items: str) -> Erased:
    """Forget items as another process does; none: everything."""
    with looking_at(directory) as store:
        erased = store.forget(Selection(items=items or None))
        store.scrub()
    return erased


def outbox_is_empty(directory: Path) -> bool:
    """Tell whether nothing waits for its receipt."""
    with looking_at(directory) as store:
        return store.outbox_size() == 0


def has_personal_state(directory: Path) -> bool:
    """Tell whether the device has learnt anything."""
    with looking_at(directory) as store:
        return store.personal() is not None


def test_update_made_with_what_is_forgotten_is_not_sent_again(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """A new one is made from what is left; an answer to the old one counts for nothing."""
    record(directory, "bread", "egg")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        first = aggregator.next_update()

        erased = forget(directory, "bread")

        assert (erased.withdrawn, erased.may_have_left) == (1, True)
        wait_until(lambda: has_personal_state(directory), "a pass with what is left")
        aggregator.answer(first)
        aggregator.publish_head(a_head(plan=QUICK, session=2))  # whoever waits for an answer sends again
        aggregator.publish(a_head(1, plan=QUICK), a_table())
        second = aggregator.next_update()
        assert (second.seq, second.base_version, second.incarnation) == (2, 1, first.incarnation)
        aggregator.answer(second)
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
    with looking_at(directory) as store:
        assert store.receipts() == {"accepted": 1}
        assert store.withdrawn() == 1
        assert store.remembered().last_seq == 2


def test_update_that_never_left_is_known_not_to_have(directory: Path, aggregator: PlayedAggregator) -> None:
    """It was stored when the device died, before it was sent."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        aggregator.answer(aggregator.next_update())
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
    with looking_at(directory) as store:
        personal = store.personal()
        assert personal is not None
        store.save_pass(personal, store.remembered().progress, (2, b"not yet sent"))

    erased = forget(directory, "bread")

    assert (erased.withdrawn, erased.may_have_left, erased.received) == (2, False, True)


def test_agent_that_has_nothing_left_waits_for_interactions(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """And learns from new ones, without what it knew."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        aggregator.answer(aggregator.next_update())
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
        forget(directory)
        wait_until(
            lambda: told(directory, "reason") == "no interactions with items of the catalogue yet",
            "it notices",
        )
        assert not has_personal_state(directory)
        record(directory, "fig")
        assert aggregator.next_update().seq == 2
        with looking_at(directory) as store:
            assert [item for item, _ in store.interactions()] == ["fig"]


def test_device_restored_from_a_backup_gets_other_numbers(
    directory: Path, aggregator: PlayedAggregator, tmp_path: Path
) -> None:
    """Its next update would be taken for one that the fleet knows; after that none is."""
    record(directory, "bread")
    backup = tmp_path / "backup.sqlite3"
    shutil.copy(directory / DATABASE_NAME, backup)
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        known = aggregator.next_update()
        aggregator.answer(known)
        wait_until(lambda: outbox_is_empty(directory), "the receipt")

    shutil.copy(backup, directory / DATABASE_NAME)
    with RunningAgent(directory) as agent:
        again = aggregator.next_update()
        assert (again.incarnation, again.seq) == (known.incarnation, known.seq)
        aggregator.answer(again, "duplicate")
        agent.hear("restored from a backup", "count anew")
        aggregator.publish(a_head(1, plan=QUICK), a_table())
        fresh = aggregator.next_update()
        assert fresh.incarnation != known.incarnation
        aggregator.answer(fresh)
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
    with looking_at(directory) as store:
        assert store.remembered().incarnation == fresh.incarnation
        assert store.receipts() == {"duplicate": 1, "accepted": 1}


def test_duplicate_of_an_update_that_was_sent_twice_changes_no_numbers(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """The first answer was lost: that is what duplicates are for."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        first = aggregator.next_update()
    with RunningAgent(directory) as agent:
        assert aggregator.next_update().seq == first.seq
        aggregator.answer(first, "duplicate")
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
        assert agent.sentences == []
    with looking_at(directory) as store:
        assert store.remembered().incarnation == first.incarnation


def test_agent_keeps_what_the_settings_keep(
    directory: Path, aggregator: PlayedAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first moment on, and trains for none of it."""
    record(directory, "bread", "egg", "bread", "fig")
    config = directory / "config.toml"
    config.write_text(config.read_text().replace("keep_interactions = 20000", "keep_interactions = 3"))
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        aggregator.answer(aggregator.next_update())
        wait_until(lambda: outbox_is_empty(directory), "the receipt")
    with looking_at(directory) as store:
        assert [item for item, _ in store.interactions()] == ["egg", "bread", "fig"]
        assert store.remembered().progress.trained_revision == store.interacted().revision == 4
