"""The device's decisions: every event in every activity, and the promises that span several."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.protocol.messages import Delta, Head, Verdict
from edge.scheduler import Progress
from edge.session import (
    _NEXT,
    FETCH_RETRY_S,
    FETCH_TIMEOUT_S,
    RESEND_S,
    UNREADABLE_RECEIPTS,
    Activity,
    Command,
    Fetch,
    PublishStatus,
    PublishUpdate,
    Remembered,
    Session,
    Settle,
    Subscribe,
    Train,
)
from tests.edge.builders import INCARNATION, INSTANCE, ITEM_KEYS, a_head, a_plan, a_receipt

NOW = 1000.0


def a_session(draw: Callable[[], float] = lambda: 0.5, **remembered: Any) -> Session:
    """Give a session that has just started; with these draws check-ins have no jitter."""
    return Session(Remembered(incarnation=INCARNATION, **remembered), draw)


def with_table(version: int = 0, **remembered: Any) -> Session:
    """Give a session that starts with a table on the device."""
    head = a_head(version)
    facts: dict[str, Any] = {
        "instance": INSTANCE,
        "version": version,
        "catalogue_sha256": head.catalogue_sha256,
        "held": head,
    }
    return a_session(**(facts | remembered))


def online(session: Session, head: Head | None = None, now: float = NOW) -> Session:
    """Connect a session and show it a head, by default that of the table that it has."""
    session.connected(now)
    session.head_received(head or a_head(session.version or 0), now)
    return session


def idle() -> Session:
    """Give a session that is online and waits for its next check-in."""
    return online(with_table())


def fetching(head: Head | None = None) -> Session:
    """Give a session in the middle of a download."""
    return online(a_session(), head or a_head())


def training() -> Session:
    """Give a session in the middle of a contributing pass, with number 1."""
    session = with_table()
    session.interactions_changed(0, 2, NOW)
    return online(session)


def waiting() -> Session:
    """Give a session whose update 1 waits for its receipt."""
    session = training()
    session.training_done(Train(1, Progress(contributed_version=0)), NOW)
    return session


def in_activity(activity: Activity) -> Session:
    """Give a session that does something."""
    session = {Activity.IDLE: idle, Activity.FETCHING: fetching, Activity.TRAINING: training}[activity]()
    assert doing(session) is activity
    return session


def doing(session: Session) -> Activity:
    """Give the activity, afresh."""
    return session.activity


def fetched(commands: list[Command]) -> tuple[Head, bool]:
    """Give what the only command wants to fetch."""
    [command] = commands
    assert isinstance(command, Fetch)
    return command.head, command.catalogue


def interactions(session: Session, revision: int, now: float = NOW) -> list[Command]:
    """Tell a session of a new interaction with a known item."""
    return session.interactions_changed(revision, 2, now)


EVENTS: dict[str, Callable[[Session], list[Command]]] = {
    "table_ready": lambda session: session.table_ready(a_head(), NOW),
    "table_failed": lambda session: session.table_failed(NOW),
    "training_done": lambda session: session.training_done(Train(None, Progress()), NOW),
    "lost": lambda session: session.lost(),
}


# -- the table of activities -----------------------------------------------------------------------


@pytest.mark.parametrize("activity", Activity)
@pytest.mark.parametrize("event", EVENTS)
def test_event_leads_where_the_table_says(activity: Activity, event: str) -> None:
    """And nowhere else where the table has no entry."""
    session = in_activity(activity)
    EVENTS[event](session)
    assert doing(session) is _NEXT.get((activity, event), activity)


@pytest.mark.parametrize("activity", Activity)
@pytest.mark.parametrize("event", ["table_ready", "table_failed", "training_done"])
def test_unexpected_event_changes_nothing(activity: Activity, event: str) -> None:
    """A download that ends after it was given up, a pass that nobody waits for."""
    if (activity, event) in _NEXT:
        return
    session = in_activity(activity)
    before = dict(vars(session))
    assert EVENTS[event](session) == []
    assert vars(session) == before


def test_table_has_no_other_entries() -> None:
    """Every transition has a test here: four by events, three by decisions."""
    by_decision = {
        (Activity.IDLE, "fetch"),
        (Activity.IDLE, "train"),
        (Activity.FETCHING, "fetch"),
    }
    by_event = {key for key in _NEXT if key[1] in EVENTS}
    assert by_decision | by_event == _NEXT.keys()
    assert len(by_event) == 4


# -- connecting ------------------------------------------------------------------------------------


def test_connected_subscribes_and_tells_status() -> None:
    """That is all while nothing waits."""
    session = a_session()
    assert session.connected(NOW) == [Subscribe(), PublishStatus()]
    assert session.online


def test_connected_with_waiting_update_sends_it_again() -> None:
    """After a restart, the update from before."""
    session = with_table(last_seq=7, outbox_seq=7)
    assert session.connected(NOW) == [Subscribe(), PublishStatus(), PublishUpdate(7)]


def test_lost_keeps_the_update_for_the_next_connection() -> None:
    """Nothing is sent into the void."""
    session = waiting()
    assert session.lost() == []
    assert not session.online
    assert session.tick(NOW + 10 * RESEND_S) == []
    assert session.connected(NOW + 1000)[-1] == PublishUpdate(1)


def test_lost_with_a_waiting_update_does_not_keep_the_owner_busy() -> None:
    """There is nobody to send it to: the time to send again is forgotten, and everything else goes on."""
    session = waiting()
    session.tick(NOW)
    session.lost()
    assert session.wake_at == session.check_in_at == NOW + 30
    session.tick(NOW + RESEND_S)
    assert session.wake_at == NOW + 60
    assert [type(command) for command in interactions(session, 1, NOW + RESEND_S)] == [Train]


def test_lost_while_fetching_begins_again_after_the_next_head() -> None:
    """The download is given up; the check-in that began it is due still."""
    session = fetching()
    session.lost()
    assert session.wake_at == session.check_in_at == NOW
    session.tick(NOW)  # rescheduled: nobody to ask
    session.connected(NOW + 1)
    assert session.head_received(a_head(), NOW + 1) == []
    due = session.check_in_at
    assert due is not None
    assert [type(command) for command in session.tick(due)] == [Fetch]


# -- sending again ---------------------------------------------------------------------------------


def test_tick_sends_again_when_no_receipt_comes() -> None:
    """Every `RESEND_S`, not earlier."""
    session = waiting()
    session.tick(NOW)  # the check-in is over
    assert session.tick(NOW + RESEND_S - 0.01) == []
    assert session.wake_at == NOW + RESEND_S
    assert session.tick(NOW + RESEND_S) == [PublishUpdate(1)]
    assert session.tick(NOW + 2 * RESEND_S) == [PublishUpdate(1)]


def test_head_of_new_aggregator_session_sends_again() -> None:
    """It may have lost what it had not journalled."""
    session = waiting()
    assert PublishUpdate(1) in session.head_received(a_head(session=2), NOW + 1)


def test_head_of_same_aggregator_session_sends_nothing() -> None:
    """A version more is no reason."""
    session = waiting()
    assert PublishUpdate(1) not in session.head_received(a_head(1), NOW + 1)


def test_first_head_of_a_connection_sends_nothing_twice() -> None:
    """Connecting has sent it already, and the aggregator was there all the time."""
    session = waiting()
    session.lost()
    assert PublishUpdate(1) in session.connected(NOW + 1)
    assert PublishUpdate(1) not in session.head_received(a_head(), NOW + 1)


def test_aggregator_that_comes_back_after_the_broker_is_sent_the_update_again() -> None:
    """The broker was new, and nobody had subscribed when the device connected to it."""
    session = waiting()
    session.lost()
    assert PublishUpdate(1) in session.connected(NOW + 1)
    assert PublishUpdate(1) in session.head_received(a_head(session=2), NOW + 1)


def test_training_done_offline_sends_when_the_link_is_back() -> None:
    """The update waits in the outbox."""
    session = training()
    session.lost()
    assert session.training_done(Train(1, Progress()), NOW) == []
    assert session.outbox_seq == 1
    assert PublishUpdate(1) in session.connected(NOW + 1)


# -- receipts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["accepted", "duplicate", "stale", "rejected"])
def test_receipt_settles_the_update(verdict: Verdict) -> None:
    """Every verdict ends its stay in the outbox."""
    session = waiting()
    receipt = a_receipt(1, verdict, reason="so it is")
    assert session.receipt_received(receipt, NOW) == [Settle(1, verdict, "so it is")]
    assert session.outbox_seq is None
    assert session.tick(NOW + 0.9 * RESEND_S) == []


@pytest.mark.parametrize(
    "receipt", [a_receipt(2), a_receipt(1, incarnation=INCARNATION + 1), a_receipt(0), a_receipt(0, "stale")]
)
def test_receipt_for_another_update_changes_nothing(receipt: Any) -> None:
    """Another number, or the number of a device that had this id before."""
    session = waiting()
    before = dict(vars(session))
    assert session.receipt_received(receipt, NOW) == []
    assert vars(session) == before


def test_receipt_that_comes_twice_settles_once() -> None:
    """QoS 1 may repeat it."""
    session = waiting()
    session.receipt_received(a_receipt(1), NOW)
    assert session.receipt_received(a_receipt(1), NOW) == []


def test_third_receipt_for_something_unreadable_settles_the_update() -> None:
    """The aggregator could not read its number; sending it again would not help."""
    session = waiting()
    receipt = a_receipt(0, "rejected", incarnation=0, reason="too large")
    assert session.receipt_received(receipt, NOW) == []
    assert session.receipt_received(receipt, NOW + 1) == []
    assert session.receipt_received(receipt, NOW + 2) == [Settle(1, "rejected", "too large")]


def test_late_repeat_of_an_unreadable_receipt_leaves_the_next_update() -> None:
    """What was said of one update is not counted against the next."""
    session = waiting()
    receipt = a_receipt(0, "rejected", incarnation=0, reason="too large")
    for _ in range(UNREADABLE_RECEIPTS - 1):
        session.receipt_received(receipt, NOW)
    session.receipt_received(a_receipt(1), NOW)
    assert session.receipt_received(receipt, NOW) == []
    assert session._unreadable == 0


def test_download_that_goes_on_is_not_given_up() -> None:
    """A large table on a slow link may take any time as long as chunks arrive."""
    session = a_session()
    session.connected(NOW)
    session.head_received(a_head(3), NOW)
    session.download_progressed(NOW + FETCH_TIMEOUT_S - 1)
    assert session.tick(NOW + FETCH_TIMEOUT_S + 1) == []
    assert doing(session) is Activity.FETCHING


def test_receipt_while_training_settles_and_lets_the_pass_end() -> None:
    """A local pass runs beside a waiting update."""
    session = waiting()
    [train] = interactions(session, 1)
    assert isinstance(train, Train)
    assert session.receipt_received(a_receipt(1), NOW) == [Settle(1, "accepted", "")]
    assert doing(session) is Activity.TRAINING
    assert session.training_done(train, NOW) == []
    assert doing(session) is Activity.IDLE


# -- check-ins -------------------------------------------------------------------------------------


def test_first_head_is_looked_at_at_once() -> None:
    """A new device does not wait for the first table."""
    session = a_session()
    session.connected(NOW)
    head = a_head(3)
    assert fetched(session.head_received(head, NOW)) == (head, True)


@pytest.mark.parametrize(("drawn", "wait_s"), [(0.0, 50.0), (0.25, 75.0), (0.5, 100.0), (0.999, 149.9)])
def test_next_check_in_is_jittered_around_the_plan(drawn: float, wait_s: float) -> None:
    """By half of it to either side."""
    session = with_table()
    session._draw = lambda: drawn
    online(session, a_head(plan=a_plan(check_in_s=100.0)))
    assert session.check_in_at == pytest.approx(NOW + wait_s)
    assert session.wake_at == session.check_in_at


@pytest.mark.parametrize(("drawn", "wait_s"), [(0.0, 5.0), (0.999, 14.99)])
def test_next_check_in_is_as_the_newest_receipt_says(drawn: float, wait_s: float) -> None:
    """It knows better than the plan how busy the aggregator is."""
    session = waiting()
    session._draw = lambda: drawn
    session.receipt_received(a_receipt(1, check_in_s=10.0), NOW + 3)
    assert session.check_in_at == pytest.approx(NOW + 3 + wait_s)


def test_receipt_moves_a_check_in_that_waits() -> None:
    """To what the aggregator says now."""
    session = waiting()
    session.tick(NOW)
    assert session.check_in_at == NOW + 30
    session.receipt_received(a_receipt(1, check_in_s=10.0), NOW + 3)
    assert session.check_in_at == NOW + 13


def test_check_in_without_pause_still_gives_the_owner_a_rest() -> None:
    """With 0 s between check-ins the owner would otherwise ask again without end, at the same moment."""
    session = online(with_table(), a_head(plan=a_plan(check_in_s=0.0)))
    for _ in range(3):
        session.tick(NOW)
    assert session.wake_at is not None
    assert session.wake_at > NOW


def test_check_in_finds_a_newer_version() -> None:
    """The head alone does not start a download; the check-in does."""
    session = idle()
    head = a_head(1)
    assert session.head_received(head, NOW + 1) == []
    assert session.tick(NOW + 29) == []
    assert fetched(session.tick(NOW + 30)) == (head, False)


def test_check_in_with_new_catalogue_fetches_it() -> None:
    """The keys are compared by their hash."""
    session = idle()
    head = a_head(1, item_keys=[*ITEM_KEYS, "grape"])
    session.head_received(head, NOW)
    assert fetched(session.tick(NOW + 30)) == (head, True)


def test_check_in_offline_is_put_off() -> None:
    """There is nobody to ask."""
    session = idle()
    session.head_received(a_head(1), NOW)
    session.lost()
    assert session.tick(NOW + 30) == []
    assert session.check_in_at == NOW + 60


def test_device_offline_contributes_nothing() -> None:
    """It does not know the newest version; a local pass it makes all the same."""
    session = idle()
    session.lost()
    [local] = interactions(session, 1)
    assert isinstance(local, Train)
    assert local.seq is None
    session.training_done(local, NOW)

    later = NOW + 21 * 86_400.0
    assert session.tick(later) == []
    assert session.reason == "waiting for the next check-in"


def test_check_in_before_the_first_head_of_a_connection_is_put_off_a_little() -> None:
    """The old connection's plan is forgotten; the new one's is about to come."""
    session = idle()
    session.lost()
    session.connected(NOW + 30)
    assert session.tick(NOW + 30) == []
    assert session.check_in_at == NOW + 30 + FETCH_RETRY_S


def test_wake_at_before_anything_happened_is_never() -> None:
    """A new device waits for its link."""
    session = a_session()
    assert session.wake_at is None
    assert session.check_in_at is None
    assert session.tick(NOW) == []


def test_wake_at_while_training_is_the_time_to_send_again() -> None:
    """The check-in waits for the pass."""
    session = waiting()
    interactions(session, 1)
    assert doing(session) is Activity.TRAINING
    assert session.wake_at == NOW + RESEND_S


# -- downloads -------------------------------------------------------------------------------------


def test_table_ready_without_interactions_waits_for_the_next_check_in() -> None:
    """The table is there, and nothing to learn from."""
    session = fetching(a_head(4))
    assert session.table_ready(a_head(4), NOW) == []
    assert session.version == 4
    assert session.reason == "no interactions with items of the catalogue yet"
    assert session.check_in_at == NOW + 30


def test_table_ready_with_interactions_contributes() -> None:
    """The check-in goes on with a pass."""
    session = a_session(last_seq=8)
    interactions(session, 5)
    online(session, a_head(4))
    [train] = session.table_ready(a_head(4), NOW)
    expected = Progress(contributed_version=4, trained_revision=5, contributed_revision=5, idle_passes=1)
    assert train == Train(9, expected)


def test_tick_gives_a_slow_download_up_and_tries_again() -> None:
    """Its chunks may have been overwritten while they were on their way."""
    session = fetching()
    assert session.wake_at == NOW + FETCH_TIMEOUT_S
    assert session.tick(NOW + FETCH_TIMEOUT_S - 0.01) == []
    assert doing(session) is Activity.FETCHING
    assert session.tick(NOW + FETCH_TIMEOUT_S) == []
    assert doing(session) is Activity.IDLE
    assert session.wake_at == NOW + FETCH_TIMEOUT_S + FETCH_RETRY_S
    assert [type(command) for command in session.tick(session.wake_at)] == [Fetch]


def test_table_failed_tries_again_soon() -> None:
    """A hash that is wrong once is right the next time, or a newer version is there."""
    session = fetching()
    assert session.table_failed(NOW) == []
    assert session.version is None
    assert session.tick(NOW + FETCH_RETRY_S - 0.01) == []
    assert [type(command) for command in session.tick(NOW + FETCH_RETRY_S)] == [Fetch]


def test_head_one_version_on_lets_the_download_end() -> None:
    """Its slot is not overwritten yet."""
    session = fetching(a_head(5))
    assert session.head_received(a_head(6), NOW) == []
    assert doing(session) is Activity.FETCHING


def test_head_two_versions_on_overtakes_the_download() -> None:
    """Its slot is being overwritten: the newest is fetched instead, with a new time limit."""
    session = fetching(a_head(5))
    newest = a_head(7)
    assert fetched(session.head_received(newest, NOW + 40)) == (newest, True)
    assert session.wake_at == NOW + 40 + FETCH_TIMEOUT_S


def test_head_of_other_aggregator_overtakes_the_download() -> None:
    """What is on its way belongs to a directory that is no more."""
    session = fetching(a_head(5))
    other = a_head(0, instance=INSTANCE + 1)
    assert fetched(session.head_received(other, NOW)) == (other, True)


def test_table_of_other_aggregator_begins_anew() -> None:
    """Even a device that rested trains and contributes: there its interactions are all new."""
    rested = Progress(contributed_version=50, trained_revision=6, contributed_revision=6, idle_passes=3)
    session = with_table(50, progress=rested, last_seq=12)
    interactions(session, 6)
    other = a_head(2, instance=INSTANCE + 1)
    assert online(session, other).activity is Activity.FETCHING
    [train] = session.table_ready(other, NOW)
    expected = Progress(contributed_version=2, trained_revision=6, contributed_revision=6, idle_passes=1)
    assert train == Train(13, expected)


def test_table_of_aggregator_that_was_set_back_is_contributed_to_again() -> None:
    """What was contributed after its backup is gone with the versions that counted it."""
    session = with_table(
        50, progress=Progress(contributed_version=50, trained_revision=6, contributed_revision=6)
    )
    interactions(session, 6)
    older = a_head(40)
    assert online(session, older).activity is Activity.FETCHING
    [train] = session.table_ready(older, NOW)
    assert isinstance(train, Train)
    assert train.seq == 1
    assert train.progress.contributed_version == 40


def test_table_that_a_restart_brought_back_to_is_not_contributed_to_again() -> None:
    """A newer one was held in memory when the device stopped: what is fetched then is no news."""
    done = Progress(contributed_version=50, trained_revision=6, contributed_revision=6)
    session = with_table(40, held=a_head(50), progress=done, last_seq=9)
    interactions(session, 6)
    assert online(session, a_head(50)).activity is Activity.FETCHING
    assert session.table_ready(a_head(50), NOW) == []
    assert session.progress == done


def test_table_older_than_the_one_held_before_a_restart_is_contributed_to() -> None:
    """The stored table is older still; the aggregator was set back nevertheless."""
    done = Progress(contributed_version=44, trained_revision=6, contributed_revision=6)
    session = with_table(40, held=a_head(45), progress=done)
    interactions(session, 6)
    assert online(session, a_head(44)).activity is Activity.FETCHING
    [train] = session.table_ready(a_head(44), NOW)
    assert isinstance(train, Train)
    assert train.progress.contributed_version == 44


# -- passes ----------------------------------------------------------------------------------------


def test_training_done_sends_the_update() -> None:
    """A contributing pass ends with a publication."""
    session = training()
    progress = Progress(contributed_version=0, trained_revision=0)
    assert session.training_done(Train(1, progress), NOW) == [PublishUpdate(1)]
    assert session.progress == progress


def test_training_done_of_a_local_pass_sends_nothing() -> None:
    """It is nobody's business."""
    session = with_table()
    [train] = interactions(session, 1)
    assert train == Train(None, Progress(trained_revision=1))
    assert session.training_done(Train(None, Progress(trained_revision=1)), NOW) == []
    assert session.outbox_seq is None


def test_pass_that_made_no_update_does_not_use_its_number() -> None:
    """One that diverged; the next pass has the number instead."""
    session = training()
    session.training_done(Train(None, Progress(contributed_version=0)), NOW)
    session.head_received(a_head(1), NOW)
    session.tick(NOW + 30)
    [train] = session.table_ready(a_head(1), NOW + 30)
    assert isinstance(train, Train)
    assert train.seq == 1


def test_interactions_offline_lead_to_a_local_pass() -> None:
    """As soon as they are recorded, once for each state of the interactions."""
    session = with_table()
    [train] = interactions(session, 3)
    assert train == Train(None, Progress(trained_revision=3))
    session.training_done(Train(None, Progress(trained_revision=3)), NOW)
    assert interactions(session, 3) == []


def test_interactions_between_check_ins_are_contributed_at_the_next() -> None:
    """The user's model learns at once; the fleet hears of it in its own time."""
    session = idle()
    [train] = interactions(session, 1, NOW + 1)
    assert train == Train(None, Progress(trained_revision=1))
    session.training_done(Train(None, Progress(trained_revision=1)), NOW + 1)
    assert session.tick(NOW + 29) == []
    [train] = session.tick(NOW + 30)
    assert isinstance(train, Train)
    assert train.seq == 1


def test_interactions_before_the_first_head_of_a_connection_lead_to_a_local_pass() -> None:
    """Whether the table on the device is the newest is not known yet."""
    session = idle()
    session.lost()
    session.connected(NOW + 30)
    [train] = interactions(session, 1, NOW + 30)
    assert isinstance(train, Train)
    assert train.seq is None


def test_interactions_beside_a_waiting_update_lead_to_a_local_pass() -> None:
    """The second update waits for the receipt of the first; the user's model does not."""
    session = waiting()
    [train] = interactions(session, 1)
    assert isinstance(train, Train)
    assert train.seq is None


def test_interactions_while_training_are_trained_on_next() -> None:
    """A pass that runs does not know them."""
    session = training()
    assert interactions(session, 1) == []
    session.training_done(Train(1, Progress(contributed_version=0)), NOW)
    [train] = session.tick(NOW)
    assert isinstance(train, Train)
    assert train.progress.trained_revision == 1


def test_interactions_without_a_table_wait_for_it() -> None:
    """There is nothing to train."""
    session = a_session()
    assert interactions(session, 1) == []
    assert session.reason == "waiting for the first table"


def contribute(session: Session, version: int, now: float) -> bool:
    """Let a session check in at a version, and answer what it sends; tell whether it sent something."""
    commands = session.head_received(a_head(version), now) or session.tick(now)
    if commands and isinstance(commands[0], Fetch):
        commands = session.table_ready(commands[0].head, now)
    if not commands:
        return False
    [train] = commands
    assert isinstance(train, Train)
    session.training_done(train, now)
    session.receipt_received(a_receipt(session.outbox_seq or 0), now)
    return True


def test_device_rests_after_passes_without_news_and_wakes_with_news() -> None:
    """Three passes are enough for the plan; a new interaction gives three more."""
    session = with_table()
    interactions(session, 1)
    session.training_done(Train(None, Progress(trained_revision=1)), NOW)
    session.connected(NOW)
    times = iter(range(2000, 4000, 100))
    sent = [contribute(session, version, next(times)) for version in range(5)]
    assert sent == [True, True, True, False, False]
    assert session.reason == "resting: no new interactions for many versions"
    [train] = interactions(session, 2, next(times))
    assert isinstance(train, Train)
    assert train.seq == 4
    session.training_done(train, next(times))
    session.receipt_received(a_receipt(4), next(times))
    sent = [contribute(session, version, next(times)) for version in range(6, 10)]
    assert sent == [True, True, False, False]


def test_veto_leaves_everything_but_training() -> None:
    """On battery the device still fetches, and answers for what it has sent."""
    session = waiting()
    session.may_train = False
    assert interactions(session, 1) == []
    assert session.reason == "training is paused"
    assert session.tick(NOW + RESEND_S) == [PublishUpdate(1)]
    assert session.receipt_received(a_receipt(1), NOW + RESEND_S)[0] == Settle(1, "accepted", "")
    head = a_head(1)
    session.head_received(head, NOW + 31)
    session.tick(NOW + 200)
    assert doing(session) is Activity.FETCHING
    assert session.table_ready(head, NOW + 200) == []
    session.may_train = True
    assert [type(command) for command in session.tick(NOW + 400)] == [Train]


def test_metered_network_holds_back_tables_and_updates_and_nothing_else() -> None:
    """New interactions shape the personal model; what waits is sent when the network is another one."""
    session = waiting()
    session.may_transfer, session.veto = False, "the network is metered"
    [train] = interactions(session, 1)
    assert isinstance(train, Train)
    assert train.seq is None
    assert session.training_done(train, NOW) == []
    assert session.tick(NOW + RESEND_S) == []
    assert session.tick(NOW + 5 * RESEND_S) == []
    session.head_received(a_head(1), NOW + 200)
    assert session.tick(NOW + 400) == []
    assert doing(session) is Activity.IDLE
    assert session.reason == "the network is metered"
    session.lost()
    assert PublishUpdate(1) not in session.connected(NOW + 500)
    session.head_received(a_head(1), NOW + 500)
    session.may_transfer = True
    assert session.tick(NOW + 501) == [PublishUpdate(1)]
    assert [type(command) for command in session.tick(NOW + 530)] == [Fetch]


def test_metered_network_makes_no_update() -> None:
    """A pass that would contribute is made once the network is another one."""
    session = idle()
    session.may_transfer = False
    [train] = interactions(session, 1)
    assert isinstance(train, Train)
    assert train.seq is None
    session.training_done(train, NOW)
    assert session.tick(NOW + 400) == []
    assert session.reason == "transfers are paused"
    session.may_transfer = True
    [train] = session.tick(NOW + 800)
    assert isinstance(train, Train)
    assert train.seq == 1


def test_metered_network_does_not_begin_a_download_anew() -> None:
    """One that a newer head has overtaken is given up."""
    session = a_session()
    session.connected(NOW)
    session.head_received(a_head(1), NOW)
    assert doing(session) is Activity.FETCHING
    session.may_transfer = False
    assert session.head_received(a_head(5), NOW) == []
    session.tick(NOW + FETCH_TIMEOUT_S)
    assert doing(session) is Activity.IDLE


# -- any order of events ---------------------------------------------------------------------------


class Owner:
    """Carries out a session's commands as slowly as it likes, and checks that they make sense."""

    def __init__(self) -> None:
        self.now = NOW
        self.session = a_session()
        self.downloads: list[Head] = []
        self.passes: list[Train] = []
        self.numbers = 0
        self.newest = a_head(0)
        self.revision = 0

    def take(self, commands: list[Command]) -> None:
        """Carry out."""
        for command in commands:
            match command:
                case Fetch(head):
                    assert self.session.online
                    self.downloads = [head]
                case Train(seq):
                    assert self.session.version is not None
                    assert self.revision
                    assert not self.passes
                    assert seq in (None, self.numbers + 1)
                    assert seq is None or self.session.outbox_seq is None
                    self.passes.append(command)
                case PublishUpdate(seq):
                    assert self.session.online
                    assert seq == self.session.outbox_seq == self.numbers
                case Settle(seq):
                    assert seq == self.numbers

    def happen(self, event: str, amount: int) -> None:
        """Let something happen."""
        session, now = self.session, self.now
        match event:
            case "connected":
                self.take(session.connected(now))
            case "lost":
                self.downloads = []
                self.take(session.lost())
            case "head" if session.online:
                instance, number = INSTANCE + amount % 2, self.newest.session + amount % 3
                version = max(0, self.newest.version + amount % 5 - 1)
                self.newest = a_head(version, instance=instance, session=number)
                self.take(session.head_received(self.newest, now))
            case "ready" if self.downloads and session.activity is Activity.FETCHING:
                self.take(session.table_ready(self.downloads.pop(), now))
            case "failed":
                self.downloads = []
                self.take(session.table_failed(now))
            case "interaction":
                self.revision += 1
                self.take(session.interactions_changed(self.revision, amount % 2 + 1, now))
            case "trained" if self.passes:
                train = self.passes.pop()
                self.numbers = train.seq or self.numbers
                self.take(session.training_done(train, now))
            case "receipt":
                self.take(session.receipt_received(a_receipt(max(0, self.numbers - amount % 2)), now))
            case "tick":
                self.now += amount
                self.take(session.tick(self.now))


@settings(max_examples=200, deadline=None)
@given(
    happenings=st.lists(
        st.tuples(
            st.sampled_from(
                ["connected", "lost", "head", "ready", "failed", "interaction", "trained", "receipt", "tick"]
            ),
            st.integers(0, 70),
        ),
        max_size=60,
    )
)
def test_session_in_any_order_of_events_keeps_its_promises(happenings: list[tuple[str, int]]) -> None:
    """No command out of place, numbers without gaps, and always something to wait for."""
    owner = Owner()
    for event, amount in happenings:
        owner.happen(event, amount)
        assert (owner.session.activity is Activity.TRAINING) == bool(owner.passes)
    for _ in range(3):
        owner.take(owner.session.tick(owner.now))
    wake_at = owner.session.wake_at
    assert wake_at is None or wake_at > owner.now


def test_changed_plan_moves_the_next_check_in() -> None:
    """An operator's new interval reaches a device that waits by the old one."""
    session = waiting()
    session.receipt_received(a_receipt(1, check_in_s=3600.0), NOW)
    session.head_received(a_head(plan=a_plan(check_in_s=10.0)), NOW + 1)
    assert session.check_in_at is not None
    assert session.check_in_at <= NOW + 1 + 15.0


def test_other_table_of_the_same_version_is_fetched() -> None:
    """A server that was set back gives a number a second time."""
    session = a_session()
    session.connected(NOW)
    session.head_received(a_head(3), NOW)
    session.table_ready(a_head(3), NOW)
    assert session.check_in_at is not None
    other = replace(a_head(3), sha256=b"x" * 32)
    session.head_received(other, NOW)
    assert fetched(session.tick(session.check_in_at + 1)) == (other, False)


# -- steps instead of the whole table --------------------------------------------------------------


def with_steps(head: Head, sizes: Sequence[int]) -> Head:
    """Give a head that offers the newest steps in these sizes."""
    first = head.version - len(sizes) + 1
    return replace(
        head,
        deltas=tuple(
            Delta(version=first + number, size=size, digest=bytes(8)) for number, size in enumerate(sizes)
        ),
    )


def check_in(head: Head) -> Fetch:
    """Give what a device of version 3 fetches when it finds a head."""
    session = with_table(3)
    session.connected(NOW)
    [command] = session.head_received(head, NOW)
    assert isinstance(command, Fetch)
    return command


@pytest.mark.parametrize(
    ("version", "sizes", "taken"),
    [
        (4, [10], 1),
        (5, [10, 20], 2),
        (5, [1, 10, 20], 2),
        # One that it needs is not on offer; together as large as the table; none at all; an older version.
        (5, [20], 0),
        (5, [24, 24], 0),
        (4, [], 0),
        (2, [10, 20], 0),
    ],
)
def test_steps_are_taken_where_they_are_smaller(version: int, sizes: list[int], taken: int) -> None:
    """All that lead from the table on the device to the head's, or none. The table has 48 bytes."""
    head = with_steps(a_head(version), sizes)
    assert head.table_bytes == 48

    fetch = check_in(head)

    assert fetch.steps == (head.deltas[-taken:] if taken else ())


def test_steps_of_another_aggregator_are_not_taken() -> None:
    """Equal numbers mean nothing between instances."""
    head = with_steps(a_head(4, instance=INSTANCE + 1), [10])

    assert check_in(head).steps == ()


def test_steps_that_led_nowhere_are_not_tried_again() -> None:
    """The whole table is next, and after it steps once more."""
    session = with_table(3)
    session.connected(NOW)
    head = with_steps(a_head(4), [10])
    [fetch] = session.head_received(head, NOW)
    assert isinstance(fetch, Fetch)
    assert fetch.steps
    session.table_failed(NOW)

    [whole] = session.tick(NOW + FETCH_RETRY_S)

    assert isinstance(whole, Fetch)
    assert whole.steps == ()
    session.table_ready(head, NOW)
    later = with_steps(a_head(5), [10])
    session.head_received(later, NOW)
    [again] = session.tick(session.wake_at or NOW)
    assert isinstance(again, Fetch)
    assert again.steps == later.deltas
