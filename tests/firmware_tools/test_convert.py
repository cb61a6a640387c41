"""The scorer model as TensorFlow builds it, and what a user without TensorFlow is told."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import firmware_tools.cli
from broker.errors import InputError, MissingExtraError
from broker.exit_codes import ExitCode
from edge.scorer import read_model
from firmware_tools.cli import cli
from firmware_tools.convert import CONVERSIONS, Conversion, build_baked, build_scorer
from firmware_tools.flatbuffer import read_graph
from tests.firmware_tools.baked import baked, baked_table, baked_users
from trainer.errors import ParameterError

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed; a device has none: pip install 'pfedrec-edge[firmware]'",
)


@pytest.fixture
def instant_build(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Let the command build these bytes, without TensorFlow."""
    model = b"a model"
    monkeypatch.setattr(firmware_tools.cli, "build_scorer", lambda: model)
    return model


@pytest.mark.tensorflow
@needs_tensorflow
def test_build_scorer_gives_the_shipped_file_every_time() -> None:
    """What ships can be built again, byte for byte."""
    assert build_scorer() == read_model()
    assert build_scorer() == read_model()


@pytest.mark.tensorflow
@needs_tensorflow
def test_build_writes_the_shipped_file_in_silence(tmp_path: Path) -> None:
    """The command in a process of its own: the same bytes, and nothing on stderr."""
    out = tmp_path / "scorer.tflite"
    done = subprocess.run(
        [sys.executable, "-c", "from firmware_tools.cli import main; main()", "build", "--out", str(out)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.read_bytes() == read_model()
    assert hashlib.sha256(read_model()).hexdigest() in done.stdout
    assert done.stderr == ""


@pytest.mark.tensorflow
@needs_tensorflow
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_baked_model_is_the_same_every_time_and_the_kept_one_runs(conversion: Conversion) -> None:
    """Of each kind; what tests without TensorFlow read was built like this."""
    table, users = baked_table(), baked_users()
    model = build_baked(table, conversion, users)
    assert model == build_baked(table, conversion, users)
    kept, built = read_graph(baked(conversion)), read_graph(model)
    assert [tensor.type for tensor in built.tensors] == [tensor.type for tensor in kept.tensors]


@pytest.mark.tensorflow
@needs_tensorflow
def test_int8_without_users_is_refused() -> None:
    """There is nothing to choose its scales by."""
    with pytest.raises(ParameterError, match="users"):
        build_baked(baked_table(), "int8")


def test_build_of_a_quantised_model_needs_a_table_and_int8_needs_users(tmp_path: Path) -> None:
    """Said before TensorFlow is looked for."""
    np.savez(tmp_path / "model.npz", E=baked_table())
    out = ("--out", str(tmp_path / "x.tflite"))
    without_table = CliRunner().invoke(cli, ["build", *out, "--quant", "float16"]).exception
    assert "--model" in str(without_table)
    options = ("--model", str(tmp_path / "model.npz"), "--quant", "int8")
    assert "--users" in str(CliRunner().invoke(cli, ["build", *out, *options]).exception)


def test_build_scorer_without_tensorflow_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error knows the extra."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError) as refusal:
        build_scorer()
    assert refusal.value.extra == "firmware"


def test_build_without_tensorflow_names_the_pip_command(tmp_path: Path) -> None:
    """One sentence, its exit code, and no file."""
    out = tmp_path / "scorer.tflite"
    code = "import sys; sys.modules['tensorflow'] = None; from firmware_tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.MISSING_EXTRA
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'pfedrec-edge[firmware]'" in done.stderr
    assert not out.exists()


def test_build_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    """The refusal names the way out."""
    out = tmp_path / "scorer.tflite"
    out.write_bytes(b"mine")
    refusal = CliRunner().invoke(cli, ["build", "--out", str(out)]).exception
    assert isinstance(refusal, InputError)
    assert "--force" in str(refusal)
    assert out.read_bytes() == b"mine"


def test_build_told_to_force_replaces_an_existing_file(tmp_path: Path, instant_build: bytes) -> None:
    """Asked for twice, done."""
    out = tmp_path / "scorer.tflite"
    out.write_bytes(b"mine")
    assert CliRunner().invoke(cli, ["build", "--out", str(out), "--force"]).exit_code == 0
    assert out.read_bytes() == instant_build


def test_build_told_json_prints_the_facts(tmp_path: Path, instant_build: bytes) -> None:
    """The digest is the one to pin."""
    out = tmp_path / "scorer.tflite"
    result = CliRunner().invoke(cli, ["build", "--out", str(out), "--json"])
    assert json.loads(result.stdout) == {
        "file": str(out),
        "bytes": len(instant_build),
        "sha256": hashlib.sha256(instant_build).hexdigest(),
    }


def test_build_help_has_an_example() -> None:
    """On lines of its own."""
    assert (
        "\n    firmware-tools build --out scorer.tflite\n"
        in CliRunner().invoke(cli, ["build", "--help"]).output
    )
