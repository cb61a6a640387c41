"""How seconds a round and memory grow with users, items and interactions; and what two workers gain.

    python benchmarks/scaling.py [--rounds N] [--preset NAME] [--only CASE[,CASE]]

Cases: *users* (more and more users of 50 interactions; the exponent of a fit of time against interactions
should be about 1), *histories* (the same users with longer ones: below 1, as a pass costs something by
itself), *items* (the same interactions on larger catalogues), *shop* (12,000 users x 8,000 items), *large*
(100,000 x 100,000 with five million interactions; its last evaluation against the whole catalogue takes
minutes) and *workers* (one and two). Each run is a process of its own on generated data, and the figures are
those of its folder. Fits and ratios are of each run's fastest round, which other work on the machine disturbs
least.
"""

import argparse
import math
import os
from collections.abc import Callable
from statistics import linear_regression
from typing import Any

from simulations import simulate

Run = Callable[[str, int], dict[str, Any]]

_USERS = (500, 1_000, 2_000, 4_000, 8_000, 16_000)
_MEANS = (25, 50, 100, 200, 400)
_CATALOGUES = (1_000, 4_000, 16_000, 64_000)
_SHOP = "synthetic:12000x8000x50"
_LARGE = "synthetic:100000x100000x50"


def shown(data: str, workers: int, run: Run) -> dict[str, Any]:
    """Run, print a line, give the summary."""
    summary = run(data, workers)
    seconds, sizes = summary["seconds_per_round"], summary["dataset"]
    print(
        f"{sizes['users']:>7} users {sizes['items']:>7} items {sizes['interactions']:>8} interactions "
        f"{workers} worker{'s' * (workers > 1)}: {seconds['median']:8.3f} s a round "
        f"(least {min(summary['rounds_seconds']):.3f}; "
        f"train {seconds['train']:.3f}, aggregate {seconds['aggregate']:.3f}, "
        f"evaluate {seconds['evaluate']:.3f}), {summary['peak_rss_mb']:6.0f} MB, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return summary


def _fit(summaries: list[dict[str, Any]]) -> float:
    """Give the exponent of ``seconds = c · interactions ** exponent``."""
    return linear_regression(
        [math.log(each["dataset"]["interactions"]) for each in summaries],
        [math.log(min(each["rounds_seconds"])) for each in summaries],
    ).slope


def users(run: Run) -> None:
    """Target: an exponent of about 1."""
    exponent = _fit([shown(f"synthetic:{n_users}x4000x50", 1, run) for n_users in _USERS])
    print(f"with more users, seconds grow with interactions to the power of {exponent:.2f}")


def histories(run: Run) -> None:
    """Show how time grows with what single users have."""
    exponent = _fit([shown(f"synthetic:2000x4000x{mean}", 1, run) for mean in _MEANS])
    print(f"with longer histories, seconds grow with interactions to the power of {exponent:.2f}")


def items(run: Run) -> None:
    """Show what the size of the catalogue costs by itself."""
    for n_items in _CATALOGUES:
        shown(f"synthetic:2000x{n_items}x50", 1, run)


def shop(run: Run) -> None:
    """Targets: below 2 s a round and 1 GB."""
    shown(_SHOP, 1, run)


def large(run: Run) -> None:
    """Target: below 4 GB."""
    shown(_LARGE, 1, run)


def workers(run: Run) -> None:
    """Target: two workers are at least 1.8 times as fast as one; one is measured before and after."""
    before, two, after = (min(shown(_SHOP, n, run)["rounds_seconds"]) for n in (1, 2, 1))
    print(f"two workers are {min(before, after) / two:.2f} times as fast as one")


_CASES = {case.__name__: case for case in (users, histories, items, shop, large, workers)}


def main() -> None:
    """Run the cases in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--only", default=",".join(_CASES), help="cases, comma-separated")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in _CASES]:
        parser.error(f"there is no case {unknown[0]}; cases are {', '.join(_CASES)}")

    def run(data: str, n_workers: int) -> dict[str, Any]:
        settings = ("--preset", options.preset, "--protocol", "clean", "--rounds", str(options.rounds))
        return simulate(data, *settings, "--workers", str(n_workers))

    for name in chosen:
        print(f"-- {name}")
        _CASES[name](run)


if __name__ == "__main__":
    main()
