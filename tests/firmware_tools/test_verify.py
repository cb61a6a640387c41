"""``firmware-tools verify``: programs agree, and what 8 bits cost, on a run's files made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from broker.errors import AttentionError, CorruptError, DataError, FileUnreadableError
from edge.scorer import available_scorer_name
from firmware_tools.cli import cli
from firmware_tools.convert import CONVERSIONS
from firmware_tools.verification import Agreement, Ranking, Verdict, read_run
from tests.firmware_tools.baked import DIM, ITEMS, baked, baked_table, baked_users
from tests.firmware_tools.core import needs_compiler

needs_tflite = pytest.mark.skipif(
    available_scorer_name() != "tflite", reason="no TFLite runtime is installed: pip install tflite-runtime"
)


def a_run(folder: Path, view: str = "taste") -> Path:
    """Write what a run with --save-users leaves: users whose held-out item their own view ranks high."""
    table, (W, b) = baked_table(), baked_users()
    rng = np.random.default_rng(2)
    n_users = len(W)
    users = {"own_indptr": np.zeros(n_users + 1, dtype=np.int64), "own_rows": np.empty(0, dtype=np.int64)}
    arrays: dict[str, Any] = {**users, "own_values": np.empty((0, DIM), dtype=np.float32)}
    taste = rng.standard_normal((n_users, DIM), dtype=np.float32)
    if view == "taste":
        arrays["shift"] = (taste @ table.T).astype(np.float32)
        own = (W + taste) @ table.T
    else:
        rows = np.stack([np.sort(rng.choice(ITEMS, 5, replace=False)) for _ in range(n_users)])
        values = rng.standard_normal((n_users, 5, DIM), dtype=np.float32)
        arrays["own_indptr"] = np.arange(0, 5 * n_users + 1, 5)
        arrays |= {"own_rows": rows.ravel(), "own_values": values.reshape(-1, DIM)}
        own = W @ table.T
        for user in range(n_users):
            own[user, rows[user]] = values[user] @ W[user]
    # The held-out item is the one in the tenth place of all: among 20 candidates mostly a hit.
    order = np.argsort(-own, axis=1)
    test = np.concatenate((order[:, 9:10], order[:, 20:39]), axis=1)
    folder.mkdir()
    np.savez(folder / "model.npz", E=table, item_keys=np.array([str(row) for row in range(ITEMS)]))
    np.savez(folder / "users.npz", user_keys=np.arange(n_users).astype(str), W=W, b=b, **arrays)
    np.savez(folder / "candidates.npz", val=test, test=test)
    return folder


def verify(run: Path, *options: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["verify", "--run", str(run), *map(str, options)])


@needs_compiler
@needs_tflite
@pytest.mark.parametrize("view", ["taste", "rows"])
def test_programs_agree_and_own_views_are_ranked(view: str, tmp_path: Path) -> None:
    """Each user's held-out item comes first among its candidates in floats, nearly so in integers."""
    done = verify(a_run(tmp_path / "run", view), "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["users"] == 30
    assert facts["programs"]["tflite"]["difference"] < 1e-6
    assert facts["programs"]["c"]["difference"] < 1e-6
    assert facts["programs"]["c"]["integers_exact"] is True
    assert facts["rankings"]["float32"]["hr@10"] == 1.0
    assert facts["rankings"]["float32"]["ndcg@10"] == 1.0
    assert facts["rankings"]["float32"]["top10_overlap"] == 1.0
    assert facts["rankings"]["int8"]["top10_overlap"] > 0.95
    told = verify(tmp_path / "run").stdout
    assert "integers as the reference" in told
    assert "(+0.00 points)" in told


@needs_compiler
@needs_tflite
def test_baked_models_are_ranked_beside_the_others(tmp_path: Path) -> None:
    """Of every kind; inputs and outputs in integers too."""
    files = []
    for conversion in CONVERSIONS:
        files += ["--tflite", tmp_path / f"{conversion}.tflite"]
        (tmp_path / f"{conversion}.tflite").write_bytes(baked(conversion))
    facts = json.loads(verify(a_run(tmp_path / "run", "rows"), *files, "--json").stdout)
    overlaps = {Path(name).stem: ranking["top10_overlap"] for name, ranking in facts["rankings"].items()}
    assert overlaps["float32"] == 1.0
    assert overlaps["float16"] > 0.98
    assert overlaps["dynamic"] > 0.9
    assert overlaps["int8"] > 0.85


@needs_compiler
@needs_tflite
def test_model_that_is_no_scorer_of_the_catalogue_is_refused(tmp_path: Path) -> None:
    """Damaged; or of other items."""
    run = a_run(tmp_path / "run")
    (tmp_path / "x.tflite").write_bytes(baked("float32")[:100])
    assert isinstance(verify(run, "--tflite", tmp_path / "x.tflite").exception, CorruptError)
    np.savez(run / "model.npz", E=baked_table()[:, :3], item_keys=np.arange(ITEMS).astype(str))
    assert isinstance(verify(run).exception, DataError)


@pytest.mark.parametrize("name", ["model.npz", "users.npz", "candidates.npz"])
def test_run_without_a_file_or_with_another_is_refused(name: str, tmp_path: Path) -> None:
    """The sentence names it."""
    run = a_run(tmp_path / "run")
    (run / name).write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=name):
        read_run(run)
    (run / name).unlink()
    with pytest.raises(FileUnreadableError, match=name):
        read_run(run)


def test_users_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Candidates of another catalogue."""
    run = a_run(tmp_path / "run")
    np.savez(run / "candidates.npz", val=np.full((30, 5), ITEMS), test=np.full((30, 5), ITEMS))
    with pytest.raises(DataError, match="do not fit"):
        read_run(run)


def test_verdict_refuses_what_differs_or_costs_too_much() -> None:
    """Programs by a millionth; integers by the limit."""
    floats = Ranking(name="float32", hr=0.7, ndcg=0.4, overlap=1.0)
    integers = Ranking(name="int8", hr=0.69, ndcg=0.4, overlap=0.9)
    alike = Agreement(program="c", difference=1e-7, exact=True)
    Verdict(n_users=9, agreements=[alike], rankings=[floats, integers]).require(1.1)
    with pytest.raises(AttentionError, match=r"1\.00 points"):
        Verdict(n_users=9, agreements=[alike], rankings=[floats, integers]).require(0.5)
    for wrong in (
        Agreement(program="c", difference=1e-7, exact=False),
        Agreement(program="tflite", difference=2e-6),
    ):
        with pytest.raises(AttentionError, match=wrong.program):
            Verdict(n_users=9, agreements=[alike, wrong], rankings=[floats, integers]).require(5.0)
