"""``edge-fleet run`` over real MQTT: the books balance whatever happens, and nothing is left behind."""

import asyncio
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest

from broker import embedded
from broker.embedded import BrokerKind, free_port
from broker.errors import BrokerStartError
from broker.exit_codes import ExitCode
from broker.protocol.chunks import CHUNK_BYTES
from broker.protocol.messages import Head, Status, decode
from broker.protocol.topics import FleetTopics
from edge import session
from edge.fleet import live, livecommand
from edge.fleet.aggregator_process import AggregatorProcess
from edge.fleet.live import LiveFleet
from tests.brokers import (
    HOST,
    PATIENCE_S,
    Peer,
    RunningBroker,
    children_of,
    command_of,
    kill_and_wait,
    require,
)
from tests.edge.running import wait_until
from tests.fleet.builders import RUN_FILES, Call, Outcome, files_of, recompute, write_ratings

pytestmark = [
    pytest.mark.mqtt,
    pytest.mark.process,
    # From Python 3.12 on, any fork beside threads warns.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
SMALL = ("--data", "synthetic", "--protocol", "clean", "--devices", 20, "--buffer", 8, "--deadline", 0.3)
LEDGER = re.compile(
    r"ledger: (\d+) updates made = (\d+) counted \+ (\d+) stale \+ (\d+) rejected"
    r"(?: \+ (\d+) dropped by rollbacks)?; "
    r"all (\d+) devices hold version (\d+)"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of the test's own for temporary files, so that what is left there is seen."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def processes_about(*words: str) -> list[list[str]]:
    """Give the commands of all running processes that have these words among their arguments."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                command = command_of(int(path.name))
                if any(word in argument for word in words for argument in command):
                    found.append(command)
    return found


def assert_nothing_is_left(home: Path, port: int | None = None) -> None:
    """Check that no process of a run is there any more, and no file."""
    words = [str(home)] if port is None else [str(home), str(port)]
    wait_until(lambda: not processes_about(*words), "the end of all processes")
    assert list(home.iterdir()) == []


def assert_balanced(found: Outcome, *, version: int, devices: int = 20) -> dict[str, int]:
    """Check the books at the end of what was printed, and give them."""
    assert found.code == ExitCode.OK, found.err
    line = LEDGER.fullmatch(found.out.splitlines()[-1])
    assert line is not None, found.out
    names = ("made", "counted", "stale", "rejected", "dropped", "devices", "version")
    ledger = dict(zip(names, map(int, line.groups("0")), strict=True))
    assert ledger["made"] == sum(ledger[name] for name in ("counted", "stale", "rejected", "dropped")) > 0
    assert ledger["devices"] == devices
    assert ledger["version"] >= version
    return ledger


def rounds_in(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics; none before there is a file."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def in_background(call: Call, *arguments: object) -> Iterator[Future[Outcome]]:
    """Call ``edge-fleet`` in a thread while the block runs; brokers are started by the test's own thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *arguments)


@contextmanager
def a_process(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run ``edge-fleet`` as a process that Ctrl-C reaches, whatever started the tests."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from edge.fleet.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


# -- from beginning to end -------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "kind"), [("mosquitto", "mosquitto"), ("embedded", "amqtt")])
def test_run_with_a_broker_of_its_own(
    call: Call, tmp_path: Path, home: Path, option: str, kind: BrokerKind
) -> None:
    """All updates are accounted for, all files are there, their figures are right, nothing is left behind."""
    require(kind)
    out, port = tmp_path / "run", free_port()

    found = call(
        "run", *SMALL, "--broker", option, "--port", port, "--versions", 20, "--save-users", "--out", out
    )

    ledger = assert_balanced(found, version=20)
    assert f"20 devices of fleet edge-fleet at mqtt://127.0.0.1:{port}" in found.err
    assert ledger["rejected"] == 0
    assert files_of(out) == RUN_FILES | {"users.npz"}
    assert recompute(out).code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["mode"], summary["encoding"]) == ("buffered", "int8")
    rounds = rounds_in(out)
    assert [line["round"] for line in rounds] == list(range(1, summary["rounds"] + 1))
    assert sum(line["updates"] for line in rounds) == ledger["made"]
    assert all(line["bytes_up"] > 0 and line["bytes_down"] > 0 for line in rounds)
    assert_nothing_is_left(home, port)


def test_json_has_the_ledger_too(call: Call, tmp_path: Path, home: Path) -> None:
    """One document: the summary, the baseline, the books."""
    out = tmp_path / "run"

    found = call("run", *SMALL, "--versions", 3, "--json", "--out", out)

    assert found.code == ExitCode.OK
    printed = json.loads(found.out)
    ledger = printed.pop("ledger")
    assert set(printed.pop("popularity")) == {"hr@10", "ndcg@10"}
    assert printed == json.loads((out / "summary.json").read_text())
    fates = ("counted", "stale", "rejected", "dropped")
    assert set(ledger) == {"made", *fates, "duplicates", "devices", "version"}
    assert ledger["made"] == sum(ledger[fate] for fate in fates)
    assert not (out / "users.npz").exists()


def test_config_has_all_that_the_run_was_asked_for(call: Call, tmp_path: Path, home: Path) -> None:
    """With the defaults that took effect."""
    found = call("run", *SMALL, "--versions", 2, "--item-lr", 500, "--seed", 4, "--out", tmp_path / "run")

    assert found.code == ExitCode.OK
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.pop("packages")["numpy"] == np.__version__
    assert config == {
        "command": "run",
        "data": "synthetic",
        "data_sha256": None,
        "hold_out": "random",
        "devices": 20,
        "broker": "auto",
        "port": None,
        "fleet": "edge-fleet",
        "algorithm": "pfedrec",
        "preset": "device",
        "overrides": {},
        "hyperparameters": {"lr": 0.1, "item_lr": 500.0, "negatives": 8, "batch_size": 256, "decay": 0.1},
        "taste": {"recency": 0.0, "strength": 0.25},
        "protocol": "clean",
        "mode": "buffered",
        "buffer": 8,
        "max_staleness": 10,
        "encoding": "int8",
        "versions": 2,
        "deadline_s": 0.3,
        "concurrency": 16,
        "dim": 32,
        "item_lr": 500.0,
        "seed": 4,
    }


def test_run_at_a_broker_that_is_there(call: Call, tmp_path: Path, home: Path, broker: RunningBroker) -> None:
    """It is used and left running; at the end it holds the last version, and that the devices are gone."""
    out, topics = tmp_path / "run", FleetTopics("there")

    found = call(
        "run",
        *SMALL,
        "--fleet",
        "there",
        "--broker",
        broker.url,
        "--versions",
        10,
        "--save-users",
        "--out",
        out,
    )

    ledger = assert_balanced(found, version=10)
    assert recompute(out).code == 0
    status = topics.status("virtual-000019")
    with Peer(broker.address, "looker", str(topics.head), str(status)) as peer:
        assert decode(bytes(peer.receive(str(topics.head)).payload), Head).version == ledger["version"]
        last = decode(bytes(peer.receive(str(status)).payload), Status)
        assert (last.online, last.version) == (False, ledger["version"])
    assert_nothing_is_left(home)


def test_updates_larger_than_a_message_are_sent_in_chunks(call: Call, tmp_path: Path, home: Path) -> None:
    """Exact updates of users with hundreds of items."""
    data = write_ratings(tmp_path / "ratings.csv", n_users=8, n_items=1500, mean=400)

    options = ("--encoding", "float32", "--buffer", 4, "--deadline", 0.3, "--versions", 4, "--save-users")

    found = call("run", "--data", data, "--protocol", "clean", *options, "--out", tmp_path / "run")

    assert_balanced(found, version=4, devices=8)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bytes_up_per_update"] > CHUNK_BYTES
    assert summary["dataset"]["users"] == 8
    found = recompute(tmp_path / "run", "--data", data)
    assert (found.code, found.out.count(" same\n")) == (0, 24)


def test_one_device_is_a_fleet(call: Call, tmp_path: Path, home: Path) -> None:
    """It shares one connection with nobody."""
    options = ("--devices", 1, "--buffer", 1, "--concurrency", 1, "--deadline", 0.3, "--versions", 5)

    found = call("run", "--data", "synthetic", "--protocol", "clean", *options, "--out", tmp_path / "run")

    assert_balanced(found, version=5, devices=1)


def test_fleet_whose_versions_are_on_trial_comes_to_rest(call: Call, tmp_path: Path, home: Path) -> None:
    """With so many devices the guard waits for reports, of the last version too."""
    options = ("--data", "synthetic:80x200", "--protocol", "clean", "--buffer", 24, "--deadline", 0.3)

    found = call("run", *options, "--versions", 8, "--out", tmp_path / "run")

    assert_balanced(found, version=8, devices=80)


# -- what an external broker remembers -------------------------------------------------------------


def test_next_run_at_the_same_broker_is_not_disturbed_by_the_last(
    call: Call, tmp_path: Path, home: Path, broker: RunningBroker
) -> None:
    """The broker still holds its head and tables, and perhaps what was never anything of the kind."""
    topics = FleetTopics("again")
    with Peer(broker.address, "vandal") as peer:
        for topic in (topics.head, topics.snapshot(0, 0), topics.snapshot(1, 0)):
            peer.publish(str(topic), b"no message of ours", retain=True)
        peer.publish(str(topics.receipt("virtual-000001")), b"no receipt", retain=True)
    arguments = ("run", *SMALL, "--fleet", "again", "--broker", broker.url)

    first = call(*arguments, "--versions", 12, "--out", tmp_path / "first")
    second = call(*arguments, "--versions", 6, "--out", tmp_path / "second")

    assert_balanced(first, version=12)
    ledger = assert_balanced(second, version=6)
    assert ledger["version"] < 12
    assert ledger["rejected"] == 0


def test_run_after_a_broken_one_counts_only_its_own_updates(
    call: Call, tmp_path: Path, home: Path, mosquitto: RunningBroker
) -> None:
    """What waits at the broker for the aggregator of the first has the same devices' names and numbers."""
    arguments = ("run", *SMALL, "--broker", mosquitto.url)
    updates = str(FleetTopics("edge-fleet").update_filter)
    with (
        Peer(mosquitto.address, "looker", updates) as peer,
        a_process(*arguments, "--versions", 100_000, "--out", tmp_path / "first") as process,
    ):
        wait_until(lambda: len(rounds_in(tmp_path / "first")) >= 2, "the second round")
        (aggregator,) = children_of(process.pid)
        os.kill(aggregator, signal.SIGSTOP)
        while not peer.messages.empty():
            peer.messages.get()
        with suppress(queue.Empty):  # unless all that may wait do so already
            peer.messages.get(timeout=2.0)
        os.kill(aggregator, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == ExitCode.BROKER_START

    found = call(*arguments, "--versions", 8, "--out", tmp_path / "second")

    assert assert_balanced(found, version=8)["rejected"] == 0


# -- what happens meanwhile ------------------------------------------------------------------------


def test_broker_that_is_killed_costs_no_update(
    call: Call, tmp_path: Path, home: Path, mortal_broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on once it is back, with empty hands, and the books balance."""
    # What reaches it before the aggregator does is lost; devices hear of that by its head's new session.
    monkeypatch.setattr(session, "RESEND_S", 100.0 * PATIENCE_S)
    out = tmp_path / "run"
    arguments = ("run", *SMALL, "--broker", mortal_broker.url, "--versions", 40, "--save-users", "--out", out)

    with in_background(call, *arguments) as running:
        wait_until(lambda: len(rounds_in(out)) >= 3 or running.done(), "the third round")
        mortal_broker.kill()
        mortal_broker.start()
        found = running.result(timeout=2 * PATIENCE_S)

    assert_balanced(found, version=40)
    assert recompute(out).code == 0


def test_aggregator_that_is_killed_ends_the_run_with_a_sentence(
    call: Call, tmp_path: Path, home: Path, mosquitto: RunningBroker
) -> None:
    """It is not started again: a run is an experiment, not a service."""
    out = tmp_path / "run"
    arguments = ("run", *SMALL, "--broker", mosquitto.url, "--versions", 100_000, "--out", out)

    with in_background(call, *arguments) as running:
        wait_until(lambda: len(rounds_in(out)) >= 2 or running.done(), "the second round")
        (aggregator,) = [pid for pid in children_of(os.getpid()) if str(home) in " ".join(command_of(pid))]
        os.kill(aggregator, signal.SIGKILL)
        found = running.result(timeout=PATIENCE_S)

    assert (found.code, found.out) == (ExitCode.BROKER_START, "")
    assert "edge-fleet: the aggregator has ended; it said: " in found.err
    assert_nothing_is_left(home)


def test_own_broker_that_is_killed_is_started_again_or_named(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That there is no new version is not what the user should hear of."""
    monkeypatch.setattr(live, "STALLED_S", 3.0)
    out, port = tmp_path / "run", free_port()
    arguments = ("run", *SMALL, "--broker", "embedded", "--port", port, "--versions", 100, "--out", out)

    with in_background(call, *arguments) as running:
        wait_until(lambda: len(rounds_in(out)) >= 2 or running.done(), "the second round")
        (aggregator,) = [pid for pid in children_of(os.getpid()) if str(home) in " ".join(command_of(pid))]
        (broker,) = children_of(aggregator)
        kill_and_wait(broker)
        found = running.result(timeout=2 * PATIENCE_S)

    assert found.code in (ExitCode.OK, ExitCode.BROKER_START)


def test_port_that_is_taken_at_the_last_moment_is_named(
    tmp_path: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that find the same port free at the same time do not share a broker unawares."""
    monkeypatch.setattr(embedded, "_require_free", lambda *_, **__: None)

    with (
        pytest.raises(BrokerStartError),
        embedded.own_broker("mosquitto", HOST, mosquitto.port, tmp_path / "second"),
    ):
        pass


@pytest.mark.parametrize("moment", ["beginning", "middle"])
@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED, "Ctrl-C"),
        (signal.SIGTERM, ExitCode.TERMINATED, "SIGTERM"),
    ],
)
def test_run_is_stopped(
    tmp_path: Path, home: Path, moment: str, number: int, code: ExitCode, name: str
) -> None:
    """With a documented code; aggregator and broker end too, and the temporary files go."""
    out, port = tmp_path / "run", free_port()
    with a_process("run", *SMALL, "--versions", 100_000, "--port", port, "--out", out) as process:
        if moment == "beginning":
            assert process.stderr is not None
            assert "devices of fleet" in process.stderr.readline()
        else:
            wait_until(lambda: len(rounds_in(out)) >= 2, "the second round")
        process.send_signal(number)
        printed, said = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code
    assert (printed, said.splitlines()[-1]) == ("", f"edge-fleet: stopped by {name}")
    assert "Traceback" not in said
    assert_nothing_is_left(home, port)


def test_killed_run_takes_its_aggregator_and_broker_with_it(tmp_path: Path, home: Path) -> None:
    """They would serve nobody, and hold the port."""
    out, port = tmp_path / "run", free_port()
    with a_process("run", *SMALL, "--versions", 100_000, "--port", port, "--out", out) as process:
        wait_until(lambda: len(rounds_in(out)) >= 1, "the first round")
        process.kill()
        process.communicate(timeout=PATIENCE_S)

    wait_until(lambda: not processes_about(str(home), str(port)), "the end of all processes")


# -- connections that are late, or end at the wrong moment -----------------------------------------


def test_devices_whose_connection_comes_late_take_part(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the first table may arrive before any device is connected.

    All of them have then looked for a version in vain, and there will be no other one without them.
    """
    fleets: list[LiveFleet] = []
    all_rested = threading.Event()
    subscribe = aiomqtt.Client.subscribe

    class Watched(LiveFleet):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            fleets.append(self)

    async def late(client: aiomqtt.Client, topics: Any, **options: Any) -> Any:
        if str(topics[0][0]).endswith("receipt"):
            while not all_rested.is_set():
                if len(fleets[0]._resting) == 20:
                    all_rested.set()
                await asyncio.sleep(0.01)
        return await subscribe(client, topics, **options)

    monkeypatch.setattr(livecommand, "LiveFleet", Watched)
    monkeypatch.setattr(aiomqtt.Client, "subscribe", late)
    monkeypatch.setattr(live, "STALLED_S", 5.0)

    found = call("run", *SMALL, "--versions", 5, "--out", tmp_path / "run")

    assert_balanced(found, version=5)


def test_run_ends_although_a_connection_forgets_that_it_was_cancelled(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asyncio.wait_for` of Python 3.11 does when the answer comes at the same moment."""
    subscribe = aiomqtt.Client.subscribe

    async def forgetful(client: aiomqtt.Client, topics: Any, **options: Any) -> Any:
        answer = await subscribe(client, topics, **options)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(aiomqtt.Client, "subscribe", forgetful)
    monkeypatch.setattr(live, "FIRST_TABLE_S", 0.5)

    found = call("run", *SMALL, "--versions", 5, "--out", tmp_path / "run")

    assert (found.code, found.out) == (ExitCode.TIMED_OUT, "")
    assert "edge-fleet: no table of fleet edge-fleet arrived within 0 s" in found.err
    assert_nothing_is_left(home)


def test_run_ends_although_its_connections_do_not_close_cleanly(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may go at the very moment."""
    leave = aiomqtt.Client.__aexit__

    async def unclean(client: aiomqtt.Client, *reason: Any) -> None:
        await leave(client, *reason)
        raise aiomqtt.MqttError("Disconnected while disconnecting")

    monkeypatch.setattr(aiomqtt.Client, "__aexit__", unclean)

    found = call("run", *SMALL, "--versions", 5, "--out", tmp_path / "run")

    assert_balanced(found, version=5)


# -- waits that end, and books that do not balance -------------------------------------------------


def test_fleet_that_gets_no_new_version_is_given_up(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the last one that it got; nothing is written, as no round was done."""
    monkeypatch.setattr(live, "STALLED_S", 0.3)

    found = call("run", *SMALL, "--buffer", 500, "--deadline", 30, "--versions", 5, "--out", tmp_path / "run")

    assert (found.code, found.out) == (ExitCode.TIMED_OUT, "")
    assert "edge-fleet: no version after 0 within 0 s" in found.err
    assert files_of(tmp_path / "run") == set()
    assert_nothing_is_left(home)


def test_updates_that_are_never_counted_are_not_waited_for_without_end(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the run, too, there is a bound."""
    ledger = AggregatorProcess.ledger
    monkeypatch.setattr(AggregatorProcess, "ledger", lambda process: replace(ledger(process), pending=1))

    class Hurried(LiveFleet):
        async def _come_to_rest(self) -> None:
            monkeypatch.setattr(live, "STALLED_S", 0.3)
            await super()._come_to_rest()

    monkeypatch.setattr(livecommand, "LiveFleet", Hurried)

    found = call("run", *SMALL, "--versions", 3, "--out", tmp_path / "run")

    assert (found.code, found.out) == (ExitCode.TIMED_OUT, "")
    assert re.search("updates were not (answered|counted) within 0 s of the end", found.err)


Change = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("ledger", lambda ledger: replace(ledger, counted=ledger.counted - 1), "updates were made, but"),
        ("ledger", lambda ledger: replace(ledger, stale=2), "found 2 stale"),
        ("newest", lambda newest: (newest[0], bytes(32)), "are not at version"),
    ],
    ids=["an update lost", "updates counted twice", "another table"],
)
def test_books_that_do_not_balance_are_an_error(
    call: Call,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    change: Change,
    words: str,
) -> None:
    """The run has failed at what it is there to show; the sentence has the numbers."""
    real = getattr(AggregatorProcess, method)
    monkeypatch.setattr(AggregatorProcess, method, lambda process: change(real(process)))

    found = call("run", *SMALL, "--versions", 3, "--out", tmp_path / "run")

    assert (found.code, found.out) == (ExitCode.UNEXPECTED, "")
    assert words in found.err.splitlines()[-1]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_error_in_the_middle_of_a_run_ends_everything(
    call: Call, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is noticed by a connection's task: here the folder goes."""
    out = tmp_path / "run"

    class Vanishing(LiveFleet):
        def _end_round(self) -> None:
            if rounds_in(out):
                for name in files_of(out):
                    (out / name).unlink()
                out.rmdir()
            super()._end_round()

    monkeypatch.setattr(livecommand, "LiveFleet", Vanishing)

    found = call("run", *SMALL, "--versions", 20, "--out", out)

    assert (found.code, found.out) == (ExitCode.NOT_WRITABLE, "")
    assert "run cannot be written: no such file or directory" in found.err
    assert threading.active_count() < 20
    assert_nothing_is_left(home)
