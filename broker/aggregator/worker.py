"""One of several processes that serve a fleet together, from one PostgreSQL store.

Theory of operation
-------------------
Every worker takes its part of the updates (a shared subscription), judges them by what the database says,
journals them, and answers: that an update counts once is decided by keys in the database, so it may be sent
again to any worker. A core without rounds is made for each batch, from what the store knows of the batch's
devices; when another worker has answered one of its updates meanwhile, nothing is stored, and the batch is
judged anew.

One of the workers leads: who holds the store's lock for that. It takes what all of them have journalled,
closes rounds, publishes, hears devices' reports, and makes changes of the catalogue. Its core and its lock
end with its connection to the store, over which it commits, too: a leader that is no longer one cannot close
a round. Whoever gets the lock next loads the state, and goes on; the head's new session lets devices send
again what is not answered.

A worker's connection to the broker has no memory: what a killed one had not acknowledged is lost to the
others, and is in its device's outbox; the leader sees the worker's last will, and publishes its head with a
new session. Parts of a large update come to different workers, which hand them to the leader.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from broker.address import BrokerAddress
from broker.aggregator.admission import Admission
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, Command, Journal, PublishVersion
from broker.aggregator.service import WAKE_S, AggregatorService
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.sharing import ContestedError, SharedJournal
from broker.aggregator.watching import Watch, refusal_name
from broker.connection import Received
from broker.errors import InUseError, ProtocolError
from broker.journal import Trouble
from broker.protocol.messages import Chunk, Head, Status, Update, decode, encode
from broker.protocol.topics import Address, Filter
from trainer.aggregation import Closing
from trainer.params import Floats, Rows

_LEADS_WAKE_S = 0.05
"""Longest wait of the leader for a message: what others journal does not wake it."""
_TRY_TO_LEAD_S = 0.25
_LEADS_WITHOUT_BROKER_S = 10.0
"""Then another may lead, whose broker answers."""
_MOST_TAKEN = 512
"""Journalled updates that the leader takes in a turn of its loop."""
_FULL_BACKLOG = 20_000
"""Updates that wait for a round while devices are slowed as much as they can be."""
_LOOK_S = 1.0
"""Between two looks at how many updates wait."""
_COUNT_S = 30.0
"""Between two counts of the devices, which is long work where there are millions."""
_MOST_ATTEMPTS = 20
"""Others who answer the same devices' updates again and again are no workers of this fleet."""


class _NoRound:
    """A round that counts nothing: the leader does."""

    count = 0

    def add(self, rows: Rows, change: Floats, staleness: int) -> None:
        """Leave the update alone."""

    def close(self, population: int, state: Mapping[str, Floats]) -> Closing:
        """Never called: a round without updates does not close by itself."""
        raise NotImplementedError


class _Judging:
    """A strategy for a core that judges only."""

    def open(self, n_items: int, dim: int) -> _NoRound:  # noqa: ARG002 - no table
        """Open a round that counts nothing."""
        return _NoRound()


class WorkerService(AggregatorService):
    """Runs one worker; see `AggregatorService`.

    Parameters
    ----------
    name : str
        The worker's own among those of the fleet.
    """

    _forgotten = True

    def __init__(
        self,
        config: AggregatorConfig,
        store: PostgresStore,
        address: BrokerAddress,
        say: Callable[[str], None],
        watch: Watch | None = None,
        sign: Callable[[Head], Head] | None = None,
        admission: Admission | None = None,
        *,
        name: str,
    ) -> None:
        self._name = name
        self._shared_store = store
        self._journal = SharedJournal(store)
        self._leads = False
        self._arrived: list[tuple[str, Update, bytes]] = []
        self._taken: list[int] = []
        self._spent: list[int] = []
        self._stored_version = 0
        self._connected_at = 0.0
        self._more_waits = False
        self._overwritten = False
        self._ask_again = False
        self._try_at = 0.0
        self._look_at = 0.0
        self._count_at = 0.0
        self._backlog = 0
        self._n_devices = 0
        self._version = 0
        super().__init__(config, store, address, say, watch, sign, admission)

    @property
    def leads(self) -> bool:
        """Whether this worker closes the rounds."""
        return self._leads

    @property
    def version(self) -> int:
        """The newest version that this worker knows."""
        return max(self._version, self._core.version)

    @property
    def devices_seen(self) -> int:
        """Devices that ever came, to any worker."""
        return max(self._n_devices, self._core.seen)

    @property
    def head_published(self) -> bool:
        """Whether there is a head: the leader's, which is another worker's affair."""
        return super().head_published if self._leads else self.broker_connected

    @property
    def state(self) -> str:
        """What it does, in a line."""
        return f"worker {self._name}{', leading' if self._leads else ''}: {super().state}"

    def _load_core(self) -> AggregatorCore:
        # What waits is taken as all else that is journalled, in turns.
        return AggregatorCore(
            self._config.round_settings, self._config.make_strategy(), self._store.load(answers=False)
        )

    @property
    def _client_id(self) -> str:
        return f"{super()._client_id}-{self._name}"

    @property
    def _announces(self) -> bool:
        return self._leads

    def _longest_wait(self) -> float:
        if not self._leads:
            return WAKE_S
        return 0.0 if self._more_waits else min(_LEADS_WAKE_S, super()._longest_wait())

    def _load(self) -> float:
        return max(super()._load(), min(1.0, self._backlog / _FULL_BACKLOG))

    # -- what every worker does --------------------------------------------------------------------

    def _decide(self, message: Received, new_devices: list[str]) -> list[Command]:
        address = self._topics.parse(message.topic)
        if self._leads and address.kind == "part":
            self._take_part(address, message, new_devices)
        elif self._leads and address.kind == "presence":
            self._note_presence(address.worker, message)
        elif self._leads or address.kind in ("update", "call"):
            return self._spending(super()._decide(message, new_devices))
        return []  # brokers may hand out what was not asked for

    def _put_together(self, device: str, chunk: Chunk, now: float) -> bytes | None:
        if self._leads:
            return super()._put_together(device, chunk, now)
        self._connection.publish(self._topics.part(device), encode(chunk))
        return None

    def _take_part(self, address: Address, message: Received, new_devices: list[str]) -> None:
        """Take what another worker was sent, and has counted."""
        now = time.monotonic()
        self._admission.require_listed(address.device)
        whole = self._reassembly.add(address.device, decode(message.payload, Chunk), now)
        if whole is not None:
            update = decode(whole, Update, max_bytes=self._max_update_bytes)
            self._note_device(address, new_devices)
            self._take_update(address.device, update, whole, now)

    def _note_device(self, address: Address, new_devices: list[str]) -> None:
        if address.kind == "status":
            super()._note_device(address, new_devices)
        elif not self._core.knows(address.device):
            try:
                self._admission.require_room(self.devices_seen)
            except ProtocolError:
                if not self._journal.knows(address.device):
                    raise

    def _take_update(self, device: str, update: Update, payload: bytes, now: float) -> list[Command]:  # noqa: ARG002
        self._arrived.append((device, update, payload))
        return []

    def _due(self, refusals: list[str]) -> list[Command]:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._backlog = self._journal.backlog(_FULL_BACKLOG)
        if now >= self._count_at:
            self._count_at = now + _COUNT_S
            self._n_devices = self._journal.n_devices()
        commands = self._answer_arrived(now, refusals)
        if self._connection.connected:
            self._connected_at = now
        elif self._leads and now > self._connected_at + _LEADS_WITHOUT_BROKER_S:
            self._lead_no_more()
        if not self._leads and self._connection.connected and now >= self._try_at:
            self._try_at = now + _TRY_TO_LEAD_S
            if self._shared_store.try_to_lead():
                self._begin_to_lead()
        return commands + (self._close_due(now) if self._leads else [])

    def _answer_arrived(self, now: float, refusals: list[str]) -> list[Command]:
        """Judge and journal the updates of a batch; give their receipts."""
        arrived, self._arrived = self._arrived, []
        if not arrived:
            return []
        for _ in range(_MOST_ATTEMPTS):
            judged, refused = self._judge(arrived, now)
            entries = [command.entry for command in judged if isinstance(command, Journal)]
            try:
                self._journal.record(entries, {entry.device for entry in entries})
            except ContestedError:
                continue
            refusals += refused
            return [command for command in judged if not isinstance(command, Journal)]
        raise InUseError(
            f"others answer fleet {self._topics.fleet}'s updates in this store all the time; "
            "end all aggregators that are no workers of it"
        )

    def _judge(self, arrived: list[tuple[str, Update, bytes]], now: float) -> tuple[list[Command], list[str]]:
        """Give what the core says of updates, and the names of why some are refused."""
        state = self._journal.state_for({device for device, _, _ in arrived})
        self._version = state.version
        rounds = self._config.round_settings
        population = rounds.population or max(1, self._n_devices)
        core = AggregatorCore(replace(rounds, population=population), _Judging(), state)
        core.load = self._load()
        judged: list[Command] = []
        refused: list[str] = []
        for device, update, payload in arrived:
            try:
                judged += core.update_received(device, update, payload, now)
            except ProtocolError as error:
                refused.append(refusal_name(error))
                message = Received(self._topics.update(device), payload, mid=0, qos=0, connection=0)
                judged += self._refusal(message, error)
        return judged, refused

    def _filters(self) -> list[Filter]:
        topics = self._topics
        everybodys = [topics.shared_update_filter, Filter(topics.call)]
        if not self._leads:
            return everybodys
        return [
            *everybodys,
            topics.part_filter,
            topics.quality_filter,
            topics.status_filter,
            topics.presence_filter,
            Filter(topics.head),
        ]

    def _commit(self, commands: list[Command], new_devices: list[str], refused: int) -> bool:
        stored = super()._commit(commands, new_devices, refused)
        # Until here the journal says that they wait.
        self._spent.clear()
        self._stored_version = self._core.version
        return stored

    # -- what the leader does ----------------------------------------------------------------------

    def _begin_to_lead(self) -> None:
        self._leads = True
        self._core = self._load_core()
        self._stored_version = self._core.version
        self._announcer.speak_for(self._core)
        self._core.sample_rate = self._announcer.plan.guard
        self._max_update_bytes = self._largest_update()
        self._reassembly.allow(self._max_update_bytes)
        self._say(f"worker {self._name} leads, from version {self._core.version} on")
        if self._connection.connected:
            self._connected()

    def _lead_no_more(self) -> None:
        self._leads = False
        self._taken.clear()
        self._shared_store.lead_no_more()
        self._say(Trouble(f"worker {self._name} leads no more: no broker answers it"))

    def _close_due(self, now: float) -> list[Command]:
        """Take what is journalled, and close the rounds that are due."""
        commands: list[Command] = []
        waiting = self._journal.waiting([*self._taken, *self._spent], _MOST_TAKEN)
        self._more_waits = len(waiting) == _MOST_TAKEN
        for each in waiting:
            given_up_by = self._core.given_up_by(each.update.base_version)
            if given_up_by is not None:  # by a rollback, while another worker accepted it
                # One of this turn is not stored yet: the next turn finds the update again.
                if given_up_by <= self._stored_version:
                    self._journal.drop(each.id, given_up_by)
                continue
            self._taken.append(each.id)
            commands += self._spending(
                self._core.journalled(each.device, each.update, each.staleness, each.size, now)
            )
        commands += self._spending(self._core.tick(now))
        commands += self._spending(self._change_catalogue())
        if self._ask_again:
            self._announcer.begin_session()
        if self._ask_again or self._overwritten:
            self._ask_again = self._overwritten = False
            commands.append(PublishVersion(self._core.version))
        return commands

    def _note_presence(self, worker: str, message: Received) -> None:
        """Let devices send again what a worker that is gone may have been handed."""
        if worker != self._name and message.payload and not message.retained:
            self._ask_again |= not decode(message.payload, Status).online

    def _note_head(self, message: Received) -> None:
        super()._note_head(message)
        if message.payload and not message.retained:
            # A leader that had stopped before it published, and does not know yet that it leads no more.
            head = decode(message.payload, Head)
            is_ours = head.instance == self._core.instance
            self._overwritten |= is_ours and head.session < self._announcer.session

    def _spending(self, commands: list[Command]) -> list[Command]:
        """Name the journal's entries in each round that closes: what the leader has taken since the last."""
        named: list[Command] = []
        for command in commands:
            if isinstance(command, CloseRound):
                named.append(replace(command, spends=tuple(self._taken)))
                self._spent += self._taken
                self._taken.clear()
            else:
                named.append(command)
        return named
