"""A board that QEMU plays, in a fleet through a gateway; `scripts/prove board` kills two of them 60 times."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.brokers import require
from tests.integration.board import SETTINGS, TARGET, built_firmware, kill_boards, missing

pytestmark = [pytest.mark.mqtt, pytest.mark.process, pytest.mark.mcu]


@pytest.mark.skipif(bool(missing()), reason=f"not installed: apt-get install {' '.join(TARGET.packages)}")
def test_board_records_trains_sends_and_receives_through_kills(tmp_path: Path) -> None:
    """Each of its updates is counted once, whatever of it and its gateway is killed; its answers change."""
    require("mosquitto")
    program = built_firmware(tmp_path / "firmware")
    settings = replace(SETTINGS, devices=1, max_idle_passes=2)

    outcome = kill_boards(tmp_path / "fleet", program, seed=19, kills=3, settings=settings)

    assert outcome.holds, str(outcome)
    assert set(outcome.when) == {"a board", "the gateway", "the gateway at a step"}
    [(first, last)] = outcome.best.values()
    assert len(first) == len(last) == 11
    assert first != last
