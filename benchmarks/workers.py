"""How many updates a second an aggregator takes, beside a subscriber that only counts them.

    python -m benchmarks.workers [--updates N] [--publishers N] [--store NAME] [--encoding NAME]
    python -m benchmarks.workers --workers N [...]
    python -m benchmarks.workers --broker mosquitto|amqtt|mqtt://HOST:PORT [...]

One mosquitto, as the project runs it; publishers in processes of their own send updates of about 16 KB (410
rows of 32 dimensions in int8) at QoS 1 as fast as the broker takes them. First to a plain paho subscriber
that counts; then, in the same run, to ``edge-aggregator start`` until each is accepted, journalled, receipted
and aggregated. The figure is the ratio of the two. Memory is the kernel's (``VmRSS``), its slope that of a
line through the second half of the run. PostgreSQL is a cluster of its own, with ``fsync`` on.

With ``--workers N``, one worker and then N of them take the same, from PostgreSQL; each update has an
incarnation of its own, as a device sends the next only after a receipt. What each kind of process used of the
processors is shown beside: where those are all taken, as on a small machine, more workers take no more.
"""

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.address import BrokerAddress
from broker.aggregator.directory import load_config, open_store
from broker.embedded import free_port, own_broker
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Update, encode
from broker.protocol.topics import FleetTopics
from tests.postgres import running_cluster

_HOST, _FLEET = "127.0.0.1", "load"
_ITEMS, _DIM, _ROWS = 1_682, 32, 410
_DEVICES = 50
_IN_FLIGHT = 100
_PATIENCE_S = 120.0


class Taken(NamedTuple):
    """What was measured.

    Updates a second; memory where it was looked at, as (updates, MB); and processor time by kind of process,
    in microseconds an update.
    """

    per_second: float
    memory: list[tuple[int, float]]
    processor_us: dict[str, float]


class Load(NamedTuple):
    """What is sent: so many updates, from so many publishers; `apart`: each of its own incarnation."""

    updates: int
    publishers: int
    encoding: str
    apart: bool = False

    @property
    def each(self) -> int:
        """Updates of one publisher."""
        return self.updates // self.publishers

    @property
    def total(self) -> int:
        """Updates of all."""
        return self.each * self.publishers


def publish(address: BrokerAddress, number: int, load: Load, instance: int, start: Barrier) -> None:
    """Send `count` updates of one publisher's devices, and wait until the broker has them all."""
    rng = np.random.default_rng(number)
    rows = np.sort(rng.choice(_ITEMS, _ROWS, replace=False)).astype(np.int64)
    values = (1e-3 * rng.standard_normal((_ROWS, _DIM))).astype(np.float32)
    body = ENCODINGS[load.encoding].encode(SparseChange(rows=rows, change=values))
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"publisher-{number}", protocol=paho.MQTTv311)
    client.max_inflight_messages_set(_IN_FLIGHT)
    client.connect(address.host, address.port)
    client.loop_start()
    topics = [FleetTopics(_FLEET).update(f"load-{number}-{device}") for device in range(_DEVICES)]
    start.wait()
    sent: list[paho.MQTTMessageInfo] = []
    for place in range(load.each):
        turn = place // _DEVICES
        update = Update(
            instance=instance,
            incarnation=turn + 1 if load.apart else number + 1,
            seq=1 if load.apart else turn + 1,
            base_version=0,
            encoding=load.encoding,
            body=body,
        )
        sent.append(client.publish(topics[place % _DEVICES], encode(update), qos=1))
        if len(sent) > 2 * _IN_FLIGHT:  # paho's queue would hold all of them
            sent.pop(0).wait_for_publish(_PATIENCE_S)
    for each in sent:
        each.wait_for_publish(_PATIENCE_S)
    client.disconnect()
    client.loop_stop()


@contextlib.contextmanager
def publishing(address: BrokerAddress, load: Load, instance: int) -> Iterator[float]:
    """Let all publishers send; give when they began, on the monotonic clock."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(load.publishers + 1)
    processes = [
        spawn.Process(target=publish, args=(address, number, load, instance, start))
        for number in range(load.publishers)
    ]
    for process in processes:
        process.start()
    start.wait()
    yield time.monotonic()
    for process in processes:
        process.join()


def counted(address: BrokerAddress, load: Load) -> float:
    """Give how many updates a second a subscriber takes that only counts."""
    seen = 0
    ended_at = 0.0

    def on_message(*_: object) -> None:
        nonlocal seen, ended_at
        seen += 1
        if seen == load.total:
            ended_at = time.monotonic()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="counts", protocol=paho.MQTTv311)
    client.on_message = on_message
    client.connect(address.host, address.port)
    client.subscribe(str(FleetTopics(_FLEET).update_filter), qos=1)
    client.loop_start()
    with publishing(address, load, 0) as began_at:
        _wait(lambda: ended_at > 0.0, lambda: seen)
    client.disconnect()
    client.loop_stop()
    return load.total / (ended_at - began_at)


def aggregated(address: BrokerAddress, folder: Path, load: Load, store: str, workers: int = 0) -> Taken:
    """Give what the aggregator, or so many workers, takes of the same."""
    folder.mkdir()
    items, shop = folder / "items", folder / "shop"
    items.write_text("\n".join(f"item-{row}" for row in range(_ITEMS)))
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "PFEDREC_GUARD_REPORTS": "0",
        "PFEDREC_MAX_STALENESS": "100000",  # the publishers do not follow versions
        "PFEDREC_LOG_LEVEL": "warning",
        "PFEDREC_TRY_BROKER": "false",
    }
    if store:
        environment["PFEDREC_STORE"] = store
    aggregator = str(Path(sys.executable).parent / "edge-aggregator")
    options = ["--fleet", _FLEET, "--items", str(items), "--dim", str(_DIM), "--encoding", load.encoding]
    made = subprocess.run(
        [aggregator, "init", "--dir", str(shop), *options], env=environment, check=False, capture_output=True
    )
    if made.returncode:
        sys.exit(made.stderr.decode())
    opened = open_store(shop, load_config(shop, environment))
    instance = opened.load().instance
    opened.close()
    command = [aggregator, "start", "--dir", str(shop), "--broker", str(address)]
    with contextlib.ExitStack() as stack:
        running: dict[int, subprocess.Popen[bytes]] = {}
        for name in [f"worker-{number}" for number in range(workers)] or [""]:
            port = free_port()
            running[port] = stack.enter_context(
                subprocess.Popen(
                    [*command, "--worker", name] if name else command,
                    env=environment | {"PFEDREC_METRICS_PORT": str(port)},
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(running[port].terminate)
        _wait(lambda: all(_ready(port) for port in running), lambda: 0)
        before = _processor_s()
        memory: list[tuple[int, float]] = []

        def look() -> int:
            done = sum(_accepted(port) for port in running)
            memory.append((done, sum(_resident_mb(process.pid) for process in running.values())))
            return done

        with publishing(address, load, instance) as began_at:
            _wait(lambda: look() >= load.total, lambda: memory[-1][0])
            ended_at = time.monotonic()
            used = {
                kind: 1e6 * (seconds - before.get(kind, 0.0)) / load.total
                for kind, seconds in _processor_s().items()
            }
        return Taken(load.total / (ended_at - began_at), memory, used)


def _wait(done: Callable[[], bool], progress: Callable[[], int]) -> None:
    seen, at = -1, time.monotonic()
    while not done():
        if progress() != seen:
            seen, at = progress(), time.monotonic()
        if time.monotonic() > at + _PATIENCE_S:
            sys.exit(f"nothing went on for {_PATIENCE_S:.0f} s, at {seen} updates")
        time.sleep(0.1)


def _page(port: int, path: str) -> str | None:
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://{_HOST}:{port}/{path}", timeout=10) as got,
    ):
        return str(got.read().decode())
    return None


def _ready(port: int) -> bool:
    return _page(port, "readyz") is not None


def _accepted(port: int) -> int:
    wanted = 'pfedrec_updates_total{verdict="accepted"}'
    lines = (_page(port, "metrics") or "").splitlines()
    return next((int(float(line.split()[-1])) for line in lines if line.startswith(wanted)), 0)


def _processor_s() -> dict[str, float]:
    """Give the processor time, in seconds, of all that this process has started and still runs, by name."""
    parents: dict[int, tuple[int, str, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, tail = path.read_text().rpartition(")")
            fields = tail.split()
            name = head.partition("(")[2]
            ticks = sum(map(int, fields[11:15] if name == "postgres" else fields[11:13]))
            parents[int(path.parent.name)] = int(fields[1]), name, ticks / os.sysconf("SC_CLK_TCK")
    total: dict[str, float] = {}
    for pid, (_, name, seconds) in parents.items():
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above][0]
        if above == os.getpid() and pid != above:
            total[name] = total.get(name, 0.0) + seconds
    return total


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024.0 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--encoding", choices=sorted(ENCODINGS), default="int8")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--broker", default="mosquitto", help="mosquitto, amqtt, or mqtt://HOST:PORT")
    arguments = parser.parse_args()
    store_kind = "postgresql" if arguments.workers else arguments.store
    load = Load(arguments.updates, arguments.publishers, arguments.encoding, apart=bool(arguments.workers))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        cluster = None
        if store_kind == "postgresql":
            cluster = stack.enter_context(running_cluster(durable=True))
        if arguments.broker in ("mosquitto", "amqtt"):
            kind, port = arguments.broker, free_port()
            address = stack.enter_context(own_broker(kind, _HOST, port, folder / "broker")).address
        else:
            address = BrokerAddress.parse(arguments.broker)
        baseline = counted(address, load._replace(updates=min(load.updates, 20_000)))
        print(f"a subscriber that counts: {baseline:8.0f} updates a second", flush=True)
        first = 0.0
        for workers in sorted({1, arguments.workers}) if arguments.workers else [0]:
            store = "" if cluster is None else cluster.new_store()
            taken = aggregated(address, folder / f"run-{workers}", load, store, workers)
            who = f"{workers} worker{'s' * (workers > 1)}" if workers else f"edge-aggregator, {store_kind}"
            print(
                f"{who}: {taken.per_second:8.0f} updates a second: {taken.per_second / baseline:.2f} of it"
                + (f", {taken.per_second / first:.2f} of one worker's" if first else "")
            )
            first = first or (taken.per_second if workers else 0.0)
            print(
                "processor time an update: "
                + ", ".join(f"{kind} {used:.0f} µs" for kind, used in sorted(taken.processor_us.items()))
            )
            _tell_memory(taken, load.updates)


def _tell_memory(taken: Taken, updates: int) -> None:
    later = [each for each in taken.memory if each[0] >= updates // 2]
    peak = max(resident for _, resident in taken.memory)
    if len({done for done, _ in later}) > 2:
        slope = linear_regression([done for done, _ in later], [resident for _, resident in later]).slope
        print(f"memory: {peak:.0f} MB at most; {1000.0 * slope:+.3f} MB per 1,000 updates in the second half")


if __name__ == "__main__":
    main()
