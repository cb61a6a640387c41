"""Scenarios, heads and files of ratings for the fleet's tests, and a way to call ``edge-fleet``."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from broker.protocol.messages import Head, Plan
from broker.protocol.versions import sha256, table_bytes
from edge.fleet.scenario import Scenario, load_scenario
from trainer.params import Floats, initial_score_function, initial_table
from trainer.sampling import Protocol

DIM = 8
INSTANCE = 77
RUN_FILES = {
    "config.json", "metrics.jsonl", "summary.json", "model.npz", "candidates.npz", "ranks.npz",
}  # fmt: skip
_REPOSITORY = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    """What a call has left."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


def a_scenario(n_users: int | None = 12, protocol: Protocol = "clean", seed: int = 3) -> Scenario:
    """Give a generated scenario."""
    return load_scenario("synthetic", protocol, seed, n_users)


def a_table(scenario: Scenario, dim: int = DIM, seed: int = 5) -> Floats:
    """Give a first table for a scenario."""
    return initial_table(scenario.data.n_items, dim, np.random.default_rng(seed))


def a_head(
    table: Floats, *, version: int = 0, encoding: str = "float32", item_lr: float = 20.0, negatives: int = 4
) -> Head:
    """Give the head of a table."""
    rows, dim = table.shape
    start = initial_score_function(dim, np.random.default_rng(6))
    content = table_bytes(table)
    return Head(
        instance=INSTANCE,
        session=1,
        version=version,
        rows=rows,
        dim=dim,
        sha256=sha256(content),
        slot=version % 2,
        chunks=1,
        catalogue_rows=rows,
        catalogue_chunks=1,
        catalogue_bytes=1,
        catalogue_sha256=bytes(32),
        plan=Plan(
            lr=0.1,
            item_lr=item_lr,
            negatives=negatives,
            batch_size=256,
            encoding=encoding,
            check_in_s=0.0,
            max_idle_passes=1_000_000,
        ),
        w=start.w,
        b=start.b,
    )


def write_ratings(
    path: Path,
    *,
    separator: str = ",",
    header: str = "",
    n_users: int = 8,
    n_items: int = 240,
    mean: int = 20,
    seed: int = 1,
    timed: bool = True,
) -> Path:
    """Write a file of ratings in no particular order, with equal times, or without times, and repeated pairs.

    Its last two users have too few interactions to be kept. Only they have the items `rare`.
    """
    rng = np.random.default_rng(seed)
    records = []
    for user in range(n_users + 2):
        count = int(rng.poisson(mean)) + 12 if user < n_users else 9
        items = rng.choice(n_items, count, replace=False)
        records += [
            (f"u{user}", f"i{item}", int(time))
            for item, time in zip(items, rng.integers(0, count, count), strict=True)
        ]
        if user >= n_users:
            records[-1] = (f"u{user}", "rare", 1)
        # Again and later, which does not count, and again and earlier, which does.
        records += [(f"u{user}", f"i{items[0]}", 10_000), (f"u{user}", f"i{items[1]}", -1)]
    order = rng.permutation(len(records))
    lines = [header] if header else []
    for place in order:
        user_key, item_key, time = records[place]
        fields = (user_key, item_key, str(place % 5 + 1), str(time))
        lines.append(separator.join(fields if timed else fields[:3]))
    path.write_text("\n".join(lines) + "\n")
    return path


def recompute(*arguments: object) -> Outcome:
    """Run ``scripts/recompute`` as a process."""
    done = subprocess.run(
        [sys.executable, str(_REPOSITORY / "scripts" / "recompute"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def files_of(folder: Path) -> set[str]:
    """Give the names of a folder's files."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
