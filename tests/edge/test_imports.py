"""What a device loads: the project, the standard library and five packages, nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.scorer import available_scorer_name

PROJECT = {"edge", "broker", "trainer"}
DEPENDENCIES = {"numpy", "tflite_runtime", "ai_edge_litert", "paho", "click", "cbor2", "_cbor2"}
NEVER = (
    "tensorflow",
    "sqlalchemy",
    "tflite_runtime",
    "ai_edge_litert",
    "amqtt",
    "aiomqtt",
    "broker.aggregator",
    "broker.embedded",
    "edge.fleet",
    "firmware_tools",
)

LOADED = """
import sys
before = set(sys.modules)
{code}
import json
new = {name: module for name, module in sys.modules.items() if name not in before}
print(json.dumps(sorted(name for name, module in new.items() if getattr(module, "__file__", None))))
"""
"""Modules without a file are made in memory, for example by Cython for those of numpy."""

LIFE = """
import sys, threading
from pathlib import Path
import numpy as np
from broker.errors import AttentionError
from broker.protocol.messages import Head, Plan
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes
from edge.agent import Agent
from edge.cli import cli
from edge.config import load_config, open_store
directory = sys.argv[1]
def call(command, *arguments):
    cli.main([command, "--dir", directory, *arguments], standalone_mode=False)
call("init", "--device-id", "a", "--fleet", "b", "--broker", "mqtt://127.0.0.1:1")
store = open_store(Path(directory))
keys, table = ("x", "y", "z"), np.eye(3, 2, dtype=np.float32)
plan = Plan(
    lr=0.1, item_lr=1.0, negatives=1, batch_size=4, encoding="int8", check_in_s=1.0, max_idle_passes=1
)
head = Head(
    instance=1, session=1, version=0, rows=3, dim=2, sha256=sha256(table_bytes(table)), slot=0, chunks=1,
    catalogue_rows=3, catalogue_chunks=1, catalogue_bytes=6, catalogue_sha256=sha256(catalogue_bytes(keys)),
    plan=plan, w=np.ones(2, dtype=np.float32), b=0.0,
)
store.replace_model(head, table, keys)
sys.stdout, printed = sys.stderr, sys.stdout
call("record", "x")
stop = threading.Event()
config = load_config(Path(directory), {"PFEDREC_TRAINING_MAX_LOAD_PER_CORE": "0"})
failed = []
def each_round():
    if failed and store.personal() is not None:
        stop.set()
Agent(config, store, failed.append, np.random.default_rng(1)).run(stop, each_round)
call("recommend", "--json")
call("status")
call("install-service", "--user", "root", "--print")
try:
    call("doctor")
except AttentionError:
    pass  # the broker is away
store.close()
sys.stdout = printed
"""
"""A short life without a broker: every command, a local pass, and a failed connection."""


def loaded_by(code: str, *arguments: str) -> list[str]:
    """Run code in a fresh interpreter; give the modules that it loads."""
    found = subprocess.run(
        [sys.executable, "-c", LOADED.replace("{code}", code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    modules: list[str] = json.loads(found.stdout)
    return modules


def foreign(modules: list[str], allowed: set[str]) -> set[str]:
    """Give the top-level names that are neither standard nor allowed."""
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - allowed


@pytest.mark.process
@pytest.mark.parametrize("module", ["edge.cli", "edge.agent"])
def test_import_loads_nothing_heavy(module: str) -> None:
    """TFLite, too, is loaded by whoever scores, and not before."""
    modules = loaded_by(f"import {module}")
    assert module in modules
    assert [name for name in modules if name.startswith(NEVER)] == []
    assert foreign(modules, PROJECT | DEPENDENCIES) == set()


@pytest.mark.process
def test_command_line_loads_no_numbers() -> None:
    """So that `--help` and a wrong option answer at once on a small board."""
    assert foreign(loaded_by("import edge.cli"), PROJECT | {"click"}) == set()


@pytest.mark.process
def test_whole_life_of_a_device_loads_only_its_five_dependencies(tmp_path: Path) -> None:
    """Every command, a pass and a connection."""
    modules = loaded_by(LIFE, str(tmp_path / "me"))
    assert {"edge.agent", "edge.store", "edge.recommendation", "paho.mqtt.client"} <= set(modules)
    runtimes = ("tflite_runtime", "ai_edge_litert")
    never = tuple(name for name in NEVER if name not in runtimes)
    assert [name for name in modules if name.startswith(never)] == []
    assert foreign(modules, PROJECT | DEPENDENCIES) == set()
    if available_scorer_name() == "tflite":
        assert any(name.startswith(runtimes) for name in modules)
