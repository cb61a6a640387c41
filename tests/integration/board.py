"""Boards that QEMU plays, carried into a fleet by a gateway; all of them, aggregator and broker are killed.

The boards run the firmware that `export-c` writes (``make fleet``). Each has two serial lines: the gateway's,
and one that plays its user, who records and asks; what is recorded there no other process is told. Most kills
are the boards' and the gateway's at a random time; some the gateway's at a random step of what it does
(`steps`), the aggregator's, the broker's. At the end the fleet comes to rest, and `evidence` adds everything
up: the gateway's databases are those of devices, in which no interaction may be.

Run it::

    python -m tests.integration.board --seed 1 --kills 60
"""

import argparse
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from broker.embedded import BrokerKind
from firmware_tools.c_export import export, make_model
from firmware_tools.targets import TARGETS
from tests.brokers import HOST, PATIENCE_S, SLOWNESS
from tests.integration.evidence import Finding, conclude, device_facts, findings, place_witnesses
from tests.integration.kills import LONGEST_REST_S, at_rest
from tests.integration.processes import (
    Directories,
    Fleet,
    HarnessError,
    Mortal,
    Settings,
    command_path,
    leaving_nothing_behind,
    seeded,
    wait_until,
)
from tests.integration.sweep import stepping

TARGET = TARGETS["m4f"]
SETTINGS = Settings(devices=2, n_items=60, dim=8, buffer=1, deadline_s=0.5, check_in_s=0.2, max_idle_passes=4)
"""Each update makes a version, so that there is always something to fetch and to contribute to."""
_LONGEST_LIFE_S = 2.5 * SLOWNESS
_MOST_STEPS = 150
_FLAGS = "-O2 -DTELL_MS=200U -DTELL_PENDING_MS=100U"
"""A board that tells its state more often has more moments to be killed at."""


def missing() -> list[str]:
    """Name the programs that this needs and that are not installed."""
    return TARGET.missing_to_build() + TARGET.missing_to_run()


def built_firmware(folder: Path) -> Path:
    """Export a project, build the board's program, and give its path."""
    table = np.random.default_rng(0).standard_normal((4, 2), dtype=np.float32)
    export(folder, make_model(table, "int8"), TARGET, vectors=1, force=True)
    subprocess.run(
        ["make", "-s", "-C", str(folder), "fleet", f"OPTIMISE={_FLAGS}"],
        check=True,
        capture_output=True,
        timeout=10 * PATIENCE_S,
    )
    return folder / "build" / "fleet"


class Board(Mortal):
    """A board and its user."""

    def __init__(self, name: str, program: Path, directory: Path, log: Path) -> None:
        self.line, self._user_line = directory / f"{name}.gateway", directory / f"{name}.user"
        emulator = [
            *TARGET.emulator[: TARGET.emulator.index("-icount")],
            "-display",
            "none",
            "-monitor",
            "none",
        ]
        for socket_file in (self.line, self._user_line):
            emulator += ["-serial", f"unix:{socket_file},server=on,wait=off"]
        settings = f"enable=on,target=native,arg=fleet,arg={name},arg={directory / name}.memory"
        super().__init__(name, [*emulator, "-semihosting-config", settings, "-kernel", str(program)], log)

    def told(self, command: str) -> list[str]:
        """Tell the board something on its user's line; give its answer's words, none if it is not there."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(PATIENCE_S)
            line.connect(str(self._user_line))
            line.sendall(f"{command}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                received = line.recv(200)
                if not received:
                    return []
                answer += received
            return answer.decode().split()
        return []

    def status(self) -> "BoardStatus":
        """Give what a board that runs holds."""
        answer: list[str] = []

        def answers() -> bool:
            answer[:] = self.told("status")
            return answer[:1] == ["status"]

        wait_until(answers, f"{self.name} answers its user", self)
        return BoardStatus(*(int(word) for word in answer[1:]))


@dataclass(frozen=True)
class BoardStatus:
    """What a board says of itself: `pending` is the size of the update that waits."""

    incarnation: int
    seq: int
    pending: int
    revision: int
    version: int = -1


class BoardFleet(Fleet):
    """A broker, an aggregator, a gateway and its boards."""

    def __init__(
        self, directories: Directories, lines: Path, program: Path, kind: BrokerKind = "mosquitto"
    ) -> None:
        super().__init__(directories, kind, "every second")
        logs = directories.logs
        self.boards = [Board(name, program, lines, logs / f"{name}.log") for name in self.settings.names]
        ports = [part for board in self.boards for part in ("--serial", f"unix:{board.line}")]
        self.gateway = Mortal(
            "gateway",
            [command_path("edge-client"), "gateway", "--dir", str(directories.path), *ports],
            logs / "gateway.log",
        )
        self.devices = [self.gateway]
        for name in self.settings.names:
            config = directories.device(name) / "config.toml"
            url = f"mqtt://{HOST}:{self.port}"
            config.write_text(re.sub("(?m)^broker = .*$", f'broker = "{url}"', config.read_text()))

    @property
    def all(self) -> list[Mortal]:
        """All processes."""
        return [*super().all, *self.boards]

    def start(self) -> None:
        """Start everything."""
        self.broker.start()
        self.wait_for_broker()
        for process in (self.aggregator, *self.boards, self.gateway):
            process.start()

    def stop(self) -> None:
        """End everything as a service manager does: the broker last."""
        for process in (*self.ours, *self.boards, self.broker):
            process.stop()


@dataclass
class Users:
    """What the boards' users have done, and what they were told."""

    boards: Sequence[Board]
    revisions: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def record(self, board: Board, row: int) -> None:
        """Record an interaction; where the board answers, it is kept from then on."""
        answer = board.told(f"record {row}")
        if answer[:1] == ["recorded"]:
            self.revisions[board.name] = int(answer[1])

    def look(self, board: Board, before: BoardStatus | None = None) -> BoardStatus:
        """Hold a board against what it has told before."""
        now = board.status()
        if now.revision < self.revisions[board.name]:
            self.broken.append(f"{board.name} has forgotten an interaction: {now}")
        if before is not None and (now.incarnation != before.incarnation or now.seq < before.seq):
            self.broken.append(f"{board.name} was {before} and is {now}")
        return now


@dataclass(frozen=True)
class Outcome:
    """What a run has shown; `when` counts the kills, `best` is what boards recommended at first and last."""

    title: str
    when: Mapping[str, int]
    findings: Sequence[Finding]
    best: Mapping[str, tuple[list[str], list[str]]]

    @property
    def holds(self) -> bool:
        """Whether all promises were kept."""
        return not any(finding.broken for finding in self.findings)

    def __str__(self) -> str:
        when = ", ".join(f"{count} of {what}" for what, count in sorted(self.when.items()))
        return "\n".join([f"{self.title}: {when}", *(f"  {finding}" for finding in self.findings)])


def kill_boards(
    directory: Path, program: Path, *, seed: int, kills: int, settings: Settings = SETTINGS
) -> Outcome:
    """Kill boards, gateway, aggregator and broker `kills` times in all; give what that has shown.

    Parameters
    ----------
    directory : Path
        Where the fleet lives; kept by this function.
    program : Path
        The boards', from `built_firmware`.
    """
    directories = Directories(directory, settings)
    directories.make()
    place_witnesses(directories)
    # The path of a socket may have a hundred characters.
    lines = Path(tempfile.mkdtemp(prefix="pfedrec-lines-"))
    fleet = BoardFleet(directories, lines, program)
    users = Users(fleet.boards)
    rng = seeded(seed, "kills of boards")
    when = Counter[str]()
    first: dict[str, list[str]] = {}
    last: dict[str, list[str]] = {}
    trouble: list[str] = []
    began = time.monotonic()
    with leaving_nothing_behind(fleet):
        fleet.start()
        for board in fleet.boards:
            wait_until(lambda board=board: board.status().version >= 0, "a first table", *fleet.all)  # type: ignore[misc]
            for row in rng.sample(range(settings.n_items), 3):
                users.record(board, row)
            first[board.name] = board.told("best")
        for _ in range(kills):
            when[_kill_once(fleet, users, rng)] += 1
        try:
            wait_until(lambda: at_rest(fleet), "the fleet comes to rest", *fleet.all, within_s=LONGEST_REST_S)
            wait_until(lambda: _are_up_to_date(fleet), "the boards have the newest version", *fleet.all)
            last = {board.name: board.told("best") for board in fleet.boards}
            ends = {board.name: users.look(board) for board in fleet.boards}
        except HarnessError as error:
            trouble.append(str(error))
            ends = {}
        fleet.stop()
    shutil.rmtree(lines)
    title = f"seed {seed}: {kills} kills in {time.monotonic() - began:.0f} s"
    accounts = _accounts(directories, ends, users, first, last)
    return Outcome(
        title,
        when,
        [accounts, *findings(directories, [], fleet.ended_alone + trouble)],
        {name: (first[name], last.get(name, [])) for name in first},
    )


def _are_up_to_date(fleet: BoardFleet) -> bool:
    newest = {device_facts(fleet.directories.device_database(name)).held for name in fleet.settings.names}
    versions = {head.version for head in newest if head is not None}
    return all(board.status().pending == 0 and {board.status().version} == versions for board in fleet.boards)


def _kill_once(fleet: BoardFleet, users: Users, rng: random.Random) -> str:
    """Let everything live for a while, perhaps record, and kill something; give what."""
    ways = (
        ["a board"] * 4
        + ["the gateway"] * 3
        + ["the gateway at a step"] * 2
        + ["the aggregator", "the broker"]
    )
    way, board = rng.choice(ways), rng.choice(fleet.boards)
    if rng.random() < 0.5:
        users.record(board, rng.randrange(fleet.settings.n_items))
    if way == "the gateway at a step":
        fleet.gateway.kill()
        fleet.gateway.start(stepping(rng.randint(1, _MOST_STEPS), fleet.gateway.command))
        until = time.monotonic() + 3.0 * _LONGEST_LIFE_S
        while not fleet.gateway.stopped and time.monotonic() < until:
            time.sleep(0.01)
        victim = fleet.gateway
    else:
        time.sleep(rng.uniform(0.0, _LONGEST_LIFE_S))
        victims = {"a board": board, "the gateway": fleet.gateway, "the aggregator": fleet.aggregator}
        victim = victims.get(way, fleet.broker)
    before = users.look(board) if victim is board else None
    if before is not None:  # a moment for what the board does next
        time.sleep(rng.uniform(0.0, 0.3))
    victim.kill()
    victim.start()
    if victim is fleet.broker:
        fleet.wait_for_broker()
    if before is not None:
        users.look(board, before)
    return way


def _accounts(
    directories: Directories,
    ends: Mapping[str, BoardStatus],
    users: Users,
    first: Mapping[str, list[str]],
    last: Mapping[str, list[str]],
) -> Finding:
    """Hold what the boards say of themselves against the gateway's databases."""
    broken = list(users.broken)
    for name, board in ends.items():
        device = device_facts(directories.device_database(name))
        if (board.incarnation, board.seq) != (device.incarnation, device.last_seq) or board.pending:
            broken.append(f"{name} says {board}, the gateway has {device.incarnation}, {device.last_seq}")
        if len(last[name]) != 11 or last[name] == first[name]:
            broken.append(f"{name} recommended {first[name]}, and at the end {last[name]}")
    made = ", ".join(
        f"{name} made {board.seq} and has version {board.version}" for name, board in ends.items()
    )
    return Finding("0. boards keep what they have told, and recommend from the newest version", made, broken)


def main() -> int:
    """Run the proof; give 0 if all promises were kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.board")
    parser.add_argument("--seed", default=1, type=int, help="Of the kills (default 1).")
    parser.add_argument("--kills", default=60, type=int, help="How many (default 60).")
    parser.add_argument("--keep", action="store_true", help="Keep directories and logs of a good run, too.")
    arguments = parser.parse_args()
    if missing():
        sys.stderr.write(
            f"not installed: {', '.join(missing())}; apt-get install {' '.join(TARGET.packages)}\n"
        )
        return 2
    work = Path(tempfile.mkdtemp(prefix="pfedrec-boards-"))
    program = built_firmware(work / "firmware")
    outcome = kill_boards(work / "fleet", program, seed=arguments.seed, kills=arguments.kills)
    sys.stdout.write(f"{outcome}\n")
    for name, (before, after) in outcome.best.items():
        sys.stdout.write(f"  {name}: {' '.join(before)} -> {' '.join(after)}\n")
    return conclude(work, holds=outcome.holds, keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
