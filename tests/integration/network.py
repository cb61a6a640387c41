"""A fleet in memory, on a network that loses, doubles, delays and reorders, among processes that crash.

Real here: sessions, core, both stores (SQLite in memory), the codec, downloads and local passes on a tiny
table. Simulated: the broker, the clock, and every process, which can die between any two steps and starts
again from what its store holds. Nothing waits and nothing is drawn from outside: a run is repeated by its
seed.

`World.check` holds after every step, `World.heal` ends the trouble and `World.check_at_rest` adds up. A long
run::

    python -m tests.integration.network --seeds 0:2000 --steps 400
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import (
    CloseRound,
    Command,
    Journal,
    JournalEntry,
    PublishVersion,
    ReplyReceipt,
    RoundSettings,
)
from broker.aggregator.publication import Publication
from broker.aggregator.store.interface import Batch, Genesis
from broker.aggregator.store.sqlite import SqliteStore
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Chunk, Head, Plan, Receipt, Status, Update, Verdict, decode, encode
from broker.protocol.topics import Filter, FleetTopics, Topic
from broker.protocol.versions import table_bytes
from edge.download import Download
from edge.holding import Holding
from edge.personal import Personal, make_update
from edge.session import (
    Activity,
    Fetch,
    PublishStatus,
    PublishUpdate,
    Session,
    Settle,
    Subscribe,
    Train,
)
from edge.session import Command as DeviceCommand
from edge.store import DeviceStore
from trainer.aggregation import Accumulator, FedBuff
from trainer.local import local_pass
from trainer.params import initial_score_function, initial_table
from trainer.sampling import NegativeSampler

TOPICS = FleetTopics("net")
ITEM_KEYS = tuple(f"item-{row:02d}" for row in range(60))
DIM = 2
AGGREGATOR = "aggregator"
CHECK_IN_S = 10.0
MAX_IDLE_PASSES = 3
SETTINGS = RoundSettings(buffer=2, deadline_s=20.0, max_staleness=1, population=3, check_in_s=CHECK_IN_S)
STRATEGY = FedBuff()
QUIET_S = 5 * 1.5 * CHECK_IN_S
"""Nobody has anything left to do when nothing happened during so many check-ins."""
MAX_HEALING_STEPS = 20_000

UpdateId: TypeAlias = tuple[str, int, int]
"""Device, incarnation, sequence number."""


class CrashError(Exception):
    """A process is killed here."""


class Message(NamedTuple):
    """What the broker holds for a client until the client has acknowledged it."""

    client: str
    topic: str
    payload: bytes


class Broker:
    """MQTT as far as it matters here: retained messages, persistent sessions, QoS 1."""

    def __init__(self) -> None:
        self.online: set[str] = set()
        self.in_flight: list[Message] = []
        self._retained: dict[str, bytes] = {}
        self._subscriptions: dict[str, set[str]] = {}

    def subscribe(self, client: str, filters: Sequence[Filter]) -> None:
        """Subscribe; retained messages come at once."""
        self._subscriptions.setdefault(client, set()).update(filters)
        for topic, payload in self._retained.items():
            if any(_matches(each, topic) for each in filters):
                self.in_flight.append(Message(client, topic, payload))

    def unsubscribe(self, client: str, filters: Sequence[Filter]) -> None:
        """End subscriptions."""
        self._subscriptions.get(client, set()).difference_update(filters)

    def publish(self, client: str, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        """Publish to all subscribers; dropped while the client has no connection."""
        if client not in self.online:
            return
        if retain:
            self._retained[topic] = payload
        for subscriber, filters in self._subscriptions.items():
            if any(_matches(each, topic) for each in filters):
                self.in_flight.append(Message(subscriber, topic, payload))

    def crash(self) -> None:
        """Forget everything."""
        for forgotten in (self.online, self.in_flight, self._retained, self._subscriptions):
            forgotten.clear()


def _matches(wanted: str, topic: str) -> bool:
    levels, others = wanted.split("/"), topic.split("/")
    return len(levels) == len(others) and all(a in ("+", b) for a, b in zip(levels, others, strict=True))


class Witness:
    """Sees everything that becomes durable and checks it against the promises."""

    def __init__(self, table: bytes) -> None:
        self.made: dict[UpdateId, bytes] = {}
        self.verdicts: dict[UpdateId, Verdict] = {}
        self.counted: dict[UpdateId, int] = {}
        self.tables = {0: table}
        self._pending: list[JournalEntry] = []

    @property
    def version(self) -> int:
        """The newest durable version."""
        return len(self.tables) - 1

    @property
    def unanswered(self) -> set[UpdateId]:
        """Updates that no journal has."""
        return self.made.keys() - self.verdicts.keys()

    def update_stored(self, update: UpdateId, payload: bytes) -> None:
        """A device has an update in its outbox."""
        assert update not in self.made, f"the number of {update} was given before"
        self.made[update] = payload

    def committed(self, batch: Batch) -> None:
        """The aggregator has stored a batch."""
        for command in batch.commands:
            if isinstance(command, Journal):
                self._journalled(command.entry)
            elif isinstance(command, CloseRound):
                self._closed(command)

    def _journalled(self, entry: JournalEntry) -> None:
        key = (entry.device, entry.incarnation, entry.seq)
        assert key in self.made, f"nobody made {key}"
        assert key not in self.verdicts, f"{key} has a second first verdict"
        assert (entry.body is not None) == (entry.verdict == "accepted")
        self.verdicts[key] = entry.verdict
        if entry.body is not None:
            self._pending.append(entry)

    def _closed(self, command: CloseRound) -> None:
        closed = command.round
        assert closed.version == self.version + 1, "versions grow by one"
        assert closed.updates == len(self._pending), "a round counts all accepted updates since the last"
        # The table itself says that each was added once: the same sum, added anew from the journal.
        sums = Accumulator(len(ITEM_KEYS), DIM)
        for entry in self._pending:
            key = (entry.device, entry.incarnation, entry.seq)
            assert key not in self.counted, f"{key} is counted twice"
            self.counted[key] = closed.version
            update = decode(entry.body or b"", Update)
            change = ENCODINGS[update.encoding].decode(update.body, len(ITEM_KEYS), DIM)
            sums.add(change.rows, change.change, STRATEGY.weight(entry.staleness))
        before = np.frombuffer(self.tables[self.version], dtype="<f4").reshape(-1, DIM)
        expected = STRATEGY.change(sums, SETTINGS.population or 1) + before
        assert table_bytes(closed.table) == table_bytes(expected)
        self.tables[closed.version] = table_bytes(closed.table)
        self._pending = []


class Process:
    """Something that can be killed between two steps."""

    def __init__(self) -> None:
        self.steps_to_live: int | None = None
        self.steps = 0

    def step(self) -> None:
        """Come to a point where a crash makes a difference."""
        self.steps += 1
        if self.steps_to_live is not None:
            self.steps_to_live -= 1
            if self.steps_to_live <= 0:
                self.steps_to_live = None
                raise CrashError


class Aggregator(Process):
    """The core as the service runs it: a batch, one transaction, then everything else."""

    def __init__(self, broker: Broker, witness: Witness, store: SqliteStore, plan: Plan) -> None:
        super().__init__()
        self._broker = broker
        self._witness = witness
        self._store = store
        self._plan = plan
        self._session = 0
        self.boot()

    def boot(self) -> None:
        """Start the process."""
        self.core = AggregatorCore(SETTINGS, STRATEGY, self._store.load(), self._store.pending())
        self._publication = Publication(ITEM_KEYS, self._plan, self._store.start())
        self._publication.begin(self.core.table)
        assert self.core.version == self._witness.version

    def connected(self) -> None:
        """Publish everything again."""
        self._session = self._store.next_session()
        self._broker.subscribe(AGGREGATOR, [TOPICS.update_filter, TOPICS.status_filter])
        for chunk in self._publication.catalogue_chunks():
            self._publish(TOPICS.catalogue(chunk.index), encode(chunk), retain=True)
        self._publish_version()

    def work_on(
        self, messages: Sequence[Message], now: float, acknowledge: Callable[[Message], None]
    ) -> None:
        """Take a batch of messages, and look at the clock."""
        commands: list[Command] = []
        devices: list[str] = []
        for message in messages:
            address = TOPICS.parse(message.topic)
            if address.kind == "status":
                decode(message.payload, Status)
                if self.core.device_seen(address.device):
                    devices.append(address.device)
            else:
                update = decode(message.payload, Update)
                commands += self.core.update_received(address.device, update, message.payload, now)
        commands += self.core.tick(now)
        self.step()
        durable = [command for command in commands if isinstance(command, Journal | CloseRound)]
        duplicates = sum(isinstance(c, ReplyReceipt) and c.receipt.verdict == "duplicate" for c in commands)
        if durable or devices or duplicates:
            batch = Batch(commands=durable, devices=devices, duplicates=duplicates, closed_at=now)
            self._store.commit(batch)
            self._witness.committed(batch)
        for closing in durable:
            if isinstance(closing, CloseRound):
                self._publication.add_step(closing.round.version, closing.round.table)
        for message in messages:
            self.step()
            acknowledge(message)
        for command in commands:
            if isinstance(command, ReplyReceipt):
                self._publish(TOPICS.receipt(command.device), encode(command.receipt))
        if any(isinstance(command, PublishVersion) for command in commands):
            self._publish_version()

    def ledger(self) -> dict[str, int]:
        """Give the store's count of every verdict."""
        ledger = self._store.ledger()
        return {name: getattr(ledger, name) for name in ("counted", "pending", "stale", "rejected")}

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    def _publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        self.step()
        self._broker.publish(AGGREGATOR, topic, payload, retain=retain)

    def _publish_version(self) -> None:
        assert self.core.version <= self._witness.version, "a version is published before it is stored"
        head, chunks = self._publication.of(self.core, self._session)
        for chunk in chunks:
            self._publish(TOPICS.snapshot(head.slot, chunk.index), encode(chunk), retain=True)
        for version, chunk in self._publication.step_chunks(0):
            self._publish(TOPICS.delta(version, chunk.index), encode(chunk), retain=True)
        self._publish(TOPICS.head, encode(head), retain=True)


class Device(Process):
    """A session as an agent runs it, but with passes that take a while.

    Parameters
    ----------
    spoils : bool
        Whether it makes updates of rows that the table does not have, which the aggregator rejects.
    """

    def __init__(
        self, name: str, broker: Broker, witness: Witness, *, incarnation: int, seed: int, spoils: bool
    ) -> None:
        super().__init__()
        self.name = name
        self._broker = broker
        self._witness = witness
        self._incarnation = incarnation
        self._rng = np.random.default_rng(seed)
        self._spoils = spoils
        # Half of them store what they must, and a newer table now and then.
        self._table_writes = 0.0 if seed % 2 else 200.0 * 4 * len(ITEM_KEYS) * DIM
        self.fetched_by_steps = 0
        self.store = DeviceStore(Path(":memory:"))
        self.store.set_facts(incarnation=incarnation)
        self.boot(0.0)

    def boot(self, now: float) -> None:
        """Start the process."""
        remembered = self.store.remembered()
        self.session = Session(remembered, self._rng.random)
        self.holding = Holding(self.store, self._table_writes)
        self.training: Train | None = None
        self._download: Download | None = None
        self._notice_interactions(now)

    def connected(self, now: float) -> None:
        """The link is up."""
        self.carry_out(self.session.connected(now), now)

    def lost(self, now: float) -> None:
        """The link is down."""
        self._download = None
        self.carry_out(self.session.lost(), now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.carry_out(self.session.tick(now), now)
        if self.session.activity is not Activity.FETCHING:
            self._end_download()

    def record(self, row: int, now: float) -> None:
        """The user interacts with an item."""
        self.store.record([(ITEM_KEYS[row], now)])
        self._notice_interactions(now)

    def receive(self, message: Message, now: float) -> None:
        """Take a message."""
        address = TOPICS.parse(message.topic)
        if address.kind == "head":
            self.carry_out(self.session.head_received(decode(message.payload, Head), now), now)
        elif address.kind == "receipt":
            receipt = decode(message.payload, Receipt)
            self._compare(receipt)
            self.carry_out(self.session.receipt_received(receipt, now), now)
        elif self._download is not None:
            chunk = decode(message.payload, Chunk)
            if self._download.add(address, chunk, len(message.payload)):
                self._finish_download(self._download, now)

    def has_contributed(self) -> bool:
        """Tell whether everything that was recorded is in an update that was answered."""
        contributed = self.session.progress.contributed_revision
        return contributed == self.store.interacted().revision and self.store.outbox_size() == 0

    def finish_pass(self, now: float) -> None:
        """End the local pass that runs."""
        command, model = self.training, self.holding.model
        assert command is not None
        assert model is not None, "a pass without a table"
        self.training = None
        positives = self.store.interacted().rows
        before = self.store.personal() or Personal.beginning(model.head.w, model.head.b)
        sampler = NegativeSampler.excluding(len(ITEM_KEYS), positives)
        hyperparameters = model.head.plan.hyperparameters
        result = local_pass(
            model.table, before.score_function, positives, sampler, hyperparameters, self._rng
        )
        update: tuple[int, bytes] | None = None
        if command.seq is not None:
            sent = replace(result, rows=result.rows + len(ITEM_KEYS)) if self._spoils else result
            update = (command.seq, encode(make_update(model.head, self._incarnation, command.seq, sent)))
        self.step()
        self.store.save_pass(Personal.of(result, model.head.plan.taste), command.progress, update)
        if update is not None:
            self._witness.update_stored((self.name, self._incarnation, update[0]), update[1])
        self.step()
        self.carry_out(self.session.training_done(command, now), now)

    def carry_out(self, commands: list[DeviceCommand], now: float) -> None:
        """Do what the session says."""
        for command in commands:
            self.step()
            match command:
                case Subscribe():
                    filters = [Filter(TOPICS.head), Filter(TOPICS.receipt(self.name))]
                    self._broker.subscribe(self.name, filters)
                case PublishStatus():
                    self._publish(TOPICS.status(self.name), self._status(), retain=True)
                case Fetch(head, catalogue, steps):
                    self._end_download()
                    model = self.holding.model
                    base = None if model is None else model.table
                    self._download = Download(head, catalogue=catalogue, steps=steps, base=base)
                    self.fetched_by_steps += bool(self._download.steps)
                    self._broker.subscribe(self.name, self._download.filters(TOPICS))
                case Train():
                    assert self.training is None, "two passes at once"
                    self.training = command
                case PublishUpdate(seq):
                    self._publish(TOPICS.update(self.name), self.store.outbox(seq))
                case Settle(seq, verdict):
                    key = (self.name, self._incarnation, seq)
                    assert key in self._witness.verdicts, f"{key} is settled, but in no journal"
                    self.store.settle(seq, verdict)

    def holds(self, seq: int, payload: bytes) -> bool:
        """Tell whether an update is in the outbox."""
        return self.store.outbox_size() == 1 and self.store.outbox(seq) == payload

    def _publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        self._broker.publish(self.name, topic, payload, retain=retain)

    def _status(self) -> bytes:
        return encode(
            Status(
                online=True,
                session=0,
                incarnation=self._incarnation,
                version=self.session.version,
                scorer="numpy",
                software="",
            )
        )

    def _finish_download(self, download: Download, now: float) -> None:
        self._end_download()
        table, item_keys = download.result()
        assert table_bytes(table) == self._witness.tables[download.head.version], "tables are bit-identical"
        self.step()
        self.holding.hold(download.head, table, item_keys, now)
        self.step()
        self._notice_interactions(now)
        self.carry_out(self.session.table_ready(download.head, now), now)

    def _end_download(self) -> None:
        if self._download is not None:
            self._broker.unsubscribe(self.name, self._download.filters(TOPICS))
        self._download = None

    def _notice_interactions(self, now: float) -> None:
        interacted = self.store.interacted()
        n_known = interacted.rows.size if interacted.rows.size < len(ITEM_KEYS) else 0
        self.carry_out(self.session.interactions_changed(interacted.revision, n_known, now), now)

    def _compare(self, receipt: Receipt) -> None:
        first = self._witness.verdicts.get((self.name, receipt.incarnation, receipt.seq))
        assert first is not None, "a receipt for an update that no journal has"
        if receipt.verdict != "duplicate":
            assert receipt.verdict == first
        else:
            assert receipt.reason in (f"answered before: {first}", "answered before: superseded")


def _name(device: Device | None) -> str:
    return AGGREGATOR if device is None else device.name


class World:
    """Three devices, an aggregator and a broker, all under one clock.

    Parameters
    ----------
    seed : int
        Of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.now = 0.0
        self.broker = Broker()
        genesis = Genesis(
            instance=int(rng.integers(2**53)),
            item_keys=ITEM_KEYS,
            table=initial_table(len(ITEM_KEYS), DIM, rng),
            start=initial_score_function(DIM, rng),
            created_at=0.0,
        )
        self.witness = Witness(table_bytes(genesis.table))
        store = SqliteStore(Path(":memory:"))
        store.initialise(genesis)
        plan = Plan(
            lr=0.1,
            item_lr=1.0,
            negatives=2,
            batch_size=8,
            encoding=sorted(ENCODINGS)[seed % len(ENCODINGS)],
            check_in_s=CHECK_IN_S,
            max_idle_passes=MAX_IDLE_PASSES,
        )
        self.aggregator = Aggregator(self.broker, self.witness, store, plan)
        self.devices = [
            Device(
                f"device-{index}",
                self.broker,
                self.witness,
                incarnation=int(rng.integers(2**53)),
                seed=seed + index,
                spoils=index == 2,
            )
            for index in range(3)
        ]
        self.history: list[str] = []
        """What happened, for whoever looks for the reason of a failure."""
        self._newest = 0

    def close(self) -> None:
        """Release the stores."""
        self.aggregator.close()
        for device in self.devices:
            device.store.close()

    def begin(self) -> None:
        """Let everybody have the first table, and the first interactions."""
        for device in self.devices:
            for row in (0, 3):
                device.record(row, self.now)
        self.catch_up()

    # -- what can happen ---------------------------------------------------------------------------

    def act(self, number: int) -> None:
        """Let one thing happen, chosen by `number`, and check all promises."""
        action = ACTIONS[number % len(ACTIONS)]
        self.history.append(f"{self.now:.1f} {action.__name__} {number}")
        action(self, random.Random(number))
        self.check()

    def deliver(self, choice: random.Random) -> None:
        """A message arrives, any of those on their way, and the broker hears that it did."""
        self._deliver(choice, keep=False)

    def double(self, choice: random.Random) -> None:
        """A message arrives, and its acknowledgement is lost."""
        self._deliver(choice, keep=True)

    def lose(self, choice: random.Random) -> None:
        """A message is gone for ever."""
        if self.broker.in_flight:
            self.broker.in_flight.pop(choice.randrange(len(self.broker.in_flight)))

    def finish_pass(self, choice: random.Random) -> None:
        """A local pass ends."""
        training = [device for device in self.devices if device.training is not None]
        if training:
            self._run_device(choice.choice(training), lambda device: device.finish_pass(self.now))

    def wait(self, choice: random.Random) -> None:
        """Time passes: until somebody has something to do, or for a while."""
        times = sorted(time for time in self._wake_times() if time > self.now)
        if times and choice.random() < 0.7:
            self.now = times[0]
        else:
            self.now += choice.uniform(0.0, 2.0 * CHECK_IN_S)
        self._tick()

    def interact(self, choice: random.Random) -> None:
        """A user interacts with one of a few items."""
        row = choice.randrange(len(ITEM_KEYS) - 4)
        self._run_device(choice.choice(self.devices), lambda device: device.record(row, self.now))

    def connect(self, choice: random.Random) -> None:
        """A link comes back."""
        offline = [each for each in (None, *self.devices) if _name(each) not in self.broker.online]
        if offline:
            device = choice.choice(offline)
            if device is None:
                self._connect_aggregator()
            else:
                self._connect(device)

    def disconnect(self, choice: random.Random) -> None:
        """A link breaks."""
        device = choice.choice((None, *self.devices))
        if device is None:
            self.broker.online.discard(AGGREGATOR)
        elif device.name in self.broker.online:
            self._lose_link(device)

    def crash_device(self, choice: random.Random) -> None:
        """A device's process dies, now or in some steps."""
        device = choice.choice(self.devices)
        device.steps_to_live = choice.randrange(1, 8)
        if choice.random() < 0.3:
            self._restart_device(device)

    def crash_aggregator(self, choice: random.Random) -> None:
        """The aggregator's process dies, now or in some steps."""
        self.aggregator.steps_to_live = choice.randrange(1, 8)
        if choice.random() < 0.3:
            self._restart_aggregator()

    def crash_broker(self, choice: random.Random) -> None:
        """The broker loses everything that it held, and all its clients; not as often as the others."""
        if choice.random() < 0.7:
            return
        for device in self.devices:
            if device.name in self.broker.online:
                self._lose_link(device)
        self.broker.crash()

    # -- how it happens ----------------------------------------------------------------------------

    def _deliver(self, choice: random.Random, *, keep: bool) -> None:
        reachable = [m for m in self.broker.in_flight if m.client in self.broker.online]
        if not reachable:
            return
        message = choice.choice(reachable)
        if message.client != AGGREGATOR:
            self._hand_over(message, keep=keep)
            return
        others = [m for m in reachable if m.client == AGGREGATOR and m is not message]
        batch = [message, *choice.sample(others, min(len(others), choice.randrange(3)))]
        self._hand_over_batch(batch, keep=keep)

    def _hand_over(self, message: Message, *, keep: bool) -> None:
        device = next(device for device in self.devices if device.name == message.client)
        alive = self._run_device(device, lambda it: it.receive(message, self.now))
        if alive and not keep:
            self._acknowledge(message)

    def _hand_over_batch(self, batch: list[Message], *, keep: bool) -> None:
        acknowledge = self._keep if keep else self._acknowledge
        self._run_aggregator(lambda it: it.work_on(batch, self.now, acknowledge))

    def _keep(self, message: Message) -> None:
        """Lose an acknowledgement."""

    def _acknowledge(self, message: Message) -> None:
        # By identity: an equal message may be on its way a second time.
        for index, each in enumerate(self.broker.in_flight):
            if each is message:
                del self.broker.in_flight[index]
                return

    def _tick(self) -> None:
        for device in self.devices:
            self._run_device(device, lambda it: it.tick(self.now))
        self._run_aggregator(lambda it: it.work_on([], self.now, self._keep))

    def _wake_times(self) -> Iterator[float]:
        times = [self.aggregator.core.wake_at, *(device.session.wake_at for device in self.devices)]
        yield from (time for time in times if time is not None)

    def _run_device(self, device: Device, what: Callable[[Device], None]) -> bool:
        try:
            what(device)
        except CrashError:
            self._restart_device(device)
            return False
        return True

    def _restart_device(self, device: Device) -> None:
        self.history.append(f"{self.now:.1f} {device.name} dies")
        self.broker.online.discard(device.name)
        device.steps_to_live = None
        device.boot(self.now)

    def _run_aggregator(self, what: Callable[[Aggregator], None]) -> bool:
        try:
            what(self.aggregator)
        except CrashError:
            self._restart_aggregator()
            return False
        return True

    def _restart_aggregator(self) -> None:
        self.history.append(f"{self.now:.1f} the aggregator dies")
        self.broker.online.discard(AGGREGATOR)
        self.aggregator.steps_to_live = None
        self.aggregator.boot()

    def _lose_link(self, device: Device) -> None:
        self.broker.online.discard(device.name)
        self._run_device(device, lambda it: it.lost(self.now))

    def _connect(self, device: Device) -> None:
        self.broker.online.add(device.name)
        self._run_device(device, lambda it: it.connected(self.now))

    def _connect_aggregator(self) -> None:
        self.broker.online.add(AGGREGATOR)
        self._run_aggregator(lambda it: it.connected())

    # -- promises ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what must hold after every step."""
        version = self.aggregator.core.version
        assert version >= self._newest, "versions only grow"
        assert version == self.witness.version
        self._newest = version
        for device in self.devices:
            assert device.store.outbox_size() <= 1, f"{device.name} has several updates waiting"
        for update in self.witness.unanswered:
            device = next(device for device in self.devices if device.name == update[0])
            assert device.holds(update[2], self.witness.made[update]), f"{update} is lost"

    def heal(self) -> None:
        """Mend all links, let no process die any more, and wait until nobody has anything to do."""
        self.history.append(f"{self.now:.1f} the network heals")
        for process in (self.aggregator, *self.devices):
            process.steps_to_live = None
        for device in self.devices:
            if device.name in self.broker.online:
                self._lose_link(device)
        self.broker.online.discard(AGGREGATOR)
        self.come_to_rest()

    def come_to_rest(self) -> None:
        """Without further trouble on the network, wait until nobody has anything to do."""
        quiet_since = self.now
        for _ in range(MAX_HEALING_STEPS):
            before = (len(self.witness.made), self.witness.version)
            self.catch_up()
            if (len(self.witness.made), self.witness.version) != before:
                quiet_since = self.now
            if self.now > quiet_since + QUIET_S:
                return
            self.now = max(self.now, min(self._wake_times()))
            self._tick()
        raise AssertionError("the fleet does not come to rest")

    def part(self, device: Device) -> None:
        """A device's link breaks."""
        self._lose_link(device)

    def join(self, device: Device) -> None:
        """A device's link is back."""
        self._connect(device)

    def go_on_for(self, seconds: float, *, without: Device | None = None) -> None:
        """Let time pass without trouble, one device away."""
        until = self.now + seconds
        while self.now < until:
            self.catch_up(without=without)
            self.now = min(until, max(self.now, min(self._wake_times())) + 1e-3)
            self._tick()

    def catch_up(self, *, without: Device | None = None) -> None:
        """Connect everybody, and do all that is to be done now, in order."""
        while True:
            if AGGREGATOR not in self.broker.online:
                self._connect_aggregator()
            for device in self.devices:
                if device.name not in self.broker.online and device is not without:
                    self._connect(device)
                if device.training is not None:
                    self._run_device(device, lambda it: it.finish_pass(self.now))
            reachable = [
                each for each in self.broker.in_flight if without is None or each.client != without.name
            ]
            if not reachable:
                break
            message = reachable[0]
            if message.client not in self.broker.online:
                continue
            if message.client == AGGREGATOR:
                self._hand_over_batch([message], keep=False)
            else:
                self._hand_over(message, keep=False)
            self.check()

    def check_at_rest(self) -> None:
        """Check what must hold once nobody has anything left to do."""
        newest = self.aggregator.core.version
        for device in self.devices:
            assert device.session.activity is Activity.IDLE
            assert device.store.outbox_size() == 0
            model = device.holding.model
            assert model is not None
            assert model.head.version == device.session.version == newest
            assert table_bytes(model.table) == table_bytes(self.aggregator.core.table)
            remembered = device.store.remembered()
            assert remembered.progress == device.session.progress, "a restart would change what is next"
            assert remembered.held is not None
            assert remembered.held.sha256 == model.head.sha256, "a restart would take the table for news"
            answered = sum(device.store.receipts().values())
            assert answered == remembered.last_seq, "a number was left out"
        ledger = self.aggregator.ledger()
        verdicts = list(self.witness.verdicts.values())
        assert ledger == {
            "counted": len(self.witness.counted),
            "pending": 0,
            "stale": verdicts.count("stale"),
            "rejected": verdicts.count("rejected"),
        }
        assert sum(ledger.values()) == len(self.witness.made)
        self._check_restart()

    def _check_restart(self) -> None:
        version, table = self.aggregator.core.version, table_bytes(self.aggregator.core.table)
        self.aggregator.boot()
        assert (self.aggregator.core.version, table_bytes(self.aggregator.core.table)) == (version, table)


ACTIONS: tuple[Callable[[World, random.Random], None], ...] = (
    *[World.deliver] * 28,
    *[World.double] * 3,
    *[World.lose] * 2,
    *[World.finish_pass] * 8,
    *[World.wait] * 8,
    *[World.interact] * 4,
    *[World.connect] * 5,
    *[World.disconnect] * 2,
    World.crash_device,
    World.crash_aggregator,
    World.crash_broker,
)
"""What `World.act` chooses from, each as often as it is listed."""


def live(seed: int, numbers: Sequence[int]) -> World:
    """Run a fleet through trouble, then let it come to rest; give it as it is then, closed.

    Half of the seeds begin with devices that have a table and interactions.

    Raises
    ------
    AssertionError
        When a promise was broken; its notes tell the seed and what happened last.
    """
    world = World(seed)
    try:
        if seed % 2:
            world.begin()
        for number in numbers:
            world.act(number)
        world.heal()
        world.check_at_rest()
    except Exception as error:
        error.add_note(f"seed {seed}; the last of {len(world.history)} events:")
        error.add_note("\n".join(world.history[-40:]))
        raise
    finally:
        world.close()
    return world


def live_by_seed(seed: int, steps: int) -> World:
    """Run `live` with everything drawn from `seed`."""
    choices = random.Random(seed)
    return live(seed, [choices.randrange(2**32) for _ in range(steps)])


def main() -> None:
    """Run many fleets and tell what became of their updates."""
    parser = argparse.ArgumentParser(description="Put fleets through trouble and check all promises.")
    parser.add_argument("--seeds", default="0:200", help="FIRST:AFTER_LAST")
    parser.add_argument("--steps", default=200, type=int, help="Events before the network heals.")
    arguments = parser.parse_args()
    first, after_last = map(int, arguments.seeds.split(":"))
    made = counted = versions = 0
    for seed in range(first, after_last):
        witness = live_by_seed(seed, arguments.steps).witness
        made += len(witness.made)
        counted += len(witness.counted)
        versions += witness.version
    sys.stdout.write(
        f"{after_last - first} fleets, {made} updates made, {counted} counted in {versions} versions: "
        "none lost, none counted twice, all at rest with the newest table\n"
    )


if __name__ == "__main__":
    main()
