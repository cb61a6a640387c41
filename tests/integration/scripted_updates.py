"""A device's life of updates, written down step by step: installs, starts, trials that work or do not.

python -m tests.integration.scripted_updates DIR SEED COUNT
"""

import io
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.config import load_config
from edge.releases import install
from edge.slots import Slots
from edge.slotstate import ATTEMPTS
from edge.trial import begin
from tests.bundles import KEY, a_bundle
from tests.edge.releasing import a_device


@dataclass(frozen=True, slots=True)
class Update:
    """One release: how many of its starts are killed, and whether it works then."""

    release: int
    killed: int
    works: bool

    @property
    def is_kept(self) -> bool:
        """Whether it comes to be what the device runs."""
        return self.works and self.killed < ATTEMPTS


def updates(seed: int, count: int) -> list[Update]:
    """Give a life."""
    rng = random.Random(f"{seed} updates")
    return [Update(number, rng.choice((0, 0, 1, 3)), rng.random() < 0.7) for number in range(1, count + 1)]


def files_of(release: int) -> dict[str, bytes]:
    """Give a release's files: some larger than a block, some in folders, some with nothing in them."""
    rng = random.Random(f"{release} files")
    files = {"app/release": b"%d" % release, "app/empty": b""}
    for number in range(rng.randint(0, 3)):
        files[f"app/{'deep/er/' * (number % 2)}{number}"] = rng.randbytes(rng.choice((10, 5000, 150_000)))
    return files


def live(directory: Path, life: list[Update], say: Callable[[str], None]) -> None:
    """Live it, telling what begins and what is done."""
    a_device(directory)
    slots = Slots(directory)
    config = load_config(directory, {})
    for update in life:
        whole = a_bundle(files_of(update.release), release=update.release)
        say(f"begin {update.release}")
        install(directory, config, io.BytesIO(whole), len(whole))
        say(f"installed {update.release}")
        for _ in range(min(update.killed, ATTEMPTS)):
            begin(directory, lambda _: None)
        state = begin(directory, lambda _: None)
        if state.on_trial and update.works:
            slots.change(lambda state: state.confirmed(KEY.hex()))
            say(f"kept {update.release}")
        elif state.on_trial:
            slots.change(lambda state: state.rolled_back("it fails"))
            begin(directory, lambda _: None)
            say(f"gone {update.release}")
        else:
            say(f"gone {update.release}")


def _print(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    live(Path(sys.argv[1]), updates(int(sys.argv[2]), int(sys.argv[3])), _print)
