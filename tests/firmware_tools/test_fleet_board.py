"""The board's program on this machine, under sanitizers: the power goes at every write, half of it done."""

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Update, decode
from edge.gateway.carrier import Collected
from edge.gateway.desk import Known, adopted, answer
from edge.gateway.frames import FrameReader, encode_frame
from edge.gateway.messages import (
    FromBoard,
    FromGateway,
    Idle,
    Part,
    Passed,
    Piece,
    Renumber,
    State,
    Want,
    decode_from_board,
    encode,
)
from edge.gateway.package import Package, make_package
from firmware_tools.ccore import C_FLAGS, SOURCES, WARNINGS, core_directory
from tests.brokers import PATIENCE_S
from tests.edge.builders import a_head, a_plan, a_table
from tests.firmware_tools.core import SANITIZERS, needs_compiler

pytestmark = needs_compiler

ROWS, DIM = 60, 8
KEYS = [f"item-{row}" for row in range(ROWS)]
IDLE = Idle(time=0, online=1)
PLAN = a_plan(encoding="factored-int8", taste_strength=1.0, taste_recency=5.0)


def package(version: int, *retired: int) -> Package:
    """Give a version as boards get it."""
    table = a_table(ROWS, DIM, seed=version)
    head = a_head(version, table=table, item_keys=KEYS, plan=PLAN)
    return make_package(head, table, np.array(retired, dtype=np.int64), 1)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build fleet.c for this machine."""
    out = tmp_path_factory.mktemp("fleet") / "fleet"
    core = core_directory()
    port = Path(__file__).parent / "c" / "fleet_host.c"
    boards = core.parent / "boards"
    command = [
        "cc",
        *C_FLAGS,
        *WARNINGS,
        "-Werror",
        "-O1",
        *SANITIZERS,
        "-DTELL_MS=5U",
        "-DTELL_PENDING_MS=5U",
    ]
    sources = [str(boards / "fleet.c"), str(port), *(str(core / name) for name in SOURCES)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(
        [*command, f"-I{core / 'include'}", f"-I{boards}", *sources, "-lm", "-o", str(out)],
        check=True,
        env=environment,
    )
    return out


@dataclass
class PlayedGateway:
    """A gateway that wants an update of each version, and whose fleet answers at once."""

    package: Package
    known: Known = field(default_factory=lambda: Known(incarnation=1))
    journal: dict[tuple[int, int], Update] = field(default_factory=dict)
    payloads: dict[tuple[int, int], bytes] = field(default_factory=dict)
    state: State | None = None
    passed: list[Passed] = field(default_factory=list)
    _collected: Collected = field(default_factory=Collected)

    @property
    def at_rest(self) -> bool:
        """Whether the board has the version, and its update of it was answered."""
        state = self.state
        return (
            state is not None
            and (state.crc, state.pending) == (self.package.crc, 0)
            and any(update.base_version == self.package.version for update in self.journal.values())
        )

    def answer(self, message: FromBoard) -> FromGateway:
        """Answer a board."""
        match message:
            case State():
                return self._meet(message)
            case Want(crc=crc, offset=offset, size=size) if crc == self.package.crc:
                return Piece(crc=crc, offset=offset, data=self.package.content[offset : offset + size])
            case Part():
                content = self._collected.add(message)
                if content is not None:
                    self._journal(message, content)
            case Passed():
                self.passed.append(message)
        return IDLE

    def _meet(self, state: State) -> FromGateway:
        self.state = state
        # The receipt has come meanwhile.
        self.known = replace(adopted(state, self.known), outbox_seq=None, verdict=0)
        made = [update.base_version for update in self.journal.values()]
        order = None if self.package.version in made or not state.known else self.known.last_seq + 1
        received = self._collected.received(state.incarnation, state.pending)
        said = answer(state, self.known, self.package, order, IDLE, received)
        assert said is not None
        return said

    def _journal(self, part: Part, content: bytes) -> None:
        name = (part.incarnation, part.seq)
        update = decode(content, Update)
        assert (update.incarnation, update.seq) == name
        assert self.payloads.setdefault(name, content) == content, "a name always has the same bytes"
        self.journal[name] = update
        self.known = Known(incarnation=part.incarnation, last_seq=part.seq, outbox_seq=part.seq)


class HostBoard:
    """The program with its two lines; it may end at any moment."""

    def __init__(self, process: "subprocess.Popen[bytes]", to_user: int, from_user: int) -> None:
        self._process = process
        self._from_board, self._to_board = to_user, from_user
        self._reader = FrameReader(1100)
        self._said = b""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def serve(self, gateway: PlayedGateway) -> None:
        """Answer what it asks within a moment."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        if select.select([self._process.stdout], [], [], 0.05)[0]:
            received = os.read(self._process.stdout.fileno(), 4096)
            for content in self._reader.feed(received):
                said = gateway.answer(decode_from_board(content))
                with_noise = b"\x07noise" + encode_frame(encode(said))
                try:
                    os.write(self._process.stdin.fileno(), with_noise)
                except BrokenPipeError:
                    return

    def tell(self, command: str, gateway: PlayedGateway) -> list[str]:
        """Tell it something on the user's line; give the words of its answer, none where it has ended."""
        try:
            os.write(self._to_board, f"{command}\n".encode())
        except BrokenPipeError:
            return []
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.serve(gateway)
            if select.select([self._from_board], [], [], 0)[0]:
                received = os.read(self._from_board, 200)
                if not received:
                    return []
                self._said += received
            if b"\n" in self._said:
                line, _, self._said = self._said.partition(b"\n")
                return line.decode().split()
        raise AssertionError(f"no answer to {command}")

    def ended_well(self) -> int:
        """Give the code that it ended with: that of a cut, or none that a sanitizer gives."""
        return self._process.wait(PATIENCE_S)


@contextmanager
def running(program: Path, memory: Path, cut_at: int = 0) -> Iterator[HostBoard]:
    """Let a board run until the block ends."""
    board_reads, user_writes = os.pipe()
    user_reads, board_writes = os.pipe()
    environment = {"FLEET_MEMORY": str(memory), "FLEET_CUT_AT": str(cut_at), "PATH": os.environ["PATH"]}
    # The user's line must be the descriptors 3 and 4.
    shell = f"exec {program} 3<&{board_reads} 4>&{board_writes}"
    process = subprocess.Popen(
        ["bash", "-c", shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        pass_fds=(board_reads, board_writes),
    )
    os.close(board_reads)
    os.close(board_writes)
    try:
        yield HostBoard(process, user_reads, user_writes)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(user_reads)
        os.close(user_writes)


def live(board: HostBoard, gateway: PlayedGateway, *newer: Package) -> list[int]:
    """Record twice; make an update of the gateway's version and of each newer one, or until the board ends.

    Returns
    -------
    list of int
        What it has answered: the interactions there are.
    """
    told = [int(words[1]) for words in (board.tell(f"record {row}", gateway) for row in (3, 17)) if words]
    for package_ in (gateway.package, *newer):
        if board.alive and gateway.package.version < package_.version:
            gateway.package = package_
        until = time.monotonic() + PATIENCE_S
        while board.alive and not gateway.at_rest:
            board.serve(gateway)
            assert time.monotonic() < until, f"no rest: {gateway.state}"
    return told


def test_power_goes_at_every_write(program: Path, tmp_path: Path) -> None:
    """What was acknowledged stays, each name has one update, and the board comes to rest each time."""
    cut_at, was_cut = 0, True
    while was_cut:
        cut_at += 1
        memory = tmp_path / f"memory-{cut_at}"
        gateway = PlayedGateway(package(0))
        with running(program, memory, cut_at) as board:
            told = live(board, gateway, package(1))
            was_cut = not board.alive
            if was_cut:
                assert board.ended_well() == 9
        with running(program, memory) as board:
            assert int(board.tell("status", gateway)[4]) >= max(told, default=0)
            live(board, gateway, package(1))
            assert board.alive
            _, incarnation, seq, pending, _, version = board.tell("status", gateway)
            assert (int(pending), int(version)) == (0, 1)
            assert (int(incarnation), int(seq)) in gateway.journal
            best = board.tell("best", gateway)
        assert len(best) == 11
        assert not {"3", "17"} & set(best)
        assert len({name[0] for name in gateway.journal}) == 1
        assert sorted(update.base_version for update in gateway.journal.values()) == [0, 1]
    assert cut_at > 10
    assert not gateway.passed


def test_update_is_one_that_an_aggregator_reads(program: Path, tmp_path: Path) -> None:
    """Retired rows are neither drawn nor recommended; a pass with nothing to draw makes no update."""
    everything_else = [row for row in range(ROWS) if row not in (3, 17, 20, 21)]
    gateway = PlayedGateway(package(0, *everything_else))
    with running(program, tmp_path / "memory") as board:
        live(board, gateway)
        assert board.tell("best", gateway)[1:] in (["20", "21"], ["21", "20"])
        gateway.package = package(2, *everything_else, 20, 21)
        until = time.monotonic() + PATIENCE_S
        while not gateway.passed and time.monotonic() < until:
            board.serve(gateway)
        assert board.tell("best", gateway) == ["best"]
    first = min(gateway.journal)
    decoded = ENCODINGS["factored-int8"].decode(gateway.journal[first].body, ROWS, DIM)
    assert set(decoded.rows.tolist()) <= {3, 17, 20, 21}
    assert gateway.passed[0].status == 8  # PFR_E_NOTHING


def test_board_draws_another_incarnation_when_told(program: Path, tmp_path: Path) -> None:
    """Its numbers were used elsewhere."""
    gateway = PlayedGateway(package(0))
    with running(program, tmp_path / "memory") as board:
        live(board, gateway)
        before = int(board.tell("status", gateway)[1])
        gateway.known = replace(gateway.known, last_seq=9)
        assert gateway.state is not None
        assert isinstance(gateway.answer(gateway.state), Renumber)
        gateway.package = package(3)
        live(board, gateway)
        after = int(board.tell("status", gateway)[1])
    assert before != after
    assert (after, 1) in gateway.journal


def test_damaged_memory_begins_anew(program: Path, tmp_path: Path) -> None:
    """Both records spoilt, then the package: another incarnation; the table is fetched again."""
    memory = tmp_path / "memory"
    gateway = PlayedGateway(package(0))
    with running(program, memory) as board:
        live(board, gateway)
    content = bytearray(memory.read_bytes())
    package_at = content.index(gateway.package.content[:64])
    content[package_at + 70] ^= 1
    memory.write_bytes(content)
    with running(program, memory) as board:
        assert len(board.tell("status", PlayedGateway(gateway.package))) >= 5
        gateway.state = None
        until = time.monotonic() + PATIENCE_S
        while not gateway.at_rest and time.monotonic() < until:
            board.serve(gateway)
        assert gateway.at_rest
        incarnation = board.tell("status", gateway)[1]
    content = bytearray(memory.read_bytes())
    content[100] ^= 1
    content[16384 + 100] ^= 1
    memory.write_bytes(content)
    with running(program, memory) as board:
        assert board.tell("status", gateway)[1] != incarnation
