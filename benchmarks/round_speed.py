"""Seconds a round: ours beside a dense PyTorch implementation of the same round, in one run.

    taskset -c 0 python benchmarks/round_speed.py RATINGS --torch-python /tmp/torchenv/bin/python

``dense_pytorch.py`` says how to make that environment; ``$TORCH_PYTHON`` names it as well. Both train the
paper's settings on the published protocol with one thread, and evaluate in every round. They run in turn,
ours before and after, so that what else the machine does shows; on a busy one, the least seconds tell more.
Target: at least 40 times as fast. *lean* is PyTorch without its ``DataLoader``: the fastest dense round that
was written here, and so what sparse, low-rank passes gain by themselves. Published code was measured at
7.6 s a round.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from simulations import one_thread, simulate


def dense(python: str, ratings: str, options: list[str]) -> dict[str, Any]:
    """Run the dense implementation in its own interpreter."""
    script = str(Path(__file__).with_name("dense_pytorch.py"))
    done = subprocess.run(
        [python, script, ratings, *options], env=one_thread(), check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr.strip() or f"{python} ended with {done.returncode}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def main() -> None:
    """Measure both, and print their seconds and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ratings")
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON"))
    parser.add_argument("--rounds", type=int, default=30, help="of ours, twice")
    parser.add_argument("--dense-rounds", type=int, default=3)
    parser.add_argument("--dense-clients", type=int, help="time only the first N, and scale")
    options = parser.parse_args()
    if not options.torch_python:
        parser.error("give --torch-python or TORCH_PYTHON; dense_pytorch.py says how to make one")
    arguments = ["--preset", "paper", "--protocol", "published", "--rounds", str(options.rounds)]
    asked = ["--rounds", str(options.dense_rounds)]
    if options.dense_clients:
        asked += ["--clients", str(options.dense_clients)]
    before = simulate(options.ratings, *arguments)["rounds_seconds"]
    others = {
        "dense PyTorch": dense(options.torch_python, options.ratings, asked),
        "dense PyTorch, lean": dense(options.torch_python, options.ratings, [*asked, "--lean"]),
    }
    after = simulate(options.ratings, *arguments)["rounds_seconds"]
    ours = before + after
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(
        f"edge-fleet simulate: median {median(ours):.3f}, least {min(ours):.3f} s a round "
        f"(medians before and after: {median(before):.3f}, {median(after):.3f})"
    )
    for name, theirs in others.items():
        whole = theirs["clients"] == theirs["of"]
        scaled = "" if whole else f", from {theirs['clients']} of {theirs['of']} clients"
        print(
            f"{name} ({theirs['torch']}): median {theirs['seconds']:.2f}, least {theirs['least']:.2f} s "
            f"a round{scaled}: ratio {theirs['seconds'] / median(ours):.1f}, "
            f"of the least {theirs['least'] / min(ours):.1f}"
        )


if __name__ == "__main__":
    main()
