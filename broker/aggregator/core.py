"""The aggregator's decisions, without input or output.

Theory of operation
-------------------
Events go in (`update_received`, `device_seen`, `tick`), commands come out, in the order in which the service
must carry them out. The core never waits, reads a clock or touches a store; the time is an argument,
in seconds of any clock that does not run backwards.

An update's verdict is decided on arrival, against the version that is newest at that moment:

* its (device, incarnation, seq) was answered before: ``duplicate``, with the first verdict in the reason;
* it is older than `max_staleness` versions: ``stale``;
* it cannot be applied: ``rejected``, with the reason;
* otherwise ``accepted``: its change goes into the open round at once, in arrival order.

Every first verdict is journalled, whatever it is, so that each (device, incarnation, seq) counts once:
updates made = counted + stale + rejected. Sequence numbers of a device only grow, so the newest one
with its verdict is all that must be remembered.

A round closes when `buffer` updates were accepted, or, with at least `least_updates`, `deadline_s` after its
first one, or when the catalogue changes, however few updates it has by then: the change is a part of the
version that the round makes. The service stores the outcome of a whole batch of events in one transaction;
only afterwards may anything be acknowledged or published. Therefore `ReplyReceipt` and `PublishVersion` are
commands to be carried out after the `Journal` and `CloseRound` commands of the same batch are durable.

While the guard has a version on trial, rounds do not close; if it finds it bad, a new version has an older
table again. What was trained on the bad one, then or later, does not count: dropped, or rejected by name.

A round that comes to values that are not finite is dropped, too: its version has the table of the one before.

Two invariants, held by tests with random event orders: versions only grow, by one for each closed
round; and no accepted update is in more than one round, or in none once its round closed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from broker.aggregator.catalogue_changes import (
    CatalogueChange,
    CatalogueStep,
    Changed,
    apply_change,
    rolled_back,
    with_new_rows,
)
from broker.aggregator.decisions import (
    Answered,
    ClosedRound,
    CloseRound,
    Command,
    CoreState,
    Journal,
    JournalEntry,
    KeepQuality,
    PublishVersion,
    ReplyReceipt,
    RoundSettings,
)
from broker.aggregator.guard import Finding, Guard, Restorable
from broker.errors import EncodingError, TooManyIncarnationsError
from broker.protocol.catalogue import Catalogue
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Quality, Receipt, Update, Verdict, is_sampled
from trainer.aggregation import Strategy
from trainer.params import Floats

MOST_INCARNATIONS = 1_000
"""Of one device; it begins a new one when it is set up anew, and each must be remembered for good."""


class AggregatorCore:
    """Decides about updates and closes rounds.

    Parameters
    ----------
    pending : iterable of (Update, int, int)
        Updates that were accepted but not counted before a restart, in journal order, with the staleness
        they were accepted with and their encoded size.
    """

    def __init__(
        self,
        settings: RoundSettings,
        strategy: Strategy,
        state: CoreState,
        pending: Iterable[tuple[Update, int, int]] = (),
    ) -> None:
        self.settings = settings
        self.load = 0.0
        """How much waits, 0 to 1 (see `Pacing.check_in`): set by the service before it gives events."""
        self._pacing = settings.pacing
        self._strategy = strategy
        self._state = state
        self._opened_at: float | None = None
        self._incarnations = Counter(device for device, _ in state.answered)
        self._retired = state.catalogue.retired_rows
        self.sample_rate = settings.guard.rate(settings.buffer)
        """The share of devices that the plan in the head asks for reports: other settings for rounds, that
        come later, do not change it."""
        newest = Restorable(version=state.version, table=state.table, memory=state.strategy_state)
        self._guard = Guard(settings.guard, state.before or newest)
        if state.before is not None:
            told = state.quality is not None and state.quality.finding == "unjudged"
            finding: Finding = "unjudged" if told else self._first_finding
            self._guard.published(newest, finding=finding, quality=state.quality)
        self._open_round()
        for update, staleness, size in pending:
            change = ENCODINGS[update.encoding].decode(update.body, *state.table.shape)
            self._count(change, staleness, size)

    @property
    def version(self) -> int:
        """The newest version."""
        return self._state.version

    @property
    def table(self) -> Floats:
        """The table of the newest version; shape (n_items, dim), float32; never changed in place."""
        return self._state.table

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue of the newest version."""
        return self._state.catalogue

    @property
    def instance(self) -> int:
        """The instance whose versions these are."""
        return self._state.instance

    @property
    def on_trial(self) -> bool:
        """Whether the newest version waits for the guard's finding; until then no next one is made."""
        return self._guard.on_trial

    @property
    def buffered(self) -> int:
        """How many updates the open round has."""
        return self._round.count

    @property
    def seen(self) -> int:
        """How many devices ever came."""
        return len(self._state.seen)

    @property
    def population(self) -> int:
        """How many clients the fleet has."""
        return self.settings.population or max(1, len(self._state.seen))

    @property
    def wake_at(self) -> float | None:
        """When `tick` should be called next: the open round's deadline; None if nothing waits."""
        if self._guard.on_trial:
            return self._guard.ends_at
        enough = self._round.count >= self.settings.least_updates
        if not enough or self._opened_at is None or self.settings.deadline_s is None:
            return None
        return self._opened_at + self.settings.deadline_s

    def given_up_by(self, version: int) -> int | None:
        """Give the version that returned to one before this; None if it may be built upon."""
        return next((by for restored, by in self._state.rolled_back if restored < version < by), None)

    def knows(self, device: str) -> bool:
        """Tell whether a device has come before."""
        return device in self._state.seen

    def device_seen(self, device: str) -> bool:
        """Note that a device exists; tell whether that is news."""
        if device in self._state.seen:
            return False
        self._state.seen.add(device)
        return True

    def update_received(self, device: str, update: Update, payload: bytes, now: float) -> list[Command]:
        """Decide about one update.

        Parameters
        ----------
        payload : bytes
            The encoded update, kept in the journal if it is accepted.

        Raises
        ------
        TooManyIncarnationsError
            When there would be more than `MOST_INCARNATIONS` of the device; nothing is changed.
        """
        key = (device, update.incarnation)
        before = self._state.answered.get(key)
        if before is None:
            if self._incarnations[device] >= MOST_INCARNATIONS:
                raise TooManyIncarnationsError(
                    f"this device has begun anew {MOST_INCARNATIONS} times; give it another id"
                )
            self._incarnations[device] += 1
        self.device_seen(device)
        if before is not None and update.seq <= before.seq:
            reason = f"answered before: {before.verdict if update.seq == before.seq else 'superseded'}"
            return [self._reply(device, update, "duplicate", reason)]
        staleness = max(0, self.version - update.base_version)
        verdict, reason, change = self._judge(update, staleness)
        self._state.answered[key] = Answered(seq=update.seq, verdict=verdict)
        entry = JournalEntry(
            device=device,
            incarnation=update.incarnation,
            seq=update.seq,
            verdict=verdict,
            staleness=staleness,
            base_version=update.base_version,
            body=payload if change is not None else None,
        )
        reply = self._reply(device, update, verdict, reason)
        if change is None:
            return [Journal(entry), reply]
        return [Journal(entry), reply, *self._take(change, staleness, len(payload), now)]

    def journalled(self, device: str, update: Update, staleness: int, size: int, now: float) -> list[Command]:
        """Count an update that another process has accepted, with this staleness, and journalled.

        `size` is that of the encoded update in bytes.
        """
        self.device_seen(device)
        change = ENCODINGS[update.encoding].decode(update.body, *self._state.table.shape)
        return self._take(change, staleness, size, now)

    def _take(self, change: SparseChange, staleness: int, size: int, now: float) -> list[Command]:
        self._count(change, staleness, size)
        if self._opened_at is None:
            self._opened_at = now
        if self._round.count >= self.settings.buffer and not self._is_held:
            return self._close(by_deadline=False)
        return []

    def tick(self, now: float) -> list[Command]:
        """Close the open round if its deadline has passed, and no version is on trial any more."""
        quality = self._guard.tick(now)
        return ([] if quality is None else [KeepQuality(quality)]) + self._close_if_due(now)

    def quality_received(self, device: str, report: Quality, now: float) -> list[Command]:
        """Take a device's report of the newest version; go back to an older table if that shows it is bad.

        Names that have not come before are not listened to: who makes them up could be everybody.
        """
        if (
            not self.knows(device)
            or report.instance != self._state.instance
            or self.given_up_by(report.version_before) is not None
            or not is_sampled(report.instance, report.version, device, self.sample_rate)
        ):
            return []
        was_bad = self._guard.is_bad
        quality = self._guard.report(device, report)
        if quality is None:
            return []
        kept: list[Command] = [KeepQuality(quality)]
        if quality.finding == "bad" and not was_bad:
            return kept + self._roll_back(self._guard.good)
        return kept + self._close_if_due(now)

    def _roll_back(self, good: Restorable) -> list[Command]:
        """Make a new version with the table of an older one, and the rows that have come since.

        The open round's updates are dropped; those that come later from a version in between are rejected.
        """
        table, memory = rolled_back(good.table, good.memory, self._state.table)
        commands = self._made(table, memory, restored=good.version, dropped=self._round.count)
        self._state.rolled_back.append((good.version, self._state.version))
        return commands

    def _close_if_due(self, now: float) -> list[Command]:
        if self._is_held:
            return []
        if self._round.count and self._opened_at is None:
            # Updates from before a restart: their deadline starts again, as the clock may have.
            self._opened_at = now
        wake_at = self.wake_at
        if self._round.count >= self.settings.buffer:
            return self._close(by_deadline=False)
        return self._close(by_deadline=True) if wake_at is not None and now >= wake_at else []

    def change_catalogue(self, number: int, change: CatalogueChange) -> list[Command]:
        """Close the open round, whatever is in it, and make the change with it: one new version.

        Parameters
        ----------
        number : int
            Names the change in the store.

        Raises
        ------
        DataError, UnknownItemError, ParameterError
            When the change contradicts the catalogue; nothing is changed.
        """
        changed = apply_change(self._state.catalogue, change, self._state.table.shape[1])
        return self._close(by_deadline=False, step=(number, change, changed))

    def _judge(self, update: Update, staleness: int) -> tuple[Verdict, str, SparseChange | None]:
        if update.instance != self._state.instance:
            return (
                "rejected",
                "trained on the table of another aggregator directory; fetch the head again",
                None,
            )
        if self.given_up_by(update.base_version) is not None:
            return "rejected", f"version {update.base_version} was given up", None
        if update.base_version > self.version:
            return "rejected", f"base version {update.base_version} does not exist yet", None
        encoding = ENCODINGS.get(update.encoding)
        if encoding is None:
            return "rejected", f"unknown encoding; this aggregator reads {', '.join(ENCODINGS)}", None
        try:
            change = encoding.decode(update.body, *self._state.table.shape)
        except EncodingError as error:
            return "rejected", str(error), None
        if staleness > self.settings.max_staleness:
            return "stale", f"{staleness} versions old; at most {self.settings.max_staleness} count", None
        return "accepted", "", change

    @property
    def _is_held(self) -> bool:
        """Whether the open round waits for the guard's finding."""
        most = self.settings.guard.most_held(self.settings.buffer)
        return self._guard.on_trial and self._round.count < most

    @property
    def _first_finding(self) -> Finding:
        # In a small fleet so many reports would be long in coming.
        guard = self.settings.guard
        return "trial" if guard.reports and self.population >= 2 * guard.reports else "unjudged"

    def _count(self, change: SparseChange, staleness: int, size: int) -> None:
        self._round.add(change.rows, change.change, staleness)
        self._staleness_sum += staleness
        self._bytes_up += size

    def _open_round(self) -> None:
        self._round = self._strategy.open(*self._state.table.shape)
        self._staleness_sum = 0
        self._bytes_up = 0
        self._opened_at = None

    def _combined(self) -> tuple[Floats, Mapping[str, Floats]]:
        """Give the change that the open round's updates come to, and what the strategy remembers then."""
        if not self._round.count:  # closed for another reason: no step of an optimiser's either
            return np.zeros_like(self._state.table), self._state.strategy_state
        closing = self._round.close(self.population, self._state.strategy_state)
        return closing.change, closing.state

    def _close(
        self, *, by_deadline: bool, step: tuple[int, CatalogueChange, Changed] | None = None
    ) -> list[Command]:
        with np.errstate(over="ignore", invalid="ignore"):
            change, strategy_state = self._combined()
            # What is retired stays as it is: devices that do not know yet still train it.
            change[self._retired] = 0.0
            change += self._state.table
        if self._round.count and not _are_finite(change, *strategy_state.values()):
            # Updates of finite values that a strategy cannot reckon with: devices would refuse the table.
            dropped = self._made(
                self._state.table,
                self._state.strategy_state,
                restored=self.version,
                dropped=self._round.count,
            )
            return dropped if step is None else dropped + self._close(by_deadline=False, step=step)
        catalogue_step = None
        if step is not None:
            number, asked, changed = step
            change = changed.table_from(change)
            strategy_state = {
                name: with_new_rows(array, len(self._state.table), len(change))
                for name, array in strategy_state.items()
            }
            catalogue_step = CatalogueStep(number=number, change=asked, catalogue=changed.catalogue)
            self._state.catalogue = changed.catalogue
            self._retired = changed.catalogue.retired_rows
        return self._made(
            change,
            strategy_state,
            updates=self._round.count,
            staleness_sum=self._staleness_sum,
            bytes_up=self._bytes_up,
            by_deadline=by_deadline,
            catalogue_step=catalogue_step,
            population=self.population,
        )

    def _made(
        self,
        table: Floats,
        strategy_state: Mapping[str, Floats],
        *,
        updates: int = 0,
        staleness_sum: int = 0,
        bytes_up: int = 0,
        by_deadline: bool = False,
        catalogue_step: CatalogueStep | None = None,
        population: int | None = None,
        restored: int | None = None,
        dropped: int = 0,
    ) -> list[Command]:
        """Go on with a new version, and open the next round."""
        table.flags.writeable = False
        ended = self._guard.overtaken()
        self._state.version += 1
        self._state.table = table
        self._state.strategy_state = strategy_state
        closed = ClosedRound(
            version=self._state.version,
            table=table,
            updates=updates,
            staleness_sum=staleness_sum,
            bytes_up=bytes_up,
            by_deadline=by_deadline,
            strategy_state=strategy_state,
            catalogue_step=catalogue_step,
            population=population,
            restored=restored,
            dropped=dropped,
        )
        finding = self._first_finding if restored is None else "restored"
        self._guard.published(
            Restorable(version=closed.version, table=table, memory=strategy_state), finding=finding
        )
        self._open_round()
        commands: list[Command] = [] if ended is None else [KeepQuality(ended)]
        return [*commands, CloseRound(closed), PublishVersion(closed.version)]

    def _reply(self, device: str, update: Update, verdict: Verdict, reason: str) -> ReplyReceipt:
        receipt = Receipt(
            incarnation=update.incarnation,
            seq=update.seq,
            verdict=verdict,
            reason=reason,
            version=self.version,
            staleness=max(0, self.version - update.base_version),
            check_in_s=float(self._pacing.check_in(self.population, self.load)),
        )
        return ReplyReceipt(device, receipt)


def _are_finite(*arrays: Floats) -> bool:
    return all(bool(np.isfinite(each).all()) for each in arrays)
