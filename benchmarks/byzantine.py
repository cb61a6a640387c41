"""What a tenth of harmful devices costs, with and without the robust preset: HR@10, paired by seed.

    python benchmarks/byzantine.py --data ratings.dat [--rounds 100] [--seeds 0,1,2] [--jobs 2] [--mode
    buffered]

Each run is an ``edge-fleet simulate``; plain and robust differ in ``--robust`` alone. Figures are of all
users' own views in the round with the best validation HR@10; Byzantine devices learn honestly for
themselves, so that theirs count, too.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ATTACKS = (("none", 0.0), ("sign-flip", 1.0), ("sign-flip", 10.0), ("scale", 10.0), ("random", 10.0))


def run(out: Path, options: argparse.Namespace, attack: str, strength: float, seed: int, *more: str) -> float:
    """Give one run's HR@10."""
    command = [sys.executable, "-c", "from edge.fleet.cli import main; main()", "simulate", "--json"]
    command += ["--data", options.data, "--preset", options.preset, "--protocol", options.protocol]
    command += ["--mode", options.mode, "--rounds", str(options.rounds), "--seed", str(seed)]
    command += ["--out", str(out), *more]
    # A server setting of its own value: in step, too, by the same engine as the attacked runs.
    command += ["--server", "trim=0.1"]
    if attack != "none":
        command += ["--byzantine", str(options.share), "--attack", attack, "--strength", str(strength)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # A fleet that diverged has no figure better than chance.
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return float("nan")
    return float(json.loads(done.stdout)["test"]["own"]["sampled"]["hr@10"])


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mode", default="buffered")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--protocol", default="published")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--robust", nargs="*", default=["--robust"], help="what the robust side is given")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sides = {"plain": (), "robust": tuple(option.replace("@", "--") for option in options.robust)}
    with TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        running = {
            (name, attack, seed): pool.submit(
                run, Path(folder, f"{name}-{number}-{seed}"), options, *attack, seed, *more
            )
            for number, attack in enumerate(ATTACKS)
            for name, more in sides.items()
            for seed in seeds
        }
        clean = np.array([running["plain", ATTACKS[0], seed].result() for seed in seeds])
        print(
            f"clean plain HR@10 {clean.mean():.4f} ± {clean.std(ddof=min(1, len(seeds) - 1)):.4f}", flush=True
        )
        for attack in ATTACKS:
            for name in sides:
                figures = np.array([running[name, attack, seed].result() for seed in seeds])
                falls = 100.0 * (1.0 - figures / clean)
                print(
                    f"{attack[0]:>9} x{attack[1]:<4g} {name:>6}: HR@10 {figures.mean():.4f}, falls by "
                    f"{falls.mean():5.1f} % ({', '.join(f'{fall:.1f}' for fall in falls)})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
