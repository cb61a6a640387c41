"""A device that is killed, or whose power is cut, while it is updated: it always starts with what works.

*Kills*: ``edge-client update`` and ``edge-client start`` of one device are ended with SIGKILL at random
moments, alone or both at once, while one release after the other is installed; every third is one that does
not work. After each kill, a copy of the device is started as `edge.trial.begin` does: what is in use must be
a whole release, one that has worked or one on trial, and never one that is older than what has worked
before. At the end a release that works must be kept, and one that does not must go.

*Power cuts*: a scripted life (`scripted_updates`) is watched by strace, and the power is cut before each of
its file operations, with several fates for what was not synced (`disk`).

Run them::

    python -m tests.integration.updates --kills 100 --seed 1
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.errors import PFedRecError
from edge.slots import Slots
from edge.slotstate import ATTEMPTS, SlotState
from edge.trial import begin
from tests.bundles import a_bundle
from tests.edge.releasing import PROGRAM, a_device
from tests.integration.disk import Disk
from tests.integration.filelog import Synced, watch, why_not
from tests.integration.powercut import Outcome, lay_down, moments
from tests.integration.processes import (
    HarnessError,
    Mortal,
    command_path,
    run_to_end,
    seeded,
    wait_until,
)
from tests.integration.scripted_updates import files_of, updates

MODULE = "tests.integration.scripted_updates"
_MEMORY = Path("/dev/shm")  # noqa: S108 - thousands of copies that nobody needs for longer than a moment
_LONGEST_S = 1.2
_BAD_EVERY = 3


@dataclass
class Account:
    """What was installed, and what was seen to work."""

    newest: int = 0
    kept: int = 0
    broken: list[str] = field(default_factory=list)
    when: Counter[str] = field(default_factory=Counter)
    failed: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class KillOutcome:
    """What a run of kills has shown."""

    title: str
    when: Mapping[str, int]
    releases: int
    kept: int
    rolled_back: int
    broken: Sequence[str]

    @property
    def holds(self) -> bool:
        """Whether the device always started with what works."""
        return not self.broken

    def __str__(self) -> str:
        when = ", ".join(f"{count} {what}" for what, count in sorted(self.when.items()))
        verdict = "PASS" if self.holds else "FAIL"
        ends = f"the newest kept is {self.kept}, {self.rolled_back} seen to be rolled back"
        lines = [f"{verdict}  {self.title}: {when}; {self.releases} releases, {ends}"]
        return "\n".join([*lines, *(f"        {sentence}" for sentence in self.broken[:10])])


def works(release: int) -> bool:
    """Tell whether a release of the kills is one that works."""
    return release % _BAD_EVERY != 0


def bundle_of(release: int) -> bytes:
    """Give a release of the kills: some files, and a program that says whether it works."""
    files = files_of(release) | {"app/check.sh": PROGRAM % (0 if works(release) else 1)}
    if release % 2:
        files["settings.toml"] = b"table_writes_mb = %d.5\n" % (release % 7)
    return a_bundle(files, release=release, health="app/check.sh")


def prove_kills(work: Path, *, seed: int, kills: int) -> KillOutcome:
    """Kill a device `kills` times while it is updated; give what that has shown."""
    work.mkdir(parents=True, exist_ok=True)
    device = a_device(work / "me")
    rng, account = seeded(seed, "kills of updates"), Account()
    start = Mortal("start", [command_path("edge-client"), "start", "--dir", str(device)], work / "start.log")
    began = time.monotonic()
    try:
        for number in range(1, kills + 1):
            _kill_once(device, work, start, rng, account)
            start.kill()
            account.broken += [f"after kill {number}: {each}" for each in looked_at(device, account)]
        _come_to_rest(device, work, start, account)
    except HarnessError as error:
        account.broken.append(str(error))
    finally:
        start.clean_up()
    return KillOutcome(
        f"seed {seed}: {kills} kills in {time.monotonic() - began:.0f} s",
        account.when,
        account.newest,
        account.kept,
        len(account.failed),
        account.broken,
    )


def _kill_once(device: Path, work: Path, start: Mortal, rng: random.Random, account: Account) -> None:
    way = rng.choice(("of update", "of start", "of both"))
    account.when[way] += 1
    if way != "of update":
        # Half of them when it says that it runs, half at any time.
        size = start.log.stat().st_size if start.log.exists() else 0
        start.start()
        if rng.random() < 0.5:
            wait_until(lambda: "device pi-1" in _since(start.log, size), "the device starts", start)
    if way == "of start":
        if Slots(device).state().holding != "trial" and rng.random() < 0.7:
            _install(device, work, account)
        time.sleep(rng.uniform(0.0, _LONGEST_S))
        return
    update = Mortal("update", _update(device, work, account), work / "update.log")
    mark = Slots(device).mark()
    update.start()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, _LONGEST_S))
    else:  # while it writes
        until = time.monotonic() + 4.0 * _LONGEST_S
        while update.running and Slots(device).mark() == mark and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
    update.kill()


def _since(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def _update(device: Path, work: Path, account: Account) -> list[str]:
    account.newest += 1
    bundle = work / "bundle"
    bundle.write_bytes(bundle_of(account.newest))
    return [command_path("edge-client"), "update", "--dir", str(device), str(bundle)]


def _install(device: Path, work: Path, account: Account) -> None:
    try:
        run_to_end(*_update(device, work, account))
    except HarnessError as error:
        if "is being tried" not in str(error):  # the start has begun with one meanwhile
            raise


def looked_at(device: Path, account: Account) -> list[str]:
    """Start a copy of a device that is dead; give what is not as it must be."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        copy = Path(folder) / "me"
        shutil.copytree(device, copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return looked_at_here(copy, account, works)


def looked_at_here(directory: Path, account: Account, is_good: Callable[[int], bool]) -> list[str]:
    """Start a device whose directory nobody needs any more, until it has come to what it stays with."""
    try:
        state = begin(directory, lambda _: None)
        broken = _in_use(directory, state, account, is_good)
        for _ in range(ATTEMPTS + 1):  # nobody confirms it
            state = begin(directory, lambda _: None)
        broken += _in_use(directory, state, account, is_good)
    except PFedRecError as error:
        return [f"it does not start: {error}"]
    account.kept = max(account.kept, state.release)
    if state.failed:
        account.failed.add(state.failed)
    if state.on_trial:
        broken.append(f"release {state.release} is tried for ever")
    if not is_good(state.release) and state.release:
        broken.append(f"it stays with release {state.release}, which does not work")
    return broken


def _in_use(directory: Path, state: SlotState, account: Account, is_good: Callable[[int], bool]) -> list[str]:
    broken = []
    if state.release < account.kept:
        broken.append(f"release {state.release} is in use, and {account.kept} has worked before")
    if state.release > account.newest:
        broken.append(f"release {state.release} is in use; the newest is {account.newest}")
    if not is_good(state.release) and state.release and not state.on_trial:
        broken.append(f"release {state.release} is kept, and does not work")
    link = directory / "current"
    if state.release == 0:
        return [*broken, "current leads somewhere"] if link.is_symlink() else broken
    for path, content in files_of(state.release).items():
        if not (link / path).is_file() or (link / path).read_bytes() != content:
            broken.append(f"release {state.release}: {path} is not what was signed")
    return broken


def _come_to_rest(device: Path, work: Path, start: Mortal, account: Account) -> None:
    """Install one more that works, and one that does not: both must end as they should."""
    for good in (True, False):
        while works(account.newest + 1) is not good:
            account.newest += 1
        start.start()
        wait_until(lambda: Slots(device).state().holding != "trial", "the trial under way ends", start)
        run_to_end(*_update(device, work, account))
        _wait_for_judgement(device, account.newest, start)
        start.stop()
    facts = json.loads(run_to_end(command_path("edge-client"), "status", "--dir", str(device), "--json"))
    if facts["release"] != Slots(device).state().highest or facts["release_failed"] is None:
        account.broken.append(f"status tells {facts}")
    account.kept = facts["release"]


def _wait_for_judgement(device: Path, release: int, start: Mortal) -> None:
    def is_judged() -> bool:
        state = Slots(device).state()
        return (state.highest if works(release) else state.failed) == release

    wait_until(is_judged, f"release {release} is judged", start)


def prove_power_cuts(
    work: Path, *, seed: int, count: int, sample: int | None = None, careless: bool = False
) -> Outcome:
    """Cut the power at every moment of a life of `count` updates; or at `sample` moments.

    Parameters
    ----------
    careless : bool
        The disk takes no notice of what it is told to sync: promises must break.
    """
    folder = (work / "life").resolve()
    folder.mkdir(parents=True)
    operations = watch(
        [sys.executable, "-m", MODULE, str(folder / "me"), str(seed), str(count)], folder, work / "log"
    )
    if careless:
        operations = [each for each in operations if not isinstance(each, Synced)]
    kept = {update.release for update in updates(seed, count) if update.is_kept}
    broken: list[str] = []
    cuts = 0
    for place, fate, files, said in moments(operations, Disk(), seed, sample):
        if not any(path.name == "config.toml" for path in files):
            continue  # a directory that is not set up
        cuts += 1
        account = Account(newest=_last(said, "begin"), kept=_last(said, "kept"))
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
            lay_down(files, folder, Path(name))
            problems = looked_at_here(Path(name) / "me", account, kept.__contains__)
        broken += [f"operation {place}, {fate}, {said[-1:]}: {problem}" for problem in problems]
    shutil.rmtree(folder)
    return Outcome(f"a life of {count} updates, seed {seed}", len(operations), cuts, broken)


def _last(said: Sequence[str], word: str) -> int:
    return max((int(line.split()[1]) for line in said if line.startswith(word)), default=0)


def main() -> int:
    """Run the proofs; give 0 if all promises were kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.updates", description=__doc__)
    parser.add_argument("--seed", default=1, type=int, help="Of all random choices (default 1).")
    parser.add_argument("--kills", default=100, type=int, help="Kills of a device (default 100).")
    parser.add_argument("--updates", default=8, type=int, help="Of the life with power cuts (default 8).")
    arguments = parser.parse_args()
    holds = True
    with tempfile.TemporaryDirectory(prefix="pfedrec-updates-") as name:
        killed = prove_kills(Path(name) / "kills", seed=arguments.seed, kills=arguments.kills)
        sys.stdout.write(f"{killed}\n")
        sys.stdout.flush()
        holds &= killed.holds
        reason = why_not()
        if reason is None:
            cut = prove_power_cuts(Path(name) / "cuts", seed=arguments.seed, count=arguments.updates)
            sys.stdout.write(f"{cut}\n")
            holds &= cut.holds
        else:
            sys.stdout.write(f"power cuts cannot be tried: {reason}\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
