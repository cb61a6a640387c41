"""``edge-fleet simulate --algorithm NAME`` of recommenders without a fleet: the same folder and checks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.fleet.simulatecommand import SimulateOptions, run_simulation
from tests.fleet.builders import RUN_FILES, Call, a_scenario, files_of
from trainer.baselines import BASELINES
from trainer.errors import ParameterError
from trainer.evaluation import popularity_metrics
from trainer.metrics import metrics_from_ranks

N_USERS = 14

every_baseline = pytest.mark.parametrize("name", sorted(BASELINES))


def fitted(out: Path, name: str, **options: Any) -> dict[str, Any]:
    """Fit a baseline on small data into a folder; give its summary."""
    given: dict[str, Any] = {"data": "synthetic", "seed": 3, "overrides": {"dim": 4}} | options
    return run_simulation(
        SimulateOptions(algorithm=name, **given), out, save_users=True, scenario=a_scenario(N_USERS)
    ).summary


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Give the lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Give a line or a summary without what depends on the machine."""
    machine = ("seconds", "seconds_per_round", "peak_rss_mb")
    return {name: value for name, value in record.items() if name not in machine}


@every_baseline
def test_folder_has_everything_but_a_model(tmp_path: Path, name: str) -> None:
    """And no users' state, even when that is asked for: there is none that others could recompute from."""
    summary = fitted(tmp_path / "run", name)

    assert files_of(tmp_path / "run") == RUN_FILES - {"model.npz"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for facts in (summary, config):
        assert facts["algorithm"] == name
        assert facts["mode"] == "central"
        assert facts["seed"] == 3
    assert "positives_recovered_f1" not in summary


@every_baseline
def test_best_round_is_the_candidate_with_the_best_validation_ndcg(tmp_path: Path, name: str) -> None:
    """Every candidate is a round; of equal ones the latest is taken, and its ranks are the run's."""
    summary = fitted(tmp_path / "run", name)

    lines = lines_of(tmp_path / "run")
    assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
    assert summary["rounds"] == len(lines)
    best = max(lines, key=lambda line: (line["val"]["ndcg"], line["round"]))
    assert summary["best_round"] == best["round"]
    assert summary["test"]["own"]["sampled"]["hr@10"] == best["test"]["hr"]
    assert summary["test"]["own"]["sampled"]["ndcg@10"] == best["test"]["ndcg"]


@every_baseline
def test_figures_follow_from_the_ranks(tmp_path: Path, name: str) -> None:
    """There is one view, told as own and as shared; candidates are the scenario's."""
    summary = fitted(tmp_path / "run", name)
    scenario = a_scenario(N_USERS)

    with np.load(tmp_path / "run" / "ranks.npz", allow_pickle=False) as ranks:
        assert ranks["user_keys"].tolist() == list(scenario.data.user_keys)
        for ranking, most in (("sampled", 99), ("full", scenario.data.n_items - 1)):
            own = ranks[f"own_{ranking}"]
            np.testing.assert_array_equal(own, ranks[f"shared_{ranking}"])
            assert own.shape == (N_USERS,)
            assert 0 <= own.min() <= own.max() <= most
            for view in ("own", "shared"):
                for k in (5, 10, 20):
                    metrics = metrics_from_ranks(own, k)
                    figures = summary["test"][view][ranking]
                    assert (figures[f"hr@{k}"], figures[f"ndcg@{k}"]) == (metrics.hr, metrics.ndcg)
    with np.load(tmp_path / "run" / "candidates.npz", allow_pickle=False) as candidates:
        np.testing.assert_array_equal(candidates["val"], scenario.val)
        np.testing.assert_array_equal(candidates["test"], scenario.test)


@every_baseline
def test_same_options_give_the_same_files(tmp_path: Path, name: str) -> None:
    """But for the times."""
    first, second = (fitted(tmp_path / out, name) for out in ("one", "two"))

    assert timeless(first) == timeless(second)
    for file in ("ranks.npz", "candidates.npz", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = ([timeless(line) for line in lines_of(tmp_path / out)] for out in ("one", "two"))
    assert one == two


def test_popularity_is_the_plain_count(tmp_path: Path) -> None:
    """Its only candidate ranks by how many users have the item in training."""
    summary = fitted(tmp_path / "run", "popularity")
    scenario = a_scenario(N_USERS)

    expected = popularity_metrics(scenario.split, scenario.test)
    assert summary["rounds"] == summary["best_round"] == 1
    assert summary["test"]["own"]["sampled"]["hr@10"] == expected.hr
    assert summary["test"]["own"]["sampled"]["ndcg@10"] == expected.ndcg


@every_baseline
@pytest.mark.parametrize("options", [{"mode": "buffered"}, {"encoding": "int8"}], ids=str)
def test_what_only_a_fleet_has_is_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """By the algorithm's name, before anything is written."""
    with pytest.raises(ParameterError, match=f"{name} has no fleet"):
        fitted(tmp_path / "run", name, **options)

    assert files_of(tmp_path / "run") == set()


def test_baseline_is_run_from_the_command_line(call: Call, tmp_path: Path) -> None:
    """With the figures of its summary, and a folder that is not overwritten by accident."""
    arguments = ["simulate", "--data", "synthetic", "--protocol", "clean", "--algorithm", "popularity"]
    done = call(*arguments, "--json", "--out", tmp_path / "run")

    assert done.code == 0, done.err
    assert files_of(tmp_path / "run") == RUN_FILES - {"model.npz"}
    printed = json.loads(done.out)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: printed[name] for name in summary} == summary
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert call(*arguments, "--out", tmp_path / "run").code != 0
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
