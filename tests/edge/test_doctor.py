"""``edge-client doctor``: every finding with its remedy, from real files and processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.embedded import free_port
from broker.exit_codes import ExitCode
from broker.findings import Finding, Level
from broker.probe import Answer
from edge import findings
from edge.config import CONFIG_NAME, DATABASE_NAME
from edge.findings import EARLIEST
from edge.guards import Limits
from tests.brokers import HOST, RunningBroker, ScriptedBroker
from tests.edge.builders import ITEM_KEYS, a_head, a_table
from tests.edge.running import RunningCommand, a_directory, looking_at, told, wait_until

CHECKS = [
    "versions",
    "settings",
    "permissions",
    "database",
    "clock",
    "disk",
    "memory",
    "broker",
    "certificates",
    "scorer",
]
NOW = 1_790_000_000.0


def examined(directory: Path, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Give the command's exit code, and its findings by their checks."""
    command = [sys.executable, "-c", "from edge.cli import main; main()", "doctor", "--dir", str(directory)]
    ended = subprocess.run(
        [*command, "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    assert "Traceback" not in ended.stderr
    told = json.loads(ended.stdout)
    assert [each["check"] for each in told["findings"]] == CHECKS
    problems = [each["check"] for each in told["findings"] if each["level"] == "problem"]
    assert told["ok"] is not bool(problems)
    if problems:
        sentence = f"edge-client: something must be done about: {', '.join(problems)}\n"
        assert ended.stderr == sentence
    return ended.returncode, {each["check"]: each for each in told["findings"]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device whose broker's port is closed."""
    return a_directory(tmp_path / "device", "shop", f"mqtt://{HOST}:{free_port()}")


@pytest.mark.process
@pytest.mark.mqtt
def test_healthy_device_needs_nothing(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """Whether or not ``start`` runs, whose connection is left alone; nothing is changed."""
    directory = a_directory(tmp_path / "device", "shop", mosquitto.url)
    with looking_at(directory) as store:
        store.replace_model(a_head(), a_table(), ITEM_KEYS)
        store.record([("bread", 1000.0)])
    before = (directory / DATABASE_NAME).read_bytes()
    code, found = examined(directory)
    assert code == ExitCode.OK
    assert found["broker"]["found"] == f"{mosquitto.url} takes this device"
    assert found["database"]["found"] == "sound; 1 interactions, table version 0"
    assert found["scorer"]["found"].startswith("numpy scores 6 items in ")
    assert found["certificates"]["found"] == ("no certificate of this device's own; heads may be unsigned")
    assert (directory / DATABASE_NAME).read_bytes() == before
    with RunningCommand("edge-client", "start", "--dir", str(directory)) as command:
        wait_until(lambda: bool(told(directory, "online")), "the connection")
        connection = told(directory, "connection")
        code, found = examined(directory)
        assert code == ExitCode.OK
        assert found["broker"]["found"] == f"start is connected to {mosquitto.url}"
        assert told(directory, "connection") == connection
        assert command.end() == 0


@pytest.mark.process
@pytest.mark.mqtt
def test_fleet_that_nobody_serves_there_is_a_note(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """As where its name is mistyped: `start` waits, and cannot know."""
    directory = a_directory(tmp_path / "device", "shpo", mosquitto.url)
    with RunningCommand("edge-client", "start", "--dir", str(directory)):
        wait_until(lambda: bool(told(directory, "online")), "the connection")
        code, found = examined(directory)
    assert code == ExitCode.OK
    assert found["broker"]["level"] == "note"
    assert "no table of fleet shpo" in found["broker"]["found"]
    assert "fleet" in found["broker"]["remedy"]


@pytest.mark.process
def test_every_check_is_made_whatever_is_wrong(directory: Path) -> None:
    """A damaged database, settings that are none and open to all: three problems at once."""
    path = directory / DATABASE_NAME
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(4096) + path.read_bytes()[8192:])
    (directory / CONFIG_NAME).write_text('device_id = "a"\nfleet = ""\n')
    (directory / CONFIG_NAME).chmod(0o644)
    code, found = examined(directory)
    assert code == ExitCode.ATTENTION
    assert found["database"]["level"] == "problem"
    assert "keeps what can be read" in found["database"]["remedy"]
    assert "the fleet name ''" in found["settings"]["found"]
    assert found["permissions"]["remedy"] == f"chmod 600 {directory}/config.toml"
    assert found["broker"]["level"] == "unchecked"


@pytest.mark.process
@pytest.mark.parametrize(
    ("damage", "words"), [("missing", "missing or empty"), ("newer", "a later release"), ("text", "damaged")]
)
def test_database_that_cannot_be_used(directory: Path, damage: str, words: str) -> None:
    """Missing, of a later release, or none."""
    path = directory / DATABASE_NAME
    match damage:
        case "missing":
            path.unlink()
        case "newer":
            with looking_at(directory) as store:
                store._connection.execute("PRAGMA user_version = 99")
        case _:
            path.write_text("this is no database, but long enough to be looked at " * 100)
    code, found = examined(directory)
    assert code == ExitCode.ATTENTION
    assert found["database"]["level"] == "problem"
    assert words in found["database"]["found"]


@pytest.mark.process
def test_password_that_others_may_read(tmp_path: Path) -> None:
    """It is a problem with a password, else a note."""
    for user, level in (("", "note"), ("me:secret@", "problem")):
        directory = a_directory(tmp_path / level, "shop", f"mqtt://{user}{HOST}:{free_port()}")
        (directory / CONFIG_NAME).chmod(0o640)
        _, found = examined(directory)
        assert found["permissions"]["level"] == level
        assert "secret" not in str(found)


@pytest.mark.process
def test_broker_that_refuses_is_not_one_that_is_away(directory: Path, tmp_path: Path) -> None:
    """Each has its remedy."""
    _, away = examined(directory)
    with ScriptedBroker(5) as scripted:
        other = a_directory(tmp_path / "other", "shop", str(scripted.address))
        _, refused = examined(other)
    assert "start the broker" in away["broker"]["remedy"]
    assert "user name and password" in refused["broker"]["remedy"]


@pytest.mark.process
def test_broker_that_does_not_answer_costs_ten_seconds_at_most(tmp_path: Path) -> None:
    """It takes connections, and says nothing."""
    with socket.create_server((HOST, 0)) as listener:
        address = f"mqtt://{HOST}:{listener.getsockname()[1]}"
        directory = a_directory(tmp_path / "device", "shop", address)
        began = time.monotonic()
        examined(tmp_path / "device", PFEDREC_BROKER=f"mqtt://{HOST}:{free_port()}")
        usual_s = time.monotonic() - began
        began = time.monotonic()
        code, found = examined(directory)
        asked_s = time.monotonic() - began
    assert code == ExitCode.ATTENTION
    assert found["broker"]["found"] == "what listens there says nothing"
    assert asked_s < 2 * usual_s + 12.0  # on a slow processor all else takes its time, too


@pytest.mark.process
def test_clock_behind_the_newest_interaction(directory: Path) -> None:
    """As after a power cut, on a board without a battery for its clock."""
    with looking_at(directory) as store:
        store.record([("bread", time.time() + 86400.0 * 30)])
    code, found = examined(directory)
    assert code == ExitCode.ATTENTION
    assert "30 days behind the newest recorded interaction" in found["clock"]["found"]


@pytest.mark.process
def test_people_read_the_remedy_below_the_finding(directory: Path) -> None:
    """And the sentence on stderr names the checks."""
    with RunningCommand("edge-client", "doctor", "--dir", str(directory)) as command:
        assert command.wait() == ExitCode.ATTENTION
        assert command.lines == ["edge-client: something must be done about: broker"]


# -- judgements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (findings.clock(3600.0, None, synchronised=None), Level.PROBLEM, "is not today"),
        (findings.clock(NOW, NOW + 60.0, synchronised=True), Level.OK, "synchronised"),
        (findings.clock(NOW, NOW + 7200.0, synchronised=True), Level.PROBLEM, "2 hours behind"),
        (findings.clock(NOW, NOW, synchronised=False), Level.NOTE, "not synchronised"),
        (findings.disk(10.0, 1.0), Level.PROBLEM, "10 MB free"),
        (findings.disk(100.0, 1.0), Level.NOTE, "100 MB free"),
        (findings.disk(500.0, 400.0), Level.PROBLEM, "400.0 MB"),
        (findings.memory(None, 1.0, Limits()), Level.UNCHECKED, "does not tell"),
        (findings.memory(40.0, 1.0, Limits()), Level.NOTE, "passes wait"),
        (findings.memory(40.0, 20.0, Limits()), Level.PROBLEM, "20.0 MB"),
        (findings.memory(60.0, 1.0, Limits()), Level.OK, "60 MB"),
        (findings.scorer("numpy", 900.0, 10), Level.NOTE, "in 900 ms"),
        (findings.versions({"Python": "3.11.2", "SQLite": "3.7.17"}), Level.PROBLEM, "SQLite 3.7.17"),
        (findings.versions({"Python": "3.11.2", "numpy": None}), Level.PROBLEM, "not installed: numpy"),
        (
            findings.permissions("/d", [], ["lock"], "pi", 0o600, secret=False),
            Level.PROBLEM,
            "lock and the directory, pi's",
        ),
        (
            findings.permissions("/d", ["/d"], [], "pi", 0o600, secret=False),
            Level.PROBLEM,
            "cannot be written",
        ),
        (findings.permissions("/d", [], [], "pi", 0o600, secret=True), Level.OK, "alone"),
    ],
)
def test_judgement(finding: Finding, level: Level, words: str) -> None:
    """What asks for something says what."""
    assert finding.level is level
    assert words in finding.found
    assert bool(finding.remedy) is (level in (Level.NOTE, Level.PROBLEM))


@pytest.mark.parametrize(
    "outcome", ["refuses", "busy", "closed", "unreachable", "unnamed", "silent", "foreign"]
)
def test_every_failure_of_the_broker_has_a_remedy_of_its_own(outcome: Any) -> None:
    """Told apart."""
    found = findings.broker(Answer(outcome=outcome, reason="so"))
    assert found.level is Level.PROBLEM
    assert found.remedy


@given(
    now=st.floats(-1e12, 1e12, allow_nan=False),
    newest=st.none() | st.floats(-1e12, 1e12, allow_nan=False),
    synchronised=st.sampled_from([None, True, False]),
)
def test_clock_is_never_right_before_its_time(
    now: float,
    newest: float | None,
    synchronised: bool | None,  # noqa: FBT001
) -> None:
    """Nor behind what was recorded; and no time of day is too strange to be judged."""
    found = findings.clock(now, newest, synchronised=synchronised)
    if now < EARLIEST or (newest is not None and newest > now + 120.0):
        assert found.level is Level.PROBLEM
