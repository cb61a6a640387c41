"""A device's life in some hundred writes, each announced before it is made and once it is done.

    python -m tests.integration.scripted_life DIRECTORY SEED STEPS

The directory is set up, then the store is written to as ``edge-client record``, ``forget`` and a running
agent do, in an order drawn from the seed. ``begin N`` and ``done N`` on stdout enclose step N; what it is can
be drawn again: see `steps`. With DIRECTORY alone, it is opened as ``edge-client start`` opens it.
"""

import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edge.config import DATABASE_NAME, DeviceConfig, initialise, open_store
from edge.erasure import Selection
from edge.rebuild import open_sound_store
from edge.retention import Retention
from edge.scheduler import Progress
from edge.store import DeviceStore
from tests.edge.builders import a_head, a_personal_state, a_table

Kind: TypeAlias = Literal[
    "init", "record", "visit", "pass", "sending", "settle", "table", "hold", "forget", "compact"
]
_WEIGHTS: dict[Kind, int] = {
    "record": 6,
    "visit": 4,
    "pass": 4,
    "sending": 3,
    "settle": 4,
    "table": 2,
    "hold": 2,
    "forget": 1,
    "compact": 1,
}
KEPT = 60
"""By the rule of retention."""
ITEM_KEYS = tuple(f"key-{row:03d}" for row in range(500))
DIM = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One write: `items` for a recording or what is forgotten, `number` for an update or a version."""

    kind: Kind
    items: tuple[str, ...] = ()
    number: int = 0


def steps(seed: int, count: int) -> list[Step]:
    """Draw a life: updates go through it in their order; every recorded item has a key of its own."""
    rng = random.Random(seed)
    life = [Step("init"), Step("table", number=1)]
    made, version, recorded = 0, 1, 0
    waiting = False
    alive: list[str] = []
    while len(life) < count:
        kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        match kind:
            case "record" | "visit":
                items = tuple(f"item-{recorded + place:04d}" for place in range(rng.randint(1, 3)))
                recorded += len(items)
                alive += items
                life.append(Step(kind, items))
            case "pass" if not waiting:
                made, waiting = made + 1, True
                life.append(Step(kind, number=made))
            case "sending" | "settle" if waiting:
                waiting = kind == "sending"
                life.append(Step(kind, number=made))
            case "table" | "hold":
                version += 1
                life.append(Step(kind, number=version))
            case "forget" if alive:
                item = alive.pop(rng.randrange(len(alive)))
                waiting = False
                life.append(Step(kind, (item,)))
            case "compact":
                life.append(Step(kind))
            case _:
                pass
    return life


def take(store: DeviceStore, step: Step) -> None:
    """Take a step on an open store."""
    match step.kind:
        case "record":
            store.record([(item, float(int(item[-4:]))) for item in step.items])
        case "pass":
            update = (step.number, b"update %d" % step.number * 40)
            store.save_pass(a_personal_state(step.number, dim=DIM), Progress(idle_passes=step.number), update)
        case "sending":
            store.sending(step.number)
        case "settle":
            store.settle(step.number, "accepted")
        case "table":
            table = a_table(len(ITEM_KEYS), DIM, seed=step.number)
            head = a_head(step.number, table=table, item_keys=ITEM_KEYS)
            store.replace_model(head, table, ITEM_KEYS if step.number == 1 else None)
        case "hold":
            store.hold(a_head(step.number, table=a_table(len(ITEM_KEYS), DIM), item_keys=ITEM_KEYS))
        case "forget":
            store.forget(Selection(items=step.items))
            store.scrub()
        case "compact":
            store.compact(Retention(most=KEPT), 1e9)
        case _:
            raise ValueError(step.kind)


def _print(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def live(directory: Path, life: Sequence[Step], say: Callable[[str], None] = lambda _: None) -> None:
    """Live it: an agent's store stays open, as far as it is, and visitors open one of their own."""
    store: DeviceStore | None = None
    for number, step in enumerate(life):
        say(f"begin {number}")
        if step.kind == "init":
            initialise(directory, DeviceConfig(device_id="a", fleet="b", broker="mqtt://127.0.0.1:1"))
        elif step.kind == "visit":
            if number % 3 == 0 and store is not None:  # and sometimes nobody else has it open
                store.close()
                store = None
            with closing(open_store(directory)) as visitor:
                take(visitor, Step("record", step.items))
        else:
            store = store or open_sound_store(directory, say)
            take(store, step)
        say(f"done {number}")
    if store is not None:
        store.close()


def main() -> None:
    """Live as the arguments say."""
    if len(sys.argv) == 2:  # only what `start` does with a database that is damaged
        _print("begin 0")
        open_sound_store(Path(sys.argv[1]), _print).close()
        _print("done 0")
        return
    directory, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    live(directory, steps(seed, count), _print)
    if not (directory / DATABASE_NAME).exists():
        raise SystemExit("the database is gone")


if __name__ == "__main__":
    main()
