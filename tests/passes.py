"""Passes of one user alone, and of several as a fleet makes them, for tests."""

from collections.abc import Iterator

import numpy as np

from edge.fleet.scenario import Scenario
from trainer.algorithms import Algorithm, Shared
from trainer.batches import users_alike
from trainer.local import LocalResult
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler


def one_pass(
    algorithm: Algorithm,
    shared: Shared,
    score_function: ScoreFunction,
    positives: Rows,
    sampler: NegativeSampler,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> LocalResult:
    """Run a pass of a single user."""
    W, b = score_function.w[None], np.array([score_function.b], dtype=np.float32)
    return algorithm.local_passes(shared, W, b, [positives], [sampler], hyperparameters, rng)[0]


def cohorts_passes(
    algorithm: Algorithm,
    shared: Shared,
    W: Floats,
    b: Floats,
    scenario: Scenario,
    cohort: Rows,
    hyperparameters: Hyperparameters,
    rng: np.random.Generator,
) -> Iterator[tuple[int, LocalResult]]:
    """Run a pass of each of some users of a scenario, those who are alike together; give user and result."""
    sizes = np.array([scenario.split.train[user].size for user in cohort])
    for lines in users_alike(sizes, scenario.data.n_items, hyperparameters):
        users = cohort[lines].tolist()
        train = [scenario.split.train[user] for user in users]
        samplers = [scenario.sampler(user) for user in users]
        passes = algorithm.local_passes(shared, W[users], b[users], train, samplers, hyperparameters, rng)
        yield from zip(users, passes, strict=True)
