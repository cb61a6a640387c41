"""The user's own data: exported, forgotten, kept by a rule, and a device that begins anew."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.storage import exclusive
from edge.config import DATABASE_NAME, DeviceConfig, initialise
from edge.homelink import left_behind
from edge.retention import Retention
from edge.scheduler import Progress
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state, a_store, a_table
from tests.edge.running import looking_at, run_command

SECRET = "a-secret-taste"  # noqa: S105 - no password, but nobody's business either


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device that has learnt from six interactions, one of them secret."""
    path = tmp_path / "me"
    broker, home = "mqtt://me:pass-word@127.0.0.1:1", "mqtt://me:pass-word@127.0.0.1:2"
    config = DeviceConfig(device_id="pi-1", fleet="shop", broker=broker, home_broker=home, scorer="numpy")
    initialise(path, config)
    with looking_at(path) as store:
        store.replace_model(a_head(7), a_table(), ITEM_KEYS)
        store.record(
            [(SECRET, 1000.0), *((item, 2000.0 + number) for number, item in enumerate(ITEM_KEYS[:5]))]
        )
        store.save_pass(a_personal_state(), Progress(trained_revision=6), (1, b"an update"))
    return path


def bytes_of(directory: Path) -> bytes:
    """Give everything that the database has on the disk."""
    return b"".join(path.read_bytes() for path in sorted(directory.glob(f"{DATABASE_NAME}*")))


def exported(directory: Path) -> dict[str, Any]:
    """Export to a file, and read it."""
    out = directory.with_name("data.json")
    run_command("edge-client", "export", "--dir", str(directory), "--out", str(out))
    assert out.stat().st_mode & 0o077 == 0
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_export_has_everything_but_secrets(directory: Path) -> None:
    """Interactions, personal state, outbox and receipts; not the brokers' passwords."""
    content = exported(directory)

    assert [each["item"] for each in content["interactions"]] == [SECRET, *ITEM_KEYS[:5]]
    assert content["personal"] is not None
    assert content["outbox"]["seq"] == 1
    assert content["settings"]["home_broker"] == "mqtt://me@127.0.0.1:2"
    assert "pass-word" not in json.dumps(content)


def test_forgotten_item_is_gone_from_every_file(directory: Path) -> None:
    """From interactions, model and outbox, and no byte of it is left."""
    assert SECRET.encode() in bytes_of(directory)

    run_command("edge-client", "forget", "--dir", str(directory), SECRET)

    with looking_at(directory) as store:
        assert store.interacted().total == 5
        assert store.personal() is None
        assert store.remembered().outbox_seq is None
        assert store.remembered().last_seq == 1, "its number is never given again"
        assert store.withdrawn() == 1
    assert SECRET.encode() not in bytes_of(directory)


def test_forgetting_a_period(directory: Path) -> None:
    """From its beginning on, before its end."""
    run_command("edge-client", "forget", "--dir", str(directory), "--from", "2001", "--to", "2003")

    assert [each["item"] for each in exported(directory)["interactions"]] == [
        SECRET, ITEM_KEYS[0], *ITEM_KEYS[3:5]
    ]  # fmt: skip


def test_forgetting_everything(directory: Path) -> None:
    """The device goes on; nothing of its user is left."""
    run_command("edge-client", "forget", "--dir", str(directory), "--everything", "--yes")

    content = exported(directory)
    assert (content["interactions"], content["personal"], content["outbox"]) == ([], None, None)
    assert SECRET.encode() not in bytes_of(directory)


def test_forgetting_what_is_not_there_changes_nothing(directory: Path) -> None:
    """The personal model stays."""
    run_command("edge-client", "forget", "--dir", str(directory), "no-such-item")

    with looking_at(directory) as store:
        assert store.interacted().total == 6
        assert store.personal() is not None
        assert store.remembered().outbox_seq == 1


def test_pass_that_knew_what_was_forgotten_is_not_stored(directory: Path) -> None:
    """It ran while the user forgot."""
    with looking_at(directory) as store:
        known = store.interacted().erasures
        run_command("edge-client", "forget", "--dir", str(directory), SECRET)

        stored = store.save_pass(a_personal_state(), Progress(), (2, b"of the secret"), erasures=known)

        assert not stored
        assert (store.personal(), store.remembered().outbox_seq) == (None, None)


@pytest.mark.parametrize("keep", [True, False])
def test_reset_makes_a_fresh_device(directory: Path, *, keep: bool) -> None:
    """With the settings, and if wanted the interactions; its numbers begin anew under another name."""
    with looking_at(directory) as store:
        before = store.remembered().incarnation

    options = ["--keep-interactions"] if keep else []
    run_command("edge-client", "reset", "--dir", str(directory), "--yes", *options)

    with looking_at(directory) as store:
        remembered = store.remembered()
        assert store.interacted().total == (6 if keep else 0)
        assert (store.model_head(), store.personal(), remembered.outbox_seq) == (None, None, None)
        assert remembered.incarnation != before
    assert (SECRET.encode() in bytes_of(directory)) == keep


def test_reset_remembers_where_sensors_are_left(directory: Path) -> None:
    """Else nobody could take them away from home automation's broker any more."""
    left = {"127.0.0.1:2": ["homeassistant/sensor/x/version/config"]}
    with looking_at(directory) as store:
        store.set_facts(home_topics=json.dumps(left))

    run_command("edge-client", "reset", "--dir", str(directory), "--yes")

    with looking_at(directory) as store:
        assert left_behind(store) == left


def test_reset_of_a_running_device_is_refused(directory: Path) -> None:
    """Its session would not know."""
    with exclusive(directory), pytest.raises(AssertionError, match="is in use by another process"):
        run_command("edge-client", "reset", "--dir", str(directory), "--yes")

    with looking_at(directory) as store:
        assert store.interacted().total == 6


@settings(deadline=None, max_examples=60)
@given(
    events=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 50)), min_size=1, max_size=40),
    most=st.integers(0, 20),
    days=st.sampled_from([0.0, 10.0, 30.0]),
)
def test_retention_keeps_the_newest_of_each_item(
    events: list[tuple[str, int]], most: int, days: float
) -> None:
    """Repeats go first, then the oldest; the state of the interactions stays the same."""
    with closing(a_store(Path(":memory:"))) as store:
        store.record([(item, 86_400.0 * day) for item, day in events])
        revision = store.interacted().revision
        rule = Retention(most=most, days=days)

        while store.compact(rule, 86_400.0 * 1000):
            pass

        kept = store.interactions()
        newest_day = max(day for _, day in events)
        recent = [(item, day) for item, day in events if not days or day >= newest_day - days]
        assert len(kept) == (min(most, len(recent)) if most else len(recent))
        if len({item for item, _ in recent}) <= (most or len(recent)):
            newest = {item: max(day for other, day in recent if other == item) for item, _ in recent}
            found = {item: max(at for other, at in kept if other == item) for item, _ in kept}
            assert found == {item: 86_400.0 * day for item, day in newest.items()}
        assert store.interacted().revision == revision


def test_database_is_for_its_user_alone(directory: Path) -> None:
    """It holds what somebody likes; so do its log and a new one."""
    for path in directory.glob(f"{DATABASE_NAME}*"):
        assert path.stat().st_mode & 0o077 == 0, path.name
    run_command("edge-client", "reset", "--dir", str(directory), "--yes")
    assert (directory / DATABASE_NAME).stat().st_mode & 0o077 == 0
