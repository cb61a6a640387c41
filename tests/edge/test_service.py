"""``start`` under a service manager: what it tells, what it reads again, what it writes to the journal."""

import os
import re
import signal
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from broker.embedded import free_port
from broker.exit_codes import ExitCode
from broker.supervisor import Supervisor
from edge.config import CONFIG_NAME, DATABASE_NAME
from tests.brokers import HOST, RunningBroker
from tests.edge.managers import Manager, monotonic_us, this_process
from tests.edge.running import RunningCommand, a_directory, told, wait_until


@pytest.fixture
def manager() -> Iterator[Manager]:
    """Give a manager; the path of a socket must be short."""
    with tempfile.TemporaryDirectory() as folder, Manager(Path(folder) / "notify") as made:
        yield made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Give a device whose broker is away."""
    return a_directory(tmp_path / "device", "serve", f"mqtt://{HOST}:{free_port()}")


def start(directory: Path, manager: Manager, watchdog_s: float | None = None) -> RunningCommand:
    """Start a device's process as systemd does."""
    environment = manager.environment(watchdog_s)
    return RunningCommand("edge-client", "start", "--dir", str(directory), stderr=None, **environment)


# -- the protocol ----------------------------------------------------------------------------------


def test_supervisor_says_what_the_protocol_wants(manager: Manager) -> None:
    """One datagram for each; a status only when it is another one, and in a line."""
    supervisor = Supervisor(manager.environment())
    supervisor.ready()
    supervisor.status("idle:\nwaiting")
    supervisor.status("idle:\nwaiting")
    before = monotonic_us()
    supervisor.reloading()
    supervisor.stopping()
    assert [manager.next() for _ in range(2)] == ["READY=1", "STATUS=idle: waiting"]
    reloading, moment = manager.next().split("\n")
    assert reloading == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= monotonic_us()
    assert manager.next() == "STOPPING=1"


def test_supervisor_is_alive_twice_in_each_span_of_the_watchdog(manager: Manager) -> None:
    """However often the loop goes round."""
    supervisor = Supervisor(manager.environment(10.0, this_process()))
    for moment in range(100, 116):
        supervisor.alive(float(moment))
    assert [manager.next() for _ in range(4)] == ["WATCHDOG=1"] * 4
    assert manager.is_silent_for(0.05)


@pytest.mark.parametrize(
    "changes",
    [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_PID": "1"}, {"NOTIFY_SOCKET": ""}],
)
def test_supervisor_without_a_watchdog_sends_no_pings(manager: Manager, changes: dict[str, str]) -> None:
    """None, a wrong one, or another process's."""
    Supervisor(manager.environment(1.0, this_process()) | changes).alive(5.0)
    assert manager.is_silent_for(0.05)


def test_supervisor_knows_the_abstract_namespace() -> None:
    """As systemd writes it: @ for the NUL."""
    with Manager(f"@pfedrec-test-{os.getpid()}") as manager:
        Supervisor(manager.environment()).ready()
        assert manager.next() == "READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "vsock:2:1234"])
def test_supervisor_that_nobody_hears_goes_on(address: str) -> None:
    """Nothing is raised."""
    supervisor = Supervisor({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    supervisor.ready()
    supervisor.alive(1.0)


def change(directory: Path, old: str, new: str) -> None:
    """Change a line of the settings."""
    path = directory / CONFIG_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# -- as a process ----------------------------------------------------------------------------------


@pytest.mark.process
def test_start_tells_its_manager_how_it_is(directory: Path, manager: Manager) -> None:
    """Ready though the broker is away; alive while it waits; stopping when it is told to."""
    with start(directory, manager, watchdog_s=0.5) as command:
        assert manager.next() == "READY=1"
        assert manager.hear("STATUS=") == "STATUS=idle: waiting for the first table; the broker is away"
        for _ in range(3):
            manager.hear("WATCHDOG=1")
        assert command.end(within_s=2.0) == 0
        manager.hear("STOPPING=1")


@pytest.mark.process
def test_start_that_hangs_falls_silent(directory: Path, manager: Manager) -> None:
    """The pings come from the loop that does the work: while that waits for a locked database, none do."""
    with start(directory, manager, watchdog_s=0.4) as command:
        manager.hear("WATCHDOG=1")
        with closing(sqlite3.connect(directory / DATABASE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            change(directory, 'quiet_hours = ""', 'quiet_hours = "00:00-12:00, 12:00-24:00"')
            command.send(signal.SIGHUP)
            manager.hear("RELOADING=1")
            manager.hear("READY=1")
            wait_until(lambda: manager.is_silent_for(1.0), "the silence")
            other.execute("ROLLBACK")
        manager.hear("WATCHDOG=1")
        assert command.end(within_s=2.0) == 0


@pytest.mark.process
def test_start_that_ends_by_itself_says_so(tmp_path: Path, manager: Manager) -> None:
    """Here its broker refuses it."""
    with socket.create_server((HOST, 0)) as server:
        directory = a_directory(tmp_path / "device", "serve", f"mqtt://{HOST}:{server.getsockname()[1]}")
        with start(directory, manager) as command:
            link, _ = server.accept()
            with link:
                link.recv(1000)
                link.sendall(bytes([0x20, 2, 0, 5]))
                manager.hear("STOPPING=1")
                assert command.wait() == ExitCode.REFUSED


@pytest.mark.process
def test_hangup_reads_the_settings_again(directory: Path, manager: Manager) -> None:
    """What can change does at once, what cannot is named, what is wrong changes nothing."""
    with start(directory, manager) as command:
        manager.hear("READY=1")
        change(directory, 'quiet_hours = ""', 'quiet_hours = "00:00-12:00, 12:00-24:00"')
        command.send(signal.SIGHUP)
        manager.hear("RELOADING=1\nMONOTONIC_USEC=")
        manager.hear("READY=1")
        command.hear("the settings were read again")
        manager.hear("STATUS=idle: quiet hours until")
        wait_until(lambda: "quiet hours" in str(told(directory, "reason")), "the reason")

        change(directory, 'fleet = "serve"', 'fleet = "other"')
        command.send(signal.SIGHUP)
        command.hear("the settings were read again; fleet changes with the next start only")

        change(directory, 'metered = "auto"', 'metered = "maybe"')
        command.send(signal.SIGHUP)
        command.hear("the settings stay as they were: ")
        assert command.end(within_s=2.0) == 0


@pytest.mark.process
@pytest.mark.mqtt
def test_hangup_keeps_the_connection(tmp_path: Path, mosquitto: RunningBroker, manager: Manager) -> None:
    """The status says another scorer, of the same session."""
    directory = a_directory(tmp_path / "device", "serve", mosquitto.url)
    with start(directory, manager) as command:
        wait_until(lambda: bool(told(directory, "online")), "the connection")
        before = told(directory, "connection")
        change(directory, 'scorer = "numpy"', 'scorer = "auto"')
        command.send(signal.SIGHUP)
        command.hear("the settings were read again")
        assert command.end(within_s=2.0) == 0
        assert told(directory, "connection") == before


@pytest.mark.process
def test_start_in_the_journal_marks_its_sentences(directory: Path, tmp_path: Path) -> None:
    """Notices, and the error that ends it."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        with RunningCommand(
            "edge-client", "start", "--dir", str(directory), stderr=file, JOURNAL_STREAM=stream
        ) as command:
            wait_until(lambda: "no broker answers" in log.read_text(), "the sentence")
            assert command.end(within_s=2.0) == 0
        with RunningCommand(
            "edge-client", "start", "--dir", str(tmp_path), stderr=file, JOURNAL_STREAM=stream
        ) as command:
            assert command.wait() == ExitCode.NOT_INITIALISED
    lines = log.read_text().splitlines()
    assert lines[0].startswith("<5>device pi-1 of fleet serve, broker mqtt://")
    assert lines[-2] == "<5>stopped"
    assert lines[-1].startswith("<3>edge-client: ")
    assert all(re.match(r"<[3-7]>", line) for line in lines)
