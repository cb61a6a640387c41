"""SIGKILL at random and at chosen steps: nothing is lost, nothing counts twice.

``scripts/prove kills`` does the same at length, and at every step.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.embedded import BrokerKind
from tests.brokers import KINDS, require
from tests.integration.evidence import Call, findings, opened
from tests.integration.kills import random_kills
from tests.integration.processes import Directories, Settings
from tests.integration.sweep import SCENES, Scene, sweep

pytestmark = [pytest.mark.mqtt, pytest.mark.process]

SHORT = Settings(max_idle_passes=4)
BRIEF = [SCENES[0], SCENES[5]]
"""The device dies at its steps; all die at once at the aggregator's."""


@pytest.mark.parametrize("kind", KINDS)
def test_fleet_outlives_kills_at_random(kind: BrokerKind, tmp_path: Path) -> None:
    """Each of the four processes is killed three times while interactions are recorded."""
    require(kind)
    outcome = random_kills(tmp_path / "fleet", seed=1, kills=3, kind=kind, settings=SHORT)
    assert outcome.holds, "\n".join(map(str, outcome.findings))


@pytest.mark.parametrize("scene", BRIEF, ids=str)
def test_fleet_outlives_a_kill_at_any_step(scene: Scene, tmp_path: Path) -> None:
    """Some of all the steps that lie between two effects."""
    require("mosquitto")
    result = sweep(tmp_path, scene, "mosquitto", first=7, stride=23)
    assert result.holds, str(result)


Fleet = tuple[Directories, Sequence[Call]]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Give a fleet that came to rest without a kill, and was stopped."""
    require("mosquitto")
    settings = Settings(n_items=12, check_in_s=0.1, deadline_s=0.2, max_idle_passes=2)
    path = tmp_path_factory.mktemp("untouched") / "fleet"
    outcome = random_kills(path, seed=1, kills=0, kind="mosquitto", settings=settings)
    assert outcome.holds, "\n".join(map(str, outcome.findings))
    return Directories(path, settings), outcome.calls


@pytest.mark.parametrize(
    ("promise", "database", "forgery"),
    [
        ("1", "pi-1", "DELETE FROM interactions WHERE id = 1"),
        ("1", "pi-2", "INSERT INTO interactions (item, at) SELECT item, at FROM interactions LIMIT 1"),
        ("2", "aggregator", "DELETE FROM journal WHERE id = 2"),
        ("2", "aggregator", "UPDATE journal SET incarnation = '1' WHERE id = 1"),
        ("2", "aggregator", "UPDATE journal SET version = NULL WHERE id = 1"),
        ("2", "pi-1", "DELETE FROM witness_made WHERE seq = 1"),
        ("3a", "aggregator", "UPDATE journal SET verdict = 'stale', version = NULL WHERE id = 1"),
        ("3a", "pi-1", "INSERT INTO witness_settled (seq, verdict) VALUES (1, 'accepted')"),
        ("3b", "aggregator", "UPDATE versions SET updates = updates + 1 WHERE version = 1"),
        ("3c", "aggregator", "UPDATE journal SET staleness = staleness + 1, version = 2 WHERE id = 1"),
        ("4a", "aggregator", "UPDATE versions SET item_table = zeroblob(length(item_table))"),
        ("4a", "pi-2", "UPDATE model SET item_table = zeroblob(length(item_table))"),
        ("4b", "aggregator", "UPDATE versions SET sha256 = zeroblob(32) WHERE version = 1"),
        ("5", "pi-1", "INSERT INTO outbox (seq, payload) VALUES (1000000, x'00')"),
    ],
)
def test_evidence_tells_of_a_broken_promise(
    untouched: Fleet, tmp_path: Path, promise: str, database: str, forgery: str
) -> None:
    """What must not happen to a database is found."""
    directories, calls = untouched
    forged = directories.copy_to(tmp_path / "forged")
    path = forged.aggregator_database if database == "aggregator" else forged.device_database(database)
    with opened(path) as connection:
        connection.execute(forgery)
    broken = [finding.promise for finding in findings(forged, calls, []) if finding.broken]
    assert any(each.startswith(promise) for each in broken), broken
    shutil.rmtree(forged.path)


def test_evidence_tells_of_tracebacks_and_ends(untouched: Fleet, tmp_path: Path) -> None:
    """What the processes print and do counts, too."""
    directories, calls = untouched
    forged = directories.copy_to(tmp_path / "forged")
    [*_, conduct] = findings(forged, calls, ["pi-1 ended with 1 by itself"])
    assert conduct.broken == ["pi-1 ended with 1 by itself"]
    with (forged.logs / "pi-1.log").open("a") as log:
        log.write("Traceback (most recent call last):\n")
    [*_, conduct] = findings(forged, calls, [])
    assert "1 tracebacks" in conduct.broken[0]
