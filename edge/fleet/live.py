"""The fleet over real MQTT: many devices' sessions in this process, a broker and an aggregator beside it.

Every device is the session of a Pi. They share this process and a few connections, and what would be
the same for each of them: the newest table is downloaded once and handed to whoever fetches it. At most
`concurrency` devices are between a pass and its receipt; the others wait their turn, in order. So the
fleet runs as fast as broker and aggregator take its updates, and no faster.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiomqtt
import numpy as np

from broker.address import BrokerAddress
from broker.errors import PFedRecError, ProtocolError, TimedOutError, UnreachableError
from broker.protocol.chunks import CHUNK_BYTES, cut
from broker.protocol.messages import Chunk, Head, Receipt, Status, decode, encode
from broker.protocol.topics import FleetTopics, Topic
from broker.protocol.versions import sha256
from edge.download import Download
from edge.fleet.aggregator_process import AggregatorProcess
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.mqtt import (
    OWN_BROKER_S,
    QUIET,
    forget_lost_connections,
    notice_cancellation,
    publish_in_order,
    set_within,
    wait_for_broker,
)
from edge.fleet.roundbook import RoundBook
from edge.fleet.runfolder import RoundReport
from edge.session import Command, Fetch, PublishStatus, PublishUpdate, Settle, Train
from trainer.params import Floats, ScoreFunction

_LOG = logging.getLogger(__name__)

CONNECTIONS = 4
FIRST_TABLE_S = 30.0
STALLED_S = 60.0
"""Without a new version for this long the run is given up."""
_TICK_S = 0.5
_POLL_S = 0.1
_RECONNECT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSettings:
    """How a live fleet runs; see ``edge-fleet run --help``.

    Attributes
    ----------
    versions : int
        Versions after which no further pass is made.
    """

    fleet: str
    address: BrokerAddress
    versions: int
    concurrency: int


class LiveFleet:
    """One run.

    Parameters
    ----------
    on_version : callable
        Told of every new version, for progress.
    on_round : callable
        Told of every round of the results: as many updates as there are devices.
    """

    def __init__(
        self,
        settings: LiveSettings,
        devices: list[VirtualDevice],
        aggregator: AggregatorProcess,
        evaluator: Evaluator,
        on_version: Callable[[int], None],
        on_round: Callable[[RoundReport], None],
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._aggregator = aggregator
        self._on_version = on_version
        self._topics = FleetTopics(settings.fleet)
        self._device_of = {device.name: device for device in devices}
        self._client_of: dict[str, aiomqtt.Client] = {}
        self._ready: deque[VirtualDevice] = deque()
        self._resting: list[VirtualDevice] = []
        self._waiting = 0
        self._wake = asyncio.Event()
        self._table_arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._chunks: dict[tuple[str, int, int], tuple[Chunk, int]] = {}
        self._pending_head: tuple[Head, int] | None = None
        self._newest: tuple[Head, Floats, int] | None = None
        self._instance = aggregator.instance()
        self._finishing = False
        self._is_enough = False
        self._book = RoundBook(evaluator, on_round)
        self._aggregator_cpu = aggregator.cpu_seconds()

    @property
    def head(self) -> Head:
        """The head of the newest table that is here."""
        if self._newest is None:
            raise RuntimeError("no table has arrived")
        return self._newest[0]

    def finish(self) -> None:
        """Let the run come to rest before its last version; may be called from any thread."""
        self._is_enough = True

    async def run(self) -> None:
        """Run until `versions` are published and every device is in step with the last.

        Raises
        ------
        UnreachableError
            When the broker does not answer at the beginning.
        TimedOutError
            When no first table, or for a long time no new version, arrives.
        BrokerStartError
            When the aggregator ends.
        """
        await wait_for_broker(self._settings.address, self._aggregator.require_running, OWN_BROKER_S)
        asyncio.get_running_loop().set_exception_handler(forget_lost_connections)
        try:
            async with asyncio.TaskGroup() as group:
                await self._run_with(group)
        except ExceptionGroup as failures:
            known, unknown = failures.split(PFedRecError)
            raise (unknown or known or failures).exceptions[0] from None

    async def _run_with(self, group: asyncio.TaskGroup) -> None:
        lanes = [self._devices[lane::CONNECTIONS] for lane in range(min(CONNECTIONS, len(self._devices)))]
        background = [group.create_task(self._serve("tables", []))]
        background += [group.create_task(self._serve(str(number), lane)) for number, lane in enumerate(lanes)]
        background.append(group.create_task(self._tick_forever()))
        await self._first_table()
        self._ready.extend(self._devices)
        await self._train_until_done()
        await self._come_to_rest()
        await self._say_goodbye()
        for task in background:
            task.cancel()

    # -- connections -------------------------------------------------------------------------------

    async def _serve(self, name: str, lane: list[VirtualDevice]) -> None:
        """Keep one connection: the one for tables (no devices), or one that carries a lane of devices."""
        address = self._settings.address
        while True:
            try:
                async with aiomqtt.Client(
                    address.host,
                    address.port,
                    username=address.username,
                    password=address.password,
                    identifier=f"{self._settings.fleet}-fleet-{name}",
                    tls_context=address.context(),
                    max_inflight_messages=1000,
                    max_concurrent_outgoing_calls=1000,
                    logger=QUIET,
                ) as client:
                    await self._receive(client, lane)
            except aiomqtt.MqttError as error:
                notice_cancellation()
                _LOG.info("connection %s was lost: %s", name, error)
                for device in lane:
                    self._client_of.pop(device.name, None)
                    self._carry_out(device, device.session.lost())
                await asyncio.sleep(_RECONNECT_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _receive(self, client: aiomqtt.Client, lane: list[VirtualDevice]) -> None:
        topics = self._topics
        if lane:
            filters = [str(topics.receipt(device.name)) for device in lane]
        else:
            filters = [topics.head, topics.snapshot_filter(0), topics.snapshot_filter(1)]
        # Brokers limit how much one SUBSCRIBE may hold.
        for start in range(0, len(filters), 100):
            await client.subscribe([(each, 1) for each in filters[start : start + 100]])
        notice_cancellation()
        now = time.monotonic()
        for device in lane:
            self._client_of[device.name] = client
            self._carry_out(device, device.session.connected(now))
        # Without a connection a device may have passed over the newest version.
        self._end_rest()
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            try:
                self._handle(str(message.topic), payload)
            except ProtocolError:
                continue  # Not for us, or not from our aggregator: brokers may hand out either.

    def _handle(self, topic: str, payload: bytes) -> None:
        address = self._topics.parse(topic)
        if not payload:
            return
        if address.kind == "receipt" and address.device in self._device_of:
            device = self._device_of[address.device]
            receipt = decode(payload, Receipt)
            self._book.traffic.bytes_down += len(payload)
            if receipt.verdict == "accepted":
                self._book.counted += 1
                self._book.staleness_sum += receipt.staleness
            self._carry_out(device, device.session.receipt_received(receipt, time.monotonic()))
        elif address.kind == "head":
            head = decode(payload, Head)
            # A broker that is not ours may still hold the head of an earlier run.
            if head.instance == self._instance:
                self._pending_head = (head, len(payload))
                self._assemble()
        elif address.kind == "snapshot":
            self._chunks[address.kind, address.slot, address.chunk] = (decode(payload, Chunk), len(payload))
            self._assemble()

    def _assemble(self) -> None:
        """Put the newest head's table together once all of its chunks are here, in whatever order."""
        if self._pending_head is None:
            return
        head, size = self._pending_head
        download = Download(head, catalogue=False)
        complete = False
        for index in range(head.chunks):
            held = self._chunks.get(("snapshot", head.slot, index))
            if held is None:
                return
            complete = download.add(self._topics.parse(self._topics.snapshot(head.slot, index)), *held)
        if not complete:
            return
        table, _ = download.result()
        self._pending_head = None
        before = None if self._newest is None else self._newest[0]
        self._newest = (head, table, size + download.bytes_received)
        self._table_arrived.set()
        if before is not None and before.session != head.session:
            self._let_send_again()
        if before is None or before.version != head.version:
            self._end_rest()
            self._on_version(head.version)
            if self._book.counted >= len(self._devices) and not self._finishing:
                self._end_round()

    # -- devices -----------------------------------------------------------------------------------

    def _let_send_again(self) -> None:
        """Show the newest head to those who wait for a receipt, whose turn to look at it has not come.

        The aggregator was away; what it was sent meanwhile, it may never get.
        """
        for device in self._devices:
            if device.outbox is not None:
                self._carry_out(device, self._look(device))

    def _look(self, device: VirtualDevice) -> list[Command]:
        """Have a device do what is due, with the newest head before it: that is the table it would fetch."""
        session, head, now = device.session, self.head, time.monotonic()
        return session.tick(now) if session.head is head else session.head_received(head, now)

    def _carry_out(self, device: VirtualDevice, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Train):
                began = time.perf_counter()
                # A pass that diverges is refused when its update is encoded.
                with np.errstate(over="ignore", invalid="ignore"):
                    device.train(command)
                self._book.watch.train += time.perf_counter() - began
                self._carry_out(device, device.session.training_done(command, time.monotonic()))
            elif isinstance(command, PublishUpdate):
                self._publish_update(device)
            elif isinstance(command, Fetch):
                head, table, size = self._newest or self._no_table()
                report = device.compare(head, table)
                device.hold(head, table)
                if report is not None:
                    payload = encode(report)
                    self._book.traffic.bytes_up += len(payload)
                    self._publish(device, self._topics.quality(device.name), [payload])
                self._book.traffic.bytes_down += size
                self._book.traffic.device_rounds += 1
                self._carry_out(device, device.session.table_ready(head, time.monotonic()))
            elif isinstance(command, Settle):
                device.settle()
                self._waiting -= 1
                self._queue(device)
            elif isinstance(command, PublishStatus):
                self._publish_status(device, online=True)

    def _no_table(self) -> tuple[Head, Floats, int]:
        raise RuntimeError("a device fetches before there is a table")

    def _publish_update(self, device: VirtualDevice) -> None:
        if device.outbox is None:
            raise RuntimeError("the session publishes an update that was not made")
        payload = encode(device.outbox)
        self._book.traffic.bytes_up += len(payload)
        topic = self._topics.update(device.name)
        if len(payload) <= CHUNK_BYTES:
            self._publish(device, topic, [payload])
        else:
            self._publish(device, topic, [encode(chunk) for chunk in cut(payload, sha256(payload))])

    def _publish_status(self, device: VirtualDevice, *, online: bool) -> None:
        status = Status(
            online=online,
            session=1,
            incarnation=device.incarnation,
            version=device.session.version,
            scorer="none",
            software="edge-fleet",
        )
        self._publish(device, self._topics.status(device.name), [encode(status)], retain=True)

    def _publish(
        self, device: VirtualDevice, topic: Topic, payloads: list[bytes], *, retain: bool = False
    ) -> None:
        client = self._client_of.get(device.name)
        if client is not None:
            self._spawn(publish_in_order(client, topic, payloads, retain=retain))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _queue(self, device: VirtualDevice) -> None:
        """Give a device its turn once its next check-in is due."""
        due_at = device.session.check_in_at
        wait = 0.0 if due_at is None else due_at - time.monotonic()
        asyncio.get_running_loop().call_later(max(0.0, wait), self._make_ready, device)

    def _end_rest(self) -> None:
        rested, self._resting = self._resting, []
        for device in rested:
            self._queue(device)

    def _make_ready(self, device: VirtualDevice) -> None:
        self._ready.append(device)
        self._wake.set()

    def _check_in(self, device: VirtualDevice) -> None:
        made_before = device.updates_made
        self._carry_out(device, self._look(device))
        if device.updates_made > made_before:
            self._waiting += 1
            self._book.traffic.updates += 1
        elif device.outbox is None:
            self._resting.append(device)

    # -- phases ------------------------------------------------------------------------------------

    async def _first_table(self) -> None:
        deadline = time.monotonic() + FIRST_TABLE_S
        while self._newest is None:
            self._aggregator.require_running()
            if time.monotonic() > deadline:
                raise TimedOutError(
                    f"no table of fleet {self._settings.fleet} arrived within {FIRST_TABLE_S:.0f} s"
                )
            await set_within(self._table_arrived, _POLL_S)

    async def _train_until_done(self) -> None:
        seen, deadline = -1, 0.0
        while self.head.version < self._settings.versions and not self._is_enough:
            if self.head.version != seen:
                seen, deadline = self.head.version, time.monotonic() + STALLED_S
            elif time.monotonic() > deadline:
                if not self._client_of:
                    raise UnreachableError(f"the broker at {self._settings.address} has gone and is not back")
                raise TimedOutError(f"no version after {seen} within {STALLED_S:.0f} s")
            if self._ready and self._waiting < self._settings.concurrency:
                self._check_in(self._ready.popleft())
                # Let messages in between two passes.
                await asyncio.sleep(0)
            else:
                await set_within(self._wake, _POLL_S)
                self._aggregator.require_running()

    async def _come_to_rest(self) -> None:
        """Wait until every update is answered and counted, then bring every device to the last version."""
        self._finishing = True
        for device in self._devices:
            device.session.may_train = False
        deadline = time.monotonic() + STALLED_S
        while (unfinished := self._unfinished()) is not None:
            self._aggregator.require_running()
            if time.monotonic() > deadline:
                raise TimedOutError(f"{unfinished} within {STALLED_S:.0f} s of the end")
            await asyncio.sleep(_POLL_S)
        if self._book.traffic.updates:
            self._end_round()

    def _unfinished(self) -> str | None:
        """Let devices take the newest table, and report it if they are asked to; say what is not done yet."""
        behind = [device for device in self._devices if device.session.version != self.head.version]
        for device in behind:
            # One whose connection is just being made again takes the table once it is back.
            self._carry_out(device, self._look(device))
        if self._waiting:
            return f"{self._waiting} updates were not answered"
        if pending := self._aggregator.ledger().pending:
            return f"{pending} accepted updates were not counted"
        last, _ = self._aggregator.newest()
        if self.head.version < last:
            return f"version {last} did not arrive"
        return f"{len(behind)} devices did not come back" if behind else None

    async def _say_goodbye(self) -> None:
        # What was under way on a connection that was lost is confirmed by nobody.
        forgotten = self._tasks.copy()
        for device in self._devices:
            self._publish_status(device, online=False)
        await asyncio.gather(*(self._tasks - forgotten), return_exceptions=True)

    async def _tick_forever(self) -> None:
        """Let sessions send again what was not answered in time."""
        while True:
            await asyncio.sleep(_TICK_S)
            for device in self._devices:
                if device.outbox is not None:
                    self._carry_out(device, self._look(device))

    def _end_round(self) -> None:
        head, table, _ = self._newest or self._no_table()
        cpu_before, self._aggregator_cpu = self._aggregator_cpu, self._aggregator.cpu_seconds()
        self._book.watch.aggregate = self._aggregator_cpu - cpu_before
        self._book.end(head.version, table, self._devices, ScoreFunction(w=head.w, b=head.b))
