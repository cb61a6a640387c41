"""What each encoding of updates costs and saves: bytes, and HR@10 and NDCG@10 paired by user and seed.

    python benchmarks/encodings.py --data ratings.dat [--preset paper] [--protocol published] [--rounds 100]
    [--seeds 0,1,2] [--jobs 2] [--encodings float16,int8,...] [--out DIR]

Each run is an ``edge-fleet simulate``; runs differ in ``--encoding`` and ``--seed`` alone, so that all
encodings meet the same draws. Figures are of all users' own views in the round that validates best;
differences are to float32, with a 95 % interval over users. The mean of the bytes is over the whole run, the
median over one more pass of every user, from the table that the run leaves. With ``--out`` the folders are
kept, and those that are there already are not run again. An encoding's name may be followed by a slash and a
`step_encoding`, as ``int8/int8``: then all runs are devices' own sessions, which takes longer.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from broker.presets import load_preset
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Update, update_size
from edge.fleet.paired import difference, gains
from edge.fleet.scenario import load_scenario
from edge.personal import as_change
from trainer.local import local_pass
from trainer.params import ScoreFunction

EXACT = "float32"


def run(out: Path, options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Simulate a fleet; give its summary's figures of bytes and rounds."""
    encoding, _, step = name.partition("/")
    command = [sys.executable, "-c", "from edge.fleet.cli import main; main()", "simulate", "--json"]
    command += ["--data", options.data, "--preset", options.preset, "--protocol", options.protocol]
    command += ["--seed", str(seed), "--encoding", encoding, "--out", str(out), "--save-users"]
    command += ["--rounds", str(options.rounds)] if options.rounds else []
    if "/" in options.encodings:
        command += ["--server", f"step_encoding={step or EXACT}", "--server", "strategy=fedavg"]
    if not (out / "summary.json").exists():
        subprocess.run([*command, "--overwrite"], capture_output=True, text=True, check=True)
    summary = json.loads((out / "summary.json").read_text())
    return {
        "mean": summary["bytes_up_per_update"],
        "down": summary["bytes_down_per_device_round"],
        "rounds": summary["rounds"],
    }


def median_bytes(out: Path, options: argparse.Namespace, name: str, seed: int) -> float:
    """Give the median size of the update that every user would send next."""
    encoding = name.partition("/")[0]
    scenario = load_scenario(options.data, options.protocol, seed)
    preset = load_preset(options.preset, "pfedrec", {})
    hyperparameters = preset.hyperparameters(scenario.data.n_items)
    rng = np.random.default_rng(seed)
    with np.load(out / "model.npz") as model, np.load(out / "users.npz") as users:
        E, W, b = model["E"], users["W"], users["b"]
    sizes = []
    for user, train in enumerate(scenario.split.train):
        before = ScoreFunction(w=W[user], b=float(b[user]))
        result = local_pass(E, before, train, scenario.sampler(user), hyperparameters, rng)
        body = ENCODINGS[encoding].encode(as_change(result))
        update = Update(
            instance=2**63, incarnation=2**63, seq=100, base_version=1000, encoding=encoding, body=body
        )
        sizes.append(update_size(update))
    return float(np.median(sizes))


def ranks(out: Path) -> NDArray[np.int32]:
    """Give the users' sampled ranks in their own views."""
    with np.load(out / "ranks.npz") as content:
        own: NDArray[np.int32] = content["own_sampled"]
    return own


def mean(figures: Sequence[Mapping[str, float]], name: str) -> float:
    """Give a figure's mean over the seeds."""
    return float(np.mean([each[name] for each in figures]))


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--protocol", default="published")
    parser.add_argument("--rounds", type=int, help="[default: the preset's]")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--encodings", default=",".join(name for name in ENCODINGS if name != EXACT))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    names = [EXACT, *options.encodings.split(",")]
    print(f"{'encoding':<14} median B  mean B  B down     HR@10  Δ, points               NDCG@10  Δ, points")
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folder = options.out or Path(temporary)

        def folder_of(name: str, seed: int) -> Path:
            return folder / f"{name.replace('/', '-step-')}-{seed}"

        running = {
            (name, seed): pool.submit(run, folder_of(name, seed), options, name, seed)
            for name in names
            for seed in seeds
        }
        for name in names:
            figures = [running[name, seed].result() for seed in seeds]
            rounds = figures[0]["rounds"]
            for seed in seeds:
                running[EXACT, seed].result()
            medians = [median_bytes(folder_of(name, seed), options, name, seed) for seed in seeds]
            line = f"{name:<14} {np.mean(medians):8.0f}"
            line += f" {mean(figures, 'mean'):7.0f} {mean(figures, 'down'):7.0f}"
            for figure in ("hr", "ndcg"):
                own = [gains(ranks(folder_of(name, seed)), figure, 10) for seed in seeds]
                exact = [gains(ranks(folder_of(EXACT, seed)), figure, 10) for seed in seeds]
                found = difference(
                    [mine - other for mine, other in zip(own, exact, strict=True)], same_users=True
                )
                line += (
                    f"    {np.mean(own):.4f}  {100 * found.mean:+.2f} "
                    f"[{100 * (found.low or 0.0):+.2f}, {100 * (found.high or 0.0):+.2f}]"
                )
            print(line, flush=True)
    print(f"{options.preset}, {options.protocol}, {rounds} rounds, seeds {options.seeds}")


if __name__ == "__main__":
    main()
