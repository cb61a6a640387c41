"""Asynchronous rounds against synchronous ones, by the virtual clock: seconds until HR@10 reaches a mark.

    python benchmarks/asynchronous.py --data ratings.dat [--seeds 0,1,2] [--svg docs/asynchronous.svg]

The same devices, a tenth of them stragglers (`edge.fleet.speeds`), once with rounds that wait for all, once
with those that wait for `--share`, and once with buffered ones. Test HR@10 of own views, published protocol,
after each round of results: as many counted updates as there are devices.
"""

import argparse
import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker.presets import load_preset
from edge.fleet.evaluator import Evaluator
from edge.fleet.runfolder import RoundReport
from edge.fleet.scenario import Scenario, load_scenario
from edge.fleet.virtual import Simulation, SimulationSettings
from trainer.aggregation import AggregationSettings

Curve = list[tuple[float, float]]


class _ReachedError(Exception):
    """The mark was reached: the rest of the run is not wanted."""


def curve_of(scenario: Scenario, settings: SimulationSettings, mark: float) -> Curve:
    """Give virtual seconds and HR@10 of each round, up to the first that reaches the mark."""
    curve: Curve = []

    def on_round(report: RoundReport) -> None:
        curve.append((simulation.now, report.quality.test.hr))
        if report.quality.test.hr >= mark:
            raise _ReachedError

    simulation = Simulation(scenario, settings, Evaluator(scenario, taste=settings.taste), on_round)
    with contextlib.suppress(_ReachedError):
        simulation.run()
    return curve


def main() -> None:
    """Run all, print the table, and draw the first seed's curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--mark", type=float, default=0.65)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--speeds", type=float, default=0.5)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    drawn: dict[str, Curve] = {}
    ratios: list[float] = []
    for seed in [int(each) for each in options.seeds.split(",")]:
        scenario = load_scenario(options.data, "published", seed)
        preset = load_preset("paper", "pfedrec", {"rounds": options.rounds})
        buffered = SimulationSettings(
            hyperparameters=preset.hyperparameters(scenario.data.n_items),
            taste=preset.taste(timed=scenario.data.timed),
            rounds=options.rounds,
            seed=seed,
            # A straggler's update is some 30 versions old when it arrives.
            max_staleness=100,
            speeds=options.speeds,
        )
        plain, n_users = AggregationSettings(strategy="fedavg"), scenario.n_users
        most = round(options.share * n_users)
        sides = {
            "buffered": buffered,
            "synchronous": replace(buffered, buffer=n_users, aggregation=plain),
            f"waits for {options.share:.0%}": replace(
                buffered, buffer=most, aggregation=plain, max_staleness=0
            ),
        }
        times: dict[str, float] = {}
        for name, settings in sides.items():
            curve = curve_of(scenario, settings, options.mark)
            drawn.setdefault(name, curve)
            times[name] = curve[-1][0] if curve[-1][1] >= options.mark else float("nan")
            print(f"seed {seed} {name:>14}: {times[name]:8.0f} s, {len(curve)} rounds", flush=True)
        ratios.append(times["synchronous"] / times["buffered"])
    print(f"synchronous / buffered: {np.mean(ratios):.1f} ({', '.join(f'{each:.1f}' for each in ratios)})")
    if options.svg:
        draw(drawn, options.mark, options.svg)


def draw(curves: dict[str, Curve], mark: float, path: Path) -> None:
    """Draw HR@10 over virtual time on a logarithmic axis."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a picture is wanted

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "asynchronous"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*np.array(curve).T, label=name)
    axes.axhline(mark, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="virtual seconds", ylabel="HR@10")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
