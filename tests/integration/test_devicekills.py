"""A device that is killed again and again; ``scripts/prove devicekills`` does it 300 times."""

from pathlib import Path

import pytest

from tests.brokers import require
from tests.integration.devicekills import everything_holds, kill_a_device
from tests.integration.evidence import opened
from tests.integration.kills import Recorder
from tests.integration.processes import Directories

pytestmark = [pytest.mark.mqtt, pytest.mark.process]


def test_device_outlives_kills_while_it_records_trains_sends_and_syncs(tmp_path: Path) -> None:
    """After each of them all promises hold; and the look sees one that does not."""
    require("mosquitto")
    outcome = kill_a_device(tmp_path / "fleet", seed=3, kills=6)
    assert outcome.holds, str(outcome)

    directories = Directories(tmp_path / "fleet", outcome.settings)
    recorder = Recorder(directories, 3)
    recorder.calls = list(outcome.calls)
    assert everything_holds(directories, recorder) == []
    with opened(directories.device_database("pi-1")) as database:
        database.execute("DELETE FROM interactions WHERE id = 1")
        database.execute("UPDATE receipts SET count = count + 1")
    broken = everything_holds(directories, recorder)
    assert any("left" in each for each in broken)
    assert any("receipts" in each for each in broken)
