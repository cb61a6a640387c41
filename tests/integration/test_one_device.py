"""A device's short life with its installed commands, here. ``scripts/check-arm`` lets ARM live it, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.exit_codes import ExitCode
from edge.scorer import available_scorer_name
from tests.brokers import PATIENCE_S, RunningBroker
from tests.edge.running import RunningCommand, an_aggregator
from tests.integration.processes import environment

pytestmark = [pytest.mark.mqtt, pytest.mark.process]

ITEMS = ("item-01", "item-07", "item-20")


def one_device(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the proof's program."""
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.one_device", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=4.0 * PATIENCE_S,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )


def test_one_device_lives_until_an_update_is_accepted(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """It tells where it ran, what became of its update and what it recommends."""
    keys = [f"item-{row:02d}" for row in range(30)]
    times = ("--buffer", "1", "--check-in", "0.2s", "--max-idle-passes", "3")
    aggregator = an_aggregator(tmp_path / "aggregator", "abroad", keys, *times)
    scorer = available_scorer_name()
    serving = ("start", "--dir", str(aggregator), "--broker", mosquitto.url)
    with RunningCommand("edge-aggregator", *serving) as running:
        found = one_device("--broker", mosquitto.url, "--fleet", "abroad", "--scorer", scorer, *ITEMS)
        assert running.end() == ExitCode.OK
    assert (found.returncode, found.stderr) == (0, "")
    facts = json.loads(found.stdout)
    assert facts["scorer"] == scorer
    assert facts["receipts"]["accepted"] >= 1
    assert set(facts["recommended"]) < set(keys) - set(ITEMS)
    assert facts["pass_ms"] > 0.0


def test_one_device_that_cannot_live_says_why(tmp_path: Path) -> None:
    """A sentence and code 1; here the fleet has no name."""
    found = one_device("--broker", "mqtt://127.0.0.1:1", "--fleet", "no/name", *ITEMS)
    assert found.returncode == 1
    assert "no/name" in found.stderr
    assert "Traceback" not in found.stderr
