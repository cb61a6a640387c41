"""The short form of the hostile proof; `scripts/prove hostile` is the long one."""

from pathlib import Path

import pytest

from tests.brokers import require
from tests.integration import hostile


@pytest.mark.process
@pytest.mark.mqtt
def test_hostile_messages_are_refused_by_name_and_honest_devices_are_counted(tmp_path: Path) -> None:
    """A few thousand of every kind; what is asserted stands in `hostile`."""
    require("mosquitto")
    outcome = hostile.run(tmp_path, 3_000, seed=2)
    assert {"malformed", "schema", "transfer"} <= set(outcome.refused)
    assert outcome.verdicts["rejected"] > 0
    assert outcome.verdicts["duplicate"] > 0
