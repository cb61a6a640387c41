"""Cold start: how well a trained fleet serves users that join it later, and items that few have met.

A fleet is trained in step without every fifth user, on the same catalogue. Each user left out is then a new
device that has only its newest n training interactions, or any n where there are no times: it starts from
the w and b that the fleet started from, makes local passes on the finished table, which stays as it is, and
ranks its own test item. All of its training items, those that it does not have yet included, are left out of
the full ranking; so figures of different n compare. A new device's negatives avoid the n items and nothing
else, whatever the protocol of the fleet: it knows no others.

The users who were trained, for their part, tell how items fare that are new to the fleet.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import AlreadyInitialisedError
from broker.presets import Preset, load_preset
from broker.storage import make_directory, write_atomically
from edge.fleet.cohort import Float64Rows
from edge.fleet.lockstep import Lockstep, LockstepSettings
from edge.fleet.outcome import Outcome
from edge.fleet.progress import Progress
from edge.fleet.runfolder import RoundReport
from edge.fleet.scenario import Scenario, load_scenario
from trainer.algorithms import ALGORITHMS, Shared
from trainer.baselines import ScorerView
from trainer.baselines.popularity import PopularityScorer
from trainer.errors import DataTooSmallError, ParameterError
from trainer.evaluation import OwnRowsView, SharedView, ShiftedView, View, full_ranks, sampled_ranks
from trainer.local import LocalResult, local_pass
from trainer.metrics import TOP_K, metrics_from_ranks
from trainer.params import Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler, Protocol
from trainer.splits import Interactions, Split
from trainer.taste import TasteSettings, contexts

RESULTS = "cold-start.json"
EVERY = 5
"""One user in so many is left out."""
SIZES = (1, 3, 5, 10)
"""How many interactions a new device has."""
BANDS = ((0, 0), (1, 3), (4, 10), (11, 30), (31, None))
"""Of how many interactions the fleet has of an item; both ends belong to a band."""
_ALGORITHM = ALGORITHMS["pfedrec"]
_PASSES_STREAM, _ITEMS_STREAM = 6, 8
"""Of random numbers; others are a run's own, see `edge.fleet.scenario` and the engines."""
_NORMAL_95 = 1.959964
VIEWS = ("popularity", "shared", "own")
RANKINGS = ("sampled", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class ColdStartOptions:
    """What ``edge-fleet cold-start`` was asked for.

    Attributes
    ----------
    passes : int
        Local passes that a new device makes.
    overrides : mapping
        Entries of the preset that were given otherwise.
    """

    data: str
    preset: str = "device"
    protocol: Protocol = "clean"
    seed: int = 0
    passes: int = 20
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NewDevices:
    """Users that join a finished fleet.

    Attributes
    ----------
    users : ndarray, shape (n_new,), int64
        Rows of the scenario.
    items : list of ndarray, int64
        What each has, in the order of the interactions.
    W : ndarray, shape (n_new, dim), float32
    b : ndarray, shape (n_new,), float32
    last_passes : list of LocalResult
        Whose rows are the own view where no taste is.
    """

    users: Rows
    items: list[Rows]
    W: NDArray[np.float32]
    b: NDArray[np.float32]
    last_passes: list[LocalResult]


def run_cold_start(
    options: ColdStartOptions,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, str], Progress] = Progress,
) -> dict[str, Any]:
    """Train the fleet, let the new devices join, and write ``cold-start.json``; give its content.

    Raises
    ------
    ParameterError
        When an option is wrong, or the training diverges.
    DataTooSmallError
        When there are too few users to leave one out.
    AlreadyInitialisedError
        When `out` holds results, and `overwrite` is not given.
    """
    preset = load_preset(options.preset, _ALGORITHM.name, options.overrides)
    scenario = load_scenario(options.data, options.protocol, options.seed)
    if scenario.n_users < EVERY:
        raise DataTooSmallError(
            f"{options.data} has {scenario.n_users} users; a cold start leaves one in {EVERY} out"
        )
    if (out / RESULTS).exists() and not overwrite:
        raise AlreadyInitialisedError(
            f"{out} holds a {RESULTS} already; choose another --out, or give --overwrite"
        )
    make_directory(out)
    is_new = np.arange(scenario.n_users) % EVERY == EVERY - 1
    fleet = without(scenario, is_new)
    outcome = _train(fleet, preset, options.seed, progress)
    content = {
        "command": "cold-start",
        "data": options.data,
        "data_sha256": scenario.sha256,
        "dataset": {"name": scenario.name, "users": scenario.n_users, "items": scenario.data.n_items},
        "preset": options.preset,
        "overrides": dict(options.overrides),
        "protocol": options.protocol,
        "hold_out": scenario.data.hold_out,
        "seed": options.seed,
        "passes": options.passes,
        "fleet": {"users": fleet.n_users, "rounds": preset.rounds, "best_round": outcome.round},
        "new_users": new_users(scenario, is_new, fleet, outcome, preset, options, progress),
        "new_items": new_items(fleet, outcome),
    }
    write_atomically(out / RESULTS, (json.dumps(content, indent=2) + "\n").encode())
    return content


def without(scenario: Scenario, is_new: NDArray[np.bool_]) -> Scenario:
    """Give the scenario of the other users: the same catalogue, and each with the candidates it had.

    Parameters
    ----------
    is_new : ndarray, shape (n_users,), bool
    """
    stay = (~is_new).nonzero()[0]
    data, split = scenario.data, scenario.split
    of_each = [data.of(user) for user in stay]
    return Scenario(
        name=scenario.name,
        sha256=scenario.sha256,
        data=Interactions(
            user_keys=tuple(data.user_keys[user] for user in stay),
            item_keys=data.item_keys,
            indptr=np.concatenate(([0], np.cumsum([items.size for items in of_each]))).astype(np.int64),
            items=np.concatenate(of_each),
            timed=data.timed,
        ),
        split=Split(
            n_items=split.n_items,
            train=[split.train[user] for user in stay],
            val=split.val[stay],
            test=split.test[stay],
        ),
        protocol=scenario.protocol,
        val=scenario.val[stay],
        test=scenario.test[stay],
    )


def _train(fleet: Scenario, preset: Preset, seed: int, progress: Callable[[int, str], Progress]) -> Outcome:
    bar = progress(preset.rounds, "rounds")

    def on_round(report: RoundReport) -> None:
        bar.update(report.number, f"HR@10 {report.quality.test.hr:.3f}")

    settings = LockstepSettings(
        algorithm=_ALGORITHM,
        hyperparameters=preset.hyperparameters(fleet.data.n_items),
        taste=preset.taste(timed=fleet.data.timed),
        rounds=preset.rounds,
        dim=preset.dim,
        scale=preset.scale,
        select_by=preset.select_by,
        noise=preset.noise,
        seed=seed,
    )
    try:
        return Lockstep(fleet, settings, on_round).run(users=False)
    finally:
        bar.close()


def first_score_function(n_items: int, preset: Preset, seed: int) -> ScoreFunction:
    """Give where all users of a fleet in step start."""
    rng = np.random.default_rng([seed, 0])
    _ALGORITHM.start(n_items, preset.dim, preset.scale, rng)  # drawn before, from the same stream
    W, b = _ALGORITHM.start_users(1, preset.dim, rng)
    return ScoreFunction(w=W[0], b=float(b[0]))


# -- new users -------------------------------------------------------------------------------------


def new_users(
    scenario: Scenario,
    is_new: NDArray[np.bool_],
    fleet: Scenario,
    outcome: Outcome,
    preset: Preset,
    options: ColdStartOptions,
    progress: Callable[[int, str], Progress],
) -> list[dict[str, Any]]:
    """Give the figures of devices with n interactions, for each n of `SIZES`."""
    assert outcome.model is not None  # noqa: S101 - a fleet in step has one
    shared = outcome.model.shared
    start = first_score_function(scenario.data.n_items, preset, options.seed)
    hyperparameters = preset.hyperparameters(scenario.data.n_items)
    taste = preset.taste(timed=scenario.data.timed)
    counts = interactions_of(fleet.split)
    joining = {
        size: np.array(
            [user for user in is_new.nonzero()[0] if scenario.split.train[user].size >= size], dtype=np.int64
        )
        for size in SIZES
    }
    bar = progress(max(1, sum(users.size for users in joining.values())), "new devices")
    n_done = 0
    found: list[dict[str, Any]] = []
    for size, users in joining.items():
        if users.size == 0:
            found.append({"interactions": size, "users": 0})
            continue
        devices = join_fleet(
            shared,
            start,
            users,
            [items_of_new(scenario, user, size, options.seed) for user in users.tolist()],
            hyperparameters,
            passes=options.passes,
            seed=options.seed,
        )
        n_done += users.size
        bar.update(n_done)
        views = views_of(devices, shared, taste, counts)
        found.append({"interactions": size, "users": int(users.size)} | _compared(views, scenario, users))
    bar.close()
    return found


def items_of_new(scenario: Scenario, user: int, size: int, seed: int) -> Rows:
    """Give the `size` training items that a new device has: the newest, or any where there are no times.

    Those of a larger size hold those of a smaller one.
    """
    train = scenario.split.train[user]
    if scenario.data.timed:
        return train[-size:]
    # Of its own for each user, as below.
    drawn = np.random.default_rng([seed, _ITEMS_STREAM, user]).permutation(train.size)[:size]
    return train[np.sort(drawn)]


@np.errstate(over="ignore", invalid="ignore")
def join_fleet(
    shared: Shared,
    start: ScoreFunction,
    users: Rows,
    items: list[Rows],
    hyperparameters: Hyperparameters,
    *,
    passes: int,
    seed: int,
) -> NewDevices:
    """Let each user make its passes on the shared table, which stays as it is.

    Raises
    ------
    ParameterError
        When the passes diverge.
    """
    last_passes: list[LocalResult] = []
    for user, having in zip(users.tolist(), items, strict=True):
        sampler = NegativeSampler.excluding(len(shared.table), having)
        # A stream for each, so that nobody's figures depend on who else joins.
        rng = np.random.default_rng([seed, _PASSES_STREAM, having.size, user])
        score_function = start
        for _ in range(passes):
            result = local_pass(shared.table, score_function, having, sampler, hyperparameters, rng)
            score_function = result.score_function
        last_passes.append(result)
    W = np.stack([result.score_function.w for result in last_passes])
    b = np.array([result.score_function.b for result in last_passes], dtype=np.float32)
    if not (np.isfinite(W).all() and np.isfinite(b).all()):
        raise ParameterError("a new device's training diverges; give a smaller lr, or fewer --passes")
    return NewDevices(users=users, items=items, W=W, b=b, last_passes=last_passes)


def views_of(devices: NewDevices, shared: Shared, taste: TasteSettings, counts: Rows) -> dict[str, View]:
    """Give what is compared, by the names of `VIEWS`; in float64, as the figures of a run are."""
    n_users, n_items = len(devices.W), len(shared.table)
    base = SharedView(
        scoring=_ALGORITHM.scoring,
        shared=Shared(table=shared.table.astype(np.float64), network=shared.network.astype(np.float64)),
        W=devices.W.astype(np.float64),
        b=devices.b.astype(np.float64),
    )
    table = shared.table.astype(np.float32)
    own: View
    if taste.strength:
        own = ShiftedView(base=base, contexts=contexts(table, devices.W, devices.items, taste), table=table)
    else:
        own = OwnRowsView(base=base, own=[Float64Rows(result) for result in devices.last_passes])
    popularity = PopularityScorer(n_users=n_users, counts=counts.astype(np.float32))
    return {"popularity": ScorerView(popularity, n_users, n_items), "shared": base, "own": own}


def _compared(views: Mapping[str, View], scenario: Scenario, users: Rows) -> dict[str, Any]:
    train = [scenario.split.train[user] for user in users]
    ranks = {
        "sampled": {name: sampled_ranks(view, scenario.test[users])[0] for name, view in views.items()},
        "full": {name: full_ranks(view, train, scenario.split.test[users]) for name, view in views.items()},
    }
    return {
        ranking: {name: figures(of_view) for name, of_view in by_view.items()}
        | {
            f"own - {other}": paired_difference(by_view["own"], by_view[other])
            for other in ("popularity", "shared")
        }
        for ranking, by_view in ranks.items()
    }


def figures(ranks: Rows) -> dict[str, float]:
    """Give HR@10 and NDCG@10."""
    metrics = metrics_from_ranks(ranks)
    return {"hr@10": metrics.hr, "ndcg@10": metrics.ndcg}


def paired_difference(ranks: Rows, other: Rows) -> dict[str, float | None]:
    """Give the mean difference of the same users' NDCG@10, and its 95 % interval; None of one user.

    The interval is that of the normal approximation, mean ± 1.96 · sd / sqrt(n).
    """
    difference = _gains(ranks) - _gains(other)
    middle = float(difference.mean())
    if difference.size < 2:
        return {"ndcg@10": middle, "low": None, "high": None}
    half = _NORMAL_95 * float(difference.std(ddof=1)) / float(np.sqrt(difference.size))
    return {"ndcg@10": middle, "low": middle - half, "high": middle + half}


def _gains(ranks: Rows) -> NDArray[np.float64]:
    gains: NDArray[np.float64] = np.where(ranks < TOP_K, 1.0 / np.log2(ranks + 2.0), 0.0)
    return gains


# -- new items -------------------------------------------------------------------------------------


def interactions_of(split: Split) -> Rows:
    """Give how many users have each item in training; shape (n_items,), int64."""
    return np.bincount(np.concatenate(split.train), minlength=split.n_items)


def new_items(fleet: Scenario, outcome: Outcome) -> list[dict[str, Any]]:
    """Give the figures of the fleet's own users, by how many interactions the fleet has of the test item."""
    counts = interactions_of(fleet.split)[fleet.split.test]
    found: list[dict[str, Any]] = []
    for low, high in BANDS:
        among = (counts >= low) & (counts <= (counts.max() if high is None else high))
        band: dict[str, Any] = {"low": low, "high": high, "users": int(among.sum())}
        if band["users"]:
            band |= {view: figures(outcome.ranks[view].sampled[among]) for view in ("own", "shared")}
        found.append(band)
    return found
