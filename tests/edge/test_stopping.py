"""A device that is told to stop does so within two seconds, whatever it is in the middle of."""

import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from broker.errand import Errand
from tests.brokers import HOST, RunningBroker
from tests.edge.builders import a_head, a_plan
from tests.edge.managers import Manager
from tests.edge.running import (
    PlayedAggregator,
    RunningCommand,
    a_directory,
    looking_at,
    told,
    wait_until,
)

pytestmark = pytest.mark.process

FLEET = "stop"
WITHIN_S = 2.0
BUSY_WITHIN_S = 2 * WITHIN_S
"""For a pass that takes a whole processor: other tests want one, too. Alone it takes .6 to 1 s."""


def start(directory: Path) -> RunningCommand:
    """Start a device's process and wait for its first sentence."""
    command = RunningCommand("edge-client", "start", "--dir", str(directory))
    command.hear("device pi-1")
    return command


@pytest.mark.mqtt
def test_stop_in_the_middle_of_a_download(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """Chunks that never come are not waited for."""
    directory = a_directory(tmp_path / "device", FLEET, mosquitto.url)
    with PlayedAggregator(mosquitto, FLEET) as aggregator:
        aggregator.publish_head(a_head())
        with start(directory) as command:
            wait_until(lambda: told(directory, "activity") == "fetching", "the download")
            assert command.end(within_s=WITHIN_S) == 0


def a_long_pass(tmp_path: Path) -> Path:
    """Give a device whose next pass takes far longer than any test."""
    n_items, dim = 200_000, 64
    directory = a_directory(tmp_path / "device", FLEET, f"mqtt://{HOST}:1")
    table = np.zeros((n_items, dim), dtype=np.float32)
    keys = [f"item-{row}" for row in range(n_items)]
    plan = a_plan(negatives=60, batch_size=1024)
    with looking_at(directory) as store:
        store.replace_model(a_head(table=table, item_keys=keys, plan=plan), table, keys)
        store.record([(key, 1.0) for key in keys[:30_000]])
    return directory


def test_stop_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    """It leaves nothing, and is made again after the next start."""
    directory = a_long_pass(tmp_path)
    with start(directory) as command:
        wait_until(lambda: _seconds_of_work(command.pid) > 3.0, "the pass")
        assert command.end(within_s=BUSY_WITHIN_S) == 0
        assert command.lines[-1] == "stopped"
    with looking_at(directory) as store:
        assert store.personal() is None
        assert store.remembered().progress.trained_revision == 0


def test_watchdog_hears_of_a_pass_that_takes_long(tmp_path: Path) -> None:
    """A slow board is none that hangs: it would be ended and started again for ever."""
    directory = a_long_pass(tmp_path)
    with tempfile.TemporaryDirectory() as folder, Manager(Path(folder) / "notify") as manager:
        environment = manager.environment(watchdog_s=0.5)
        with RunningCommand(
            "edge-client", "start", "--dir", str(directory), stderr=None, **environment
        ) as command:
            wait_until(lambda: _seconds_of_work(command.pid) > 3.0, "the pass")
            manager.forget()
            for _ in range(4):
                manager.hear("WATCHDOG=1")
            command.send(signal.SIGHUP)
            manager.hear("RELOADING=1")
            manager.hear("READY=1")
            assert command.end(within_s=BUSY_WITHIN_S) == 0


def _seconds_of_work(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_stop_while_the_broker_s_machine_does_not_answer(tmp_path: Path) -> None:
    """An attempt to connect hangs: the backlog of who listens is full, so its SYN is dropped."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex((HOST, port))
        directory = a_directory(tmp_path / "device", FLEET, f"mqtt://{HOST}:{port}")
        with start(directory) as command:
            wait_until(lambda: _is_connecting(command.pid, port), "the attempt")
            began = time.monotonic()
            assert command.end(within_s=WITHIN_S) == 0
            assert time.monotonic() - began < WITHIN_S


def _is_connecting(pid: int, port: int) -> bool:
    """Tell whether a process has a connection to a port that has not been answered (state SYN_SENT)."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    mine = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            mine.add(str(each.readlink()))
    waiting = [line.split() for line in lines if line.split()[2].endswith(f":{port:04X}")]
    return any(fields[3] == "02" and f"socket:[{fields[9]}]" in mine for fields in waiting)


@pytest.mark.mqtt
def test_stop_while_the_broker_hangs(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """It takes nothing any more, and does not say goodbye."""
    directory = a_directory(tmp_path / "device", FLEET, mosquitto.url)
    with start(directory) as command:
        wait_until(lambda: bool(told(directory, "online")), "the connection")
        mosquitto.signal(signal.SIGSTOP)
        try:
            assert command.end(within_s=WITHIN_S) == 0
        finally:
            mosquitto.signal(signal.SIGCONT)


def test_errand_gives_what_the_work_gives_or_raises() -> None:
    """As a call would."""

    def fail() -> int:
        raise ValueError("no")

    assert Errand(lambda: 7).result(threading.Event()) == 7
    with pytest.raises(ValueError, match="no"):
        Errand(fail).result(threading.Event())


def test_errand_is_left_alone_when_a_stop_is_wanted() -> None:
    """Its thread goes on, for nobody."""
    stop, release = threading.Event(), threading.Event()
    errand = Errand(release.wait)
    stop.set()
    assert errand.result(stop) is None
    release.set()
