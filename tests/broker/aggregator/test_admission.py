"""Who may send, and how much: lists, rates, the number of devices; then with a broker."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker.aggregator.admission import Admission, AdmissionSettings, Buckets
from broker.aggregator.cli import cli
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.devicelists import ALLOWED_NAME, BLOCKED_NAME, FollowedLists, change_list, read_list
from broker.aggregator.refusals import LINES, PERIOD_S, RefusalLog
from broker.errors import (
    BlockedDeviceError,
    ConfigError,
    InputError,
    RateLimitError,
    TooManyDevicesError,
    UnlistedDeviceError,
)
from tests.broker.aggregator.builders import an_update
from tests.broker.aggregator.fleet import Device, ledger_of, make_directory, serving
from tests.brokers import RunningBroker
from trainer.errors import ParameterError


def limited(per_minute: float = 60.0) -> Admission:
    """Give an admission with a rate."""
    return Admission(AdmissionSettings(updates_per_minute=per_minute))


def taken(admission: Admission, device: str, now: float) -> str:
    """Send one; tell what came of it."""
    try:
        admission.require_rate(device, 1.0, now)
    except RateLimitError as error:
        return "answered" if error.answered else "silence"
    return "taken"


def test_everything_is_taken_unless_told_otherwise() -> None:
    """The defaults are those of before there was an admission."""
    admission = Admission()
    admission.require_listed("pi")
    admission.require_room(999_999)
    assert {taken(admission, "pi", 0.0) for _ in range(10_000)} == {"taken"}


def test_minutes_worth_may_come_at_once_then_one_by_one() -> None:
    """And another device has a bucket of its own."""
    admission = limited()
    assert [taken(admission, "pi", 0.0) for _ in range(61)] == ["taken"] * 60 + ["answered"]
    assert taken(admission, "other", 0.0) == "taken"
    assert [taken(admission, "pi", 2.5) for _ in range(2)] == ["taken", "answered"]


def test_flood_is_answered_for_a_while_only_and_forgiven_once_it_ends() -> None:
    """Its debt is bounded: two minutes of silence pay all of it."""
    admission = limited()
    outcomes = [taken(admission, "pi", 0.0) for _ in range(10_000)]
    assert outcomes == ["taken"] * 60 + ["answered"] * 30 + ["silence"] * 9_910
    assert taken(admission, "pi", 59.0) == "answered"
    assert taken(admission, "pi", 181.0) == "taken"


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 1.0)), max_size=60))
def test_no_more_is_taken_than_the_rate_and_a_full_bucket(steps: list[tuple[float, float]]) -> None:
    """Whatever the times and the sizes."""
    admission, now, total = limited(30.0), 0.0, 0.0
    for wait, size in steps:
        now += wait
        try:
            admission.require_rate("pi", size, now)
        except RateLimitError:
            continue
        total += size
    assert total <= 30.0 + now * 0.5 + 1e-6


def test_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was quiet for longest is forgotten, and begins full."""
    monkeypatch.setattr("broker.aggregator.admission._MOST_BUCKETS", 2)
    buckets = Buckets(1.0, 0.001)
    assert [buckets.take(name, 1.0, 0.0) for name in ("a", "b", "a", "c", "a", "b")] == [0, 0, -1, 0, -1, 0]


def test_answers_to_what_is_no_update_are_bounded() -> None:
    """For each device and for all together."""
    admission = Admission()
    assert sum(admission.may_answer("pi", 0.0) for _ in range(100)) == 10
    assert sum(admission.may_answer(f"pi-{number}", 0.0) for number in range(2_000)) == 490
    assert admission.may_answer("pi", 1.5)


def test_lists_decide_by_name() -> None:
    """Blocked wins over allowed."""
    admission = Admission()
    admission.blocked, admission.allowed = frozenset({"bad"}), frozenset({"bad", "good"})
    admission.require_listed("good")
    with pytest.raises(BlockedDeviceError):
        admission.require_listed("bad")
    with pytest.raises(UnlistedDeviceError):
        admission.require_listed("unknown")
    with pytest.raises(TooManyDevicesError):
        Admission(AdmissionSettings(most_devices=2)).require_room(2)


@pytest.mark.parametrize("wrong", [{"updates_per_minute": 0.5}, {"most_devices": 0}])
def test_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    """In one sentence with the name."""
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        AggregatorConfig(fleet="shop", **wrong)  # type: ignore[arg-type]


def test_lists_are_followed_as_files_change(tmp_path: Path) -> None:
    """A wrong line leaves what was; no file means no list."""
    admission, lists = Admission(), FollowedLists(tmp_path)
    assert lists.follow(admission)
    assert (admission.blocked, admission.allowed) == (frozenset(), None)
    assert not lists.follow(admission)
    assert change_list(tmp_path / BLOCKED_NAME, add=["a", "b"]) == 2
    assert change_list(tmp_path / BLOCKED_NAME, remove=["a", "zzz"]) == 1
    (tmp_path / ALLOWED_NAME).write_text("# ours\n\n c \n")
    assert lists.follow(admission)
    assert (admission.blocked, admission.allowed) == (frozenset("b"), frozenset("c"))
    (tmp_path / BLOCKED_NAME).write_text("b\nno id\n")
    with pytest.raises(ConfigError, match=r"blocked\.txt"):
        lists.follow(admission)
    assert not lists.follow(admission)
    assert admission.blocked == {"b"}
    assert read_list(tmp_path / "none.txt") is None


def test_log_of_refusals_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A few lines of each kind a minute, and how many there were."""
    log = RefusalLog()
    for number in range(1_000):
        log.note("malformed", f"refused {number}", 0.0)
    log.note("schema", "refused as another kind", 0.0)
    assert len(caplog.messages) == LINES + 2
    log.note("malformed", "refused later", PERIOD_S)
    assert caplog.messages[-2:] == ["990 more messages were refused as malformed", "refused later"]


@pytest.mark.mqtt
@pytest.mark.process
def test_device_above_its_rate_or_blocked_is_told_and_others_are_served(
    tmp_path: Path, shared_mosquitto: RunningBroker
) -> None:
    """The receipt of what came too soon has its number; nothing of it is in the journal."""
    fleet = "admission-1"
    config = AggregatorConfig(fleet=fleet, updates_per_minute=2.0, most_devices=2, buffer=100)
    path = make_directory(tmp_path / "shop", config)
    address = shared_mosquitto.address
    with serving(path, address), Device(address, fleet) as first, Device(address, fleet, "pi-2") as second:
        instance = first.head().instance
        receipts = [first.send(an_update(instance=instance, seq=seq)) for seq in (1, 2, 3)]
        assert [each.verdict for each in receipts] == ["accepted", "accepted", "rejected"]
        assert (receipts[2].seq, receipts[2].reason) == (3, "more than 2 updates a minute; wait")
        assert second.send(an_update(instance=instance)).verdict == "accepted"
        with Device(address, fleet, "pi-3") as third:
            reason = third.send(an_update(instance=instance)).reason
            assert reason == "2 devices have come; no more are taken (most_devices)"
    ledger = ledger_of(path)
    assert (ledger.pending, ledger.rejected, ledger.refused) == (3, 0, 2)


def test_nobody_is_taken_off_a_list_that_is_not_there(tmp_path: Path) -> None:
    """An empty list would refuse the whole fleet."""
    path = make_directory(tmp_path / "shop", AggregatorConfig(fleet="shop"))

    outcome = CliRunner().invoke(cli, ["device", "allow", "--dir", str(path), "--remove", "pi"])

    assert isinstance(outcome.exception, InputError)
    assert "all devices may take part" in str(outcome.exception)
    assert not (path / "allowed.txt").exists()


def test_list_that_is_removed_is_never_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at it in between would refuse everybody."""
    path = make_directory(tmp_path / "shop", AggregatorConfig(fleet="shop"))
    change_list(path / "allowed.txt", add=["pi"])
    monkeypatch.setattr("broker.aggregator.devicelists.write_atomically", pytest.fail)

    outcome = CliRunner().invoke(cli, ["device", "allow", "--dir", str(path), "--everyone"])

    assert (outcome.exit_code, (path / "allowed.txt").exists()) == (0, False)


def test_commands_write_the_lists(tmp_path: Path) -> None:
    """Which a running aggregator follows."""
    path = str(make_directory(tmp_path / "shop", AggregatorConfig(fleet="shop")))

    def call(*arguments: str) -> int:
        return CliRunner().invoke(cli, ["device", arguments[0], "--dir", path, *arguments[1:]]).exit_code

    assert [call("block", "a", "b"), call("unblock", "a"), call("allow", "c")] == [0, 0, 0]
    assert [call("allow"), call("allow", "c", "--everyone"), call("block", "no id")] == [2, 2, 2]
    admission, lists = Admission(), FollowedLists(Path(path))
    lists.follow(admission)
    assert (admission.blocked, admission.allowed) == (frozenset("b"), frozenset("c"))
    assert (call("unblock", "nobody"), (Path(path) / "blocked.txt").read_text()) == (0, "b\n")
    assert call("allow", "--everyone") == 0
    assert not (Path(path) / "allowed.txt").exists()
    assert call("allow", "--everyone") == 0
    lists.follow(admission)
    assert admission.allowed is None


def test_blocking_who_never_came_is_said(tmp_path: Path) -> None:
    """It may be a slip of the pen; it is blocked all the same."""
    path = make_directory(tmp_path / "shop", AggregatorConfig(fleet="shop"))
    outcome = CliRunner().invoke(cli, ["device", "block", "--dir", str(path), "kitchn-pi"])
    assert outcome.exit_code == 0
    assert "no device kitchn-pi has come yet" in outcome.stderr
    assert (path / "blocked.txt").read_text() == "kitchn-pi\n"
