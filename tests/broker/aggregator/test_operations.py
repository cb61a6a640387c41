"""``edge-aggregator start`` under a service manager: what it tells, reads again and logs; its unit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import CONFIG_NAME
from broker.aggregator.unit import aggregator_unit
from broker.exit_codes import ExitCode
from tests.broker.aggregator.fleet import make_directory
from tests.brokers import HOST, PATIENCE_S, RunningBroker
from tests.edge.managers import Manager
from tests.edge.test_unit import MOST_EXPOSED, exposure

COMMAND = [sys.executable, "-m", "broker.aggregator.cli", "start"]


@pytest.fixture
def path(tmp_path: Path, mosquitto: RunningBroker) -> Path:
    """Give a directory that joins a broker."""
    return make_directory(tmp_path / "a", AggregatorConfig(fleet="shop", broker=mosquitto.url))


@pytest.mark.mqtt
@pytest.mark.process
def test_systemd_hears_ready_reload_watchdog_and_stop(path: Path, tmp_path: Path) -> None:
    """And every line of the log is a JSON object with time, level and message."""
    with tempfile.TemporaryDirectory() as folder, Manager(Path(folder) / "notify") as manager:
        log = tmp_path / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*COMMAND, "--dir", str(path), "--log-format", "json"],
                stderr=stderr,
                env=os.environ | manager.environment(watchdog_s=2.0),
            )
        try:
            manager.hear("READY=1")
            manager.hear("STATUS=version 0, connected")
            manager.hear("WATCHDOG=1")
            config = path / CONFIG_NAME
            config.write_text(
                config.read_text().replace("buffer = 32", "buffer = 8").replace('"fedbuff"', '"fedavg"')
            )
            process.send_signal(signal.SIGHUP)
            manager.hear("RELOADING=1")
            manager.hear("READY=1")
            process.send_signal(signal.SIGTERM)
            manager.hear("STOPPING=1")
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    (served,) = [line for line in lines if line.get("event") == "connected"]
    assert (served["level"], served["version"]) == ("info", 0)
    said = [line["message"] for line in lines]
    assert "the settings were read again; strategy changes with the next start only" in said


@pytest.mark.mqtt
@pytest.mark.process
def test_port_of_metrics_that_is_taken_ends_it_with_its_code(path: Path, mosquitto: RunningBroker) -> None:
    """The broker has it."""
    found = subprocess.run(
        [*COMMAND, "--dir", str(path)],
        env=os.environ | {"PFEDREC_METRICS_PORT": str(mosquitto.port)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert found.returncode == ExitCode.ADDRESS_IN_USE
    assert f"the metrics cannot be served at {HOST}:{mosquitto.port}" in found.stderr


@pytest.mark.process
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd; apt-get install systemd")
@pytest.mark.parametrize("user", [None, "root"])
def test_systemd_finds_the_unit_right_and_hardly_exposed(tmp_path: Path, user: str | None) -> None:
    """No warning, and at most 3.0 of 10, in both forms."""
    directory = Path("/var/lib/pfedrec-shop") if user is None else tmp_path
    unit = tmp_path / "pfedrec-aggregator.service"
    unit.write_text(aggregator_unit(directory, AggregatorConfig(fleet="shop"), user).text())
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert exposure(unit) <= MOST_EXPOSED
