"""The aggregator's loop: messages in, one transaction, then acknowledgements, receipts and versions out.

The only clock on this side. A batch is whatever has arrived while the last one was being stored, so that
the transactions grow with the load (group commit). The order within a batch is what makes a crash
harmless: store; acknowledge to the broker; receipts; snapshot chunks; head last. Dying anywhere in
between leaves stored updates that their devices send again (and learn are duplicates), or a version that
is published at the next start.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, cast

from broker.address import BrokerAddress
from broker.aggregator.admission import Admission, Buckets
from broker.aggregator.announcing import Announcer
from broker.aggregator.attendance import Attendance
from broker.aggregator.chronicle import Chronicle
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import (
    CloseRound,
    Command,
    Journal,
    KeepQuality,
    PublishVersion,
    ReplyReceipt,
)
from broker.aggregator.reassembly import Reassembly
from broker.aggregator.refusals import Refusals
from broker.aggregator.rivals import Rivals
from broker.aggregator.store.interface import AggregatorStore, Batch
from broker.aggregator.watching import Watch, WorkedBatch, refusal_name
from broker.connection import (
    SERVERS_LONGEST_WAIT_S,
    WINDOW_EVENTS,
    Connected,
    Connection,
    EventQueue,
    LinkEvent,
    Lost,
    Received,
    Refused,
)
from broker.errors import (
    DataError,
    InputError,
    NotAdmittedError,
    ParameterError,
    ProtocolError,
    RefusedError,
)
from broker.journal import Trouble
from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import CHUNK_BYTES, chunk_count
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Chunk, Head, Quality, Status, Update, decode, encode
from broker.protocol.topics import ROOT, Address, Filter, FleetTopics, Topic

if TYPE_CHECKING:
    from broker.aggregator.offering import Offering

_LOG = logging.getLogger(__name__)

BATCH_EVENTS = 1_024
"""All of a broker's window: one transaction, and the broker may send the next."""
_LOOSE_BYTES = 32 * 1024 * 1024
"""Devices send at QoS 1; what comes without is somebody else's, and may be dropped."""
_SMALL = 0.25
"""What a status or a report counts for, in updates."""
WAKE_S = 0.25
"""Longest wait for an event: bounds how long a stop request goes unnoticed."""
_LOOK_FOR_CHANGES_S = 0.5
"""Between two looks at the queue of the catalogue's changes."""
_RELOADABLE = ("buffer", "deadline_s", "max_staleness", "log_level")
"""Settings that a reload changes at once."""
_CALLS_AT_ONCE, _CALLS_PER_S = 10.0, 1.0
"""That are answered."""
ALONE = "alone"
"""The name of an aggregator that is not one of several workers."""
_ENVELOPE_BYTES = 1024
"""More than everything of an update that is not its body."""


class AggregatorService:
    """Runs the core against a broker and a store.

    Parameters
    ----------
    say : callable
        Told one sentence when the broker goes and one when it is back.
    watch : Watch
        Told what was done, for figures.
    sign : callable
        Signs heads; None: they go unsigned.
    admission : Admission
        Whose messages are taken; None: as the configuration says, without lists.
    """

    _name = ALONE
    _forgotten = False
    """Whether the broker keeps nothing for this process when its connection ends."""

    def __init__(
        self,
        config: AggregatorConfig,
        store: AggregatorStore,
        address: BrokerAddress,
        say: Callable[[str], None],
        watch: Watch | None = None,
        sign: Callable[[Head], Head] | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._config = config
        self._watch = watch or Watch()
        self._attendance = Attendance()
        self._chronicle = Chronicle(self._watch)
        self._turned_at = time.monotonic()
        self._calls = Buckets(_CALLS_AT_ONCE, _CALLS_PER_S)
        self._store = store
        self._admission = admission or Admission(config.admission)
        self._say = say
        self._strategy_settings = json.dumps(asdict(config.aggregation))
        self._core = self._load_core()
        self._topics = FleetTopics(config.fleet)
        self._rivals = Rivals(self._topics, say, self._watch)
        self._refusals = Refusals(self._topics, self._admission)
        self._events = EventQueue(_LOOSE_BYTES)
        self._connection = Connection(
            address,
            self._client_id,
            self._events,
            last_will=self._last_will,
            clean=self._forgotten,
            longest_wait_s=SERVERS_LONGEST_WAIT_S,
        )
        self._announcer = Announcer(
            self._core, self._connection, self._topics, config.plan, store, say, self._watch, sign
        )
        self._max_update_bytes = self._largest_update()
        self._look_for_changes_at = 0.0
        self._reassembly = Reassembly(self._max_update_bytes)
        self._working_on = 0
        self._broker_gone = False
        self._watch.began(self)

    @property
    def version(self) -> int:
        """The newest version."""
        return self._core.version

    @property
    def buffered(self) -> int:
        """Updates in the open round."""
        return self._core.buffered

    @property
    def queued(self) -> int:
        """Events that wait to be worked on."""
        return self._events.qsize()

    @property
    def overflows(self) -> int:
        """Events that the full queue left at the broker."""
        return self._connection.overflows

    @property
    def devices_seen(self) -> int:
        """Devices that ever came."""
        return self._core.seen

    @property
    def devices_online(self) -> int:
        """Devices whose newest status is online."""
        return len(self._attendance)

    @property
    def broker_connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection.connected

    @property
    def head_published(self) -> bool:
        """Whether a head was published on this connection."""
        return self._announcer.head_published

    @property
    def turned_at(self) -> float:
        """When the loop last went round, on the monotonic clock, in seconds."""
        return self._turned_at

    @property
    def config(self) -> AggregatorConfig:
        """What it was made with, and what a reload has changed of it."""
        return self._config

    @property
    def state(self) -> str:
        """What it does, in a line."""
        broker = "connected" if self._connection.connected else "without a broker"
        return f"version {self.version}, {broker}, {self.devices_online} devices online"

    def offer_releases(self, offering: "Offering") -> None:
        """Publish the release that `offering` has, and follow its changes."""
        self._announcer.offering = offering

    def reconfigure(self, config: AggregatorConfig) -> list[str]:
        """Take when rounds close from a configuration; give the names of what stays as it was."""
        kept = [
            name
            for name, value in vars(config).items()
            if value != getattr(self._config, name) and name not in _RELOADABLE
        ]
        changed = replace(self._config, **{name: getattr(config, name) for name in _RELOADABLE})
        rounds = changed.round_settings
        settings = replace(
            self._core.settings,
            buffer=rounds.buffer,
            deadline_s=rounds.deadline_s,
            max_staleness=rounds.max_staleness,
            least_updates=rounds.least_updates,  # as at the start, but no more than close a round
        )
        # Both or, where one is refused, none.
        self._config, self._core.settings = changed, settings
        return kept

    def run(
        self,
        stop: threading.Event,
        require_broker: Callable[[], None] = lambda: None,
        each_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until `stop` is set.

        Parameters
        ----------
        require_broker : callable
            Called now and then; raises BrokerStartError when a broker of our own has ended.
        each_turn : callable
            Called between two turns of the loop.

        Raises
        ------
        BrokerStartError
            From `require_broker`.
        RefusedError
            When the broker refuses this client.
        DiskFullError, CorruptError, NotWritableError, InUseError
            From the store; what was not stored was not acknowledged.
        """
        self._connection.start()
        try:
            while not stop.is_set():
                self._turned_at = time.monotonic()
                each_turn()
                events = self._take_batch()
                if self._broker_gone or not events:
                    require_broker()
                self._work_on(events)
                self._announcer.offer_release()
        finally:
            self._show_presence(online=False)
            self._connection.stop()

    def _load_core(self) -> AggregatorCore:
        return AggregatorCore(
            self._config.round_settings,
            self._config.make_strategy(),
            self._store.load(),
            self._store.pending(),
        )

    @property
    def _client_id(self) -> str:
        return f"pfedrec-{self._config.fleet}-aggregator"

    def _largest_update(self) -> int:
        shape = self._core.table.shape
        return _ENVELOPE_BYTES + max(encoding.most_bytes(*shape) for encoding in ENCODINGS.values())

    def _longest_wait(self) -> float:
        """Give the seconds to wait for an event, at most."""
        wake_at = self._core.wake_at
        return WAKE_S if wake_at is None else min(WAKE_S, max(0.0, wake_at - time.monotonic()))

    def _take_batch(self) -> list[LinkEvent]:
        wait = self._longest_wait()
        batch: list[LinkEvent] = []
        if wait > 0.0:
            with contextlib.suppress(queue.Empty):
                batch.append(self._events.get(timeout=wait))
        batch += self._events.take_now(BATCH_EVENTS - len(batch))
        self._working_on = len(batch)
        return batch

    def _work_on(self, events: list[LinkEvent]) -> None:
        known_before = self._core.population
        self._core.load = self._load()
        commands: list[Command] = []
        received: list[Received] = []
        connected = False
        refusals: list[str] = []
        answers: list[Command] = []
        new_devices: list[str] = []
        for event in events:
            match event:
                case Received():
                    received.append(event)
                    try:
                        commands += self._decide(event, new_devices)
                    except ProtocolError as error:
                        refusals.append(refusal_name(error))
                        answers += self._refusal(event, error)
                case Connected():
                    connected = True
                case Lost(reason):
                    connected = False
                    self._lost(reason)
                case Refused(reason):
                    raise RefusedError(
                        f"the broker {self._connection.address} refuses the aggregator: {reason}; "
                        "check the user name and password in the address"
                    )
        commands += self._due(refusals)
        refusals += ["unfinished_transfer"] * self._reassembly.given_up(time.monotonic())
        began = time.perf_counter()
        stored = self._commit(commands, new_devices, len(refusals))
        commit_seconds = time.perf_counter() - began if stored else None
        if events or stored:
            self._watch.worked(
                WorkedBatch(
                    messages=len(received),
                    bytes_up=sum(len(each.payload) for each in received),
                    receipts=[each.receipt for each in commands if isinstance(each, ReplyReceipt)],
                    refusals=refusals,
                    rounds=[each.round for each in commands if isinstance(each, CloseRound)],
                    commit_seconds=commit_seconds,
                )
            )
        with self._connection.gathered():
            for message in received:
                self._connection.acknowledge(message)
            self._reply([*commands, *answers])
        if connected:
            self._connected()
        elif any(isinstance(command, PublishVersion) for command in commands):
            self._announcer.publish()
        if self._core.population != known_before:
            _LOG.debug("%d devices seen", self._core.population)

    def _load(self) -> float:
        """Give how much of what a broker has under way for us waits here, 0 to 1.

        At 1 more waits at the broker, however much: its own queue cannot be seen from here.
        """
        return min(1.0, (self._working_on + self._events.qsize()) / WINDOW_EVENTS)

    def _due(self, refusals: list[str]) -> list[Command]:  # noqa: ARG002 - workers find some only here
        """Do what is due after a batch's messages."""
        return [*self._core.tick(time.monotonic()), *self._change_catalogue()]

    def _decide(self, message: Received, new_devices: list[str]) -> list[Command]:
        if not message.topic.startswith(f"{ROOT}/{self._topics.fleet}/"):
            return []  # amqtt delivers retained messages also to those who did not ask for them
        address = self._topics.parse(message.topic)
        now = time.monotonic()
        if address.device:
            self._require_listed(address.device)
        if address.kind in ("status", "quality"):
            self._admission.require_rate(address.device, _SMALL, now)
        if address.kind == "status":
            self._note_status(address, message.payload, new_devices)
            return []
        if address.kind == "head":
            self._note_head(message)
        if address.kind == "call" and self._calls.take(address.kind, 1.0, now) >= 0.0:
            self._show_presence(online=True)
        if address.kind == "quality":
            report = decode(message.payload, Quality)
            return self._core.quality_received(address.device, report, now)
        if address.kind != "update":
            return []
        # Full chunks are a part of an update each; anything else counts for a whole one.
        parts = chunk_count(self._max_update_bytes) if len(message.payload) > CHUNK_BYTES else 1
        self._admission.require_rate(address.device, 1.0 / parts, now)
        content = cast("Update | Chunk", decode(message.payload, Update, Chunk))
        payload = message.payload
        if isinstance(content, Chunk):
            whole = self._put_together(address.device, content, now)
            if whole is None:
                return []
            payload = whole
            content = decode(whole, Update, max_bytes=self._max_update_bytes)
        self._note_device(address, new_devices)
        return self._take_update(address.device, content, payload, now)

    def _put_together(self, device: str, chunk: Chunk, now: float) -> bytes | None:
        return self._reassembly.add(device, chunk, now)

    def _take_update(self, device: str, update: Update, payload: bytes, now: float) -> list[Command]:
        return self._core.update_received(device, update, payload, now)

    def _change_catalogue(self) -> list[Command]:
        """Make versions of queued changes of the catalogue, up to the first that has to stand a trial."""
        now = time.monotonic()
        if now < self._look_for_changes_at:
            return []
        self._look_for_changes_at = now + _LOOK_FOR_CHANGES_S
        commands: list[Command] = []
        for number, change in self._store.queued_changes():
            if self._core.on_trial:  # maybe the version that the change before has made
                break
            try:
                commands += self._core.change_catalogue(number, change)
            except (DataError, InputError, ParameterError) as error:
                _LOG.error("change %d of the catalogue is not made: %s", number, error)
                self._store.refuse_change(number, str(error))
        return commands

    def _follow_catalogue(self, catalogue: Catalogue) -> None:
        self._announcer.follow_catalogue(catalogue)
        self._max_update_bytes = self._largest_update()
        self._reassembly.allow(self._max_update_bytes)

    def _note_device(self, address: Address, new_devices: list[str]) -> None:
        if not self._core.knows(address.device):
            self._admission.require_room(self._core.seen)
        if self._core.device_seen(address.device):
            new_devices.append(address.device)

    def _require_listed(self, device: str) -> None:
        try:
            self._admission.require_listed(device)
        except NotAdmittedError:
            self._attendance.leave_out(device)
            raise

    def _note_status(self, address: Address, payload: bytes, new_devices: list[str]) -> None:
        if not payload:  # somebody has cleared it
            self._attendance.leave_out(address.device)
            return
        status = decode(payload, Status)
        self._note_device(address, new_devices)
        self._attendance.note(address.device, status)

    def _note_head(self, message: Received) -> None:
        """Notice another aggregator of the same fleet: its heads and ours would take turns."""
        if not message.payload:  # somebody has cleared it
            return
        head = decode(message.payload, Head)
        if head.instance == self._core.instance and head.session <= self._announcer.session:
            return
        self._rivals.published(head)

    def _refusal(self, message: Received, error: ProtocolError) -> list[ReplyReceipt]:
        check_in_s = self._announcer.plan.check_in_s
        return self._refusals.answer(message, error, self._core.version, check_in_s, time.monotonic())

    def _commit(self, commands: list[Command], new_devices: list[str], refused: int) -> bool:
        """Store what must not be lost; tell whether there was anything."""
        durable = [command for command in commands if isinstance(command, Journal | CloseRound | KeepQuality)]
        duplicates = sum(
            isinstance(command, ReplyReceipt) and command.receipt.verdict == "duplicate"
            for command in commands
        )
        if not (durable or new_devices or duplicates or refused):
            return False
        self._store.commit(
            Batch(
                commands=durable,
                devices=new_devices,
                duplicates=duplicates,
                refused=refused,
                closed_at=time.time(),
                strategy=self._strategy_settings,
            )
        )
        for command in durable:
            if isinstance(command, KeepQuality):
                self._chronicle.found(command.quality)
            elif isinstance(command, CloseRound):
                closed = command.round
                self._announcer.add_step(closed.version, closed.table)
                if closed.catalogue_step is not None:
                    self._follow_catalogue(closed.catalogue_step.catalogue)
                self._chronicle.round_closed(closed)
        return True

    def _reply(self, commands: list[Command]) -> None:
        n_bytes = 0
        for command in commands:
            if isinstance(command, ReplyReceipt):
                receipt = encode(command.receipt)
                self._connection.publish(self._topics.receipt(command.device), receipt)
                n_bytes += len(receipt)
        if n_bytes:
            self._watch.sent("receipt", n_bytes)

    @property
    def _announces(self) -> bool:
        """Whether it is this process that publishes versions."""
        return True

    def _connected(self) -> None:
        if self._broker_gone:
            self._say("the broker is back")
        self._broker_gone = False
        if self._announces:
            self._announcer.begin_session()
            self._announcer.begin_anew()
        self._watch.connected()
        self._connection.subscribe(self._filters())
        self._show_presence(online=True)
        if self._announces:
            self._announcer.publish()
            version, session = self._core.version, self._announcer.session
            _LOG.info(
                "serving fleet %s at %s, version %d",
                self._topics.fleet,
                self._connection.address,
                version,
                extra={"event": "connected", "session": session, "version": version},
            )

    def _filters(self) -> list[Filter]:
        topics = self._topics
        return [
            topics.update_filter,
            topics.quality_filter,
            topics.status_filter,
            Filter(topics.head),
            Filter(topics.call),
        ]

    def _presence(self, *, online: bool) -> tuple[Topic, bytes]:
        """Give what tells whether this aggregator is there."""
        status = Status(
            online=online,
            session=self._announcer.session,
            incarnation=self._core.instance,
            version=self.version,
            scorer="none",
            software="edge-aggregator",
        )
        return self._topics.presence(self._name), encode(status)

    def _last_will(self, _number: int) -> tuple[Topic, bytes]:
        return self._presence(online=False)

    def _show_presence(self, *, online: bool) -> None:
        topic, payload = self._presence(online=online)
        self._connection.publish(topic, payload, retain=True)

    def _lost(self, reason: str) -> None:
        if not self._broker_gone:
            self._say(Trouble(f"{reason}; trying again until it is back"))
        self._announcer.lost()
        self._broker_gone = True
