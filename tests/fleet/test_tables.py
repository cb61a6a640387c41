"""Tables of the paper from runs' folders, against figures computed by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.fleet.finishedrun import read_runs
from edge.fleet.paired import Difference, difference, gains
from edge.fleet.published import load_published
from edge.fleet.rungroups import METHOD_NAMES, group_runs
from edge.fleet.tables.usergroups import UserCounts, tertiles, users_table
from tests.fleet.builders import Call, write_ratings
from tests.fleet.folders import LASTFM, ML_100K, TINY, write_run
from trainer.metrics import metrics_from_ranks


def _table(call: Call, *arguments: object) -> dict[str, Any]:
    outcome = call("table", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    content: dict[str, Any] = json.loads(outcome.out)
    return content


def _column(table: dict[str, Any], name: str) -> list[Any]:
    place = table["columns"].index(name)
    return [row[place] for row in table["rows"]]


def test_gains_average_to_the_metrics() -> None:
    """What users add to a figure averages to the figure."""
    ranks = np.array([0, 3, 9, 10, 50])

    metrics = metrics_from_ranks(ranks, 10)

    assert gains(ranks, "hr", 10).mean() == metrics.hr
    assert gains(ranks, "ndcg", 10).mean() == metrics.ndcg


def test_difference_of_one_seed_has_the_normal_interval() -> None:
    """Four users with differences 1, 0, 0, 1: mean 1/2, sd sqrt(1/3), standard error sqrt(1/12)."""
    found = difference([np.array([1.0, 0.0, 0.0, 1.0])], same_users=True)

    half = 1.959963984540054 * math.sqrt(1 / 12)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.5 - half)
    assert found.high == pytest.approx(0.5 + half)
    assert found.seeds_sd is None


def test_difference_of_two_seeds_averages_each_user_first() -> None:
    """Users who gain under one seed what they lose under the other have no spread, the seeds have."""
    seeds = [np.array([1.0, 1.0]), np.array([-1.0, -1.0])]

    found = difference(seeds, same_users=True)

    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.seeds_sd == pytest.approx(math.sqrt(2))


def test_difference_counts_unrelated_users_apart() -> None:
    """Where a key is another person under another seed, all users count: 4 of them, sd sqrt(4/3)."""
    seeds = [np.array([1.0, 1.0]), np.array([-1.0, -1.0])]

    found = difference(seeds, same_users=False)

    assert found.high == pytest.approx(1.959963984540054 * math.sqrt(4 / 3) / 2)


def test_difference_of_a_single_user_has_no_interval() -> None:
    """Nothing is known of the spread of one."""
    assert difference([np.array([1.0])], same_users=True).low is None


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ([1, 2, 3, 4, 5, 6], [2, 2, 2]),
        ([1, 1, 1, 1, 2, 3], [4, 0, 2]),
        ([7], [1, 0, 0]),
        ([5, 5, 5], [3, 0, 0]),
    ],
)
def test_tertiles_keep_equal_counts_together(counts: Sequence[int], sizes: Sequence[int]) -> None:
    """Every user is in just one third."""
    parts = tertiles(np.array(counts))

    assert [int(part.sum()) for part in parts] == list(sizes)
    assert np.sum(parts, axis=0).tolist() == [1] * len(counts)


def test_published_figures_are_of_known_methods_and_have_sources() -> None:
    """published.toml fits the table that shows it."""
    for dataset in load_published().values():
        assert set(dataset.figures) <= set(METHOD_NAMES)
        assert all(figure.source in dataset.sources for figure in dataset.figures.values())
        assert all(0.0 < figure.ndcg < figure.hr < 1.0 for figure in dataset.figures.values())


def test_comparison_sets_ours_beside_the_published(tmp_path: Path, call: Call) -> None:
    """HR of two seeds is 3/4 and 2/4: mean .625, sd .1768; published .7162."""
    write_run(tmp_path / "runs" / "s0", dataset=ML_100K)
    write_run(tmp_path / "runs" / "s1", dataset=ML_100K, seed=1, own=(0, 1, 10, 11))

    table = _table(call, "ml-100k", tmp_path / "runs")

    ours = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert ours["method"] == "PFedRec"
    assert ours["HR@10"]["mean"] == pytest.approx(0.625)
    assert ours["HR@10"]["sd"] == pytest.approx(math.sqrt(2) / 8)
    assert ours["HR@10 published"]["mean"] == pytest.approx(0.7162)
    assert ours["Δ HR"]["value"] == pytest.approx(0.625 - 0.7162)
    assert ours["seeds"] == 2
    fedmf = next(row for row in table["rows"] if row[0] == "FedMF")
    assert fedmf[1:3] == [None, None]
    assert fedmf[3]["mean"] == pytest.approx(0.6515)


def test_comparison_keeps_protocols_apart_and_says_so(tmp_path: Path, call: Call) -> None:
    """Runs of another protocol are a line of their own, and the difference is named."""
    one = write_run(tmp_path / "a", dataset=ML_100K)
    other = write_run(tmp_path / "b", dataset=ML_100K, protocol="clean")

    table = _table(call, "ml-100k", one, other)

    assert table["rows"][0][0] == "PFedRec (published)"
    assert table["rows"][1][0] == "PFedRec (clean)"
    assert any("unlike things: PFedRec (clean)" in note for note in table["notes"])


def test_comparison_tells_data_of_another_size(tmp_path: Path, call: Call) -> None:
    """A file in a folder of the data set's name may still be another file."""
    run = write_run(tmp_path / "a", dataset=ML_100K | {"users": 900})

    table = _table(call, "ml-100k", run)

    assert any("that of the runs has 900 users" in note for note in table["notes"])


def test_comparison_tells_held_out_items_that_are_drawn(tmp_path: Path, call: Call) -> None:
    """A run without the entry held out the last; the two are not averaged."""
    one = write_run(tmp_path / "a", dataset=LASTFM)
    same = write_run(tmp_path / "b", dataset=LASTFM, seed=1, config={"hold_out": "last"})
    other = write_run(tmp_path / "c", dataset=LASTFM, config={"hold_out": "random"})

    table = _table(call, "lastfm-2k", one, same, other)

    assert [(row[0], row[-1]) for row in table["rows"][:2]] == [
        ("PFedRec (held out last)", 2), ("PFedRec (held out random)", 1),
    ]  # fmt: skip
    notes = "\n".join(table["notes"])
    assert (
        "drawn anew for each seed, where the paper holds out the last (PFedRec (held out random))." in notes
    )
    assert "The paper's data has 1,600 users, 12,454 items and 185,650 interactions; that of" in notes
    assert "A guess: it is made of the 186,479 tag assignments" in notes


def test_settings_tell_groups_apart(tmp_path: Path, call: Call) -> None:
    """Runs with other hyperparameters are not averaged; the label names the setting."""
    one = write_run(tmp_path / "a", dataset=ML_100K, config={"hyperparameters": {"lr": 0.1}})
    other = write_run(tmp_path / "b", dataset=ML_100K, config={"hyperparameters": {"lr": 0.2}})

    table = _table(call, "ml-100k", one, other)

    assert [row[0] for row in table["rows"][:2]] == ["PFedRec (lr 0.1)", "PFedRec (lr 0.2)"]


def test_unfit_runs_are_named_and_left_out(tmp_path: Path, call: Call) -> None:
    """Other data, unfinished, repeated and foreign folders leave a sentence each; a table comes."""
    good = write_run(tmp_path / "good", dataset=ML_100K)
    again = write_run(tmp_path / "again", dataset=ML_100K)
    other = write_run(tmp_path / "other")
    ablation = write_run(tmp_path / "ablation", dataset=ML_100K, algorithm="pfedrec-user")
    half = write_run(tmp_path / "half", dataset=ML_100K, seed=5)
    (half / "summary.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()

    outcome = call("table", "ml-100k", good, again, other, ablation, half, empty)

    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        f"left out: {half} is not finished",
        f"left out: {empty} holds no run",
        f"left out: {other} is about tiny/ratings.csv, not ml-100k",
        f"left out: {ablation}: pfedrec-user is not in the comparison",
        f"left out: {again} repeats {good}",
    ]


def test_same_folder_twice_counts_once(tmp_path: Path, call: Call) -> None:
    """A folder and its parent name the same run."""
    run = write_run(tmp_path / "runs" / "a", dataset=ML_100K)

    table = _table(call, "ml-100k", run, tmp_path / "runs")

    assert table["rows"][0][-1] == 1


@pytest.mark.parametrize("name", ["ml-100k", "lastfm-2k", "ablation", "views"])
def test_table_without_a_usable_run_is_refused(tmp_path: Path, call: Call, name: str) -> None:
    """Nothing usable is one more sentence and a code of its own."""
    run = write_run(tmp_path / "a", algorithm="popularity", mode="central")

    outcome = call("table", name, run)

    assert outcome.code == 14
    assert outcome.out == ""
    assert outcome.err.splitlines()[-1].startswith("edge-fleet: none of the folders holds a finished run for")


def test_missing_folder_is_refused(tmp_path: Path, call: Call) -> None:
    """A folder that is not there is a mistake, not a run to leave out."""
    outcome = call("table", "views", tmp_path / "nowhere")

    assert (outcome.code, outcome.err) == (
        10, f"edge-fleet: {tmp_path / 'nowhere'} is no folder; give the folders of runs\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"), ("summary.json", b"[]"), ("summary.json", b'{"algorithm": "pfedrec"}'),
        ("ranks.npz", b"PK"), ("ranks.npz", b""),
    ],
)  # fmt: skip
def test_damaged_folder_is_named(tmp_path: Path, call: Call, name: str, content: bytes) -> None:
    """A damaged file is one sentence, not a traceback."""
    run = write_run(tmp_path / "a")
    (run / name).write_bytes(content)

    outcome = call("table", "views", run)

    assert outcome.code == 26
    assert len(outcome.err.splitlines()) == 1
    assert f"{run}/{name}" in outcome.err


def test_views_pairs_own_and_shared(tmp_path: Path, call: Call) -> None:
    """Own hits 3 of 4 at 10, shared 1: a gain of 1/2 with the interval of differences 1, 0, 0, 1."""
    run = write_run(tmp_path / "a", own=(0, 1, 2, 90), shared=(10, 1, 10, 90))

    table = _table(call, "views", run)

    line = next(row for row in table["rows"] if row[1:3] == ["sampled", "HR@10"])
    assert [line[3]["mean"], line[4]["mean"]] == [0.75, 0.25]
    assert line[5]["mean"] == 0.5
    assert line[5]["high"] == pytest.approx(0.5 + 1.959963984540054 * math.sqrt(1 / 12))
    assert line[6] is None
    assert len(table["rows"]) == 12


def test_ablation_pairs_variants_with_pfedrec(tmp_path: Path, call: Call) -> None:
    """A variant's difference is to the run of the same seed; PFedRec has none to itself."""
    write_run(tmp_path / "runs" / "a", own=(0, 0, 0, 0))
    write_run(tmp_path / "runs" / "b", algorithm="pfedrec-neither", own=(2, 2, 2, 2))

    table = _table(call, "ablation", tmp_path / "runs")

    assert _column(table, "variant") == ["PFedRec", "neither"]
    first, second = _column(table, "Δ NDCG@10 [95 % interval]")
    assert first is None
    assert second["mean"] == pytest.approx(-0.5)
    assert (second["low"], second["high"]) == (pytest.approx(-0.5), pytest.approx(-0.5))


def test_ablation_has_no_difference_between_other_candidates(tmp_path: Path, call: Call) -> None:
    """Figures of runs that ranked other items stand side by side, unpaired."""
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", algorithm="pfedrec-user", negatives=5)

    table = _table(call, "ablation", tmp_path / "runs")

    assert _column(table, "Δ NDCG@10 [95 % interval]") == [None, None]


def test_compare_pairs_users_and_seeds(tmp_path: Path, call: Call) -> None:
    """Two seeds each; A hits one user more under both."""
    for seed in (0, 1):
        write_run(tmp_path / "A" / str(seed), seed=seed, own=(0, 1, 2, 90))
        write_run(tmp_path / "B" / str(seed), seed=seed, own=(0, 1, 90, 90), algorithm="fedmf")
    write_run(tmp_path / "B" / "2", seed=2, algorithm="fedmf")

    table = _table(call, "compare", tmp_path / "A", tmp_path / "B")

    line = next(row for row in table["rows"] if row[:3] == ["own", "sampled", "HR@10"])
    assert [line[3]["mean"], line[4]["mean"], line[5]["mean"]] == [0.75, 0.5, 0.25]
    assert line[5]["seeds_sd"] == 0.0
    assert any("4 users, 2 seeds (0, 1)" in note for note in table["notes"])


@pytest.mark.parametrize(
    ("other", "sentence", "code"),
    [
        ({"keys": ("a", "b", "c", "e")}, "have different users (4 and 4)", 2),
        ({"negatives": 5}, "rank different candidates", 2),
        ({"seed": 1}, "have no seed in common", 14),
    ],
)
def test_compare_refuses_what_is_not_comparable(
    tmp_path: Path, call: Call, other: dict[str, Any], sentence: str, code: int
) -> None:
    """Other users, other candidates or other seeds: one sentence."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", **other)

    outcome = call("table", "compare", a, b)

    assert outcome.code == code
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_compare_takes_two_folders_of_one_kind_each(tmp_path: Path, call: Call) -> None:
    """One folder is too few, and a side must be runs of one kind."""
    write_run(tmp_path / "a" / "x")
    write_run(tmp_path / "a" / "y", algorithm="fedmf")

    single = call("table", "compare", tmp_path / "a")
    mixed = call("table", "compare", tmp_path / "a", tmp_path / "a")

    assert (single.code, mixed.code) == (2, 2)
    assert "compare takes two folders; 1 were given" in single.err
    assert "holds runs of 2 kinds (PFedRec; FedMF)" in mixed.err


def test_users_needs_data_and_others_refuse_it(tmp_path: Path, call: Call) -> None:
    """--data is for users alone."""
    run = write_run(tmp_path / "a")

    assert "the table users needs --data" in call("table", "users", run).err
    assert "--data is for the table users" in call("table", "views", run, "--data", "synthetic").err


def test_users_counts_in_the_runs_own_data(tmp_path: Path, call: Call) -> None:
    """Activity of a simulated run's users is what they train with; the thirds make up all users."""
    ratings = write_ratings(tmp_path / "ratings.csv")
    run = tmp_path / "run"
    made = call("simulate", "--data", ratings, "--protocol", "clean", "--rounds", 1, "--dim", 2, "--out", run)
    assert made.code == 0, made.err

    table = _table(call, "users", run, "--data", ratings)
    refused = call("table", "users", run, "--data", write_ratings(tmp_path / "other.csv", seed=2))

    by_activity = [row for row in table["rows"] if row[1] == "activity" and row[5] == "sampled"]
    assert sum(row[4] for row in by_activity) == 8
    assert all(row[2] <= row[3] for row in table["rows"])
    assert refused.code == 2
    assert "was not made from this --data" in refused.err


def test_users_without_times_are_split_as_each_run_has(tmp_path: Path, call: Call) -> None:
    """By its seed: the thirds make up all users, and the runs are of one kind."""
    ratings = write_ratings(tmp_path / "ratings.csv", timed=False)
    for seed in (0, 1):
        made = call(
            "simulate", "--data", ratings, "--protocol", "clean", "--rounds", 1, "--dim", 2, "--seed", seed,
            "--out", tmp_path / "runs" / str(seed),
        )  # fmt: skip
        assert made.code == 0, made.err

    table = _table(call, "users", tmp_path / "runs", "--data", ratings)

    assert {row[0] for row in table["rows"]} == {"PFedRec"}
    by_activity = [row for row in table["rows"] if row[1] == "activity" and row[5] == "sampled"]
    assert sum(row[4] for row in by_activity) == 8


def test_users_in_other_thirds_under_other_seeds_are_not_paired(tmp_path: Path) -> None:
    """Whose test item is popular differs by seed where it is drawn: then no user is averaged with another."""
    shared = (10, 10, 10, 10)
    write_run(tmp_path / "a", own=(0, 10, 10, 10), shared=shared)
    write_run(tmp_path / "b", seed=1, own=(10, 10, 0, 10), shared=shared)
    (group,), _ = group_runs(read_runs([tmp_path])[0], METHOD_NAMES)
    first, second = group.runs
    activity = np.array([1, 1, 1, 1])
    counts = {
        first: UserCounts(activity=activity, popularity=np.array([0, 0, 5, 5])),
        second: UserCounts(activity=activity, popularity=np.array([5, 5, 0, 0])),
    }

    table = users_table([group], counts)

    found = {(row[1], row[2]): row[-1] for row in table.rows if row[5] == "sampled"}
    unpopular, everybody = found["popularity", 0], found["activity", 1]
    assert isinstance(unpopular, Difference)
    assert isinstance(everybody, Difference)
    # Differences 1, 0 of two users under one seed and of the two others under the other.
    assert unpopular.high == pytest.approx(0.5 + 1.959963984540054 * math.sqrt(1 / 12))
    # Of four users, paired: 1/2, 0, 1/2, 0.
    assert everybody.high == pytest.approx(0.25 + 1.959963984540054 * math.sqrt(1 / 48))


def test_users_split_otherwise_are_refused(tmp_path: Path, call: Call) -> None:
    """As by a run from before items were drawn; the sentence names the difference."""
    ratings = write_ratings(tmp_path / "ratings.csv", timed=False)
    run = write_run(tmp_path / "a")

    refused = call("table", "users", run, "--data", ratings)

    assert refused.code == 2
    assert "was made with hold_out last, where this --data is split with hold_out random" in refused.err


def test_users_generates_synthetic_data_again(tmp_path: Path, call: Call) -> None:
    """Generated data is drawn from the run's seed, so nothing else is needed."""
    run = tmp_path / "run"
    made = call(
        "simulate", "--data", "synthetic", "--protocol", "clean", "--rounds", 1, "--dim", 2, "--seed", 3,
        "--out", run,
    )  # fmt: skip
    assert made.code == 0, made.err

    table = _table(call, "users", run, "--data", "synthetic")
    refused = call("table", "users", write_run(tmp_path / "b", dataset=TINY), "--data", "synthetic")

    assert table["rows"]
    assert "was made from tiny/ratings.csv; give that as --data" in refused.err
