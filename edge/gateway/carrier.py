"""A board as a device of the fleet: the device's agent, whose passes are made at the end of a line.

The life cycle is `edge.agent`'s: session, store, outbox, download, trust, last will. Different is this: the
interactions are known by their number alone, a pass is an order to the board, and the update comes by the
line.
"""

import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np

from broker.connection import LinkEvent, Received
from broker.errors import ProtocolError, SchemaError
from broker.protocol.messages import VERDICTS, Update, decode
from edge.agent import Agent
from edge.config import DeviceConfig
from edge.gateway.desk import Answer, Known, adopted, answer
from edge.gateway.messages import (
    MOST_UPDATE_BYTES,
    VERDICT_UNKNOWN,
    Answered,
    FromBoard,
    FromGateway,
    Idle,
    Part,
    Passed,
    Piece,
    Refused,
    State,
    Want,
    decode_from_board,
    encode,
    piece_bytes,
)
from edge.gateway.package import Package, make_package
from edge.guards import Limits
from edge.scheduler import Progress
from edge.session import Activity, Command, Settle, Train
from edge.store import DeviceStore

_LOG = logging.getLogger(__name__)

SILENCE_S = 20.0
"""A board that is not heard for so long has gone; it tells its state every second."""
_LOOK_S = 1.0
"""Between looks whether ``edge-client forget`` was called for the board's directory."""
_ANSWER = "board_answer"
"""A fact: number and verdict of the update that was answered last."""
_ANYWHERE = Limits(
    min_battery_percent=0.0, max_temperature_c=0.0, min_free_memory_mb=0, max_load_per_core=0.0
)


@dataclass(frozen=True, slots=True)
class Heard(Received):
    """A message from a line, in the queue beside those from the broker; it has no topic."""

    @classmethod
    def of(cls, content: bytes) -> "Heard":
        """Give the event of a message."""
        return cls("", content, 0, 0, 0)


class Collected:
    """An update that comes in parts, in order."""

    def __init__(self) -> None:
        self._name: tuple[int, int, int, int] | None = None
        self._content = bytearray()

    def received(self, incarnation: int, seq: int) -> int:
        """Give how many bytes of an update are here."""
        return len(self._content) if self._name is not None and self._name[:2] == (incarnation, seq) else 0

    def add(self, part: Part) -> bytes | None:
        """Take a part; give the update when it is complete and has its CRC, which it loses otherwise."""
        name = (part.incarnation, part.seq, part.crc, part.size)
        if name != self._name:
            self._name = name
            self._content.clear()
        if part.offset == len(self._content):
            self._content += part.data
        if len(self._content) < part.size:
            return None
        content = bytes(self._content)
        self._name = None
        self._content.clear()
        return content if zlib.crc32(content) == part.crc else None


def known_of(store: DeviceStore) -> Known:
    """Give what a store knows of its board's numbers."""
    remembered = store.remembered()
    return Known(
        incarnation=remembered.incarnation,
        last_seq=remembered.last_seq,
        outbox_seq=remembered.outbox_seq,
        verdict=_verdict(store, remembered.last_seq),
    )


def adopt(store: DeviceStore, state: State) -> None:
    """Go on with a board's own numbers; a board that begins anew has contributed nothing yet."""
    known = known_of(store)
    now = adopted(state, known)
    if now.incarnation != known.incarnation:
        store.set_facts(incarnation=now.incarnation, seq=now.last_seq, **asdict(Progress()))
    elif now.last_seq != known.last_seq:
        store.set_facts(seq=now.last_seq)


def _verdict(store: DeviceStore, seq: int) -> int:
    told = str(store.fact(_ANSWER) or "").split()
    return VERDICTS.index(told[1]) if told[:1] == [str(seq)] and told[1] in VERDICTS else VERDICT_UNKNOWN


class BoardAgent(Agent):
    """Runs one board's session.

    Parameters
    ----------
    write : callable
        Sends a message to the board, or loses it.
    state : State
        What the board has told; its numbers are adopted.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: DeviceStore,
        say: Callable[[str], None],
        rng: np.random.Generator,
        write: Callable[[bytes], None],
        state: State,
    ) -> None:
        # The guards look at this machine, and the board trains on another. The network alone is shared.
        training = replace(_ANYWHERE, metered=config.training.metered)
        super().__init__(replace(config, scorer="numpy", training=training), store, say, rng)
        self._scorer = "c"
        self._write = write
        self._state = state
        self._heard_at = time.monotonic()
        self._known = known_of(store)
        self._told: tuple[int, int] | None = None
        self._order: Train | None = None
        self._collected = Collected()
        self._packages: dict[int, Package] = {}
        self._complained = False
        self._unreadable = 0
        self._goes_on = False
        self._ended = threading.Event()

    def carry(self, stop: threading.Event) -> State | None:
        """Take part in the fleet until `stop` is set, the board has gone, or another agent must go on.

        Returns
        -------
        State or None
            What the other agent begins with: the board's numbers are others than those known here, or an
            update has come that the session did not ask for. None: there is nothing to go on with.

        Raises
        ------
        RefusedError, DiskFullError, CorruptError, NotWritableError, InUseError
            As `run` does.
        """

        def each_round() -> None:
            if stop.is_set():
                self._ended.set()
            elif time.monotonic() >= self._heard_at + SILENCE_S:
                self._say("the board is silent; it is offline until it is heard again")
                self._ended.set()

        self._meet(self._state)
        self.run(self._ended, each_round)
        return self._state if self._goes_on else None

    def hear(self, content: bytes) -> None:
        """Take a message from the line, in any thread; one too many is left to be sent again."""
        with suppress(queue.Full):
            self._events.put_nowait(Heard.of(content))

    # -- what a device's agent does otherwise ------------------------------------------------------

    def _handle(self, event: LinkEvent | None) -> None:
        if not isinstance(event, Heard):
            super()._handle(event)
            return
        try:
            message = decode_from_board(event.payload)
        except SchemaError as error:
            self._unreadable += 1
            if self._unreadable.bit_count() == 1:  # the 1st, 2nd, 4th and so on: a log must not be filled
                _LOG.warning("%d messages of the board are unreadable: %s", self._unreadable, error)
            return
        self._heard_at = time.monotonic()
        self._take(message)

    def _look_for_interactions(self, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            if self._store.erasures() != self._erasures:  # and with them the outbox's update
                self._hand_on()
        told = (self._state.revision, self._state.known)
        if told != self._told:
            self._told = told
            self._carry_out(self._session.interactions_changed(*told, now))

    def _train(self, command: Train) -> None:
        if command.seq is None:  # the board does that by itself
            self._carry_out(self._session.training_done(command, time.monotonic()))
        else:
            self._order = command

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Settle):
                # First: if this process ends between the two, it is sent again, and answered `duplicate`.
                self._store.set_facts(**{_ANSWER: f"{command.seq} {command.verdict}"})
                self._known = replace(self._known, outbox_seq=None, verdict=VERDICTS.index(command.verdict))
        super()._carry_out(commands)

    def _renumber(self) -> None:
        self._known = replace(self._known, used_up=True)
        self._say(
            "the fleet knows an update of this board that neither the board nor this gateway does; "
            "its updates count anew from here"
        )

    # -- the line ----------------------------------------------------------------------------------

    def _take(self, message: FromBoard) -> None:
        match message:
            case State():
                self._meet(message)
            case Want(crc=crc, offset=offset, size=size):
                package = self._packages.get(self._state.table_format)
                if package is None or package.crc != crc:
                    self._meet(self._state)
                else:
                    size = min(size, piece_bytes(self._state.room))
                    data = package.content[offset : offset + size]
                    self._tell(Piece(crc=crc, offset=offset, data=data))
            case Part():
                self._collect(message)
            case Passed(seq=seq, status=status):
                self._tell(self._idle())
                if self._order is not None and self._order.seq == seq:
                    _LOG.warning("the board made no update: status %d of the core", status)
                    done, self._order = Train(None, self._order.progress), None
                    self._store.save_pass(None, done.progress, None)
                    self._carry_out(self._session.training_done(done, time.monotonic()))

    def _meet(self, state: State) -> None:
        """Answer a board's state, or end where another agent must begin with it."""
        self._state = state
        if state.device != self._config.device_id:
            self._hand_on()
            return
        self._look_for_interactions(time.monotonic())
        said = self._answer()
        if said is None:
            self._hand_on()
            return
        too_large = isinstance(said, Refused) and said.reason == Refused.TOO_LARGE
        if too_large and not self._complained:
            self._say(
                f"version {self._session.version} does not fit the board, which has room for "
                f"{state.package_room} bytes; build its firmware with more, or give it another fleet"
            )
        self._complained = too_large
        self._tell(said)

    def _answer(self) -> Answer | None:
        order = None if self._order is None else self._order.seq
        received = self._collected.received(self._state.incarnation, self._state.pending)
        return answer(self._state, self._known, self._package(), order, self._idle(), received)

    def _collect(self, part: Part) -> None:
        name = (part.incarnation, part.seq)
        if part.incarnation != self._known.incarnation or part.seq <= self._known.last_seq:
            self._meet(self._state)  # it is here
            return
        content = self._collected.add(part)
        if content is None:
            self._meet(replace(self._state, seq=part.seq, pending=part.seq))
            return
        try:
            update = decode(content, Update, max_bytes=MOST_UPDATE_BYTES)
            if (update.incarnation, update.seq) != name:
                raise SchemaError("it bears another name than the board says")
        except ProtocolError as error:
            _LOG.error("update %d of the board cannot be read and is dropped: %s", part.seq, error)
            self._tell(
                Answered(incarnation=part.incarnation, seq=part.seq, verdict=VERDICTS.index("rejected"))
            )
            return
        self._keep(update, content)
        self._tell(self._idle())

    def _keep(self, update: Update, content: bytes) -> None:
        """Store an update, which leaves with the agent's next connection or at once."""
        order, self._order = self._order, None
        before = self._session.progress
        progress = Progress(
            contributed_version=update.base_version,
            trained_revision=self._state.revision,
            contributed_revision=self._state.revision,
            idle_passes=1 if self._state.revision > before.contributed_revision else before.idle_passes + 1,
        )
        if order is not None:
            progress = replace(order.progress, contributed_version=update.base_version)
        self._store.save_pass(None, progress, (update.seq, content), at=time.time())
        self._known = replace(
            self._known, last_seq=update.seq, outbox_seq=update.seq, verdict=VERDICT_UNKNOWN
        )
        if order is None or order.seq != update.seq or self._session.activity is not Activity.TRAINING:
            # It was asked for before this agent began: the next one finds it in the outbox.
            self._hand_on()
            return
        self._carry_out(self._session.training_done(Train(update.seq, progress), time.monotonic()))

    def _hand_on(self) -> None:
        self._goes_on = True
        self._ended.set()

    def _package(self) -> Package | None:
        model, table_format = self._holding.model, self._state.table_format
        if model is None:
            return None
        head = model.head
        package = self._packages.get(table_format)
        if package is None or (package.instance, package.version) != (head.instance, head.version):
            package = make_package(head, model.table, self._store.retired_rows(), table_format)
            self._packages = {table_format: package}
        return package

    def _idle(self) -> Idle:
        return Idle(time=int(time.time()), online=int(self._session.online))

    def _tell(self, message: FromGateway) -> None:
        self._write(encode(message))
