"""The sweep: a process of a small fleet is stopped at its n-th step, and there somebody is killed.

Each n has a fleet of its own: a copy of one that has just been made, whose devices have three interactions.
They fetch the first table, make two updates, and rest. n grows until the process ends, told to, before it
comes so far; so the steps of an orderly end are among those that are tried.
"""

import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from broker.embedded import BrokerKind
from broker.protocol.messages import Head, decode
from tests.brokers import PATIENCE_S
from tests.integration.evidence import Call, Finding, findings, opened, place_witnesses
from tests.integration.processes import (
    Directories,
    Fleet,
    HarnessError,
    Mortal,
    Settings,
    command_path,
    leaving_nothing_behind,
    run_to_end,
    wait_until,
)

Who = Literal["device", "aggregator", "broker"]

PASSES = 2
_ITEMS = ("item-00", "item-03", "item-05")
_AT = 1_700_000_000
_ALONE = Settings(
    devices=1, n_items=8, dim=2, buffer=9, deadline_s=0.1, check_in_s=0.1, max_idle_passes=PASSES
)
_TOGETHER = replace(_ALONE, devices=2)
"""A round closes by its deadline, in a transaction of its own."""
_AT_ONCE = replace(_TOGETHER, buffer=1)
"""A round closes in the transaction that stores its update."""


@dataclass(frozen=True)
class Scene:
    """Who stops at each step, and who is killed there, after what was sent has had time to take effect."""

    stops: Literal["device", "aggregator"]
    victims: tuple[Who, ...]
    settings: Settings
    pause_s: float = 0.0

    def __str__(self) -> str:
        devices = "a device" if self.settings.devices == 1 else f"{self.settings.devices} devices"
        rounds = "each update" if self.settings.buffer == 1 else "a deadline"
        return (
            f"{devices}, {rounds} closes a round: {' and '.join(self.victims)} killed "
            f"{f'{self.pause_s} s after' if self.pause_s else 'at'} every step of the {self.stops}"
        )


SCENES = (
    Scene("device", ("device",), _ALONE),
    Scene("device", ("broker",), _ALONE, pause_s=0.2),
    Scene("aggregator", ("aggregator",), _AT_ONCE),
    Scene("aggregator", ("broker",), _TOGETHER),
    Scene("aggregator", ("aggregator", "broker"), _AT_ONCE, pause_s=0.3),
    Scene("aggregator", ("aggregator", "device", "broker"), _TOGETHER),
)


@dataclass(frozen=True)
class Kill:
    """What one n has shown; `step` is empty where the process did not come so far."""

    number: int
    step: str
    findings: Sequence[Finding]
    directory: Path

    @property
    def broken(self) -> list[Finding]:
        """The promises that were not kept."""
        return [finding for finding in self.findings if finding.broken]


@dataclass(frozen=True)
class Sweep:
    """What a scene has shown."""

    scene: Scene
    kind: BrokerKind
    stride: int
    kills: Sequence[Kill]

    @property
    def holds(self) -> bool:
        """Whether all promises were kept, at whatever step."""
        return not any(kill.broken for kill in self.kills)

    def __str__(self) -> str:
        reached = [kill for kill in self.kills if kill.step]
        names = Counter(kill.step for kill in reached)
        verdict = "FAIL" if not self.holds else "PASS"
        some = f" at one step of {self.stride}" if self.stride > 1 else ""
        lines = [f"{verdict}  {self.scene}, {self.kind}: {len(reached)} fleets, a kill in each{some}"]
        lines.append("        " + ", ".join(f"{name} {count}" for name, count in sorted(names.items())))
        for kill in self.kills:
            lines += [f"  step {kill.number}, {kill.step}: {finding}" for finding in kill.broken]
            if kill.broken:
                lines.append(f"        directories and logs: {kill.directory}")
        return "\n".join(lines)


def sweep(
    work: Path, scene: Scene, kind: BrokerKind, *, first: int = 1, stride: int = 1, jobs: int = 2
) -> Sweep:
    """Play a scene for n = `first`, `first` + `stride`, ... until n is too large.

    Parameters
    ----------
    work : Path
        Where the fleets live; only those that broke a promise stay.
    jobs : int
        Fleets at a time.
    """
    template = Directories(work / f"template-{len(list(work.iterdir()))}", scene.settings)
    template.make()
    for name in scene.settings.names:
        where = ["--dir", str(template.device(name)), "--at", str(_AT)]
        run_to_end(command_path("edge-client"), "record", *where, *_ITEMS)
    place_witnesses(template)
    kills: list[Kill] = []
    number = first
    with ThreadPoolExecutor(jobs) as pool:
        while not kills or all(kill.step for kill in kills[-jobs:]):
            numbers = range(number, number + jobs * stride, stride)
            kills += pool.map(lambda n: _play(template, work, scene, kind, n), numbers)
            number += jobs * stride
    shutil.rmtree(template.path)
    return Sweep(scene, kind, stride, kills)


def _play(template: Directories, work: Path, scene: Scene, kind: BrokerKind, number: int) -> Kill:
    name = f"{kind}-{scene.stops}-{'-'.join(scene.victims)}-{number}"
    directories = template.copy_to(work / name)
    fleet = Fleet(directories, kind, "hardly ever")
    trouble: list[str] = []
    with leaving_nothing_behind(fleet):
        try:
            _run(fleet, scene, number)
        except HarnessError as error:
            trouble.append(str(error))
    step = last_step(fleet.devices[0] if scene.stops == "device" else fleet.aggregator)
    calls = [Call(device=each, at=_AT, items=_ITEMS, code=0) for each in scene.settings.names]
    result = findings(directories, calls, fleet.ended_alone + trouble)
    kill = Kill(number, step, result, directories.path)
    if not kill.broken:
        shutil.rmtree(directories.path)
    return kill


def _run(fleet: Fleet, scene: Scene, number: int) -> None:
    """Let a fleet live, with the kill in it if the process comes so far."""
    who = {"device": fleet.devices[0], "aggregator": fleet.aggregator, "broker": fleet.broker}
    watched, victims = who[scene.stops], [who[victim] for victim in scene.victims]
    fleet.broker.start()
    fleet.wait_for_broker()
    for process in fleet.ours:
        plain = process.command
        process.command = stepping(0, plain)
        process.start(stepping(number, plain) if process is watched else None)
    wait_until(lambda: watched.stopped or _at_rest(fleet), "a step or rest", *fleet.all)
    if not watched.stopped:
        watched.ask_to_end()
        wait_until(lambda: watched.stopped or not watched.running, "a step or the end", *fleet.all)
    if watched.stopped:
        _kill(fleet, watched, victims, scene.pause_s)
    fleet.stop()


def stepping(number: int, command: Sequence[str]) -> list[str]:
    """Give a command that stops itself at its n-th step."""
    program, *arguments = command
    return [sys.executable, "-m", "tests.integration.steps", str(number), Path(program).name, *arguments]


def last_step(process: Mortal) -> str:
    """Give the step that a process has stopped at, empty if it came to none."""
    names: list[str] = re.findall(r"^step \d+: (.*)$", process.log.read_text(), re.MULTILINE)
    return names[-1] if names else ""


def _kill(fleet: Fleet, watched: Mortal, victims: Sequence[Mortal], pause_s: float) -> None:
    """Kill and restart the victims while one of the processes stands still; wait for rest."""
    time.sleep(pause_s)
    before = _connections(fleet)
    for victim in victims:
        victim.kill()
    for victim in victims:
        victim.start()
    if watched not in victims:
        watched.go_on()
        if watched.asked_to_end:
            watched.stop()
            watched.start()
    fresh = fleet.ours if fleet.broker in victims else victims
    wait_until(
        lambda: _at_rest(fleet) and all(_connections(fleet)[p.name] > before[p.name] for p in fresh),
        "the fleet comes to rest",
        *fleet.all,
        within_s=2.0 * PATIENCE_S,
    )


def _at_rest(fleet: Fleet) -> bool:
    directories = fleet.directories
    with opened(directories.aggregator_database) as database:
        [(version,)] = database.execute("SELECT max(version) FROM versions")
        [(pending,)] = database.execute(
            "SELECT count(*) FROM journal WHERE verdict = 'accepted' AND version IS NULL"
        )
    names = directories.settings.names
    return pending == 0 and all(_device_at_rest(directories.device_database(n), version) for n in names)


def _device_at_rest(path: Path, version: int) -> bool:
    with opened(path) as database:
        [(waiting,)] = database.execute("SELECT count(*) FROM outbox")
        passes = database.execute("SELECT value FROM facts WHERE name = 'idle_passes'").fetchall()
        head = database.execute("SELECT head FROM model").fetchall()
        held = database.execute("SELECT value FROM facts WHERE name = 'held_head'").fetchall()
    if waiting or not passes or passes[0][0] < PASSES or not head:
        return False
    return decode((held or head)[0][0], Head).version == version


def _connections(fleet: Fleet) -> dict[str, int]:
    """Give the number of each end's newest connection, by the process's name."""
    directories = fleet.directories
    paths = {name: directories.device_database(name) for name in directories.settings.names}
    facts = {name: (path, "connection") for name, path in paths.items()}
    facts[fleet.aggregator.name] = (directories.aggregator_database, "session")
    result: dict[str, int] = {}
    for name, (path, fact) in facts.items():
        with opened(path) as database:
            [(result[name],)] = database.execute("SELECT value FROM facts WHERE name = ?", (fact,))
    return result
