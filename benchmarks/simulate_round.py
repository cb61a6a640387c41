"""What the whole simulation costs beside the bare mathematics: seconds a round, on one core.

    OPENBLAS_NUM_THREADS=1 taskset -c 0 python benchmarks/simulate_round.py RATINGS [ROUNDS]

*bare* is the loop over the local passes, FedAvg and the evaluation; *in step* is ``edge-fleet simulate``;
*sessions* is ``--mode buffered`` with float32: as many passes, with every device's session, every update
encoded, checked and answered by the core.
"""

import sys
import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from edge.fleet.evaluator import Evaluator
from edge.fleet.lockstep import Lockstep, LockstepSettings
from edge.fleet.scenario import Scenario, load_scenario
from edge.fleet.virtual import Simulation, SimulationSettings
from trainer.aggregation import Accumulator
from trainer.algorithms import ALGORITHMS, Shared
from trainer.algorithms.linear import LinearScoring
from trainer.batches import users_alike
from trainer.evaluation import OwnRowsView, SharedView, sampled_ranks
from trainer.local import LocalResult, local_passes
from trainer.params import initial_score_function, initial_table, paper_hyperparameters

if TYPE_CHECKING:
    from edge.fleet.runfolder import RoundReport


def bare(scenario: Scenario, rounds: int) -> list[float]:
    """Time rounds of the plain loop, in seconds."""
    rng = np.random.default_rng(0)
    hyperparameters = paper_hyperparameters(scenario.data.n_items)
    table = initial_table(scenario.data.n_items, 32, rng)
    start = initial_score_function(32, rng)
    W = np.tile(start.w, (scenario.n_users, 1))
    b = np.full(scenario.n_users, start.b, dtype=np.float32)
    train = scenario.split.train
    samplers = [scenario.sampler(user) for user in range(scenario.n_users)]
    sizes = np.array([positives.size for positives in train])
    groups = users_alike(sizes, scenario.data.n_items, hyperparameters)
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        total = Accumulator(*table.shape)
        results: dict[int, LocalResult] = {}
        for users in groups:
            positives, theirs = [train[user] for user in users], [samplers[user] for user in users]
            passes = local_passes(table, W[users], b[users], positives, theirs, hyperparameters, rng)
            passes.add_to(total)
            W[users], b[users] = passes.W, passes.b
            results.update(zip(users.tolist(), passes, strict=True))
        table = table + total.scaled(1 / scenario.n_users)
        shared = SharedView(
            scoring=LinearScoring(),
            shared=Shared(table=table),
            W=W,
            b=b,
        )
        own = [results[user] for user in range(scenario.n_users)]
        sampled_ranks(OwnRowsView(base=shared, own=own), scenario.val, scenario.test)
        seconds.append(time.perf_counter() - began)
    return seconds


def in_step(scenario: Scenario, rounds: int) -> list[float]:
    """Time rounds of the simulation in step, in seconds."""
    reports: list[RoundReport] = []
    hyperparameters = paper_hyperparameters(scenario.data.n_items)
    settings = LockstepSettings(
        algorithm=ALGORITHMS["pfedrec"], hyperparameters=hyperparameters, rounds=rounds
    )
    Lockstep(scenario, settings, reports.append).run(users=False)
    return [report.watch.total for report in reports]


def sessions(scenario: Scenario, rounds: int) -> list[float]:
    """Time rounds of the simulation with sessions and core, in seconds."""
    reports: list[RoundReport] = []
    hyperparameters = paper_hyperparameters(scenario.data.n_items)
    settings = SimulationSettings(hyperparameters=hyperparameters, rounds=rounds)
    Simulation(scenario, settings, Evaluator(scenario), reports.append).run()
    return [report.watch.total for report in reports]


def main() -> None:
    """Measure in turn, and print medians and their ratios to the bare loop."""
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    scenario = load_scenario(sys.argv[1], "published", seed=0)
    first, stepped, played, last = (run(scenario, rounds) for run in (bare, in_step, sessions, bare))
    base = median(first + last)
    print(f"bare {base:.3f} s a round")
    for name, seconds in (("in step", stepped), ("sessions", played)):
        print(f"{name} {median(seconds):.3f} s a round: ratio {median(seconds) / base:.2f}")


if __name__ == "__main__":
    main()
