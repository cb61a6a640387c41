"""The fleet on a virtual clock: the devices' sessions and the aggregator's core, no broker, no waiting.

Devices check in by their own clocks, make a pass that takes a while (so that the version moves on meanwhile),
and a round closes when `buffer` updates are in; a buffer of all devices is a synchronous round, which waits
for the slowest. A round of the results is as many counted updates as there are devices, so that rounds are
the same amount of training as those of `edge.fleet.lockstep`.
"""

import heapq
import time
from dataclasses import dataclass, field

import numpy as np

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, CoreState, ReplyReceipt, RoundSettings
from broker.aggregator.decisions import Command as ServerCommand
from broker.aggregator.guard import GuardSettings
from broker.aggregator.publication import Publication
from broker.protocol.messages import Head, Plan, Receipt, encode, update_size
from edge.fleet.byzantine import Attack, attacked, attackers
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.outcome import Outcome
from edge.fleet.roundbook import RoundBook
from edge.fleet.runfolder import OnRound
from edge.fleet.scenario import Scenario
from edge.fleet.speeds import pass_factors
from edge.session import Command, Fetch, PublishUpdate, Settle, Train
from trainer.aggregation import AggregationSettings
from trainer.errors import ParameterError
from trainer.params import Hyperparameters, initial_score_function, initial_table
from trainer.taste import TasteSettings

CHECK_IN_S = 60.0
MEAN_PASS_S = 6.0
"""Virtual seconds from a device's check-in to its update's arrival, exponentially distributed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationSettings:
    """How a fleet trains by the clock; see ``edge-fleet simulate --help``.

    Attributes
    ----------
    byzantine : float
        Share of the devices that send an `attack` of `strength` instead of what they learned.
    speeds : float
        Spread of the devices' speeds; see `edge.fleet.speeds`.
    """

    hyperparameters: Hyperparameters
    taste: TasteSettings = field(default_factory=TasteSettings)
    buffer: int = 32
    max_staleness: int = 10
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    byzantine: float = 0.0
    attack: Attack = "sign-flip"
    strength: float = 1.0
    speeds: float = 0.0
    guard: GuardSettings = field(default_factory=lambda: GuardSettings(reports=0))
    encoding: str = "float32"
    rounds: int = 100
    dim: int = 32
    scale: float = 1.0
    seed: int = 0


@dataclass(order=True, slots=True)
class _Appointment:
    at: float
    order: int
    device: VirtualDevice = field(compare=False)
    train: Train | None = field(compare=False)


class Simulation:
    """One run.

    Parameters
    ----------
    on_round : callable
        Told of every round of the results.

    Raises
    ------
    ParameterError
        When a setting is out of its range, or no round could ever be closed.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: SimulationSettings,
        evaluator: Evaluator,
        on_round: OnRound,
    ) -> None:
        self._settings = settings
        n_users = scenario.n_users
        if settings.buffer > n_users:
            # A device contributes once to a version, and no deadline closes a round here.
            raise ParameterError(
                f"buffer is {settings.buffer}; it must be at most {n_users}, the number of users"
            )
        rng = np.random.default_rng([settings.seed, 0])
        table = initial_table(scenario.data.n_items, settings.dim, rng, scale=settings.scale)
        self._start = initial_score_function(settings.dim, rng)
        self._devices = [VirtualDevice(scenario, user, settings.seed) for user in range(n_users)]
        self._device_of = {device.name: device for device in self._devices}
        self._rng = np.random.default_rng([settings.seed, 5])
        names = np.array([device.name for device in self._devices])
        self._attackers = set(names[attackers(settings.byzantine, n_users, settings.seed)].tolist())
        self._attack_rng = np.random.default_rng([settings.seed, 10])
        factors = pass_factors(settings.speeds, n_users, settings.seed)
        self._pass_s = dict(zip(names.tolist(), (MEAN_PASS_S * factors).tolist(), strict=True))
        self._core = AggregatorCore(
            RoundSettings(
                buffer=settings.aggregation.buffer(settings.buffer),
                deadline_s=None,
                max_staleness=settings.max_staleness,
                population=n_users,
                check_in_s=CHECK_IN_S,
                guard=settings.guard,
            ),
            settings.aggregation.make(),
            CoreState(instance=settings.seed, version=0, table=table, seen=set(names.tolist())),
        )
        plan = make_plan(
            settings.hyperparameters,
            settings.taste,
            encoding=settings.encoding,
            check_in_s=self._core.settings.check_in_s,
            guard=settings.guard.rate(self._core.settings.buffer),
        )
        self._publication = Publication(scenario.data.item_keys, plan, self._start)
        self._publication.begin(table)
        self._step_bytes: dict[int, int] = {}
        self._head, self._head_bytes, self._table_bytes = self._published()
        self._receipt_bytes: int | None = None
        self._evaluator = evaluator
        self._book = RoundBook(evaluator, on_round)
        self._queue: list[_Appointment] = []
        self._appointments = 0
        self._now = 0.0
        self._counted = 0

    # A pass that diverges is refused when its update is encoded.
    @np.errstate(over="ignore", invalid="ignore")
    def run(self, *, users: bool = True) -> Outcome:  # noqa: ARG002 - a fleet in memory has them anyway
        """Simulate all rounds, and give the best."""
        for device in self._devices:
            device.session.connected(self._now)
            self._appoint(self._rng.uniform(0.0, CHECK_IN_S), device, None)
        while self._book.done < self._settings.rounds:
            appointment = heapq.heappop(self._queue)
            self._now, device = appointment.at, appointment.device
            if self._core.on_trial:
                self._answer(self._core.tick(self._now))
            if appointment.train is not None:
                self._train(device, appointment.train)
            elif device.session.head is not self._head:
                self._carry_out(device, device.session.head_received(self._head, self._now))
            else:
                self._carry_out(device, device.session.tick(self._now))
            wake_at = device.session.wake_at
            if wake_at is not None and device.outbox is None:
                self._appoint(wake_at, device, None)
        return self._evaluator.outcome()

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self._now

    def resume(self) -> int:
        """Start anew: what is on its way at a moment is not kept."""
        return 0

    def _appoint(self, at: float, device: VirtualDevice, train: Train | None) -> None:
        self._appointments += 1
        heapq.heappush(self._queue, _Appointment(at, self._appointments, device, train))

    def _carry_out(self, device: VirtualDevice, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Train):
                self._appoint(self._now + self._rng.exponential(self._pass_s[device.name]), device, command)
            elif isinstance(command, PublishUpdate):
                self._deliver(device)
            elif isinstance(command, Fetch):
                report = device.compare(command.head, self._core.table)
                device.hold(command.head, self._core.table)
                self._book.traffic.bytes_down += self._fetched_bytes(command)
                self._book.traffic.device_rounds += 1
                self._carry_out(device, device.session.table_ready(command.head, self._now))
                if report is not None:
                    self._book.traffic.bytes_up += len(encode(report))
                    self._answer(self._core.quality_received(device.name, report, self._now))
            elif isinstance(command, Settle):
                device.settle()

    def _train(self, device: VirtualDevice, command: Train) -> None:
        began = time.perf_counter()
        device.train(command)
        if device.outbox is not None and command.seq is not None and device.name in self._attackers:
            shape = (self._core.table.shape[0], self._core.table.shape[1])
            device.outbox = attacked(
                device.outbox, self._settings.attack, self._settings.strength, shape, self._attack_rng
            )
        self._book.watch.train += time.perf_counter() - began
        self._carry_out(device, device.session.training_done(command, self._now))

    def _deliver(self, device: VirtualDevice) -> None:
        update = device.outbox
        if update is None:
            raise RuntimeError("the session publishes an update that was not made")
        self._book.traffic.bytes_up += update_size(update)
        self._book.traffic.updates += 1
        began = time.perf_counter()
        # There is no journal here that would need the encoded update.
        commands = self._core.update_received(device.name, update, b"", self._now)
        self._book.watch.aggregate += time.perf_counter() - began
        self._answer(commands)

    def _answer(self, commands: list[ServerCommand]) -> None:
        for command in commands:
            if isinstance(command, ReplyReceipt):
                self._book.traffic.bytes_down += self._bytes_of(command.receipt)
                device = self._device_of[command.device]
                self._carry_out(device, device.session.receipt_received(command.receipt, self._now))
            elif isinstance(command, CloseRound):
                self._counted += command.round.updates
                self._book.staleness_sum += command.round.staleness_sum
                self._book.counted += command.round.updates
                self._publication.add_step(command.round.version, command.round.table)
                self._head, self._head_bytes, self._table_bytes = self._published()
                if self._counted >= (self._book.done + 1) * len(self._devices):
                    core = self._core
                    self._book.end(core.version, core.table, self._devices, self._start)

    def _bytes_of(self, receipt: Receipt) -> int:
        # Receipts differ by a few bytes at most; one is measured for all.
        if self._receipt_bytes is None:
            self._receipt_bytes = len(encode(receipt))
        return self._receipt_bytes

    def _published(self) -> tuple[Head, int, int]:
        """Give the newest head, its size, and that of the table in chunks; note the size of its step."""
        head, chunks = self._publication.of(self._core, session=1)
        newest = self._publication.step_chunks(self._core.version - 1)
        self._step_bytes[self._core.version] = sum(len(encode(chunk)) for _, chunk in newest)
        return head, len(encode(head)), sum(len(encode(chunk)) for chunk in chunks)

    def _fetched_bytes(self, fetch: Fetch) -> int:
        """Give what a device fetches: the head, and the steps from its version or the table."""
        if not fetch.steps:
            return self._head_bytes + self._table_bytes
        return self._head_bytes + sum(self._step_bytes[step.version] for step in fetch.steps)


def make_plan(
    hyperparameters: Hyperparameters,
    taste: TasteSettings,
    *,
    encoding: str,
    check_in_s: float,
    guard: float = 0.0,
) -> Plan:
    """Give the training plan of a simulated fleet."""
    return Plan(
        lr=float(hyperparameters.lr),
        item_lr=float(hyperparameters.item_lr),
        negatives=hyperparameters.negatives,
        batch_size=hyperparameters.batch_size,
        decay=float(hyperparameters.decay),
        taste_recency=float(taste.recency),
        taste_strength=float(taste.strength),
        encoding=encoding,
        check_in_s=check_in_s,
        max_idle_passes=1_000_000,
        guard=guard,
    )
