"""``edge-aggregator doctor``: each finding, its remedy, and the exit code."""

import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.aggregator.cli import cli
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import BROKER_NAME, CONFIG_NAME, DATABASE_NAME
from broker.aggregator.doctor import address_of, examine
from broker.aggregator.security import make_authority, secure_listener
from broker.embedded import free_port, own_broker
from broker.errors import AttentionError, NotInitialisedError
from broker.findings import Finding, Level
from tests.broker.aggregator.fleet import make_directory
from tests.broker.aggregator.old_database import DUMPS, restore
from tests.broker.aggregator.test_keeping import Shop
from tests.brokers import HOST, RunningBroker, require
from tests.edge.running import RunningCommand

NOW = datetime.now(UTC)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give the directory of a fleet that has its own broker."""
    return make_directory(tmp_path / "a", AggregatorConfig(fleet="shop"))


def found_in(directory: Path, now: datetime = NOW, **flags: object) -> dict[str, Finding]:
    """Give the findings by check."""
    return {each.check: each for each in examine(directory, {}, now, **flags)}


def problems(found: dict[str, Finding]) -> set[str]:
    """Name what something must be done about."""
    return {check for check, each in found.items() if each.level is Level.PROBLEM}


def test_new_directory_is_sound(directory: Path) -> None:
    """Its broker runs with `start` only; its files are its owner's alone."""
    found = found_in(directory)
    assert problems(found) == set()
    assert found["broker"].level is found["certificates"].level is Level.UNCHECKED
    assert (directory / DATABASE_NAME).stat().st_mode & 0o777 == 0o600
    assert "version 0" in found["store"].found


def test_directory_that_is_none_is_said(tmp_path: Path) -> None:
    """As by any other command."""
    with pytest.raises(NotInitialisedError):
        examine(tmp_path, {}, NOW)


def test_wrong_settings_are_a_finding(directory: Path) -> None:
    """The rest needs them."""
    (directory / CONFIG_NAME).write_text("buffer = 'many'\n")
    assert problems(found_in(directory)) == {"settings"}


def test_files_that_others_may_read_are_named(directory: Path) -> None:
    """With the command that mends it."""
    (directory / CONFIG_NAME).chmod(0o644)
    found = found_in(directory)
    assert problems(found) == {"permissions"}
    assert found["permissions"].remedy == f"chmod 600 {directory / CONFIG_NAME}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [CONFIG_NAME, DATABASE_NAME])
def test_files_of_another_user_than_the_directorys_are_named(directory: Path, name: str) -> None:
    """`start` as its owner could not read them."""
    for path in (directory, *directory.iterdir()):
        os.chown(path, 12345, 12345)
    assert problems(found_in(directory)) == set()
    os.chown(directory / name, 0, 0)

    found = found_in(directory)

    assert problems(found) == {"permissions"}
    assert name in found["permissions"].found
    assert found["permissions"].remedy == f"chown -R 12345: {directory}"


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("server.key", "keys renew"),
        ("aggregator.key", "keys renew"),
        ("server.pem", "keys renew"),
        ("aggregator.pem", "keys renew"),
        ("crl.pem", "backup"),
        ("head.key", "backup"),
        ("next-head.key", "backup"),
        ("head_key.pub", "backup"),
        ("ca.pem", "backup"),
        ("ca.key", "backup"),
    ],
)
def test_each_file_of_the_authority_is_looked_at(tmp_path: Path, file: str, remedy: str) -> None:
    """Whether it is there, can be read, and is of this authority: `start` or devices need it."""
    directory = make_directory(tmp_path / "a", AggregatorConfig(fleet="shop", secure=True))
    path = make_authority(directory, "shop", (), NOW).path
    other = make_authority(tmp_path / "other", "shop", (), NOW).path
    assert found_in(directory)["certificates"].level is Level.OK
    for content in ((other / file).read_bytes(), b"junk", None):
        if content is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(content)
        found = found_in(directory)["certificates"]
        if content is None and file == "ca.key":
            assert found.level is Level.OK, "it may live elsewhere"
            continue
        assert found.level is Level.PROBLEM
        assert remedy in found.remedy


def test_server_key_may_be_where_somebody_elses_broker_is(tmp_path: Path) -> None:
    """As docs/security.md has it installed."""
    config = AggregatorConfig(fleet="shop", secure=True, broker="mqtts://mq.example:8883")
    directory = make_directory(tmp_path / "a", config)
    authority = make_authority(directory, "shop", (), NOW)
    (authority.path / "server.key").unlink()
    assert found_in(directory)["certificates"].level is Level.OK


@pytest.mark.postgres
def test_remedy_goes_with_what_is_wrong_with_the_store(directory: Path) -> None:
    """A backup mends no server that is away."""
    found = found_in(directory, store="postgresql://nobody@127.0.0.1:1/none")["store"]
    assert found.level is Level.PROBLEM
    assert "start the database server" in found.remedy
    assert "backup" not in found.remedy


def test_damaged_and_contradicting_stores_are_problems(tmp_path: Path) -> None:
    """A journal that counts other updates than the versions; then no database at all."""
    shop = Shop(tmp_path / "a", AggregatorConfig(fleet="shop", buffer=4))
    shop.serve(5)
    directory = tmp_path / "a"
    assert problems(found_in(directory)) == set()
    with closing(sqlite3.connect(directory / DATABASE_NAME)) as other, other:
        other.execute("UPDATE versions SET updates = 7 WHERE version = 1")
    assert "fsck" in found_in(directory)["store"].remedy
    (directory / DATABASE_NAME).write_bytes(b"no database" * 100)
    assert problems(found_in(directory)) == {"store"}


@pytest.mark.mqtt
def test_database_of_an_earlier_release_is_a_note(directory: Path) -> None:
    """The next start brings it up to date; the doctor does not."""
    database = directory / "state.sqlite3"
    database.unlink()
    restore(DUMPS[-2].read_text(), database)
    before = database.read_bytes()

    found = found_in(directory)["store"]

    assert (found.level, "earlier release" in found.found) == ("note", True)
    assert database.read_bytes() == before


def test_secure_broker_is_tried_with_the_aggregators_certificate(tmp_path: Path) -> None:
    """Within the access rules; who has none is a stranger."""
    require("mosquitto")
    config = AggregatorConfig(fleet="shop", secure=True, port=free_port(HOST))
    directory = make_directory(tmp_path / "a", config)
    authority = make_authority(directory, "shop", (), NOW)
    with own_broker("mosquitto", HOST, config.port, directory / BROKER_NAME, secure_listener(authority)):
        found = found_in(directory, broker=str(address_of(directory, config)))
    assert problems(found) == set()
    assert "nobody is taken" in found["strangers"].found
    assert found["topics"].level is Level.OK
    assert found["queue"].level is Level.UNCHECKED, "its ids are the certificates' names"
    assert found["certificates"].level is Level.OK
    late = found_in(directory, NOW + timedelta(days=365 * 30))
    assert problems(late) == {"certificates"}
    assert "keys renew" in late["certificates"].remedy


@pytest.mark.mqtt
@pytest.mark.process
def test_command_tries_the_broker_while_start_runs(directory: Path, mosquitto: RunningBroker) -> None:
    """And beside it: findings as JSON, 50 when something must be done."""
    joined = ["--dir", str(directory), "--broker", mosquitto.url]
    with RunningCommand("edge-aggregator", "start", *joined) as running:
        running.hear("serving fleet")
        called = CliRunner().invoke(cli, ["doctor", *joined, "--json"])
    report = json.loads(called.stdout)
    assert report["ok"]
    assert {each["check"]: each["level"] for each in report["findings"]}["queue"] == "ok"
    (directory / CONFIG_NAME).chmod(0o666)
    called = CliRunner().invoke(cli, ["doctor", "--dir", str(directory)])
    assert "chmod 600" in called.output
    assert isinstance(called.exception, AttentionError)


@pytest.mark.mqtt
@pytest.mark.process
def test_broker_without_tls_is_not_taken_silently_for_another(tmp_path: Path) -> None:
    """A secure fleet has mosquitto, whatever was asked for."""
    require("mosquitto")
    config = AggregatorConfig(fleet="shop", secure=True, port=free_port(HOST))
    directory = make_directory(tmp_path / "a", config)
    make_authority(directory, "shop", (), NOW)
    with RunningCommand(
        "edge-aggregator", "start", "--dir", str(directory), "--broker", "embedded"
    ) as running:
        running.hear("the embedded broker speaks no TLS; mosquitto runs in its place")
        running.hear("serving fleet")
