"""``firmware-tools export-c``: the project that it writes, built and compared with numpy on every board."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from broker.aggregator.decisions import ReplyReceipt, RoundSettings
from broker.errors import AttentionError, DataError, FileUnreadableError, InputError
from broker.protocol import messages
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Update
from broker.protocol.modelfile import model_bytes
from firmware_tools import measuring
from firmware_tools.c_export import Exported, Quantisation, export, make_model
from firmware_tools.cli import cli
from firmware_tools.golden import INSTANCE, PASSES, VERSION, make_golden
from firmware_tools.targets import TARGETS
from tests.broker.aggregator.builders import a_core
from tests.firmware_tools import core
from tests.firmware_tools.core import needs_compiler
from trainer.integers import QuantisedTable
from trainer.local import local_pass
from trainer.params import ScoreFunction
from trainer.sampling import NegativeSampler

BOARDS = [name for name in TARGETS if name != "host"]
FLASH_BUDGET, SCORING_RAM, LEARNING_RAM = 72 << 10, 4 << 10, 16 << 10


def a_table(rows: int = 120, dim: int = 8) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Give a table of N(0, 1)."""
    return np.random.default_rng(rows).standard_normal((rows, dim), dtype=np.float32)


def a_model_file(folder: Path, rows: int = 120, dim: int = 8) -> Path:
    """Write a model.npz."""
    keys = np.array([f"item-{row}" for row in range(rows)])
    np.savez(folder / "model.npz", E=a_table(rows, dim), item_keys=keys)
    return folder / "model.npz"


def command(*arguments: object) -> Result:
    """Run export-c."""
    return CliRunner().invoke(cli, ["export-c", *map(str, arguments)])


def files_of(folder: Path) -> dict[str, bytes]:
    """Give all files but what was built."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "build" not in path.relative_to(folder).parts and path.name != "report.json"
    }


def exported_for(board: str, quant: Quantisation, folder: Path, rows: int, vectors: int) -> Exported:
    """Export for a board, or skip the test where its tools are missing."""
    target = TARGETS[board]
    missing = target.missing_to_build() + target.missing_to_run()
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {' '.join(target.packages)}")
    model = make_model(a_table(rows, 32), quant)
    return export(folder / "board", model, target, vectors=vectors, force=False)


@pytest.mark.mcu
@pytest.mark.parametrize("board", BOARDS)
def test_board_computes_what_numpy_does(board: str, tmp_path: Path) -> None:
    """MovieLens 100K's shape in 8 bits: scores, a thousand rankings, ten passes; its update counts once."""
    exported = exported_for(board, "int8", tmp_path, 1682, 1000)
    measuring.build(exported)
    measured = measuring.run(exported)

    assert measured.facts["ranked_alike"] == measured.facts["ranked_vectors"] == 1000
    assert set(measured.instructions) == {"ranking", "logit", "pass", "update", "rows"}
    assert measured.scoring is not None
    assert measured.learning is not None
    assert measured.scoring.ram <= SCORING_RAM
    assert measured.learning.ram <= LEARNING_RAM
    if board == "m4f":
        assert measured.learning.flash <= FLASH_BUDGET
    require_counted(exported, measured.update)


def require_counted(exported: Exported, payload: bytes) -> None:
    """Give the update to an aggregator; compare it with the trainer's own."""
    golden, floats = exported.golden, exported.model.floats
    update = messages.decode(payload, Update)
    decoded = ENCODINGS[update.encoding].decode(update.body, *floats.shape)
    sampler = NegativeSampler.excluding(len(floats), golden.positives)
    stream = np.random.default_rng(2)
    after = ScoreFunction(w=exported.model.w, b=exported.model.b)
    for _ in range(PASSES):
        result = local_pass(floats, after, golden.positives, sampler, golden.hyperparameters, stream)
        after = result.score_function
    assert decoded.rows.tolist() == result.rows.tolist()
    # Each factor of each mini-batch is at most half a step off.
    reach = np.abs(result.coefficients).max(axis=1) * np.abs(result.vectors).max(axis=1)
    assert np.abs(decoded.change - result.change).max() <= reach.sum() / 127 + 1e-5

    core_ = a_core(RoundSettings(buffer=1), table=floats, version=VERSION)
    core_._state.instance = INSTANCE
    commands = core_.update_received("board", update, payload, 0.0)
    assert [c.receipt.verdict for c in commands if isinstance(c, ReplyReceipt)] == ["accepted"]
    moved = core_.table - floats
    np.testing.assert_allclose(moved[decoded.rows], decoded.change, atol=1e-5)
    assert not np.delete(moved, decoded.rows, axis=0).any()


@pytest.mark.mcu
@pytest.mark.parametrize("board", ["m4f"])
def test_board_computes_floats_as_numpy_does(board: str, tmp_path: Path) -> None:
    """A float table: rankings by keys of logits that are the same to the last bit."""
    exported = exported_for(board, "float32", tmp_path, 300, 200)
    measuring.build(exported)
    assert measuring.run(exported).facts["ranked_alike"] == 200


@pytest.mark.parametrize(
    ("board", "port"), [("m3", "mps2.c"), ("m7", "mps2.c"), ("cortex-m0", ""), ("host", "")]
)
def test_program_that_takes_part_comes_with_boards_that_have_its_lines(
    board: str, port: str, tmp_path: Path
) -> None:
    """`tests/integration/board.py` builds and runs it."""
    exported = export(tmp_path, make_model(a_table(20, 4), "int8"), TARGETS[board], vectors=1, force=True)
    there = files_of(exported.directory)
    assert ("fleet.c" in there) == (port in there) == (b"make fleet" in there["Makefile"]) == bool(port)


@pytest.mark.mcu
def test_model_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A float table of 2,100 items is larger than the micro:bit's flash."""
    exported = exported_for("cortex-m0", "float32", tmp_path, 2100, 8)
    with pytest.raises(InputError, match=r"does not fit cortex-m0 .* bytes of FLASH.*--items"):
        measuring.build(exported)


@pytest.mark.mcu
def test_board_that_disagrees_fails_its_self_test(tmp_path: Path) -> None:
    """One value of the model changed after the golden vectors were made."""
    exported = exported_for("m3", "int8", tmp_path, 200, 20)
    source = exported.directory / "model_data.c"
    changed = re.sub(r"(values\[.*\n +)(-?\d+)", lambda found: found[1] + "126", source.read_text(), count=1)
    source.write_text(changed)
    measuring.build(exported)
    with pytest.raises(AttentionError, match="NOT AS NUMPY"):
        measuring.run(exported)


@needs_compiler
@pytest.mark.parametrize("quant", ["int8", "float32"])
def test_command_exports_builds_and_reports(quant: str, tmp_path: Path) -> None:
    """On the host: the report as facts, as JSON, and in its file."""
    model = a_model_file(tmp_path)
    options = ("--model", model, "--quant", quant, "--vectors", 50)
    told = command(*options, "--out", tmp_path / "a")
    assert told.exit_code == 0, told.output
    assert "passed: scores within" in told.stdout
    again = command(*options, "--out", tmp_path / "b", "--json", "--no-build")
    assert json.loads(again.stdout)["self_test"] is None
    facts = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (facts["items"], facts["dim"], facts["quant"], facts["target"]) == (120, 8, quant, "host")
    assert facts["self_test"] == "passed"
    assert facts["vectors_ranked_alike"] == 50
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@needs_compiler
def test_exported_model_file_is_the_model(tmp_path: Path) -> None:
    """What model.pfr holds the core reads; --items keeps the first rows, --users gives the start."""
    model = a_model_file(tmp_path)
    W = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    np.savez(tmp_path / "users.npz", W=W, b=np.arange(5, dtype=np.float32))
    out = tmp_path / "out"
    options = ("--model", model, "--out", out, "--items", 40, "--users", tmp_path / "users.npz")
    assert command(*options, "--no-build", "--quant", "float32").exit_code == 0
    status, logits = core.decode_model((out / "model.pfr").read_bytes())
    assert status == core.OK
    expected = core.logits(a_table()[:40], W.mean(axis=0), 2.0)
    assert logits.tobytes() == expected.tobytes()
    assert json.loads((out / "report.json").read_text())["self_test"] is None


def test_small_catalogue_has_golden_vectors_too() -> None:
    """Two items: one positive, one item left to recommend."""
    golden = make_golden(make_model(a_table(2, 3), "int8"), 8, 100)
    assert golden.positives.size == 1
    assert golden.ranking_crcs.size == 8


def test_export_leaves_other_peoples_files_alone(tmp_path: Path) -> None:
    """A directory that holds something is refused, unless told to; then what is there stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    options = ("--model", a_model_file(tmp_path), "--out", tmp_path / "out", "--no-build")
    refused = command(*options)
    assert isinstance(refused.exception, InputError)
    assert "--force" in str(refused.exception)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert command(*options, "--force").exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"item_keys": np.zeros(3)}, "no model.npz"),
        ({"E": np.zeros((3, 2))}, "float64"),
        ({"E": np.zeros(3, dtype=np.float32)}, "shape"),
        ({"E": np.full((3, 2), np.nan, dtype=np.float32)}, "not finite"),
        ({"E": np.zeros((0, 2), dtype=np.float32)}, "shape"),
    ],
    ids=str,
)
def test_wrong_model_is_refused(
    arrays: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"], error: str, tmp_path: Path
) -> None:
    """By name, and nothing is written."""
    np.savez(tmp_path / "model.npz", **arrays)
    refused = command("--model", tmp_path / "model.npz", "--out", tmp_path / "out")
    assert isinstance(refused.exception, DataError)
    assert error in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_missing_or_too_few_items_are_refused(tmp_path: Path) -> None:
    """No file; more items than there are; users of another width."""
    assert isinstance(
        command("--model", tmp_path / "x.npz", "--out", tmp_path / "o").exception, FileUnreadableError
    )
    model = a_model_file(tmp_path)
    refused = command("--model", model, "--out", tmp_path / "o", "--items", 121)
    assert isinstance(refused.exception, InputError)
    np.savez(tmp_path / "users.npz", W=np.zeros((2, 9), dtype=np.float32), b=np.zeros(2, dtype=np.float32))
    refused = command("--model", model, "--out", tmp_path / "o", "--users", tmp_path / "users.npz")
    assert isinstance(refused.exception, DataError)


@pytest.mark.parametrize(
    "present", [(), ("make", "arm-none-eabi-gcc", "arm-none-eabi-size")], ids=["nothing", "compiler"]
)
def test_what_is_missing_is_said_and_the_project_is_written(
    present: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the board's tools: one sentence with the command that brings them, and code 0."""
    if present and TARGETS["m4f"].missing_to_build():
        pytest.skip(f"not installed: apt-get install {' '.join(TARGETS['m4f'].packages)}")
    found = {program: shutil.which(program) for program in (*present, "sh", "mkdir", "rm", "as", "ld")}
    tools = tmp_path / "bin"
    tools.mkdir()
    for program, path in found.items():
        if path is not None:
            (tools / program).symlink_to(path)
    monkeypatch.setenv("PATH", str(tools))
    done = command(
        "--model", a_model_file(tmp_path), "--out", tmp_path / "out", "--target", "m4f", "--vectors", 8
    )
    assert done.exit_code == 0, done.output
    assert "apt-get install gcc-arm-none-eabi" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "selftest.c").exists()
    assert ("bytes of flash" in done.stdout) == bool(present)


def test_quantised_model_stands_for_its_table() -> None:
    """The model's floats and mean are those of what the integers mean."""
    model = make_model(a_table(), "int8")
    assert isinstance(model.table, QuantisedTable)
    assert np.abs(model.floats - a_table()).max() < 0.02
    np.testing.assert_array_equal(model.mean, model.floats.mean(axis=0))
    assert model_bytes(model) == model_bytes(make_model(a_table(), "int8"))
