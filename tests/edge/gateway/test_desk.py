"""What a gateway answers: board, gateway and fleet lose, repeat and forget until they come to rest."""

import zlib
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.gateway.desk import Answer, Known, adopted, answer
from edge.gateway.messages import (
    VERDICT_UNKNOWN,
    Answered,
    Contribute,
    Idle,
    Offer,
    Refused,
    Renumber,
    Send,
    State,
)
from edge.gateway.package import Package
from tests.edge.gateway.builders import a_state

IDLE = Idle(time=0, online=1)


def a_package(version: int, size: int = 40) -> Package:
    """Give a package that no board could decode."""
    content = bytes([version % 256]) * size
    return Package(
        instance=7, version=version, crc=zlib.crc32(content), model=size - 2, mask=1, head=1, content=content
    )


@dataclass
class Board:
    """A board, as firmware_tools/boards/fleet.c keeps its record: everything here outlasts a reset."""

    incarnation: int = 1
    seq: int = 0
    pending: bytes = b""
    package: Package | None = None

    @property
    def state(self) -> State:
        """What it tells."""
        held = self.package
        return a_state(
            incarnation=self.incarnation,
            seq=self.seq,
            pending=self.seq if self.pending else 0,
            known=1,
            **(
                {}
                if held is None
                else {"instance": 7, "version": held.version, "crc": held.crc, "size": len(held.content)}
            ),
        )


@dataclass
class Gateway:
    """A gateway's store for one board; `outbox` holds the update that waits."""

    known: Known = field(default_factory=lambda: Known(incarnation=99))
    outbox: bytes = b""
    package: Package | None = None
    order: int | None = None  # in memory only


class Exchange(RuleBasedStateMachine):
    """Everything may be lost on the way, and each end may end at any moment; what is stored stays."""

    def __init__(self) -> None:
        super().__init__()
        self.board, self.gateway = Board(), Gateway()
        self.version = 0
        self.drawn = 1
        self.made: dict[tuple[int, int], bytes] = {}
        self.answered: dict[tuple[int, int], bytes] = {}
        """The aggregator's journal."""

    # -- the two ends meet --

    @rule()
    def tell(self) -> None:
        """The board tells its state, and follows the answer."""
        known = adopted(self.board.state, self.gateway.known)
        if known != self.gateway.known:
            self.gateway.known = known
            self.gateway.order = None
        order = self.gateway.order
        said = answer(self.board.state, self.gateway.known, self.gateway.package, order, IDLE)
        assert said is not None, "its numbers were adopted"
        self.follow(said)

    def follow(self, said: Answer) -> None:
        """Do as the firmware does."""
        board = self.board
        match said:
            case Offer():
                assert self.gateway.package is not None
                board.package = self.gateway.package
            case Contribute(seq=seq, version=version):
                if (
                    not board.pending
                    and seq == board.seq + 1
                    and board.package
                    and board.package.version == version
                ):
                    board.seq = seq
                    board.pending = f"{board.incarnation} {seq} {len(self.made)}".encode()
                    assert (board.incarnation, seq) not in self.made, "a number is given once"
                    self.made[board.incarnation, seq] = board.pending
            case Send(incarnation=incarnation, seq=seq):
                assert (incarnation, seq) == (board.incarnation, board.seq)
                assert board.pending
                self.gateway.known = Known(incarnation=incarnation, last_seq=seq, outbox_seq=seq)
                self.gateway.outbox = board.pending
                self.gateway.order = None
            case Answered(incarnation=incarnation, seq=seq):
                if (incarnation, seq) == (board.incarnation, board.seq):
                    assert (incarnation, seq) in self.answered, "it is given up once it is answered"
                    board.pending = b""
            case Renumber(incarnation=incarnation):
                if incarnation == board.incarnation and not board.pending:
                    self.drawn += 1
                    board.incarnation, board.seq = self.drawn, 0

    # -- the fleet --

    @rule()
    def new_version(self) -> None:
        """The gateway fetches another table."""
        self.version += 1
        self.gateway.package = a_package(self.version)

    @precondition(lambda self: self.gateway.known.outbox_seq is None and self.gateway.package is not None)
    @rule()
    def want_an_update(self) -> None:
        """The session decides that the board should contribute."""
        self.gateway.order = self.gateway.known.last_seq + 1

    @precondition(lambda self: self.gateway.outbox)
    @rule(receipt_arrives=st.booleans())
    def publish(self, receipt_arrives: bool) -> None:  # noqa: FBT001
        """The outbox's update reaches the aggregator, perhaps once more; its receipt may not come."""
        known = self.gateway.known
        assert known.outbox_seq is not None
        name = (known.incarnation, known.outbox_seq)
        was = self.answered.setdefault(name, self.gateway.outbox)
        assert was == self.gateway.outbox, "a name always has the same bytes"
        if receipt_arrives:
            self.gateway.known = replace(known, outbox_seq=None, verdict=0)
            self.gateway.outbox = b""

    # -- what may happen at any time --

    @rule()
    def gateway_ends(self) -> None:
        """What it has not stored is gone."""
        self.gateway.order = None
        self.gateway.known = replace(self.gateway.known, verdict=VERDICT_UNKNOWN)

    @rule()
    def gateway_is_replaced(self) -> None:
        """A new directory, or another gateway: the board goes on where it is."""
        self.gateway = Gateway(package=self.gateway.package)

    @rule()
    def board_is_replaced(self) -> None:
        """Its memory was erased: it draws another incarnation, and its update is lost if it had not left."""
        self.drawn += 1
        if self.board.pending:
            self.made.pop((self.board.incarnation, self.board.seq), None)
        self.board = Board(incarnation=self.drawn)

    @invariant()
    def nothing_is_made_up(self) -> None:
        """Whatever was counted, a board has made with these bytes."""
        for name, content in self.answered.items():
            assert content.startswith(f"{name[0]} {name[1]} ".encode())

    def teardown(self) -> None:
        """Left alone, both come to rest: nothing waits, the newest package is on the board."""
        for _ in range(12):
            self.tell()
            if self.gateway.outbox:
                self.publish(receipt_arrives=True)
        assert not self.board.pending
        assert not self.gateway.outbox
        assert self.board.package == self.gateway.package or self.gateway.package is None
        assert self.gateway.known.incarnation == self.board.incarnation
        assert self.gateway.known.last_seq == self.board.seq
        for name in self.made.keys() - self.answered.keys():
            # What a gateway had taken over, and lost with its own store after the board's memory was erased.
            assert name[0] != self.board.incarnation, f"{name} is lost"


Exchange.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestExchange = Exchange.TestCase


def test_board_from_a_backup_counts_anew() -> None:
    """Its numbers were used: what it makes next would be taken for duplicates."""
    known = Known(incarnation=4711, last_seq=5)
    said = answer(a_state(seq=3), known, None, None, IDLE)
    assert said == Renumber(incarnation=4711)
    # An update that waits there is answered first; its number is known here, its bytes may be others.
    waits = a_state(seq=3, pending=3)
    assert answer(waits, known, None, None, IDLE) == Answered(
        incarnation=4711, seq=3, verdict=VERDICT_UNKNOWN
    )


def test_numbers_that_the_fleet_knows_and_nobody_here_are_left() -> None:
    """What the first send of an update answered `duplicate` shows."""
    known = Known(incarnation=4711, last_seq=5, used_up=True)
    assert answer(a_state(seq=5), known, a_package(1), 6, IDLE) == Renumber(incarnation=4711)


def test_gateway_from_a_backup_goes_on_from_the_board() -> None:
    """Numbers that went through another gateway are not given again."""
    known = Known(incarnation=4711, last_seq=2, verdict=0)
    assert answer(a_state(seq=4), known, None, None, IDLE) is None
    assert adopted(a_state(seq=4), known) == Known(incarnation=4711, last_seq=4)
    assert adopted(a_state(seq=4, pending=4), known) == known
    assert answer(a_state(seq=4, pending=4), known, None, None, IDLE, 512) == Send(
        incarnation=4711, seq=4, offset=512
    )


def test_update_of_a_former_board_is_sent_first() -> None:
    """The new one waits until the receipt for the old has come."""
    known = Known(incarnation=1, last_seq=9, outbox_seq=9)
    state = a_state(seq=1, pending=1)
    assert answer(state, known, a_package(1), None, IDLE) == IDLE
    assert adopted(state, known) == known
    assert adopted(state, replace(known, outbox_seq=None)) == Known(incarnation=4711)


def test_package_that_does_not_fit_is_not_offered() -> None:
    """The board would ask for it for ever."""
    known = Known(incarnation=4711)
    state = a_state(package_room=100)
    assert answer(state, known, a_package(1, 101), None, IDLE) == Refused(reason=Refused.TOO_LARGE)
    assert isinstance(answer(state, known, a_package(1, 100), None, IDLE), Offer)
