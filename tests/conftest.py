"""Fixtures that more than one folder of tests needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import KINDS, RunningBroker

every_kind = [pytest.param(kind, marks=pytest.mark.mqtt) for kind in KINDS]


@pytest.fixture(scope="session", params=every_kind)
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """Give a broker of each kind that all tests share; they keep apart by their topics and client ids."""
    with RunningBroker(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(params=every_kind)
def mortal_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningBroker]:
    """Give a broker of each kind that the test may kill and start again."""
    with RunningBroker(request.param, tmp_path / "broker") as running:
        yield running


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    """Give a mosquitto of the test's own, for what amqtt does not do."""
    with RunningBroker("mosquitto", tmp_path / "broker") as running:
        yield running
