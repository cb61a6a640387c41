"""``firmware-tools inspect``: what it tells of the models that there are, and of damaged ones."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.errors import CorruptError, FileUnreadableError
from broker.protocol.modelfile import model_bytes
from edge.scorer import read_model
from firmware_tools.cli import cli
from firmware_tools.convert import CONVERSIONS, Conversion
from firmware_tools.flatbuffer import read_graph
from firmware_tools.inspection import facts_of, lines_of
from tests.firmware_tools import decoding
from tests.firmware_tools.baked import DIM, ITEMS, baked


def inspect(path: Path, *options: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, ["inspect", str(path), *options])


def test_shipped_scorer_is_told(tmp_path: Path) -> None:
    """Inputs of any size, two operators, nothing constant."""
    (tmp_path / "scorer.tflite").write_bytes(read_model())
    facts = json.loads(inspect(tmp_path / "scorer.tflite", "--json").stdout)
    assert facts["operators"] == ["FULLY_CONNECTED", "ADD"]
    assert {tuple(tensor["shape"]) for tensor in facts["inputs"]} == {(-1, -1), (1, -1), (1,)}
    assert facts["constant_bytes"] == 0
    told = inspect(tmp_path / "scorer.tflite").stdout
    assert "FLOAT32 ? x ?" in told
    assert "known at run time" in told


@pytest.mark.parametrize(
    ("conversion", "types", "constants"),
    [
        ("float32", {"FLOAT32"}, 4 * ITEMS * DIM),
        ("float16", {"FLOAT32", "FLOAT16"}, 2 * ITEMS * DIM),
        ("dynamic", {"FLOAT32", "INT8"}, ITEMS * DIM),
        ("int8", {"INT8"}, ITEMS * DIM),
    ],
)
def test_baked_model_is_told(conversion: Conversion, types: set[str], constants: int) -> None:
    """Types, constants, and the arena: the outputs of two operators at once, and the inputs still alive."""
    facts = facts_of(baked(conversion))
    assert {tensor["type"] for tensor in facts["tensors"]} == types
    assert facts["constant_bytes"] == constants
    size = 1 if conversion == "int8" else 4
    assert facts["arena_estimate_bytes"] >= 2 * size * ITEMS
    assert facts["outputs"][0]["shape"] == [1, ITEMS]
    assert ("zero" in lines_of(baked(conversion))["inputs"]) == (conversion == "int8")


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_model_of_the_c_core_is_told_and_checked(form: str, tmp_path: Path) -> None:
    """Its shape; and that any damage is named."""
    content = model_bytes(decoding.model(9, 5, integers=form == "int8"))
    (tmp_path / "model.pfr").write_bytes(content)
    facts = json.loads(inspect(tmp_path / "model.pfr", "--json").stdout)
    assert (facts["items"], facts["dim"], facts["quant"]) == (9, 5, form)
    assert f"9 items x 5, {form}" in inspect(tmp_path / "model.pfr").stdout
    for size in (10, 63, len(content) - 1):
        with pytest.raises(CorruptError):
            facts_of(content[:size])
    with pytest.raises(CorruptError, match="checksum"):
        facts_of(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptError, match="format"):
        facts_of(content[:4] + b"\x09" + content[5:])


def test_damaged_tflite_is_refused_by_name_or_read() -> None:
    """Thousands of damaged files: never anything but a `CorruptError`."""
    rng = random.Random(5)
    contents = [read_model(), *map(baked, CONVERSIONS)]
    refused = 0
    for _ in range(4000):
        content = bytearray(rng.choice(contents))
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.choice((0, 1, 4, 127, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        try:
            lines_of(bytes(content))
        except CorruptError:
            refused += 1
    assert refused > 200


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Another file; none at all."""
    (tmp_path / "notes").write_text("nothing here")
    assert isinstance(inspect(tmp_path / "notes").exception, CorruptError)
    assert isinstance(inspect(tmp_path / "missing").exception, FileUnreadableError)
    with pytest.raises(CorruptError):
        read_graph(b"")
