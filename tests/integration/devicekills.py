"""One device, killed again and again while it records, trains, sends and syncs; looked at after every kill.

A real broker and a real aggregator run throughout. Half of the kills of ``edge-client start`` come at a
random time, half at a random step of what it does (`steps`); some are of ``edge-client record``. After
each, while the device is dead, a copy of its database is opened as ``start`` would open it, and
`everything_holds` is asked. At the end the fleet comes to rest, and `evidence` adds everything up.

Run it::

    python -m tests.integration.devicekills --seed 1 --kills 300
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.storage import exclusive
from edge.rebuild import open_sound_store
from tests.integration.evidence import (
    Call,
    DeviceFacts,
    Finding,
    conclude,
    device_facts,
    findings,
    kept_interactions,
    opened,
    place_witnesses,
)
from tests.integration.kills import LONGEST_REST_S, Recorder, at_rest
from tests.integration.processes import (
    Directories,
    Fleet,
    HarnessError,
    Mortal,
    Settings,
    leaving_nothing_behind,
    seeded,
    wait_until,
)
from tests.integration.sweep import last_step, stepping

SETTINGS = Settings(
    devices=1, n_items=1000, dim=16, buffer=1, deadline_s=0.5, check_in_s=0.1, max_idle_passes=20
)
"""Each update makes a version, so that there is always something to fetch, to train on and to send."""
_LONGEST_LIFE_S = 0.8
_MOST_STEPS = 160
_PHASES = {
    "record": r"INSERT interactions",
    "train": r"INSERT (personal|outbox|facts)|INSERT .*personal",
    "send": r"publish update|sending PUBLISH|UPDATE outbox",
    "sync": r"(un)?subscribe|(UN)?SUBSCRIBE|model|catalogue|acknowledge|PUBACK",
    "settle": r"DELETE outbox|receipts",
}


@dataclass(frozen=True)
class Outcome:
    """What a run has shown; `when` counts the kills by what was under way."""

    title: str
    calls: Sequence[Call]
    when: Mapping[str, int]
    findings: Sequence[Finding]
    settings: Settings

    @property
    def holds(self) -> bool:
        """Whether all promises were kept."""
        return not any(finding.broken for finding in self.findings)

    def __str__(self) -> str:
        when = ", ".join(f"{count} {what}" for what, count in sorted(self.when.items()))
        return "\n".join([f"{self.title}; {when}", *(f"  {finding}" for finding in self.findings)])


def kill_a_device(directory: Path, *, seed: int, kills: int) -> Outcome:
    """Kill a device `kills` times; give what that has shown.

    Parameters
    ----------
    directory : Path
        Where the fleet lives; kept by this function.
    """
    directories = Directories(directory, SETTINGS)
    directories.make()
    place_witnesses(directories)
    fleet = Fleet(directories, "mosquitto", "every second")
    recorder = Recorder(directories, seed)
    rng = seeded(seed, "kills of a device")
    broken: list[str] = []
    when = Counter[str]()
    trouble: list[str] = []
    [device] = fleet.devices
    began = time.monotonic()
    with leaving_nothing_behind(fleet):
        fleet.broker.start()
        fleet.wait_for_broker()
        fleet.aggregator.start()
        recorder.call(device.name)
        for number in range(1, kills + 1):
            when[_kill_once(directories, device, recorder, rng)] += 1
            device.kill()
            broken += [f"after kill {number}: {each}" for each in everything_holds(directories, recorder)]
        device.start()
        try:
            wait_until(lambda: at_rest(fleet), "the fleet comes to rest", *fleet.all, within_s=LONGEST_REST_S)
        except HarnessError as error:
            trouble.append(str(error))
        fleet.stop()
    title = f"seed {seed}: {kills} kills in {time.monotonic() - began:.0f} s"
    looks = Finding("0. after every kill the database opens, and all promises hold", f"{kills} looks", broken)
    ends = findings(directories, recorder.calls, fleet.ended_alone + trouble)
    return Outcome(title, recorder.calls, when, [looks, *ends], SETTINGS)


def _kill_once(directories: Directories, device: Mortal, recorder: Recorder, rng: random.Random) -> str:
    """Let the device live for a while, perhaps record, and kill something; give what was under way."""
    directories.store_few_tables(device.name, few=rng.random() < 0.5)
    way = rng.choices(["at a random time", "at a step", "of record"], [3, 3, 2])[0]
    if way == "of record":
        if rng.random() < 0.5:
            device.start()
            time.sleep(rng.uniform(0.3, _LONGEST_LIFE_S))
        killed = False
        while not killed:  # it may be done before
            recorder.call(device.name, kill_after_s=rng.uniform(0.05, 0.4))
            killed = recorder.calls[-1].code < 0
        return way
    if way == "at a step":
        if rng.random() < 0.5:  # not later: it may stand still within a transaction
            recorder.call(device.name)
        device.start(stepping(rng.randint(1, _MOST_STEPS), device.command))
        until = time.monotonic() + 4.0 * _LONGEST_LIFE_S
        while not device.stopped and time.monotonic() < until:
            time.sleep(0.01)
        return _phase(last_step(device)) if device.stopped else "at a random time"
    said = _size(device.log)
    device.start()
    wait_until(lambda: f"device {device.name} of fleet" in _since(device.log, said), "its first line", device)
    if rng.random() < 0.5:
        recorder.call(device.name)
    time.sleep(rng.uniform(0.0, _LONGEST_LIFE_S))
    return way


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _since(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def _phase(step: str) -> str:
    for phase, words in _PHASES.items():
        if re.search(words, step):
            return f"at a step of {phase}"
    return "at another step"


def everything_holds(directories: Directories, recorder: Recorder) -> list[str]:
    """Give the promises that are broken while the device is dead and the aggregator lives."""
    [name] = directories.settings.names
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        copy.mkdir()
        for path in directories.device(name).iterdir():
            if path.is_file():  # not its socket
                shutil.copy(path, copy)
        with exclusive(copy), closing(open_sound_store(copy, broken.append)):
            pass
        path = copy / directories.device_database(name).name
        with opened(path) as database:
            broken += [str(row) for row in database.execute("PRAGMA integrity_check") if row != ("ok",)]
        device = device_facts(path)
    with opened(directories.aggregator_database) as database:
        journal = database.execute("SELECT incarnation, seq, verdict, version FROM journal").fetchall()
        counted = database.execute("SELECT coalesce(sum(updates), 0) FROM versions").fetchone()[0]
    broken += kept_interactions({name: device}, recorder.calls).broken
    broken += _own_account(device)
    broken += _both_accounts(
        device, [(int(incarnation), seq, verdict) for incarnation, seq, verdict, _ in journal]
    )
    spent = sum(version is not None for *_, version in journal)
    if counted != spent:
        broken.append(f"versions count {counted} updates, the journal has {spent}")
    return broken


def _own_account(device: DeviceFacts) -> list[str]:
    """Add up what a device says of its updates."""
    broken: list[str] = []
    made, settled = [seq for _, seq, _ in device.made], [seq for seq, _ in device.settled]
    if made != list(range(1, device.last_seq + 1)):
        broken.append(f"made {made}, the newest is {device.last_seq}")
    if settled + device.outbox != made:
        broken.append(f"settled {len(settled)}, waiting {device.outbox}, of {device.last_seq}")
    if sum(device.receipts.values()) != len(settled):
        broken.append(f"settled {len(settled)}, receipts {device.receipts}")
    return broken


def _both_accounts(device: DeviceFacts, journal: Sequence[tuple[int, int, str]]) -> list[str]:
    """Hold a device's updates against the aggregator's journal, which may be ahead of its receipts."""
    broken: list[str] = []
    made = {(incarnation, seq) for incarnation, seq, _ in device.made}
    rows = Counter((incarnation, seq) for incarnation, seq, _ in journal)
    broken += [f"update {key} has {count} rows" for key, count in rows.items() if count > 1]
    broken += [f"nobody made update {key}" for key in sorted(rows.keys() - made)]
    verdicts = {seq: verdict for _, seq, verdict in journal}
    for seq, verdict in device.settled:
        if verdict not in ("duplicate", verdicts.get(seq)):
            broken.append(f"update {seq} was answered {verdict}, the journal has {verdicts.get(seq)}")
    return broken


def main() -> int:
    """Run the proof; give 0 if all promises were kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.devicekills")
    parser.add_argument("--seed", default=1, type=int, help="Of the kills (default 1).")
    parser.add_argument("--kills", default=300, type=int, help="How many (default 300).")
    parser.add_argument("--keep", action="store_true", help="Keep directories and logs of a good run, too.")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="pfedrec-devicekills-"))
    outcome = kill_a_device(work / "fleet", seed=arguments.seed, kills=arguments.kills)
    sys.stdout.write(f"{outcome}\n")
    return conclude(work, holds=outcome.holds, keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
