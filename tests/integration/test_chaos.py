"""SIGKILL for everything that serves a fleet of live devices; ``scripts/prove chaos`` does it 300 times."""

from pathlib import Path

import pytest

from tests.brokers import require
from tests.integration.chaos import Store, chaos
from tests.postgres import programs

pytestmark = [pytest.mark.mqtt, pytest.mark.process]


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_fleet_outlives_kills_of_all_that_serves_it(store: Store, tmp_path: Path) -> None:
    """Broker and aggregator; or broker, workers and the database. So many devices that there is a guard."""
    require("mosquitto")
    if store == "postgresql" and programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")

    outcome = chaos(tmp_path / "fleet", store=store, kills=8, devices=60, seed=1)

    assert outcome.holds, str(outcome)
