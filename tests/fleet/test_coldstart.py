"""``edge-fleet cold-start``: figures that are checked by hand, or computed a second time in a plainer way."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.exit_codes import ExitCode
from broker.presets import load_preset
from edge.fleet.coldstartcommand import (
    NewDevices,
    figures,
    first_score_function,
    items_of_new,
    join_fleet,
    new_items,
    paired_difference,
    views_of,
    without,
)
from edge.fleet.lockstep import Lockstep, LockstepSettings
from edge.fleet.outcome import Outcome
from edge.fleet.scenario import Scenario, load_scenario
from tests.datasets import ml_100k
from tests.fleet.builders import Call, a_scenario, a_table, files_of, write_ratings
from tests.fleet.builders import Outcome as Called
from trainer.algorithms import ALGORITHMS, Shared
from trainer.evaluation import Ranks, full_ranks, sampled_ranks
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.sampling import NegativeSampler
from trainer.splits import Interactions, Split
from trainer.taste import TasteSettings, with_taste

QUICK = ("--data", "synthetic", "--protocol", "clean", "--rounds", 4, "--set", "dim=8", "--passes", 3)
SIZES = (1, 3, 5, 10)


def cold_start(call: Call, out: Path, *options: object) -> Called:
    """Run a small one; it must succeed."""
    found = call("cold-start", *QUICK, "--out", out, *options)
    assert found.code == ExitCode.OK, found.err
    return found


def content_in(out: Path) -> dict[str, Any]:
    """Read the results."""
    content: dict[str, Any] = json.loads((out / "cold-start.json").read_text())
    return content


def assert_refused(found: Called, code: ExitCode, *words: str) -> None:
    """Check the code, and that there is one sentence with these words on stderr and nothing on stdout."""
    assert (found.code, found.out) == (code, "")
    assert re.fullmatch(r"edge-fleet: [^\n]+\n", found.err), found.err
    for word in words:
        assert word in found.err


def rows(*items: int) -> Rows:
    """Give item rows."""
    return np.array(items, dtype=np.int64)


def a_tiny_fleet(train: Sequence[Sequence[int]], val: Sequence[int], test: Sequence[int]) -> Scenario:
    """Give a scenario of ten items whose candidates are all other items."""
    split = Split(n_items=10, train=[rows(*items) for items in train], val=rows(*val), test=rows(*test))
    histories = [split.known(user) for user in range(len(train))]
    candidates = [
        np.array([[item, *(other for other in range(10) if other != item)] for item in held_out])
        for held_out in (val, test)
    ]
    return Scenario(
        name="tiny",
        sha256=None,
        data=Interactions(
            user_keys=tuple(f"u{user}" for user in range(len(train))),
            item_keys=tuple(f"i{item}" for item in range(10)),
            indptr=np.cumsum([0, *(items.size for items in histories)]),
            items=np.concatenate(histories),
        ),
        split=split,
        protocol="clean",
        val=candidates[0],
        test=candidates[1],
    )


# -- who is left out -------------------------------------------------------------------------------


def test_the_fleet_is_that_of_the_other_users() -> None:
    """With all they had; the catalogue stays whole."""
    scenario = a_scenario(12)
    is_new = np.arange(12) % 5 == 4

    fleet = without(scenario, is_new)

    stay = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]
    assert fleet.data.user_keys == tuple(scenario.data.user_keys[user] for user in stay)
    assert fleet.data.item_keys == scenario.data.item_keys
    for line, user in enumerate(stay):
        assert fleet.data.of(line).tolist() == scenario.data.of(user).tolist()
        assert fleet.split.known(line).tolist() == scenario.split.known(user).tolist()
    assert fleet.test.tolist() == scenario.test[stay].tolist()
    assert fleet.val.tolist() == scenario.val[stay].tolist()


def test_new_devices_have_the_newest_items(tmp_path: Path) -> None:
    """Where there are times, and whatever the seed."""
    scenario = load_scenario(str(write_ratings(tmp_path / "ratings.csv")), "clean", 0)

    for size in SIZES:
        found = items_of_new(scenario, 3, size, size)
        assert found.tolist() == scenario.split.train[3][-size:].tolist()


def test_new_devices_have_any_items_where_there_are_no_times() -> None:
    """Each training item as often as another, in their order; more are some and others."""
    scenario = a_scenario(12)
    train = scenario.split.train[3].tolist()
    counts = dict.fromkeys(train, 0)
    n_seeds = 1000

    for seed in range(n_seeds):
        few, more = (items_of_new(scenario, 3, size, seed).tolist() for size in (3, 10))
        assert few == [item for item in train if item in few]
        assert more == [item for item in train if item in more]
        assert (len(few), len(more)) == (3, 10)
        assert set(few) < set(more)
        for item in few:
            counts[item] += 1

    share = 3 / len(train)
    # Five standard deviations of a binomial count.
    assert max(abs(count - n_seeds * share) for count in counts.values()) < 5 * math.sqrt(
        n_seeds * share * (1 - share)
    )


def test_new_devices_start_where_the_fleet_has() -> None:
    """With the very w and b."""
    scenario, preset = a_scenario(12), load_preset("device", "pfedrec", {"dim": 8})
    settings = LockstepSettings(
        algorithm=ALGORITHMS["pfedrec"],
        hyperparameters=preset.hyperparameters(scenario.data.n_items),
        dim=8,
        scale=preset.scale,
        seed=4,
    )

    start = first_score_function(scenario.data.n_items, preset, 4)

    fleet = Lockstep(scenario, settings, lambda _: None)
    assert (start.w == fleet._arrays.W).all()
    assert (np.float32(start.b) == fleet._arrays.b).all()


# -- local passes ----------------------------------------------------------------------------------


def join(
    table: Floats, users: Rows, items: list[Rows], *, passes: int = 3, negatives: int = 4
) -> tuple[NewDevices, ScoreFunction, Hyperparameters]:
    """Let devices join a table."""
    start = ScoreFunction(w=np.full(table.shape[1], 0.25, dtype=np.float32), b=0.5)
    hyperparameters = Hyperparameters(lr=0.1, item_lr=2.0, negatives=negatives)
    devices = join_fleet(Shared(table=table), start, users, items, hyperparameters, passes=passes, seed=9)
    return devices, start, hyperparameters


def test_passes_are_made_one_after_the_other_on_the_same_table() -> None:
    """Only w and b go on; the table is as before."""
    table = a_table(a_scenario(12))
    before, having = table.copy(), rows(3, 8, 5)

    devices, score_function, hyperparameters = join(table, rows(7), [having])

    rng = np.random.default_rng([9, 6, 3, 7])
    for _ in range(3):
        result = local_pass(
            table,
            score_function,
            having,
            NegativeSampler.excluding(len(table), having),
            hyperparameters,
            rng,
        )
        score_function = result.score_function
    assert (table == before).all()
    assert (devices.W[0] == score_function.w).all()
    assert devices.b[0] == np.float32(score_function.b)
    assert (devices.last_passes[0].values == result.values).all()


def test_negatives_avoid_what_the_device_has_and_nothing_else() -> None:
    """With enough of them all other items are drawn."""
    table = a_table(a_scenario(12))[:6]

    devices, _, _ = join(table, rows(0), [rows(1, 4)], negatives=200)

    # A row moves up as a positive and down as a negative, along w.
    (last,) = devices.last_passes
    direction = last.change @ last.score_function.w
    assert last.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert (direction > 0).tolist() == [False, True, False, False, True, False]


def test_figures_do_not_depend_on_who_else_joins() -> None:
    """Each device has a stream of random numbers of its own."""
    table = a_table(a_scenario(12))

    together, _, _ = join(table, rows(2, 7), [rows(3), rows(4)])
    alone, _, _ = join(table, rows(7), [rows(4)])

    assert (together.W[1] == alone.W[0]).all()


# -- figures, by hand ------------------------------------------------------------------------------


def a_pass_that_moved(table: Floats, moved: dict[int, Sequence[float]]) -> LocalResult:
    """Give a pass that left some rows elsewhere."""
    change = np.array([np.subtract(value, table[row]) for row, value in moved.items()], dtype=np.float32)
    return LocalResult(
        score_function=ScoreFunction(w=np.zeros(2, dtype=np.float32), b=0.0),
        rows=rows(*moved),
        table=table,
        coefficients=change.T.copy(),
        vectors=np.eye(2, dtype=np.float32),
    )


def ranks_in(
    devices: NewDevices, table: Floats, taste: TasteSettings
) -> dict[str, tuple[list[int], list[int]]]:
    """Rank item 0 among 1, 2, 3, and among all but item 4; popularity is 5, 9, 1, 0, 7."""
    views = views_of(devices, Shared(table=table), taste, rows(5, 9, 1, 0, 7))
    return {
        name: (
            sampled_ranks(view, np.tile(rows(0, 1, 2, 3), (len(devices.W), 1)))[0].tolist(),
            full_ranks(view, [rows(4)] * len(devices.W), np.zeros(len(devices.W), dtype=np.int64)).tolist(),
        )
        for name, view in views.items()
    }


TABLE = np.array([[1, 1], [2, 0], [0, 2], [-1, -1], [4, 4]], dtype=np.float32)
"""Its mean is (1.2, 1.2)."""


def devices_on_it(items: Rows, last_pass: LocalResult) -> NewDevices:
    """Give one device with w = (1, 0): it scores the items 1, 2, 0, -1, 4."""
    return NewDevices(
        users=rows(0),
        items=[items],
        W=np.array([[1, 0]], dtype=np.float32),
        b=np.zeros(1, dtype=np.float32),
        last_passes=[last_pass],
    )


def test_own_view_by_taste_moves_every_item() -> None:
    """Having item 2 at (0, 2): ĥ = (-1.2, .8) / 1.442 = (-.832, .555), so scores are (1 - 2·.832, 2·.555)·e.

    That is -.664·x + 1.109·y: .445, -1.328, 2.219, -.445, 1.780. Item 0 is behind item 2 alone (4 is masked).
    """
    device = devices_on_it(rows(2), a_pass_that_moved(TABLE, {2: (0, 2)}))

    ranks = ranks_in(device, TABLE, TasteSettings(strength=2.0))

    assert ranks == {"popularity": ([1], [1]), "shared": ([1], [1]), "own": ([1], [1])}
    views = views_of(device, Shared(table=TABLE), TasteSettings(strength=2.0), rows(0, 0, 0, 0, 0))
    assert views["own"].scores(slice(0, 1))[0] == pytest.approx(
        [0.445, -1.328, 2.219, -0.445, 1.780], abs=2e-3
    )
    assert views["shared"].scores(slice(0, 1))[0] == pytest.approx([1, 2, 0, -1, 4])


def test_own_view_by_rows_has_those_of_the_last_pass() -> None:
    """Item 1 goes down to -3 and item 0 up to 1.5, so that nothing is ahead of it."""
    device = devices_on_it(rows(0), a_pass_that_moved(TABLE, {0: (1.5, 0), 1: (-3, 0)}))

    ranks = ranks_in(device, TABLE, TasteSettings())

    assert ranks == {"popularity": ([1], [1]), "shared": ([1], [1]), "own": ([0], [0])}


def test_figures_of_ranks() -> None:
    """A gain of 1 / log2(rank + 2) within the first ten."""
    assert figures(rows(0, 2, 9, 10)) == pytest.approx(
        {"hr@10": 3 / 4, "ndcg@10": (1 + 1 / 2 + 1 / math.log2(11)) / 4}
    )


def test_difference_is_paired() -> None:
    """Gains 1, 0, 1/2 less 1/2, 0, 0 are 1/2, 0, 1/2: mean 1/3, sd 1/sqrt(12), half an interval 1.96/6."""
    found = paired_difference(rows(0, 10, 2), rows(2, 99, 50))

    assert found == pytest.approx(
        {"ndcg@10": 1 / 3, "low": 1 / 3 - 1.959964 / 6, "high": 1 / 3 + 1.959964 / 6}, abs=1e-9
    )


def test_a_single_user_has_no_interval() -> None:
    """Nothing is known of the spread."""
    assert paired_difference(rows(0), rows(2)) == {"ndcg@10": 0.5, "low": None, "high": None}


def test_new_items_are_told_apart_by_the_fleet_s_interactions() -> None:
    """Item 9 nobody has in training, item 8 one user, item 7 two, item 0 all four."""
    fleet = a_tiny_fleet(train=[(0, 1), (0, 7), (0, 7, 8), (0, 2)], val=(2, 3, 4, 5), test=(9, 8, 0, 7))
    own, shared = rows(2, 0, 10, 50), rows(10, 20, 0, 2)
    nothing = rows(0, 0, 0, 0)
    outcome = Outcome(
        round=1,
        version=1,
        ranks={"own": Ranks(sampled=own, full=nothing), "shared": Ranks(sampled=shared, full=nothing)},
    )

    found = new_items(fleet, outcome)

    none = {"hr@10": 0.0, "ndcg@10": 0.0}
    assert found == [
        {"low": 0, "high": 0, "users": 1, "own": {"hr@10": 1.0, "ndcg@10": 0.5}, "shared": none},
        {
            "low": 1,
            "high": 3,
            "users": 2,
            "own": {"hr@10": 0.5, "ndcg@10": 0.5},
            "shared": {"hr@10": 0.5, "ndcg@10": 0.25},
        },
        {"low": 4, "high": 10, "users": 1, "own": none, "shared": {"hr@10": 1.0, "ndcg@10": 1.0}},
        {"low": 11, "high": 30, "users": 0},
        {"low": 31, "high": None, "users": 0},
    ]


# -- the command -----------------------------------------------------------------------------------


def a_plain_count(scores: NDArray[Any], positive: int, others: Sequence[int]) -> tuple[float, float]:
    """Give HR and NDCG at 10 of one user."""
    rank = sum(float(scores[other]) >= float(scores[positive]) for other in others)
    return (1.0, 1 / math.log2(rank + 2)) if rank < 10 else (0.0, 0.0)


@pytest.mark.parametrize("preset", ["device", "paper"])
def test_figures_are_those_of_a_plainer_computation(call: Call, tmp_path: Path, preset: str) -> None:
    """User by user, with the table of the same fleet trained once more."""
    cold_start(call, tmp_path, "--preset", preset, "--seed", 2)

    settings = load_preset(preset, "pfedrec", {"dim": 8, "rounds": 4})
    scenario = load_scenario("synthetic", "clean", 2)
    new = list(range(4, scenario.n_users, 5))
    fleet = without(scenario, np.isin(np.arange(scenario.n_users), new))
    hyperparameters = settings.hyperparameters(scenario.data.n_items)
    taste = settings.taste(timed=scenario.data.timed)
    lockstep = LockstepSettings(
        algorithm=ALGORITHMS["pfedrec"], hyperparameters=hyperparameters, taste=taste, rounds=4, dim=8,
        scale=settings.scale, select_by=settings.select_by, seed=2,
    )  # fmt: skip
    model = Lockstep(fleet, lockstep, lambda _: None).run().model
    assert model is not None
    table = model.shared.table
    popularity = np.zeros(len(table))
    for train in fleet.split.train:
        popularity[train] += 1
    start = first_score_function(len(table), settings, 2)
    for line in content_in(tmp_path)["new_users"]:
        size = line["interactions"]
        users = [user for user in new if scenario.split.train[user].size >= size]
        assert line["users"] == len(users) > 0
        totals: dict[tuple[str, str], list[tuple[float, float]]] = {
            (ranking, view): [] for ranking in ("sampled", "full") for view in ("popularity", "shared", "own")
        }
        for user in users:
            having = items_of_new(scenario, user, size, 2)
            devices = join_fleet(model.shared, start, rows(user), [having], hyperparameters, passes=3, seed=2)
            function = ScoreFunction(w=devices.W[0], b=float(devices.b[0]))
            shared = table.astype(np.float64) @ function.w + function.b
            own = shared.copy()
            if preset == "paper":
                last = devices.last_passes[0]
                own[last.rows] = last.values.astype(np.float64) @ function.w + function.b
            else:
                own = table.astype(np.float64) @ with_taste(function, table, having, taste).w
            test = int(scenario.split.test[user])
            unseen = set(range(len(table))) - set(scenario.split.train[user].tolist()) - {test}
            for view, scores in (("popularity", popularity), ("shared", shared), ("own", own)):
                totals["sampled", view].append(a_plain_count(scores, test, scenario.test[user, 1:].tolist()))
                totals["full", view].append(a_plain_count(scores, test, sorted(unseen)))
        for (ranking, view), gains in totals.items():
            assert tuple(line[ranking][view].values()) == pytest.approx(
                tuple(np.mean(gains, axis=0)), abs=1e-9
            )
            if view != "own":
                difference = np.array(totals[ranking, "own"])[:, 1] - np.array(gains)[:, 1]
                found = line[ranking][f"own - {view}"]
                assert found["ndcg@10"] == pytest.approx(difference.mean(), abs=1e-9)
                assert found["high"] - found["low"] == pytest.approx(
                    2 * 1.959964 * difference.std(ddof=1) / math.sqrt(len(users)), abs=1e-9
                )


def test_both_tables_are_printed(call: Call, tmp_path: Path) -> None:
    """With the figures of the file; progress is on stderr."""
    found = cold_start(call, tmp_path)

    content, lines = content_in(tmp_path), found.out.splitlines()
    assert lines[0] == (
        f"synthetic: a fleet of 160 users, round {content['fleet']['best_round']} of 4 by validation; "
        "40 new users"
    )
    first = content["new_users"][0]
    cells = re.split(r" {2,}", lines[4])
    assert cells[:5] == [
        "1",
        "40",
        *(
            "{hr@10:.4f} / {ndcg@10:.4f}".format(**first["sampled"][view])
            for view in ("popularity", "shared", "own")
        ),
    ]
    assert cells[5] == "{ndcg@10:+.4f} ({low:+.4f} to {high:+.4f})".format(
        **first["sampled"]["own - popularity"]
    )
    assert [re.split(r" {2,}", line)[:2] for line in lines[-5:]] == [
        [name, str(band["users"])]
        for name, band in zip(("0", "1-3", "4-10", "11-30", "more"), content["new_items"], strict=True)
    ]
    assert sum(band["users"] for band in content["new_items"]) == 160
    assert "4/4 rounds" in found.err
    assert files_of(tmp_path) == {"cold-start.json"}


def test_json_is_the_file(call: Call, tmp_path: Path) -> None:
    """One document on stdout, with all that is needed to repeat it."""
    found = cold_start(call, tmp_path, "--json", "--seed", 3)

    printed = json.loads(found.out)
    assert printed == content_in(tmp_path)
    assert (printed["seed"], printed["passes"], printed["protocol"]) == (3, 3, "clean")
    assert printed["hold_out"] == "random"
    assert (printed["preset"], printed["overrides"]) == ("device", {"dim": 8, "rounds": 4})


def test_the_same_call_gives_the_same_file(call: Call, tmp_path: Path) -> None:
    """To the last byte; another seed gives another."""
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        cold_start(call, tmp_path / name, "--seed", seed)

    one, two, three = ((tmp_path / name / "cold-start.json").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_users_with_fewer_interactions_are_left_out_of_that_line(call: Call, tmp_path: Path) -> None:
    """And a line that is left without any says so."""
    data = write_ratings(tmp_path / "ratings.csv", mean=0, n_users=15)

    found = call(
        "cold-start", "--data", data, "--protocol", "clean", "--rounds", 2, "--passes", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip

    assert found.code == ExitCode.OK, found.err
    lines = content_in(tmp_path / "out")["new_users"]
    scenario = load_scenario(str(data), "clean", 0)
    lengths = [scenario.split.train[user].size for user in (4, 9, 14)]
    assert [(line["interactions"], line["users"]) for line in lines] == [
        (size, sum(length >= size for length in lengths)) for size in SIZES
    ]


def test_results_are_not_replaced_unasked(call: Call, tmp_path: Path) -> None:
    """But when asked."""
    cold_start(call, tmp_path)
    before = (tmp_path / "cold-start.json").read_bytes()

    found = call("cold-start", *QUICK, "--seed", 1, "--out", tmp_path)

    assert_refused(found, ExitCode.ALREADY_INITIALISED, "holds a cold-start.json already", "--overwrite")
    assert (tmp_path / "cold-start.json").read_bytes() == before
    cold_start(call, tmp_path, "--seed", 1, "--overwrite")
    assert (tmp_path / "cold-start.json").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--data", "none.csv"), ExitCode.FILE_UNREADABLE, "none.csv cannot be read"),
        (("--set", "speed=1"), ExitCode.USAGE, "unknown entry 'speed'"),
        (("--set", "negatives=0"), ExitCode.USAGE, "negatives is 0"),
        (("--preset", "none.toml"), ExitCode.FILE_UNREADABLE, "none.toml cannot be read"),
    ],
)
def test_wrong_options_are_one_sentence(
    call: Call, tmp_path: Path, options: tuple[object, ...], code: ExitCode, words: str
) -> None:
    """And nothing is written."""
    found = call("cold-start", *QUICK, *options, "--out", tmp_path / "out")

    assert_refused(found, code, words)
    assert not (tmp_path / "out").exists()


def test_too_few_users_are_refused(call: Call, tmp_path: Path) -> None:
    """One in five cannot be left out of four."""
    data = write_ratings(tmp_path / "ratings.csv", n_users=4, mean=60)

    found = call("cold-start", *QUICK, "--data", data, "--out", tmp_path / "out")

    assert_refused(found, ExitCode.DATA_TOO_SMALL, "has 4 users; a cold start leaves one in 5 out")


def test_training_that_diverges_is_a_sentence(call: Call, tmp_path: Path) -> None:
    """Nothing is written."""
    found = call(
        "cold-start", *QUICK, "--set", "lr=1", "--set", "lr_eta=1e6", "--rounds", 6, "--out", tmp_path
    )

    assert (found.code, found.out) == (ExitCode.USAGE, "")
    assert "edge-fleet: the training diverges" in found.err
    assert files_of(tmp_path) == set()


@pytest.mark.dataset
def test_movielens_serves_new_users_better_than_popularity(call: Call, tmp_path: Path) -> None:
    """From the first interaction on, by more than chance."""
    found = call("cold-start", "--data", ml_100k(), "--protocol", "clean", "--rounds", 40, "--out", tmp_path)

    assert found.code == ExitCode.OK, found.err
    for line in content_in(tmp_path)["new_users"]:
        assert line["users"] == 188
        assert line["sampled"]["own - popularity"]["low"] > 0
