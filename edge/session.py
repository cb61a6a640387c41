"""The device's decisions, without input or output.

Theory of operation
-------------------
The owner (the agent on a Pi, the live fleet, the virtual clock) reports events and carries out the
commands that come back, in order. The session never waits, reads a clock, opens anything or draws random
numbers of its own; times are seconds of any clock that does not run backwards.

The session has an activity, and beside it a link that is up or down:

=========  ===========================================================================================
IDLE       until the next check-in, new interactions, or a head
FETCHING   the owner downloads the table of `fetching`; ends with `table_ready` or `table_failed`
TRAINING   the owner makes one local pass; ends with `training_done`
=========  ===========================================================================================

An update in the outbox is no activity: it may wait for weeks. It is published when it is made, whenever
the link comes up, whenever the aggregator starts a new session, and every `RESEND_S` until a receipt
ends its stay. There is at most one, so that a device that comes back after weeks has one update to
send, and at most one more local pass is ever lost to a crash.

A check-in is a device's look at the newest version: fetch it if it is another one, then train if
`edge.scheduler` says so. The first is due at once, the next `check_in_s` (as the newest receipt or plan
says, times 0.5 to 1.5 drawn by the owner) after the last one ended.

`_NEXT` holds all activities' transitions; an event that an activity does not expect (a download that
ends after it was given up) changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from broker.protocol.messages import Delta, Head, Receipt, Verdict
from edge.scheduler import Decision, Pass, Progress, decide

RESEND_S = 30.0
"""Without a receipt for this long an update is sent again; a receipt usually takes less than a second."""
UNREADABLE_RECEIPTS = 3
FETCH_TIMEOUT_S = 60.0
"""A download without a new chunk for this long is given up."""
FETCH_RETRY_S = 5.0
LEAST_CHECK_IN_S = 0.1
"""Whatever the plan says: with no pause at all the owner would come back at the same moment for ever."""


class Activity(Enum):
    """What the device is doing."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to the head and to this device's receipts."""


@dataclass(frozen=True, slots=True)
class PublishStatus:
    """Tell the fleet that the device is online."""


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Download the table of `head`, and its catalogue too if `catalogue`; give up what was begun before.

    Attributes
    ----------
    steps : tuple of Delta
        What leads there from the table on the device in fewer bytes than the whole table; maybe nothing.
    """

    head: Head
    catalogue: bool
    steps: tuple[Delta, ...] = ()


@dataclass(frozen=True, slots=True)
class Train:
    """Make one local pass, then store all of its results in one transaction.

    Attributes
    ----------
    seq : int or None
        Number of the update to make; None for a local pass.
    progress : Progress
        What is true once the pass is stored.
    """

    seq: int | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class PublishUpdate:
    """Publish the update in the outbox."""

    seq: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Take the update out of the outbox: it was answered."""

    seq: int
    verdict: Verdict
    reason: str


Command: TypeAlias = Subscribe | PublishStatus | Fetch | Train | PublishUpdate | Settle

_SUBSCRIBE, _PUBLISH_STATUS = Subscribe(), PublishStatus()

_NEXT: dict[tuple[Activity, str], Activity] = {
    (Activity.IDLE, "fetch"): Activity.FETCHING,
    (Activity.IDLE, "train"): Activity.TRAINING,
    # A newer head overtook the download: its chunks may be gone.
    (Activity.FETCHING, "fetch"): Activity.FETCHING,
    (Activity.FETCHING, "table_ready"): Activity.IDLE,
    (Activity.FETCHING, "table_failed"): Activity.IDLE,
    (Activity.FETCHING, "lost"): Activity.IDLE,
    (Activity.TRAINING, "training_done"): Activity.IDLE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """What the device's store gives back after a restart.

    Attributes
    ----------
    incarnation : int
        Drawn when the store was made, and again when numbers of updates were lost.
    instance, version : int or None
        Of the table on the device.
    table_sha256, catalogue_sha256 : bytes or None
        Of the table and the catalogue on the device.
    last_seq : int
        Newest update number used.
    outbox_seq : int or None
        The update that waits, if one does.
    held : Head or None
        Of the newest table that was on the device; it may be newer than the table that still is.
    """

    incarnation: int
    instance: int | None = None
    version: int | None = None
    table_sha256: bytes | None = None
    catalogue_sha256: bytes | None = None
    last_seq: int = 0
    outbox_seq: int | None = None
    progress: Progress = field(default_factory=Progress)
    held: Head | None = None


class Session:
    """One device's side of the protocol.

    Parameters
    ----------
    draw : callable
        Gives a number in [0, 1), for the jitter of check-ins.
    """

    def __init__(self, remembered: Remembered, draw: Callable[[], float]) -> None:
        self.online = False
        self.activity = Activity.IDLE
        self.head: Head | None = None
        """The newest head of this connection's aggregator."""
        self.version = remembered.version
        self.outbox_seq = remembered.outbox_seq
        self.progress = remembered.progress
        self.may_train = True
        """The owner's veto, for example on battery; everything but training goes on without it."""
        self.may_transfer = True
        """Whether tables and updates may travel; on a metered network they wait, and so do the passes that
        make updates."""
        self.veto = ""
        """Why one of the two is forbidden, in the owner's words."""
        self.reason = ""
        """Why the device trains or does not, for people."""
        self._incarnation = remembered.incarnation
        self._instance = remembered.instance
        self._table_sha256 = remembered.table_sha256
        self._catalogue = remembered.catalogue_sha256
        self._held = remembered.held
        self._last_seq = remembered.last_seq
        self._draw = draw
        self._unreadable = 0
        self._aggregator_session: int | None = None
        self._fetching: Head | None = None
        self._with_steps = False
        self._steps_failed = False
        self._gives_up_at = 0.0
        self._check_in_at: float | None = None
        self._resend_at: float | None = None
        self._held_back = False
        self._n_known = 0
        self._revision = remembered.progress.trained_revision
        self._check_in_s: float | None = None
        self._planned_check_in_s: float | None = None

    # -- events ------------------------------------------------------------------------------------

    def connected(self, now: float) -> list[Command]:
        """The link is up."""
        self.online = True
        self.head = None
        return [_SUBSCRIBE, _PUBLISH_STATUS, *self._send(now)]

    def lost(self) -> list[Command]:
        """The link is down."""
        self.online = False
        self._resend_at = None
        if self.activity is Activity.FETCHING:
            self._move("lost")
        return []

    def head_received(self, head: Head, now: float) -> list[Command]:
        """The aggregator's newest version is known."""
        before, self.head = self.head, head
        planned, self._planned_check_in_s = self._planned_check_in_s, head.plan.check_in_s
        if planned is not None and planned != head.plan.check_in_s:
            self._check_in_s = None
            self._schedule_check_in(now)
        if before is None and self._check_in_at is None:
            self._check_in_at = now
        commands: list[Command] = []
        heard, self._aggregator_session = self._aggregator_session, head.session
        if heard is not None and head.session != heard:
            # It was away, and may have lost what it had not journalled.
            commands += self._send(now)
        fetching = self._fetching
        if (
            self.activity is Activity.FETCHING
            and self.may_transfer
            and fetching is not None
            and (
                head.instance != fetching.instance
                or head.version >= fetching.version + 2
                # There is one place for the catalogue: the one that is being fetched is no longer there.
                or head.catalogue_sha256 != fetching.catalogue_sha256
            )
        ):
            commands += self._fetch(head, now)
        return commands + self.tick(now)

    def download_progressed(self, now: float) -> None:
        """A chunk of the table arrived."""
        self._gives_up_at = now + FETCH_TIMEOUT_S

    def table_ready(self, head: Head, now: float) -> list[Command]:
        """The table of `head` is on the device."""
        if self.activity is not Activity.FETCHING:
            return []
        self._move("table_ready")
        self._steps_failed = False
        self.progress, self._held = self.progress.with_table(head, self._held), head
        self._instance, self.version, self._table_sha256 = head.instance, head.version, head.sha256
        self._catalogue = head.catalogue_sha256
        return self.tick(now)

    def table_failed(self, now: float) -> list[Command]:
        """The download was no table; it is tried again soon, and as a whole where steps led nowhere."""
        if self.activity is Activity.FETCHING:
            self._steps_failed = self._with_steps
            self._move("table_failed")
            self._check_in_at = now + FETCH_RETRY_S
        return []

    def interactions_changed(self, revision: int, n_known: int, now: float) -> list[Command]:
        """The user's interactions, or which of them the catalogue knows, are others than before."""
        self._revision, self._n_known = revision, n_known
        return self.tick(now)

    def training_done(self, train: Train, now: float) -> list[Command]:
        """The pass is stored, and so is its update if it made one."""
        if self.activity is not Activity.TRAINING:
            return []
        self._move("training_done")
        self.progress = train.progress
        if train.seq is None:
            return []
        self._last_seq = self.outbox_seq = train.seq
        return self._send(now)

    def training_undone(self, train: Train, now: float) -> list[Command]:
        """The pass was not stored, as the user has forgotten something that it was made with."""
        return self.training_done(replace(train, seq=None, progress=self.progress), now)

    def forgotten(self, progress: Progress) -> None:
        """The user has forgotten interactions, and with them the outbox's update; `progress` is stored."""
        self.progress = progress
        self.outbox_seq = self._resend_at = None

    def renumbered(self, incarnation: int) -> None:
        """Updates from now on bear another incarnation; the outbox is empty."""
        self._incarnation = incarnation

    def receipt_received(self, receipt: Receipt, now: float) -> list[Command]:
        """The aggregator answered an update, perhaps one of ours that waits."""
        ours = receipt.incarnation == self._incarnation and receipt.seq == self.outbox_seq
        if self.outbox_seq is None or not (ours or self._is_unreadable(receipt)):
            return []
        settled = Settle(self.outbox_seq, receipt.verdict, receipt.reason)
        self.outbox_seq = self._resend_at = None
        self._unreadable = 0
        self._check_in_s = receipt.check_in_s
        self._schedule_check_in(now)
        return [settled]

    def tick(self, now: float) -> list[Command]:
        """Time has passed: do what is due."""
        if self._resend_at is not None and now >= self._resend_at:
            return self._send(now)
        if self._held_back and self.may_transfer:
            return self._send(now)
        if self.activity is Activity.FETCHING and now >= self._gives_up_at:
            return self.table_failed(now)
        if self.activity is not Activity.IDLE:
            return []
        due = self._check_in_at is not None and now >= self._check_in_at
        if due and self.online and self.may_transfer and self.head is not None and self._is_other(self.head):
            return self._fetch(self.head, now)
        return self._consider_training(now, due=due)

    # -- questions ---------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float | None:
        """When `tick` should be called next, if nothing else happens; None: not by the clock."""
        times = [self._resend_at]
        if self.activity is Activity.FETCHING:
            times.append(self._gives_up_at)
        elif self.activity is Activity.IDLE:
            times.append(self._check_in_at)
        return min((time for time in times if time is not None), default=None)

    @property
    def check_in_at(self) -> float | None:
        """When the next check-in is due; None before the first head."""
        return self._check_in_at

    @property
    def check_in_within_s(self) -> float:
        """Longest time between two check-ins, as the newest receipt or plan says."""
        return self._check_in_every_s() * 1.5

    # -- steps -------------------------------------------------------------------------------------

    def _is_unreadable(self, receipt: Receipt) -> bool:
        """Tell whether the aggregator cannot read the update in the outbox, however often it is sent.

        Its receipt then has no number. One of them may be a late repeat that was meant for the update before.
        """
        if receipt.seq != 0 or receipt.verdict != "rejected":
            return False
        self._unreadable += 1
        return self._unreadable >= UNREADABLE_RECEIPTS

    def _move(self, event: str) -> None:
        self.activity = _NEXT[self.activity, event]
        if self.activity is not Activity.FETCHING:
            self._fetching = None

    def _is_other(self, head: Head) -> bool:
        if (head.version, head.instance) != (self.version, self._instance):
            return True
        # A server that was set back may give a number a second time; the hash tells.
        return self._table_sha256 is not None and head.sha256 != self._table_sha256

    def _fetch(self, head: Head, now: float) -> list[Command]:
        self._move("fetch")
        self._fetching = head
        self._gives_up_at = now + FETCH_TIMEOUT_S
        catalogue = head.instance != self._instance or head.catalogue_sha256 != self._catalogue
        steps = self._steps(head)
        self._with_steps = bool(steps)
        return [Fetch(head, catalogue, steps)]

    def _steps(self, head: Head) -> tuple[Delta, ...]:
        if self.version is None or head.instance != self._instance or self._steps_failed:
            return ()
        steps = head.deltas_from(self.version)
        return steps if sum(step.size for step in steps) < head.table_bytes else ()

    def _consider_training(self, now: float, *, due: bool) -> list[Command]:
        decision: Decision = decide(
            has_table=self.version is not None,
            n_known=self._n_known,
            version=-1 if self.version is None else self.version,
            revision=self._revision,
            progress=self.progress,
            outbox_empty=self.outbox_seq is None,
            # Offline the newest version is not known: an update would be stale before it is sent.
            check_in_due=due and self.online and self.head is not None and self.may_transfer,
            max_idle_passes=1 if self.head is None else self.head.plan.max_idle_passes,
        )
        self.reason = decision.reason
        if not self.may_train:
            self.reason = self.veto or "training is paused"
        elif not self.may_transfer and decision.kind is Pass.NONE:
            self.reason = self.veto or "transfers are paused"
        if decision.kind is Pass.NONE or not self.may_train:
            if due:
                self._schedule_check_in(now)
            return []
        return self._train(contributing=decision.kind is Pass.CONTRIBUTING)

    def _train(self, *, contributing: bool) -> list[Command]:
        self._move("train")
        before, revision = self.progress, self._revision
        if not contributing:
            return [Train(None, replace(before, trained_revision=revision))]
        progress = Progress(
            contributed_version=-1 if self.version is None else self.version,
            trained_revision=revision,
            contributed_revision=revision,
            idle_passes=1 if revision > before.contributed_revision else before.idle_passes + 1,
        )
        return [Train(self._last_seq + 1, progress)]

    def _send(self, now: float) -> list[Command]:
        self._held_back = False
        if self.outbox_seq is None or not self.online:
            return []
        if not self.may_transfer:
            self._held_back, self._resend_at = True, None
            return []
        self._resend_at = now + RESEND_S
        return [PublishUpdate(self.outbox_seq)]

    def _schedule_check_in(self, now: float) -> None:
        self._check_in_at = now + self._check_in_every_s() * (0.5 + self._draw())

    def _check_in_every_s(self) -> float:
        every = self._check_in_s
        if every is None:
            every = self.head.plan.check_in_s if self.head is not None else FETCH_RETRY_S
        return max(every, LEAST_CHECK_IN_S)
