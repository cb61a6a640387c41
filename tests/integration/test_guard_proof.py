"""The guard's proof in short: generated fleets, one clean run and one of each poison."""

import pytest

from edge.fleet.scenario import Scenario, load_scenario
from tests.integration.guard import POISONS, UPDATES, run


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Give a fleet of 120."""
    return load_scenario("synthetic", "clean", 3, 120)


@pytest.mark.parametrize("poison", [None, *POISONS, UPDATES])
def test_poisoned_version_is_found_and_a_clean_one_is_not(scenario: Scenario, poison: str | None) -> None:
    """See `tests.integration.guard`."""
    trial = run(scenario, 1, poison, buffer=16, reports=16, versions=60)
    assert trial.passed, trial
