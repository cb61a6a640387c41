"""Updates that are killed or cut off by the power; ``scripts/prove updates`` does it a hundred times."""

from pathlib import Path

import pytest

from tests.integration.filelog import why_not
from tests.integration.updates import prove_kills, prove_power_cuts

_CANNOT = why_not()
watched = pytest.mark.skipif(_CANNOT is not None, reason=_CANNOT or "")


@pytest.mark.process
def test_device_that_is_killed_starts_with_what_works(tmp_path: Path) -> None:
    """And rolls back by itself what does not."""
    outcome = prove_kills(tmp_path, seed=4, kills=4)
    assert outcome.holds, str(outcome)
    assert outcome.rolled_back >= 1


@watched
@pytest.mark.process
def test_device_whose_power_is_cut_starts_with_what_works(tmp_path: Path) -> None:
    """At whatever moment of an update, with whatever part of the last writes."""
    outcome = prove_power_cuts(tmp_path / "sound", seed=2, count=5, sample=250)
    assert outcome.holds, str(outcome)
    careless = prove_power_cuts(tmp_path / "careless", seed=2, count=5, sample=250, careless=True)
    assert not careless.holds, "the proof would not see a missing sync"
