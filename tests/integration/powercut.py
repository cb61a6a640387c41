"""Power cuts at every moment of a device's life, and what its store makes of what they leave.

A real process lives (`scripted_life`) while strace writes down what it does to its files (`filelog`). On
copies, the power is cut before each of these operations, with several fates for what was not synced
(`disk`). Each copy is opened as ``edge-client start`` does, and must hold exactly the state before or after
the step that was under way: what was announced as done is there, what was forgotten is in no byte of any
file, and nothing has to be repaired.

A second proof cuts the power while a damaged database is put aside and made anew.

Run them::

    python -m tests.integration.powercut --seed 1 --steps 120
"""

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from broker.errors import NotInitialisedError, PFedRecError
from broker.storage import exclusive
from edge.config import DATABASE_NAME, open_store
from edge.putaside import damaged_files
from edge.rebuild import open_sound_store
from edge.salvage import salvage
from edge.store import DeviceStore
from tests.edge.builders import a_personal_state
from tests.integration.disk import FATES, Disk, Fate
from tests.integration.filelog import Operation, Said, Synced, watch, why_not
from tests.integration.scripted_life import KEPT, Step, live, steps

MODULE = "tests.integration.scripted_life"
_MEMORY = Path("/dev/shm")  # noqa: S108 - thousands of copies that nobody needs for longer than a moment


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What the database must hold after some steps.

    Attributes
    ----------
    personal : int or None
        Number of the pass that made the personal state.
    outbox : (int, int) or None
        Number of the update that waits, and how often it was sent.
    """

    items: tuple[str, ...] = ()
    last_seq: int = 0
    personal: int | None = None
    outbox: tuple[int, int] | None = None
    accepted: int = 0
    withdrawn: int = 0
    version: int | None = None
    held: int | None = None
    forgotten: frozenset[str] = frozenset()

    def after(self, step: Step) -> "State":
        """Give the state after one more step."""
        match step.kind:
            case "record" | "visit":
                return replace(self, items=self.items + step.items)
            case "pass":
                superseded = self.withdrawn + (self.outbox is not None)
                made = replace(self, last_seq=step.number, personal=step.number, withdrawn=superseded)
                return replace(made, outbox=(step.number, 0))
            case "sending" if self.outbox is not None:
                return replace(self, outbox=(step.number, min(2, self.outbox[1] + 1)))
            case "settle":
                return replace(self, outbox=None, accepted=self.accepted + 1)
            case "table":
                return replace(self, version=step.number, held=step.number)
            case "hold":
                return replace(self, held=step.number)
            case "forget" if step.items[0] in self.items:
                return replace(
                    self,
                    items=tuple(item for item in self.items if item not in step.items),
                    personal=None,
                    outbox=None,
                    withdrawn=self.withdrawn + (self.outbox is not None),
                    forgotten=self.forgotten | set(step.items),
                )
            case "compact":
                return replace(self, items=self.items[-KEPT:])
        return self


def found_in(store: DeviceStore) -> State:
    """Give the state that a database holds."""
    remembered, personal, head = store.remembered(), store.personal(), store.model_head()
    number = None
    if personal is not None:
        bias = personal.score_function.b
        number = next(
            n for n in range(1, remembered.last_seq + 1) if a_personal_state(n).score_function.b == bias
        )
    outbox = None
    if remembered.outbox_seq is not None:
        with closing(sqlite3.connect(store.path)) as connection:
            [(sends,)] = connection.execute("SELECT sends FROM outbox").fetchall()
        outbox = (remembered.outbox_seq, int(sends))
    return State(
        items=tuple(item for item, _ in store.interactions()),
        last_seq=remembered.last_seq,
        personal=number,
        outbox=outbox,
        accepted=store.receipts().get("accepted", 0),
        withdrawn=store.withdrawn(),
        version=None if head is None else head.version,
        held=None if remembered.held is None else remembered.held.version,
    )


@dataclass(frozen=True)
class Outcome:
    """What a proof has shown."""

    what: str
    operations: int
    cuts: int
    broken: Sequence[str]

    @property
    def holds(self) -> bool:
        """Whether all promises were kept."""
        return not self.broken

    def __str__(self) -> str:
        verdict = "PASS" if self.holds else "FAIL"
        lines = [f"{verdict}  {self.what}: {self.operations} file operations, {self.cuts} power cuts"]
        lines += [f"        {sentence}" for sentence in self.broken[:10]]
        if len(self.broken) > 10:
            lines.append(f"        and {len(self.broken) - 10} more")
        return "\n".join(lines)


Moment = tuple[int, Fate, dict[Path, bytes], list[str]]
"""Before which operation, the fate of what was not synced, what files are left, and what was said by then."""


def moments(
    operations: Sequence[Operation], disk: Disk, seed: int, sample: int | None = None
) -> Iterator[Moment]:
    """Cut the power before each operation, and after the last; or at `sample` moments drawn from the seed."""
    rng = random.Random(f"{seed} cuts")
    wanted = None
    if sample is not None:
        everywhere = [(place, fate) for place in range(len(operations) + 1) for fate in FATES]
        wanted = set(rng.sample(everywhere, min(sample, len(everywhere))))
    said: list[str] = []
    for place in range(len(operations) + 1):
        for fate in FATES:
            if wanted is None or (place, fate) in wanted:
                yield place, fate, disk.remains(fate, rng), list(said)
        if place < len(operations):
            operation = operations[place]
            disk.apply(operation)
            if isinstance(operation, Said):
                said.append(operation.line)


def lay_down(files: dict[Path, bytes], source: Path, target: Path) -> None:
    """Write files of the folder `source` to another one."""
    for path, content in files.items():
        new = target / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)


def prove_life(
    work: Path, *, seed: int, count: int, sample: int | None = None, careless: bool = False
) -> Outcome:
    """Cut the power at every moment of a life of `count` steps; or at `sample` moments.

    Parameters
    ----------
    careless : bool
        The disk takes no notice of what it is told to sync in the write-ahead log: promises must break.
    """
    folder = (work / "life").resolve()
    folder.mkdir(parents=True)
    device = folder / "me"
    operations = watch(
        [sys.executable, "-m", MODULE, str(device), str(seed), str(count)], folder, work / "log"
    )
    if careless:
        operations = [each for each in operations if not (isinstance(each, Synced) and each.path.suffix)]
    states = [State()]
    for step in steps(seed, count):
        states.append(states[-1].after(step))
    broken: list[str] = []
    cuts = 0
    for place, fate, files, said in moments(operations, Disk(), seed, sample):
        cuts += 1
        done = sum(line.startswith("done") for line in said)
        begun = sum(line.startswith("begin") for line in said)
        allowed = [states[done], states[begun]]
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
            lay_down(files, folder, Path(name))
            problem = _left(files, states[done].forgotten) or _differs(Path(name) / "me", allowed, done)
        if problem:
            broken.append(f"operation {place}, {fate}, {said[-1] if said else 'nothing said'}: {problem}")
    shutil.rmtree(folder)
    return Outcome(f"a life of {count} steps, seed {seed}", len(operations), cuts, broken)


def _left(files: dict[Path, bytes], forgotten: frozenset[str]) -> str | None:
    for path, content in files.items():
        for item in forgotten:
            if item.encode() in content:
                return f"{path.name} still has {item}, which was forgotten"
    return None


def _differs(device: Path, allowed: Sequence[State], done: int) -> str | None:
    """Open a device as ``start`` does; tell what is not as it must be."""
    said: list[str] = []
    device.mkdir(exist_ok=True)
    try:
        with exclusive(device), closing(open_sound_store(device, said.append)) as store:
            found = found_in(store)
    except NotInitialisedError:
        return "init had returned, and left nothing" if done else None
    except PFedRecError as error:
        return f"it does not open: {error}"
    if said:
        return f"it had to be repaired: {said}"
    if found not in [replace(each, forgotten=frozenset()) for each in allowed]:
        return f"it holds {found}, which is none of {allowed}"
    return None


Damage = Callable[[bytes], bytes]


def _without_first_page(content: bytes) -> bytes:
    return bytes(4096) + content[4096:]


def _cut_short(content: bytes) -> bytes:
    return content[: len(content) - 6000]


def _emptied(_: bytes) -> bytes:
    return b""


DAMAGES: dict[str, Damage] = {
    "without its first page": _without_first_page,
    "cut short": _cut_short,
    "emptied, but for its log": _emptied,
}


def prove_rebuild(work: Path, damage: str, *, seed: int, sample: int | None = None) -> Outcome:
    """Cut the power at every moment of putting a damaged database aside and making a new one."""
    folder = (work / "rebuild").resolve()
    folder.mkdir(parents=True)
    device = folder / "me"
    path = device / DATABASE_NAME
    live(device, [step for step in steps(seed, 60) if step.kind not in ("forget", "compact")])
    if damage.endswith("log"):
        with closing(open_store(device)) as store:
            store.record([(f"in-the-log-{number}", float(number)) for number in range(200)])
            log = path.with_name(f"{path.name}-wal").read_bytes()
        path.with_name(f"{path.name}-wal").write_bytes(log)
    damaged = DAMAGES[damage](path.read_bytes())
    path.write_bytes(damaged)
    disk, expected = Disk.holding(folder), [row.item for row in salvage(path)]
    operations = watch([sys.executable, "-m", MODULE, str(device)], folder, work / "log")
    broken: list[str] = []
    cuts = 0
    for place, fate, files, _ in moments(operations, disk, seed, sample):
        cuts += 1
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
            lay_down(files, folder, Path(name))
            problem = _rebuilt_badly(Path(name) / "me", expected, damaged)
        if problem:
            broken.append(f"operation {place}, {fate}: {problem}")
    shutil.rmtree(folder)
    return Outcome(
        f"a rebuild of a database {damage}, {len(expected)} interactions", len(operations), cuts, broken
    )


def _rebuilt_badly(device: Path, expected: Sequence[str], damaged: bytes) -> str | None:
    try:
        with exclusive(device), closing(open_sound_store(device, lambda _: None)) as store:
            found = [item for item, _ in store.interactions()]
    except PFedRecError as error:
        return f"it does not open: {error}"
    if Counter(found) != Counter(expected):
        return f"{len(found)} interactions instead of {len(expected)}"
    if not any(path.read_bytes() == damaged for path in damaged_files(device / DATABASE_NAME)):
        return "the damaged file is not kept"
    return None


def main() -> int:
    """Run the proofs; give 0 if all promises were kept, 2 where they cannot be tried, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.powercut", description=__doc__)
    parser.add_argument("--seed", default=1, type=int, help="Of the first life (default 1).")
    parser.add_argument("--runs", default=1, type=int, help="Lives, with this seed and those after it.")
    parser.add_argument("--steps", default=120, type=int, help="Of each life (default 120).")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.stderr.write(f"power cuts cannot be tried: {reason}\n")
        return 2
    holds = True
    with tempfile.TemporaryDirectory(prefix="pfedrec-powercut-") as name:
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            outcomes = [prove_life(Path(name), seed=seed, count=arguments.steps)]
            outcomes += [prove_rebuild(Path(name), damage, seed=seed) for damage in DAMAGES]
            for outcome in outcomes:
                sys.stdout.write(f"{outcome}\n")
                sys.stdout.flush()
                holds &= outcome.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
