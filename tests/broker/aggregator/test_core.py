"""The aggregator's decisions: each verdict, when rounds close, and what holds in any order of events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.aggregator.catalogue_changes import parse_change
from broker.aggregator.core import MOST_INCARNATIONS, AggregatorCore
from broker.aggregator.decisions import (
    Answered,
    ClosedRound,
    CloseRound,
    Command,
    CoreState,
    Journal,
    JournalEntry,
    PublishVersion,
    ReplyReceipt,
    RoundSettings,
)
from broker.aggregator.examination import ledger_agrees
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import TooManyIncarnationsError
from broker.protocol.catalogue import Catalogue
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import MAX_SEQ, MAX_U64, Receipt, Update, Verdict, encode
from broker.protocol.wire import TypedArray
from tests.broker.aggregator.builders import (
    DIM,
    INSTANCE,
    N_ITEMS,
    a_change,
    a_core,
    a_genesis,
    a_table,
    an_update,
    decoded,
)
from tests.broker.protocol.strategies import updates as any_updates
from trainer.aggregation import AggregationSettings, Closing, FedAvg, FedBuff, OpenRound, Strategy
from trainer.errors import ParameterError
from trainer.params import Floats, Rows

DEADLINE_S = 10.0


def send(core: AggregatorCore, update: Update, *, device: str = "pi", now: float = 0.0) -> list[Command]:
    """Give an update to the core as the service would."""
    return core.update_received(device, update, encode(update), now)


def receipt_of(commands: Sequence[Command]) -> Receipt:
    """Give the one receipt among the commands."""
    (reply,) = [command for command in commands if isinstance(command, ReplyReceipt)]
    return reply.receipt


def entry_of(commands: Sequence[Command]) -> JournalEntry:
    """Give the one journal entry among the commands."""
    (journal,) = [command for command in commands if isinstance(command, Journal)]
    return journal.entry


def round_of(commands: Sequence[Command]) -> ClosedRound:
    """Give the one closed round among the commands."""
    (closing,) = [command for command in commands if isinstance(command, CloseRound)]
    return closing.round


# --- verdicts ----------------------------------------------------------------------------------------


def test_fresh_update_is_accepted_and_journalled_with_its_body() -> None:
    """An update that can be applied is journalled whole before its receipt."""
    core = a_core(version=3)
    update = an_update(seq=5, incarnation=7, base_version=2)

    commands = send(core, update)

    assert [type(command) for command in commands] == [Journal, ReplyReceipt]
    entry = entry_of(commands)
    assert (entry.device, entry.incarnation, entry.seq) == ("pi", 7, 5)
    assert (entry.verdict, entry.staleness, entry.base_version) == ("accepted", 1, 2)
    assert entry.body == encode(update)
    receipt = receipt_of(commands)
    assert (receipt.incarnation, receipt.seq, receipt.verdict, receipt.reason) == (7, 5, "accepted", "")
    assert (receipt.version, receipt.staleness, receipt.check_in_s) == (3, 1, 30.0)
    assert core.buffered == 1


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_update_in_every_encoding_is_accepted(encoding: str) -> None:
    """The aggregator reads what any device may send."""
    assert receipt_of(send(a_core(), an_update(encoding=encoding))).verdict == "accepted"


def test_repeated_update_is_a_duplicate_and_not_journalled_again() -> None:
    """The same number again is answered with the first verdict and changes nothing."""
    core = a_core()
    update = an_update()
    send(core, update)

    commands = send(core, update)

    assert [type(command) for command in commands] == [ReplyReceipt]
    receipt = receipt_of(commands)
    assert (receipt.verdict, receipt.reason) == ("duplicate", "answered before: accepted")
    assert core.buffered == 1


def test_repeated_rejected_update_names_the_first_verdict() -> None:
    """A duplicate's reason tells the verdict that counts, whatever it was."""
    core = a_core()
    update = an_update(instance=INSTANCE + 1)
    send(core, update)

    assert receipt_of(send(core, update)).reason == "answered before: rejected"


def test_older_number_than_the_newest_is_superseded() -> None:
    """A device's numbers only grow: one below the newest was answered, or will never count."""
    core = a_core()
    send(core, an_update(seq=9))

    commands = send(core, an_update(seq=8))

    assert [type(command) for command in commands] == [ReplyReceipt]
    assert receipt_of(commands).verdict == "duplicate"
    assert receipt_of(commands).reason == "answered before: superseded"


def test_same_number_of_another_incarnation_or_device_is_fresh() -> None:
    """Device, incarnation and number together name an update."""
    core = a_core(RoundSettings(buffer=10))
    send(core, an_update(incarnation=1))

    assert receipt_of(send(core, an_update(incarnation=2))).verdict == "accepted"
    assert receipt_of(send(core, an_update(incarnation=1), device="other")).verdict == "accepted"
    assert core.buffered == 3


def test_largest_incarnation_and_number_are_accepted() -> None:
    """All that the protocol allows can be counted."""
    update = an_update(incarnation=MAX_U64, seq=MAX_SEQ)

    assert receipt_of(send(a_core(), update)).verdict == "accepted"


def test_update_of_another_instance_is_rejected() -> None:
    """A table of another directory has nothing in common with this one."""
    commands = send(a_core(), an_update(instance=INSTANCE + 1))

    assert receipt_of(commands).verdict == "rejected"
    assert "another aggregator directory" in receipt_of(commands).reason
    assert entry_of(commands).verdict == "rejected"
    assert entry_of(commands).body is None


def test_update_of_a_future_version_is_rejected() -> None:
    """Nobody can have trained on a version that does not exist."""
    commands = send(a_core(version=3), an_update(base_version=4))

    assert (receipt_of(commands).verdict, receipt_of(commands).staleness) == ("rejected", 0)
    assert receipt_of(commands).reason == "base version 4 does not exist yet"


def test_update_in_an_unknown_encoding_is_rejected_with_those_known() -> None:
    """A device learns what this aggregator reads."""
    update = Update(
        instance=INSTANCE,
        incarnation=1,
        seq=1,
        base_version=0,
        encoding="brand-new",
        body={"x": np.zeros(1, dtype=np.float32)},
    )

    receipt = receipt_of(send(a_core(), update))

    assert receipt.verdict == "rejected"
    assert all(name in receipt.reason for name in ENCODINGS)


def _malformed_bodies() -> dict[str, dict[str, TypedArray]]:
    rows = np.array([0, 1], dtype=np.uint32)
    values = np.ones(2 * DIM, dtype=np.float32)
    return {
        "arrays": {"rows": rows},
        "dtype": {"rows": rows, "values": np.ones(2 * DIM, dtype=np.int8)},
        "no rows": {"rows": rows[:0], "values": values[:0]},
        "row beyond": {"rows": np.array([0, N_ITEMS], dtype=np.uint32), "values": values},
        "order": {"rows": rows[::-1].copy(), "values": values},
        "twice": {"rows": np.array([1, 1], dtype=np.uint32), "values": values},
        "size": {"rows": rows, "values": values[:-1]},
        "nan": {"rows": rows, "values": np.full(2 * DIM, np.nan, dtype=np.float32)},
        "infinite": {"rows": rows, "values": np.full(2 * DIM, -np.inf, dtype=np.float32)},
        "huge": {"rows": rows, "values": np.full(2 * DIM, 2e30, dtype=np.float32)},
    }


@pytest.mark.parametrize("kind", sorted(_malformed_bodies()))
def test_update_with_a_malformed_body_is_rejected(kind: str) -> None:
    """A body that does not fit the table never reaches it, and its sender learns why."""
    update = Update(
        instance=INSTANCE,
        incarnation=1,
        seq=1,
        base_version=0,
        encoding="float32",
        body=_malformed_bodies()[kind],
    )
    core = a_core(RoundSettings(buffer=1))

    commands = send(core, update)

    assert [type(command) for command in commands] == [Journal, ReplyReceipt]
    assert receipt_of(commands).verdict == "rejected"
    assert receipt_of(commands).reason
    assert (core.buffered, core.version) == (0, 0)


def test_update_as_old_as_allowed_counts_and_an_older_one_is_stale() -> None:
    """`max_staleness` versions count; one more does not."""
    core = a_core(RoundSettings(buffer=9, max_staleness=2), version=5)

    accepted = send(core, an_update(seq=1, base_version=3))
    stale = send(core, an_update(seq=2, base_version=2))

    assert (receipt_of(accepted).verdict, entry_of(accepted).staleness) == ("accepted", 2)
    assert (receipt_of(stale).verdict, entry_of(stale).staleness) == ("stale", 3)
    assert receipt_of(stale).reason == "3 versions old; at most 2 count"
    assert entry_of(stale).body is None
    assert core.buffered == 1


# --- rounds ------------------------------------------------------------------------------------------


def test_buffer_of_updates_closes_the_round_after_the_receipt() -> None:
    """The update that fills the buffer is stored and answered, then its round is closed and published."""
    core = a_core(RoundSettings(buffer=2))
    first = an_update(seq=1)
    second = an_update(seq=2)
    send(core, first)

    commands = send(core, second)

    assert [type(command) for command in commands] == [Journal, ReplyReceipt, CloseRound, PublishVersion]
    closed = round_of(commands)
    assert (closed.version, closed.updates, closed.staleness_sum) == (1, 2, 0)
    assert closed.bytes_up == len(encode(first)) + len(encode(second))
    assert not closed.by_deadline
    assert receipt_of(commands).version == 0
    assert commands[-1] == PublishVersion(1)
    assert (core.version, core.buffered) == (1, 0)
    assert core.table is closed.table


def test_closed_round_applies_the_weighted_mean_of_its_updates() -> None:
    """FedBuff: (n/N) of the staleness-weighted mean is added to the table."""
    table = a_table(1)
    core = a_core(RoundSettings(buffer=2, population=8), FedBuff(0.5), table=table, version=3)
    fresh, old = a_change(1), a_change(2)
    send(core, an_update(seq=1, base_version=3, change=fresh))

    closed = round_of(send(core, an_update(seq=2, base_version=0, change=old)))

    weight = 4.0**-0.5
    expected = table.astype(np.float64)
    expected[fresh.rows] += fresh.change * (2 / 8) / (1 + weight)
    expected[old.rows] += old.change * (2 / 8) * weight / (1 + weight)
    np.testing.assert_allclose(closed.table, expected, rtol=1e-5, atol=1e-6)
    assert closed.staleness_sum == 3


def test_closed_table_is_a_new_read_only_array() -> None:
    """Whoever holds the old version keeps it, and nobody can write into the new one."""
    core = a_core(RoundSettings(buffer=1))
    before = core.table
    kept = before.copy()

    send(core, an_update())

    np.testing.assert_array_equal(before, kept)
    assert core.table is not before
    assert not core.table.flags.writeable
    assert core.table.dtype == np.float32


def test_deadline_counts_from_the_first_accepted_update() -> None:
    """Only what is accepted opens a round; the deadline closes it and says so."""
    core = a_core(RoundSettings(buffer=9, deadline_s=DEADLINE_S))
    wakes = []
    for seq, (base_version, now) in enumerate([(99, 50.0), (0, 100.0), (0, 105.0)], 1):
        send(core, an_update(seq=seq, base_version=base_version), now=now)
        wakes.append(core.wake_at)

    assert wakes == [None, 110.0, 110.0]
    assert core.tick(109.9) == []
    commands = core.tick(110.0)
    assert [type(command) for command in commands] == [CloseRound, PublishVersion]
    assert (round_of(commands).updates, round_of(commands).by_deadline) == (2, True)
    assert core.wake_at is None


def test_empty_round_is_never_closed() -> None:
    """Time alone makes no version."""
    core = a_core(RoundSettings(buffer=1, deadline_s=DEADLINE_S))

    assert core.tick(1e9) == []
    assert (core.version, core.wake_at) == (0, None)


def test_round_without_a_deadline_waits_for_its_buffer() -> None:
    """With no deadline only the buffer closes a round."""
    core = a_core(RoundSettings(buffer=2, deadline_s=None))
    send(core, an_update())

    assert core.wake_at is None
    assert core.tick(1e9) == []


def test_pending_updates_of_before_a_restart_start_their_deadline_anew() -> None:
    """The clock may have been reset: the first tick after a restart counts as their beginning."""
    update = an_update()
    core = a_core(RoundSettings(buffer=9, deadline_s=DEADLINE_S), pending=[(update, 0, len(encode(update)))])

    before, commands, after = core.wake_at, core.tick(3.0), core.wake_at

    assert (before, commands, after) == (None, [], 13.0)
    assert round_of(core.tick(13.0)).updates == 1


def test_pending_updates_that_fill_a_smaller_buffer_close_at_the_first_tick() -> None:
    """A buffer that was made smaller between two runs holds for what waits, too."""
    pending = [(an_update(seq=seq), 0, 10) for seq in (1, 2, 3)]
    core = a_core(RoundSettings(buffer=2), pending=pending)

    closed = round_of(core.tick(0.0))

    assert (closed.updates, closed.bytes_up, closed.by_deadline) == (3, 30, False)


# --- the fleet ---------------------------------------------------------------------------------------


def test_device_is_news_once() -> None:
    """A device is reported as new the first time only, also when its update came first."""
    core = a_core()

    assert core.device_seen("pi")
    assert not core.device_seen("pi")
    send(core, an_update(), device="other")
    assert not core.device_seen("other")


def test_population_is_the_devices_seen_but_at_least_one() -> None:
    """Without a setting, those count that ever showed themselves, those of before a restart too."""
    assert a_core().population == 1
    core = a_core(seen={"a", "b"})
    core.device_seen("c")
    core.device_seen("a")
    assert core.population == 3


def test_population_of_the_settings_wins() -> None:
    """A fleet's size that was set does not depend on who was seen."""
    core = a_core(RoundSettings(population=50), seen={"a", "b"})

    assert core.population == 50


def test_population_scales_the_change() -> None:
    """The same update moves the table of a fleet ten times as large a tenth as far."""
    table = np.zeros((N_ITEMS, DIM), dtype=np.float32)
    small = a_core(RoundSettings(buffer=1, population=5), table=table)
    large = a_core(RoundSettings(buffer=1, population=50), table=table)
    send(small, an_update())
    send(large, an_update())

    np.testing.assert_allclose(small.table, large.table * 10, rtol=1e-5)


def test_core_tells_its_instance() -> None:
    """The head needs it."""
    assert a_core().instance == INSTANCE


@pytest.mark.parametrize(
    "wrong",
    [
        {"buffer": 0},
        {"buffer": 1_000_001},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"deadline_s": 604_801.0},
        {"max_staleness": -1},
        {"max_staleness": 100_001},
        {"population": 0},
        {"population": 2**63},
        {"check_in_s": -1.0},
        {"check_in_s": float("inf")},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """A setting that cannot work is named before anything starts."""
    with pytest.raises(ParameterError):
        RoundSettings(**wrong)  # type: ignore[arg-type] # as from a file


# --- any order of events -----------------------------------------------------------------------------

Kind: TypeAlias = str
KINDS: tuple[Kind, ...] = ("good", "future", "foreign instance", "unknown encoding", "malformed")


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """A new update of a device; `behind` versions old where its kind is good."""

    device: int
    incarnation: int
    kind: Kind
    skip: int
    behind: int
    seed: int
    encoding: str
    scale: float


@dataclass(frozen=True)
class Again:
    """An update that was sent before, picked by a number, once more."""

    pick: int


@dataclass(frozen=True, kw_only=True)
class Below:
    """An update that no one has sent, with a number below the newest of its device."""

    device: int
    incarnation: int
    back: int


@dataclass(frozen=True)
class Wait:
    """Time goes on by a fraction of the deadline, then a tick."""

    fraction: float


@dataclass(frozen=True)
class Restart:
    """The process dies after its batch was stored, and a new one loads what the store has."""


Event: TypeAlias = Fresh | Again | Below | Wait | Restart

_DEVICES = st.integers(0, 2)
_INCARNATIONS = st.sampled_from([0, MAX_U64])


def _events(*, fractions: st.SearchStrategy[float]) -> st.SearchStrategy[list[Event]]:
    fresh = st.builds(
        Fresh,
        device=_DEVICES,
        incarnation=_INCARNATIONS,
        kind=st.sampled_from(("good", "good", "good", *KINDS)),
        skip=st.integers(1, 3),
        behind=st.integers(0, 5),
        seed=st.integers(0, 2**16),
        encoding=st.sampled_from(sorted(ENCODINGS)),
        scale=st.sampled_from([1e-20, 1.0, 1e28]),
    )
    below = st.builds(Below, device=_DEVICES, incarnation=_INCARNATIONS, back=st.integers(1, 3))
    each = st.one_of(
        fresh,
        fresh,
        fresh,
        st.builds(Again, st.integers(0, 100)),
        below,
        st.builds(Wait, fractions),
        st.just(Restart()),
    )
    return st.lists(each, max_size=40)


def _all_settings() -> st.SearchStrategy[RoundSettings]:
    return st.builds(
        RoundSettings,
        buffer=st.integers(1, 4),
        deadline_s=st.sampled_from([None, DEADLINE_S]),
        max_staleness=st.integers(0, 3),
        population=st.sampled_from([None, 1, 7]),
        check_in_s=st.just(5.0),
    )


STRATEGIES: tuple[Strategy, ...] = (
    FedAvg(),
    FedBuff(),
    FedBuff(2.0),
    AggregationSettings(robust="trimmed-mean", clip_to_median=1.5, similarity=0.1).make(),
    AggregationSettings(server_optimiser="yogi", clip=1.0).make(),
)


@dataclass
class Model:
    """The core under test, what a store would hold, and what must be true of both."""

    settings: RoundSettings
    strategy: Strategy
    core: AggregatorCore = field(init=False)
    now: float = 0.0
    opened_at: float | None = None
    newest: dict[tuple[str, int], Answered] = field(default_factory=dict)
    sent: list[tuple[str, Update]] = field(default_factory=list)
    journal: list[JournalEntry] = field(default_factory=list)
    pending: list[JournalEntry] = field(default_factory=list)
    rounds: list[ClosedRound] = field(default_factory=list)
    counted: list[JournalEntry] = field(default_factory=list)
    tables: list[tuple[Floats, bytes]] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    verdicts: list[tuple[Verdict, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keep(a_table())
        self._load()

    def _keep(self, table: Floats) -> None:
        self.tables.append((table, table.tobytes()))

    def _load(self) -> None:
        stored = np.frombuffer(self.tables[-1][1], dtype=np.float32).reshape(N_ITEMS, DIM)
        state = CoreState(
            instance=INSTANCE,
            version=len(self.rounds),
            table=stored,
            answered=dict(self.newest),
            seen=set(self.devices),
            strategy_state=self.rounds[-1].strategy_state if self.rounds else {},
        )
        pending = [(decoded(e.body), e.staleness, len(e.body)) for e in self.pending if e.body is not None]
        self.core = AggregatorCore(self.settings, self.strategy, state, pending)

    def apply(self, event: Event) -> None:
        """Do one event and check everything that it may and may not have done."""
        match event:
            case Fresh():
                self._send(f"device-{event.device}", self._fresh(event))
            case Again(pick):
                if self.sent:
                    self._send(*self.sent[pick % len(self.sent)])
            case Below():
                device = f"device-{event.device}"
                before = self.newest.get((device, event.incarnation))
                if before is not None and before.seq > event.back:
                    seq = before.seq - event.back
                    self._send(device, an_update(seq=seq, incarnation=event.incarnation))
            case Wait(fraction):
                self.now += fraction * DEADLINE_S
                self._tick()
            case Restart():
                self._load()
                self.opened_at = None
                self._tick()
        self._check()

    def _fresh(self, event: Fresh) -> Update:
        device = f"device-{event.device}"
        before = self.newest.get((device, event.incarnation))
        numbers = {
            "seq": (before.seq if before else 0) + event.skip,
            "incarnation": event.incarnation,
            "base_version": max(0, len(self.rounds) - event.behind),
            "instance": INSTANCE,
        }
        change = a_change(event.seed, scale=event.scale)
        if event.kind == "future":
            numbers["base_version"] = len(self.rounds) + 1 + event.behind
        elif event.kind == "foreign instance":
            numbers["instance"] = INSTANCE + 1
        elif event.kind == "unknown encoding":
            return Update(**numbers, encoding="new", body={"x": np.zeros(1, dtype=np.int8)})
        elif event.kind == "malformed":
            bodies = _malformed_bodies()
            kind = sorted(bodies)[event.seed % len(bodies)]
            return Update(**numbers, encoding="float32", body=bodies[kind])
        return an_update(**numbers, encoding=event.encoding, change=change)

    def _expected_verdict(self, device: str, update: Update) -> Verdict:
        before = self.newest.get((device, update.incarnation))
        if before is not None and update.seq <= before.seq:
            return "duplicate"
        if update.instance != INSTANCE or update.base_version > len(self.rounds):
            return "rejected"
        if update.encoding not in ENCODINGS or self._is_malformed(update):
            return "rejected"
        too_old = len(self.rounds) - update.base_version > self.settings.max_staleness
        return "stale" if too_old else "accepted"

    @staticmethod
    def _is_malformed(update: Update) -> bool:
        bodies = _malformed_bodies().values()
        return any(
            update.body.keys() == body.keys()
            and all(np.array_equal(update.body[name], body[name], equal_nan=True) for name in body)
            for body in bodies
        )

    def _send(self, device: str, update: Update) -> None:
        expected = self._expected_verdict(device, update)
        version = len(self.rounds)
        key = (device, update.incarnation)
        before = self.newest.get(key)

        commands = send(self.core, update, device=device, now=self.now)

        self.sent.append((device, update))
        self.devices.add(device)
        receipt = receipt_of(commands)
        assert (receipt.incarnation, receipt.seq) == (update.incarnation, update.seq)
        assert (receipt.verdict, receipt.version) == (expected, version)
        assert bool(receipt.reason) == (expected != "accepted")
        self.verdicts.append((receipt.verdict, receipt.reason))
        if expected == "duplicate":
            assert before is not None
            first = before.verdict if before.seq == update.seq else "superseded"
            assert receipt.reason == f"answered before: {first}"
            assert len(commands) == 1
            return
        assert isinstance(commands[0], Journal)
        assert isinstance(commands[1], ReplyReceipt)
        assert commands[1].device == device
        entry = entry_of(commands)
        assert (entry.device, entry.incarnation, entry.seq) == (*key, update.seq)
        assert (entry.verdict, entry.base_version) == (expected, update.base_version)
        assert entry.staleness == receipt.staleness == max(0, version - update.base_version)
        assert entry.body == (encode(update) if expected == "accepted" else None)
        self.newest[key] = Answered(seq=update.seq, verdict=expected)
        self.journal.append(entry)
        if expected == "accepted":
            self.pending.append(entry)
            self.opened_at = self.now if self.opened_at is None else self.opened_at
        self._after(commands[2:], full=len(self.pending) >= self.settings.buffer, due=False)

    def _tick(self) -> None:
        if self.pending and self.opened_at is None:
            self.opened_at = self.now
        deadline_s = self.settings.deadline_s
        due = (
            self.opened_at is not None
            and deadline_s is not None
            and self.now >= self.opened_at + deadline_s
            and bool(self.pending)
        )
        self._after(self.core.tick(self.now), full=False, due=due)

    def _after(self, commands: Sequence[Command], *, full: bool, due: bool) -> None:
        """Check that the rest of an event's commands close the round exactly if they must."""
        if not (full or due):
            assert commands == []
            return
        assert [type(command) for command in commands] == [CloseRound, PublishVersion]
        closed = round_of(commands)
        assert commands[1] == PublishVersion(closed.version)
        assert closed.version == len(self.rounds) + 1
        assert closed.by_deadline == due
        assert closed.updates == len(self.pending) > 0
        assert closed.staleness_sum == sum(entry.staleness for entry in self.pending)
        assert closed.bytes_up == sum(len(entry.body or b"") for entry in self.pending)
        self._check_table(closed.table)
        self.rounds.append(closed)
        self.counted += self.pending
        self.pending = []
        self.opened_at = None
        self._keep(closed.table)

    def _check_table(self, table: Floats) -> None:
        """Check a new table: the same to the last bit from the journal, and linear ones in float64, too."""
        population = self.settings.population or len(self.devices)
        replayed = self.strategy.open(N_ITEMS, DIM)
        for entry in self.pending:
            update = decoded(entry.body or b"")
            change = ENCODINGS[update.encoding].decode(update.body, N_ITEMS, DIM)
            replayed.add(change.rows, change.change, entry.staleness)
        closing = replayed.close(population, self.rounds[-1].strategy_state if self.rounds else {})
        assert table.tobytes() == (closing.change + self.tables[-1][0]).tobytes()
        if not isinstance(self.strategy, FedAvg | FedBuff):
            return
        exact = np.zeros((N_ITEMS, DIM))
        weights = []
        for entry in self.pending:
            update = decoded(entry.body or b"")
            change = ENCODINGS[update.encoding].decode(update.body, N_ITEMS, DIM)
            weights.append(self.strategy.weight(entry.staleness))
            exact[change.rows] += change.change.astype(np.float64) * weights[-1]
        n = len(self.pending)
        factor = 1 / population
        if isinstance(self.strategy, FedBuff):
            factor = min(1.0, n / population) / sum(weights)
        before = self.tables[-1][0].astype(np.float64)
        scale = max(1.0, float(np.abs(exact).max()) * factor, float(np.abs(before).max()))
        np.testing.assert_allclose(table, before + exact * factor, rtol=1e-4, atol=1e-5 * scale)

    def _check(self) -> None:
        assert self.core.version == len(self.rounds)
        assert self.core.buffered == len(self.pending) < self.settings.buffer
        assert np.isfinite(self.core.table).all()
        assert self.core.population == (self.settings.population or max(1, len(self.devices)))
        wanted = None
        if self.pending and self.opened_at is not None and self.settings.deadline_s is not None:
            wanted = self.opened_at + self.settings.deadline_s
        assert self.core.wake_at == wanted

    def finish(self) -> None:
        """Check what must hold of a whole run."""
        named = [(entry.device, entry.incarnation, entry.seq) for entry in self.journal]
        assert len(named) == len(set(named))
        accepted = [entry for entry in self.journal if entry.verdict == "accepted"]
        assert self.counted + self.pending == accepted
        assert [closed.version for closed in self.rounds] == list(range(1, len(self.rounds) + 1))
        assert all(table.tobytes() == content for table, content in self.tables)


@settings(deadline=None, max_examples=150)
@given(
    events=_events(fractions=st.sampled_from([0.0, 0.3, 1.0, 5.0])),
    round_settings=_all_settings(),
    strategy=st.sampled_from(STRATEGIES),
)
def test_every_event_order_keeps_the_books(
    events: list[Event], round_settings: RoundSettings, strategy: Strategy
) -> None:
    """Whatever comes in whatever order, each update is answered, journalled once and counted at most once."""
    model = Model(round_settings, strategy)

    for event in events:
        model.apply(event)

    model.finish()


# In whole deadlines only: a restart begins the deadline of what waits anew.
@settings(deadline=None, max_examples=150)
@given(
    events=_events(fractions=st.sampled_from([0.0, 1.0, 2.0])),
    round_settings=_all_settings(),
    strategy=st.sampled_from(STRATEGIES),
)
def test_restarts_at_any_point_change_nothing(
    events: list[Event], round_settings: RoundSettings, strategy: Strategy
) -> None:
    """With and without restarts the same updates give the same verdicts and bit-identical tables."""
    restarted = Model(round_settings, strategy)
    steady = Model(round_settings, strategy)

    for event in events:
        restarted.apply(event)
        if not isinstance(event, Restart):
            steady.apply(event)

    assert restarted.verdicts == steady.verdicts
    assert [content for _, content in restarted.tables] == [content for _, content in steady.tables]
    assert [closed.updates for closed in restarted.rounds] == [closed.updates for closed in steady.rounds]


@settings(deadline=None, max_examples=100)
@given(events=_events(fractions=st.just(1.0)), cut=st.integers(0, 40), strategy=st.sampled_from(STRATEGIES))
def test_batch_that_was_lost_before_it_was_stored_can_come_again(
    events: list[Event], cut: int, strategy: Strategy
) -> None:
    """A process that dies before its commit has acknowledged nothing: the same updates come again."""
    steady = Model(RoundSettings(buffer=3, deadline_s=DEADLINE_S), strategy)
    updates = [event for event in events if not isinstance(event, Wait | Restart)]
    for event in updates:
        steady.apply(event)
    crashed = Model(RoundSettings(buffer=3, deadline_s=DEADLINE_S), strategy)
    for event in updates[:cut]:
        crashed.apply(event)

    # The rest is decided and then forgotten with the process: nothing of it was stored.
    for device, update in steady.sent[len(crashed.sent) :]:
        send(crashed.core, update, device=device)
    crashed.apply(Restart())
    for event in updates[cut:]:
        crashed.apply(event)

    crashed.finish()
    assert [content for _, content in crashed.tables] == [content for _, content in steady.tables]
    assert crashed.verdicts == steady.verdicts


@settings(deadline=None)
@given(updates=st.lists(any_updates(), max_size=8))
def test_any_update_that_can_travel_gets_a_receipt(updates: list[Update]) -> None:
    """No well-formed update, however foreign its body, raises or goes unanswered."""
    core = a_core(RoundSettings(buffer=3))

    for update in updates:
        commands = core.update_received("pi", update, encode(update), 0.0)
        assert encode(receipt_of(commands))

    assert np.isfinite(core.table).all()


@settings(deadline=None)
@given(
    updates=st.lists(any_updates(), min_size=1, max_size=8),
    bases=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_any_body_for_this_table_leaves_it_finite(updates: list[Update], bases: list[int]) -> None:
    """Also what is addressed to this instance and version, with any body, never puts a NaN into the table."""
    core = a_core(RoundSettings(buffer=2), table=np.zeros((50, 4), dtype=np.float32))

    for seq, (update, base) in enumerate(zip(updates, bases, strict=False), 1):
        ours = Update(
            instance=INSTANCE,
            incarnation=update.incarnation,
            seq=seq,
            base_version=base,
            encoding=update.encoding,
            body=update.body,
        )
        commands = core.update_received("pi", ours, encode(ours), 0.0)
        assert encode(receipt_of(commands))

    assert np.isfinite(core.table).all()


@dataclass
class Overflowing:
    """A strategy whose rounds with a large first value come to what no float32 holds."""

    moment: float = 1.0

    def open(self, n_items: int, dim: int) -> OpenRound:
        """Open a round of FedBuff's, with another end."""
        return OverflowingRound(self, FedBuff().open(n_items, dim))


class OverflowingRound:
    """See `Overflowing`."""

    def __init__(self, strategy: Overflowing, inner: OpenRound) -> None:
        self.strategy = strategy
        self.inner = inner

    @property
    def count(self) -> int:
        """Give the inner round's."""
        return self.inner.count

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        """Leave it to the inner round."""
        self.inner.add(rows, change, staleness)

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:
        """Overflow, in the step or in what is remembered."""
        change = self.inner.close(population, state).change
        wild = bool((np.abs(change) > 1e6).any())
        moment = np.full((1, 1), np.float32(np.nan if wild and not self.strategy.moment else 1.0))
        if wild and self.strategy.moment:
            change[0, 0] = np.inf
        return Closing(change=change, state={"moment": moment})


@pytest.mark.parametrize("moment", [0.0, 1.0])
def test_round_that_is_not_finite_is_dropped(moment: float, tmp_path: Path) -> None:
    """No such table is published, and the ledger tells; the next round counts; the journal proves all."""
    store = SqliteStore(tmp_path / "state.sqlite3")
    store.initialise(a_genesis())
    core = AggregatorCore(RoundSettings(buffer=2), Overflowing(moment), store.load())
    table = core.table
    change = a_change(1, scale=1e12)
    commands = [*send(core, an_update(seq=1)), *send(core, an_update(seq=2, change=change))]
    closed = round_of(commands)

    assert (closed.version, closed.updates, closed.dropped, closed.restored) == (1, 0, 2, 0)
    np.testing.assert_array_equal(core.table, table)
    commands += [*send(core, an_update(seq=3, base_version=1)), *send(core, an_update(seq=4))]
    assert (core.version, np.array_equal(core.table, table)) == (2, False)
    durable = [each for each in commands if isinstance(each, Journal | CloseRound)]
    store.commit(Batch(commands=durable, closed_at=0.0, strategy="{}"))
    ledger = store.ledger()
    assert (ledger.counted, ledger.dropped, ledger.pending) == (2, 2, 0)
    assert ledger_agrees(store)
    assert [record.closed_by for record in store.rounds(9)] == ["buffer", "rollback"]
    store.close()


def test_change_of_the_catalogue_is_made_without_a_round_that_is_not_finite() -> None:
    """Two versions: one for what is dropped, one for the change."""
    state = CoreState(
        instance=INSTANCE, version=0, table=a_table(), catalogue=Catalogue(tuple(a_genesis().item_keys))
    )
    core = AggregatorCore(RoundSettings(buffer=9), Overflowing(), state)
    send(core, an_update(seq=1, change=a_change(1, scale=1e12)))
    commands = core.change_catalogue(7, parse_change("add", b"another\n", "new.txt"))

    dropped, made = [each.round for each in commands if isinstance(each, CloseRound)]
    assert (dropped.dropped, dropped.catalogue_step, made.dropped, made.updates) == (1, None, 0, 0)
    assert made.catalogue_step is not None
    assert core.table.shape == (N_ITEMS + 1, DIM)
    assert np.isfinite(core.table).all()


def test_device_that_begins_anew_without_end_is_refused() -> None:
    """What is remembered of it is bounded, across a restart; its old incarnations go on."""
    state = CoreState(instance=INSTANCE, version=0, table=a_table())
    core = AggregatorCore(RoundSettings(buffer=1000), FedBuff(), state)
    for incarnation in range(MOST_INCARNATIONS):
        assert receipt_of(send(core, an_update(incarnation=incarnation))).verdict == "accepted"
    restarted = AggregatorCore(RoundSettings(buffer=1000), FedBuff(), state)
    for each in (core, restarted):
        with pytest.raises(TooManyIncarnationsError, match="another id"):
            send(each, an_update(incarnation=MOST_INCARNATIONS))
    assert receipt_of(send(core, an_update(incarnation=5, seq=2))).verdict == "accepted"
    assert (
        receipt_of(send(core, an_update(incarnation=MOST_INCARNATIONS), device="other")).verdict == "accepted"
    )
