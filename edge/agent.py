"""The device's loop: carries out what the session decides. The only clock on this side.

One thread does everything but the network: it takes events from the connection's queue, looks once a
second whether another process has recorded interactions, and trains.
"""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from broker.connection import Connected, Connection, EventQueue, LinkEvent, Lost, Received, Refused
from broker.errand import Errand
from broker.errors import EncodingError, ProtocolError, RefusedError
from broker.journal import Trouble
from broker.protocol.chunks import CHUNK_BYTES, cut
from broker.protocol.messages import Chunk, Delta, Head, Quality, Receipt, Status, decode, encode
from broker.protocol.topics import Filter, FleetTopics, Topic
from broker.protocol.versions import sha256
from edge.bulletin import Bulletin
from edge.config import WHILE_RUNNING, DeviceConfig, needs_restart, read_head_keys
from edge.download import Download, all_filters
from edge.erasure import HEAD_KEY
from edge.guards import Permission, Reading, permission, unknown_facts
from edge.holding import Holding
from edge.personal import Personal, make_update
from edge.quality import compare
from edge.releasefetch import ReleaseFetch
from edge.scorer import available_scorer_name
from edge.session import (
    Activity,
    Command,
    Fetch,
    PublishStatus,
    PublishUpdate,
    Session,
    Settle,
    Subscribe,
    Train,
)
from edge.store import DeviceStore, Interacted, Model
from edge.surroundings import Surroundings
from edge.trust import Trust
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Rows
from trainer.sampling import NegativeSampler

_LOG = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between looks for interactions that another process has recorded."""
_STOP_S = 0.25
"""Longest wait for an event: bounds how long a stop request goes unnoticed."""
_LONGEST_PASS_S = 1800.0
"""A pass that lasts longer hangs; then nobody is told any more that the loop goes round."""
_TIDY_S = 3600.0
"""Between looks whether there are more interactions than are kept, and whether the table may be stored."""
_NO_HEAD_S = 15.0
"""With a broker but no head for this long, the fleet's name is probably wrong."""


class Agent:
    """Runs one device's session against its broker and store.

    `edge.gateway.carrier` makes an agent of it whose passes and interactions are elsewhere: it has its own
    `_handle`, `_look_for_interactions`, `_train`, `_carry_out` and `_renumber`.

    Parameters
    ----------
    say : callable
        Told one sentence when something needs attention and one when that has passed.
    rng : numpy.random.Generator
        Draws negatives, batches and the jitter of check-ins.
    root : Path
        Where the guards find the machine's facts; see `edge.surroundings`.
    release : int
        The number of the release that the device runs, for its status; 0: none.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: DeviceStore,
        say: Callable[[str], None],
        rng: np.random.Generator,
        root: Path = Path("/"),
        release: int = 0,
    ) -> None:
        self._software = package_version("pfedrec-edge") + (f"+{release}" if release else "")
        self._config = config
        self._store = store
        self._say = say
        self._rng = rng
        self._topics = FleetTopics(config.fleet)
        remembered = store.remembered()
        self._incarnation = remembered.incarnation
        self._session = Session(remembered, rng.random)
        self._erasures = store.erasures()
        self._holding = Holding(store, config.table_writes)
        self._trust = Trust(
            config.fleet,
            read_head_keys(config),
            str(store.fact(HEAD_KEY) or ""),
            remembered.held,
        )
        self._personal: Personal | None = store.personal()
        self._interacted: Interacted | None = None
        self._positives: Rows = np.empty(0, dtype=np.int64)
        self._sampler: NegativeSampler | None = None
        self._download: Download | None = None
        self._broken: Download | None = None
        self._asked_for: list[Filter] = []
        self._release = ReleaseFetch(store.path.parent, config, self._topics)
        self._events = EventQueue()
        self._connections_before = int(store.fact("connection") or 0)
        self._connection_number = self._connections_before
        self._connection = self._make_connection()
        self._scorer = available_scorer_name() if config.scorer == "auto" else config.scorer
        self._store_changes: int | None = None
        self._look_at = self._tidy_at = 0.0
        self._broker_gone = False
        self._no_head_at: float | None = None
        self._bulletin = Bulletin(store)
        self._surroundings = Surroundings(root)
        self._reading = Reading()
        self._permission = Permission()
        self._look_again_at = 0.0
        self._stop = threading.Event()
        self._each_round: Callable[[], None] = lambda: None

    def run(self, stop: threading.Event, each_round: Callable[[], None] = lambda: None) -> None:
        """Take part in the fleet until `stop` is set.

        Parameters
        ----------
        each_round : callable
            Called at least every second while the loop goes round, and in the first half hour of a pass; not
            while a write lasts.

        Raises
        ------
        RefusedError
            When the broker refuses this device.
        DiskFullError, CorruptError, NotWritableError, InUseError
            From the store; nothing that was stored is lost.
        """
        self._stop, self._each_round = stop, each_round
        self._look_at_guards(time.monotonic())
        self._connection.start()
        try:
            while not stop.is_set():
                self._handle(self._next_event())
                now = time.monotonic()
                self._tidy(now)
                self._look_for_interactions(now)
                self._look_at_guards(now)
                self._carry_out(self._session.tick(now))
                self._fetch_release(now)
                self._complain_without_head(now)
                self._bulletin.tell(
                    self._session,
                    self._permission,
                    self._look_again_at,
                    unknown_facts(self._config.training, self._reading),
                    now,
                    self._trust.complaint,
                )
                each_round()
            self._holding.end(time.time())
            self._publish(
                self._topics.status(self._config.device_id), self._status(online=False), retain=True
            )
        finally:
            self._connection.stop()
            self._bulletin.end()

    @property
    def state(self) -> str:
        """What the device does and why, in a line."""
        return self._bulletin.line

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._connection.connected

    @property
    def model(self) -> Model | None:
        """The newest table, which may be in memory only; for any thread."""
        return self._holding.model

    def reconfigure(self, config: DeviceConfig) -> list[str]:
        """Take another configuration; give the names of settings that stay as they were until a restart."""
        kept = needs_restart(self._config, config)
        self._config = replace(self._config, **{name: getattr(config, name) for name in WHILE_RUNNING})
        self._holding.limit(config.table_writes)
        self._scorer = available_scorer_name() if config.scorer == "auto" else config.scorer
        self._look_again_at = 0.0
        return kept

    def _look_at_guards(self, now: float) -> None:
        """Let the session know what the machine allows."""
        limits = self._config.training
        new = None
        if self._interacted is not None:
            new = self._interacted.revision - self._session.progress.trained_revision
        is_due = now >= self._look_again_at
        if is_due:
            self._reading = self._surroundings.read(time.time())
        self._reading = replace(self._reading, new_interactions=new)
        self._permission = permission(limits, self._reading)
        if is_due:
            self._look_again_at = now + self._permission.look_again_s
        self._session.may_train = self._permission.train
        self._session.may_transfer = self._permission.transfer
        self._session.veto = self._permission.reason

    def _next_event(self) -> LinkEvent | None:
        now = time.monotonic()
        wake_at = self._session.wake_at
        wait = min(_STOP_S, max(0.0, (now + _STOP_S if wake_at is None else wake_at) - now))
        try:
            return self._events.get(timeout=wait) if wait else self._events.get_nowait()
        except queue.Empty:
            return None

    def _handle(self, event: LinkEvent | None) -> None:
        now = time.monotonic()
        match event:
            case Connected(number):
                if self._broker_gone:
                    self._say("the broker is back")
                self._broker_gone = False
                self._no_head_at = now + _NO_HEAD_S
                self._connection_number = self._connections_before + number
                self._store.set_facts(connection=self._connection_number)
                self._carry_out(self._session.connected(now))
            case Lost(reason):
                if not self._broker_gone:
                    self._say(Trouble(f"{reason}; trying again until it is back"))
                self._broker_gone = True
                self._no_head_at = None
                self._release.lost()
                self._break_download()
                self._carry_out(self._session.lost())
            case Refused(reason):
                raise RefusedError(
                    f"the broker {self._connection.address} refuses the device "
                    f"{self._config.device_id}: {reason}; check the id, user name and password"
                )
            case Received():
                try:
                    self._receive(event, now)
                except ProtocolError as error:
                    _LOG.warning("dropped a message on %s: %s", event.topic[:200], error)
                self._connection.acknowledge(event)

    def _receive(self, message: Received, now: float) -> None:
        address = self._topics.parse(message.topic)
        if not message.payload:
            return  # a retained message that was cleared
        if address.kind == "head":
            self._no_head_at = None
            head = decode(message.payload, Head)
            if self._trust.check(head):
                self._store.set_facts(**{HEAD_KEY: self._trust.met_key})
            self._release.offered(head.offer)
            self._carry_out(self._session.head_received(head, now))
        elif address.kind == "receipt" and address.device == self._config.device_id:
            self._carry_out(self._session.receipt_received(decode(message.payload, Receipt), now))
        elif address.kind in ("snapshot", "delta", "catalogue") and self._download is not None:
            chunk = decode(message.payload, Chunk)
            before = self._download.bytes_received
            complete = self._download.add(address, chunk, len(message.payload))
            if self._download.bytes_received > before:
                self._session.download_progressed(now)
            if complete:
                self._finish_download(self._download, now)

        elif address.kind == "release":
            self._release.add(address, decode(message.payload, Chunk), now)

    def _fetch_release(self, now: float) -> None:
        if not self._connection.connected:
            return
        before, asked = self._release.look(now, may_transfer=self._session.may_transfer)
        if before:
            self._connection.unsubscribe(before)
        if asked:
            self._connection.subscribe(asked, qos=0)

    def _finish_download(self, download: Download, now: float) -> None:
        self._end_download()
        try:
            table, catalogue = download.result()
        except ProtocolError as error:
            _LOG.error("version %d is not used: %s", download.head.version, error)
            self._carry_out(self._session.table_failed(now))
            return
        report = self._compare(download.head, table)
        self._holding.hold(download.head, table, catalogue, time.time())
        if self._holding.is_stored:  # with what does not fit it any more dropped
            self._personal = self._store.personal()
        if report is not None:
            self._publish(self._topics.quality(self._config.device_id), encode(report))
        how = f"by {len(download.steps)} steps" if download.steps else "as a whole"
        _LOG.info(
            "table version %d is here, %s: %d bytes", download.head.version, how, download.bytes_received
        )
        # Which of them can be trained on depends on the table, too.
        self._interacted = None
        self._look_for_interactions(now)
        self._carry_out(self._session.table_ready(download.head, now))

    def _compare(self, head: Head, table: Floats) -> Quality | None:
        """Give what the fleet's guard asks of some devices: how a new table does beside the one here."""
        before, interacted = self._holding.model, self._interacted
        if before is None or interacted is None or before.head.instance != head.instance:
            return None
        if not head.asks(self._config.device_id):
            return None
        return compare(
            head,
            table,
            before.head.version,
            before.table,
            None if self._personal is None else self._personal.score_function,
            interacted.newest,
            interacted.retired,
            self._rng,
        )

    def _begin_download(self, head: Head, steps: tuple[Delta, ...], *, catalogue: bool) -> None:
        self._break_download()
        broken, self._broken = self._broken, None
        base = None if self._holding.model is None else self._holding.model.table
        if broken is not None and broken.goes_on_with(head, catalogue=catalogue, steps=steps):
            self._download = broken
        else:
            self._download = Download(head, catalogue=catalogue, steps=steps, base=base)
        self._asked_for = self._download.filters(self._topics)
        if not set(self._asked_for) <= set(all_filters(self._topics)):
            # The broker's session may outlive this process: the next one must know what to unsubscribe.
            self._store.set_facts(asked_for="\n".join(self._asked_for))
        self._connection.subscribe(self._asked_for, qos=0)

    def _break_download(self) -> None:
        """Stop the download, if there is one, but keep its chunks for one that goes on with it."""
        if self._download is not None:
            self._broken = self._download
        self._end_download()

    def _end_download(self) -> None:
        if self._asked_for and self._connection.connected:
            self._connection.unsubscribe(self._asked_for)
        self._asked_for = []
        self._download = None

    def _look_for_interactions(self, now: float) -> None:
        """Notice what another process has recorded."""
        if now < self._look_at and self._interacted is not None:
            return
        self._look_at = now + _LOOK_S
        changes = self._store.changes()
        if self._interacted is not None and changes == self._store_changes:
            return
        self._store_changes = changes
        self._interacted = self._store.interacted()
        if self._interacted.erasures != self._erasures:
            self._erasures = self._interacted.erasures
            self._forget()
        self._positives, self._sampler = self._trainable(self._interacted)
        n_known = self._positives.size if self._sampler is not None else 0
        self._look_at_guards(now)
        self._carry_out(self._session.interactions_changed(self._interacted.revision, n_known, now))

    def _tidy(self, now: float) -> None:
        """Keep the interactions within bounds, for which nothing is trained anew; store what has to wait."""
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_S
            removed = self._store.compact(self._config.retention, time.time())
            if removed:
                _LOG.info("%d interactions were removed, as the settings say", removed)
            self._holding.look(time.time())

    def _forget(self) -> None:
        """Follow another process in forgetting what the user has told it to."""
        sent = self._session.outbox_seq is not None
        self._personal = self._store.personal()
        self._session.forgotten(self._store.remembered().progress)
        _LOG.info("the user has forgotten interactions; the personal state is made anew")
        if sent:
            # The update may still be queued behind a connection that hangs; it must not leave with the next.
            self._connection.stop()
            self._connections_before = self._connection_number
            self._events = EventQueue()
            self._connection = self._make_connection()
            self._no_head_at = self._download = None
            self._release.lost()
            self._carry_out(self._session.lost())
            self._connection.start()

    def _make_connection(self) -> Connection:
        return Connection(
            self._config.address, self._config.device_id, self._events, last_will=self._last_will
        )

    def _trainable(self, interacted: Interacted) -> tuple[Rows, NegativeSampler | None]:
        """Give the positives within the table, and what draws negatives (None if nothing is left to draw)."""
        if self._holding.model is None:
            return interacted.rows[:0], None
        n_items = len(self._holding.model.table)
        # The catalogue may be a step ahead of the table.
        rows = interacted.rows[interacted.rows < n_items]
        retired = interacted.retired[interacted.retired < n_items]
        excluded = np.union1d(rows, retired)
        return rows, NegativeSampler.excluding(
            n_items, excluded
        ) if rows.size and excluded.size < n_items else None

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Subscribe():
                    # The broker's session outlives ours, with the filters of a download that was cut off.
                    left_over = str(self._store.fact("asked_for") or "").split()
                    self._connection.unsubscribe(all_filters(self._topics) + [Filter(f) for f in left_over])
                    if left_over:
                        self._store.set_facts(asked_for="")
                    head, receipt = self._topics.head, self._topics.receipt(self._config.device_id)
                    self._connection.subscribe([Filter(head)], qos=0)
                    self._connection.subscribe([Filter(receipt)])
                case PublishStatus():
                    status = self._status(online=True)
                    self._publish(self._topics.status(self._config.device_id), status, retain=True)
                case Fetch(head, catalogue, steps):
                    self._begin_download(head, steps, catalogue=catalogue)
                case Train():
                    self._train(command)
                case PublishUpdate(seq):
                    payload = self._store.sending(seq)
                    if payload is not None:  # else the user has just taken it back
                        self._publish_update(payload)
                case Settle(seq, verdict, reason):
                    if self._store.settle(seq, verdict):
                        self._renumber()
                    level = logging.INFO if verdict in ("accepted", "duplicate") else logging.WARNING
                    _LOG.log(level, "update %d: %s%s", seq, verdict, f" ({reason})" if reason else "")
        if self._session.activity is not Activity.FETCHING:
            # Given up by the session: what comes too late must not be stored behind its back.
            self._break_download()

    def _train(self, command: Train) -> None:
        model, sampler, interacted = self._holding.model, self._sampler, self._interacted
        if model is None or sampler is None or interacted is None:
            raise RuntimeError("the session wants a pass without a table or interactions")
        head = model.head
        before = self._personal or Personal.beginning(head.w, head.b)
        positives = self._positives

        def work() -> LocalResult:
            with np.errstate(over="ignore", invalid="ignore"):  # a pass that diverges is forgotten below
                return local_pass(
                    model.table,
                    before.score_function,
                    positives,
                    sampler,
                    head.plan.hyperparameters,
                    self._rng,
                )

        too_long_at = time.monotonic() + _LONGEST_PASS_S

        def meanwhile() -> None:
            if time.monotonic() < too_long_at:
                self._each_round()

        result = Errand(work).result(self._stop, meanwhile)
        if result is None:  # told to stop; nothing of the pass is kept
            return
        personal = Personal.of(result, head.plan.taste)
        update: tuple[int, bytes] | None = None
        try:
            personal.require_finite()
            if command.seq is not None:
                made = make_update(head, self._incarnation, command.seq, result)
                update = (command.seq, encode(made))
        except EncodingError as error:
            _LOG.warning("the pass diverged and is forgotten: %s", error)
            personal = Personal.beginning(head.w, head.b)
            command = Train(None, command.progress)
        stored = self._store.save_pass(
            personal, command.progress, update, at=time.time(), erasures=interacted.erasures
        )
        if not stored:
            self._look_at = 0.0
            self._carry_out(self._session.training_undone(command, time.monotonic()))
            return
        self._personal = personal
        self._carry_out(self._session.training_done(command, time.monotonic()))

    def _renumber(self) -> None:
        """Give later updates numbers that this device has never used: some of the old ones are lost."""
        self._incarnation = secrets.randbits(53)
        self._store.set_facts(incarnation=self._incarnation)
        self._session.renumbered(self._incarnation)
        self._say(
            "the fleet knows an update of this device that the device does not; its database was restored "
            "from a backup or has lost what was written last; updates count anew from here"
        )

    def _publish_update(self, payload: bytes) -> None:
        topic = self._topics.update(self._config.device_id)
        if len(payload) <= CHUNK_BYTES:
            self._publish(topic, payload)
            return
        for chunk in cut(payload, sha256(payload)):
            self._publish(topic, encode(chunk))

    def _publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        self._connection.publish(topic, payload, retain=retain)

    def _last_will(self, number: int) -> tuple[Topic, bytes]:
        will = self._status(online=False, connection=self._connections_before + number)
        return self._topics.status(self._config.device_id), will

    def _status(self, *, online: bool, connection: int | None = None) -> bytes:
        return encode(
            Status(
                online=online,
                session=self._connection_number if connection is None else connection,
                incarnation=self._incarnation,
                version=self._session.version,
                scorer=self._scorer,
                software=self._software,
            )
        )

    def _complain_without_head(self, now: float) -> None:
        if self._no_head_at is not None and now >= self._no_head_at:
            self._no_head_at = None
            self._say(
                f"the broker has no model of a fleet named {self._config.fleet}; "
                "check the fleet name, or start its aggregator; waiting"
            )
