"""The crash proof of the whole path: real processes, ended with SIGKILL, and what their databases say.

Two scenarios, which end alike: everything is left alone until the fleet comes to rest, all processes
are stopped, and `evidence` holds the databases against the promises.

* At random (`random_kills`): a broker, an aggregator and two devices work while ``edge-client record`` is
  called for both devices again and again. Each of the four processes is killed so many times at random
  moments and started again at once; some of the calls are killed, too. The seed repeats the order and the
  pauses, not the operating system's timing.
* At every step (`sweep`): a fleet of one device goes through a short script. The device or the aggregator
  stops itself at its n-th step (see `steps`); whoever is to die is killed at exactly that moment. n runs
  over all steps, each in a fleet of its own.

Run them::

    python -m tests.integration.kills --seed 1 --kills 20 --broker mosquitto
    python -m tests.integration.kills --sweep
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.embedded import BrokerKind
from tests.brokers import PATIENCE_S
from tests.integration import sweep
from tests.integration.evidence import Call, Finding, findings, place_witnesses
from tests.integration.processes import (
    AUTOSAVES,
    Directories,
    Fleet,
    HarnessError,
    Settings,
    command_path,
    environment,
    leaving_nothing_behind,
    run_to_end,
    seeded,
    wait_until,
)

MEAN_PAUSE_S = 0.6
"""Between kills: every process lives about four times as long, so that much gets done and much is cut off."""
LONGEST_REST_S = 240.0
_BETWEEN_CALLS_S = 0.5
_FIRST_AT = 1_700_000_000


@dataclass(frozen=True)
class Outcome:
    """What a run has shown."""

    title: str
    calls: Sequence[Call]
    findings: Sequence[Finding]
    directory: Path

    @property
    def holds(self) -> bool:
        """Whether all promises were kept."""
        return not any(finding.broken for finding in self.findings)


class Recorder(threading.Thread):
    """Calls ``edge-client record`` for one device after the other, and kills some of the calls."""

    def __init__(self, directories: Directories, seed: int) -> None:
        super().__init__(name="recorder")
        self.calls: list[Call] = []
        self._directories = directories
        self._rng = seeded(seed, "interactions")
        self._enough = threading.Event()

    def call(self, device: str, *, kill_after_s: float | None = None) -> None:
        """Record one to three known items in one call."""
        keys = self._directories.settings.item_keys
        items = tuple(self._rng.choices(keys, k=self._rng.randint(1, 3)))
        at = _FIRST_AT + len(self.calls)
        command = [command_path("edge-client"), "record", "--dir", str(self._directories.device(device))]
        with subprocess.Popen(
            [*command, "--at", str(at), *items],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process:
            try:
                _, stderr = process.communicate(timeout=kill_after_s or 2.0 * PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                _, stderr = process.communicate()
        self.calls.append(Call(device=device, at=at, items=items, code=process.returncode, stderr=stderr))

    def run(self) -> None:
        """Call until told to stop."""
        names = self._directories.settings.names
        while not self._enough.wait(self._rng.uniform(0.0, _BETWEEN_CALLS_S)):
            kill_after_s = self._rng.uniform(0.1, 0.6) if self._rng.random() < 0.25 else None
            self.call(self._rng.choice(names), kill_after_s=kill_after_s)

    def finish(self) -> None:
        """Let the call that is under way finish, and make no more."""
        self._enough.set()
        self.join()


def random_kills(
    directory: Path,
    *,
    seed: int,
    kills: int,
    kind: BrokerKind,
    settings: Settings | None = None,
) -> Outcome:
    """Kill each process of a fleet at work `kills` times; give what that has shown.

    Parameters
    ----------
    directory : Path
        Where the fleet lives; kept by this function.
    """
    directories = Directories(directory, settings or Settings())
    directories.make()
    place_witnesses(directories)
    autosave = sorted(AUTOSAVES)[seed % len(AUTOSAVES)]
    fleet = Fleet(directories, kind, autosave)
    recorder = Recorder(directories, seed)
    for name in directories.settings.names:
        recorder.call(name)
    title = f"seed {seed}, {kind}" + (f" that saves its state {autosave}" if kind == "mosquitto" else "")
    trouble: list[str] = []
    with leaving_nothing_behind(fleet):
        for process in fleet.all:
            process.start()
        recorder.start()
        began = time.monotonic()
        try:
            _kill_at_random(fleet, seed, kills)
        finally:
            recorder.finish()
        ended = time.monotonic()
        try:
            wait_until(lambda: at_rest(fleet), "the fleet comes to rest", *fleet.all, within_s=LONGEST_REST_S)
        except HarnessError as error:
            trouble.append(str(error))
        rested = time.monotonic()
        fleet.stop()
    total = sum(process.kills for process in fleet.all)
    title += f": {total} kills in {ended - began:.0f} s, at rest {rested - ended:.0f} s after the last"
    return Outcome(
        title, recorder.calls, findings(directories, recorder.calls, fleet.ended_alone + trouble), directory
    )


def _kill_at_random(fleet: Fleet, seed: int, kills: int) -> None:
    rng = seeded(seed, "kills")
    victims = fleet.all * kills
    rng.shuffle(victims)
    for victim in victims:
        time.sleep(rng.expovariate(1.0 / MEAN_PAUSE_S))
        victim.kill()
        victim.start()


def at_rest(fleet: Fleet) -> bool:
    """Ask all ends, as an operator would, whether there is anything left to do."""
    directories = fleet.directories
    aggregator = _status("edge-aggregator", directories.aggregator)
    if not aggregator["running"] or aggregator["updates"]["pending"]:
        return False
    for name in directories.settings.names:
        device = _status("edge-client", directories.device(name))
        at_rest = (
            device["online"]
            and device["activity"] == "idle"
            and str(device["reason"]).startswith("resting")
            and device["outbox"] == 0
            and device["version"] == aggregator["version"]
            and device["sha256"] == aggregator["sha256"]
        )
        if not at_rest:
            return False
    return True


def _status(program: str, directory: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(
        run_to_end(command_path(program), "status", "--dir", str(directory), "--json")
    )
    return facts


def _report(outcome: Outcome, repeat: str, *, keep: bool) -> bool:
    """Print a run; keep its directory if something is wrong, or if told to."""
    sys.stdout.write(f"{outcome.title}\n")
    for finding in outcome.findings:
        sys.stdout.write(f"  {finding}\n")
    if outcome.holds and not keep:
        shutil.rmtree(outcome.directory)
    else:
        sys.stdout.write(f"  directories and logs: {outcome.directory}\n  again: {repeat}\n")
    sys.stdout.flush()
    return outcome.holds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.kills",
        description="Kill real processes at random, or at every step, and check that nothing is lost.",
    )
    parser.add_argument("--seed", default=1, type=int, help="Of the first run (default 1).")
    parser.add_argument("--runs", default=1, type=int, help="With this seed and those after it (default 1).")
    parser.add_argument("--kills", default=20, type=int, help="Of each process in a run (default 20).")
    parser.add_argument("--broker", default="mosquitto", choices=["mosquitto", "amqtt"])
    parser.add_argument("--items", default=60, type=int, help="In the catalogue (default 60).")
    parser.add_argument("--keep", action="store_true", help="Keep directories and logs of good runs, too.")
    parser.add_argument("--sweep", action="store_true", help="Kill at every step of a script instead.")
    parser.add_argument(
        "--first", default=1, type=int, help="Of the sweep: the step to begin with (default 1)."
    )
    parser.add_argument("--stride", default=1, type=int, help="Of the sweep: only every so manieth step.")
    parser.add_argument("--jobs", default=2, type=int, help="Of the sweep: fleets at a time (default 2).")
    return parser.parse_args()


def main() -> int:
    """Run the proof; give 0 if all promises were kept, else 1."""
    arguments = _arguments()
    work = Path(tempfile.mkdtemp(prefix="pfedrec-kills-"))
    again = f"python -m tests.integration.kills --broker {arguments.broker} --items {arguments.items}"
    holds = True
    if arguments.sweep:
        for scene in sweep.SCENES:
            result = sweep.sweep(
                work,
                scene,
                arguments.broker,
                first=arguments.first,
                stride=arguments.stride,
                jobs=arguments.jobs,
            )
            sys.stdout.write(f"{result}\n")
            sys.stdout.flush()
            holds &= result.holds
    else:
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            outcome = random_kills(
                work / f"seed-{seed}",
                seed=seed,
                kills=arguments.kills,
                kind=arguments.broker,
                settings=Settings(n_items=arguments.items),
            )
            holds &= _report(outcome, f"{again} --seed {seed} --kills {arguments.kills}", keep=arguments.keep)
    with suppress(OSError):  # not empty: something was kept
        work.rmdir()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
