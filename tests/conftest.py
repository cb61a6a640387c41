"""Fixtures that more than one folder of tests needs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.brokers import KINDS, SLOWNESS, RunningBroker
from tests.postgres import Cluster, programs, running_cluster

# The machine that tests run on may be busy; what they wait for is trained all the same.
os.environ["PFEDREC_TRAINING_MAX_LOAD_PER_CORE"] = "0"
# Tests start aggregators at brokers that they know, hundreds of times; trying them out has tests of its own.
os.environ["PFEDREC_TRY_BROKER"] = "false"
# A shell starts background jobs with Ctrl-C ignored, and children inherit that; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing about the code where the machine is that slow.
settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if SLOWNESS > 1.0:
    settings.load_profile("slow machine")

every_kind = [pytest.param(kind, marks=pytest.mark.mqtt) for kind in KINDS]


@pytest.fixture(scope="session")
def shared_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Give a mosquitto that all tests share; they keep apart by their topics and client ids."""
    with RunningBroker("mosquitto", tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a PostgreSQL that all tests share; each makes a store of its own in it."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with running_cluster() as running:
        yield running


@pytest.fixture(params=every_kind)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningBroker]:
    """Give a broker of each kind; it may be that of other tests, too."""
    if request.param == "mosquitto":
        yield request.getfixturevalue("shared_mosquitto")
        return
    # amqtt delivers everybody's retained messages to everybody, and drops a client that connects while
    # another one subscribes or leaves: tests that share it would disturb each other.
    with RunningBroker(request.param, tmp_path / "broker") as running:
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
