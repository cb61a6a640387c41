"""How many updates a second an aggregator takes, beside a subscriber that only counts them.

    python -m benchmarks.aggregator [--updates N] [--publishers N] [--store NAME] [--encoding NAME]

One mosquitto, as the project runs it; publishers in processes of their own send updates of about 16 KB (410
rows of 32 dimensions in int8) at QoS 1 as fast as the broker takes them. First to a plain paho subscriber
that counts; then, in the same run, to ``edge-aggregator start`` until each is accepted, journalled, receipted
and aggregated. The figure is the ratio of the two; beside it the CPU time of each update in the subscriber's
process and in the aggregator's, which does not depend on what else the machine does. Memory is the kernel's
(``VmRSS``), its slope that of a line through the second half of the run. PostgreSQL is a cluster of its own,
with ``fsync`` on; ``--store both`` has SQLite and PostgreSQL in one run.
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
    """Updates a second, CPU of each in µs, and memory where it was looked at, as (updates, MB)."""

    per_second: float
    cpu_us: float
    memory: list[tuple[int, float]]

    def __str__(self) -> str:
        return f"{self.per_second:8.0f} updates a second, {self.cpu_us:5.0f} µs of CPU each"


def publish(
    address: BrokerAddress, number: int, count: int, instance: int, encoding: str, start: Barrier
) -> None:
    """Send `count` updates of one publisher's devices, and wait until the broker has them all."""
    rng = np.random.default_rng(number)
    rows = np.sort(rng.choice(_ITEMS, _ROWS, replace=False)).astype(np.int64)
    values = (1e-3 * rng.standard_normal((_ROWS, _DIM))).astype(np.float32)
    body = ENCODINGS[encoding].encode(SparseChange(rows=rows, change=values))
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"publisher-{number}", protocol=paho.MQTTv311)
    client.max_inflight_messages_set(_IN_FLIGHT)
    client.connect(address.host, address.port)
    client.loop_start()
    topics = [FleetTopics(_FLEET).update(f"load-{number}-{device}") for device in range(_DEVICES)]
    start.wait()
    sent: list[paho.MQTTMessageInfo] = []
    for place in range(count):
        update = Update(
            instance=instance,
            incarnation=number + 1,
            seq=place // _DEVICES + 1,
            base_version=0,
            encoding=encoding,
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
def publishing(
    address: BrokerAddress, publishers: int, updates: int, instance: int, encoding: str
) -> Iterator[float]:
    """Let all publishers send; give when they began, on the monotonic clock."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(publishers + 1)
    processes = [
        spawn.Process(
            target=publish, args=(address, number, updates // publishers, instance, encoding, start)
        )
        for number in range(publishers)
    ]
    for process in processes:
        process.start()
    start.wait()
    yield time.monotonic()
    for process in processes:
        process.join()


def counted(address: BrokerAddress, publishers: int, updates: int, encoding: str) -> Taken:
    """Give what a subscriber takes that only counts."""
    total = updates // publishers * publishers
    seen = 0
    ended_at = 0.0

    def on_message(*_: object) -> None:
        nonlocal seen, ended_at
        seen += 1
        if seen == total:
            ended_at = time.monotonic()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="counts", protocol=paho.MQTTv311)
    client.on_message = on_message
    client.connect(address.host, address.port)
    client.subscribe(str(FleetTopics(_FLEET).update_filter), qos=1)
    client.loop_start()
    with publishing(address, publishers, updates, 0, encoding) as began_at:
        cpu_s = time.process_time()
        _wait(lambda: ended_at > 0.0, lambda: seen)
        cpu_s = time.process_time() - cpu_s
    client.disconnect()
    client.loop_stop()
    return Taken(total / (ended_at - began_at), 1e6 * cpu_s / total, [])


def aggregated(
    address: BrokerAddress, folder: Path, publishers: int, updates: int, encoding: str, store: str
) -> Taken:
    """Give what the aggregator takes of the same."""
    total = updates // publishers * publishers
    items, shop = folder / "items", folder / "shop"
    items.write_text("\n".join(f"item-{row}" for row in range(_ITEMS)))
    port = free_port()
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",
        "PFEDREC_METRICS_PORT": str(port),
        "PFEDREC_GUARD_REPORTS": "0",
        "PFEDREC_MAX_STALENESS": "100000",  # the publishers do not follow versions
        "PFEDREC_LOG_LEVEL": "warning",
    }
    if store:
        environment["PFEDREC_STORE"] = store
    aggregator = str(Path(sys.executable).parent / "edge-aggregator")
    options = ["--fleet", _FLEET, "--items", str(items), "--dim", str(_DIM), "--encoding", encoding]
    made = subprocess.run(
        [aggregator, "init", "--dir", str(shop), *options], env=environment, check=False, capture_output=True
    )
    if made.returncode:
        sys.exit(made.stderr.decode())
    opened = open_store(shop, load_config(shop, environment))
    instance = opened.load().instance
    opened.close()
    command = [aggregator, "start", "--dir", str(shop), "--broker", str(address)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(lambda: _accepted(port) is not None, lambda: 0)
            memory: list[tuple[int, float]] = []

            def look() -> int:
                done = _accepted(port) or 0
                memory.append((done, _resident_mb(process.pid)))
                return done

            with publishing(address, publishers, updates, instance, encoding) as began_at:
                cpu_s = _cpu_s(process.pid)
                _wait(lambda: look() >= total, lambda: memory[-1][0])
                ended_at, cpu_s = time.monotonic(), _cpu_s(process.pid) - cpu_s
            return Taken(total / (ended_at - began_at), 1e6 * cpu_s / total, memory)
        finally:
            process.terminate()


def _wait(done: Callable[[], bool], progress: Callable[[], int]) -> None:
    seen, at = -1, time.monotonic()
    while not done():
        if progress() != seen:
            seen, at = progress(), time.monotonic()
        if time.monotonic() > at + _PATIENCE_S:
            sys.exit(f"nothing went on for {_PATIENCE_S:.0f} s, at {seen} updates")
        time.sleep(0.25)


def _accepted(port: int) -> int | None:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
    except OSError:
        return None
    wanted = 'pfedrec_updates_total{verdict="accepted"}'
    return next((int(float(line.split()[-1])) for line in lines if line.startswith(wanted)), 0)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024.0 for line in lines if line.startswith("VmRSS:"))


def _cpu_s(pid: int) -> float:
    """Give the CPU time that a process has had, in seconds (proc(5): utime and stime)."""
    figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument("--store", choices=["sqlite", "postgresql", "both"], default="sqlite")
    parser.add_argument("--encoding", choices=sorted(ENCODINGS), default="int8")
    arguments = parser.parse_args()
    publishers, updates, encoding = arguments.publishers, arguments.updates, arguments.encoding
    stores = ["sqlite", "postgresql"] if arguments.store == "both" else [arguments.store]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        broker = stack.enter_context(own_broker("mosquitto", _HOST, free_port(), folder / "broker"))
        baseline = counted(broker.address, publishers, min(updates, 20_000), encoding)
        print(f"a subscriber that counts: {baseline}", flush=True)
        for store in stores:
            url = ""
            if store == "postgresql":
                url = stack.enter_context(running_cluster(durable=True)).new_store()
            (folder / store).mkdir()
            taken = aggregated(broker.address, folder / store, publishers, updates, encoding, url)
            ratio = taken.per_second / baseline.per_second
            print(f"edge-aggregator, {store}: {taken}; {ratio:.2f} of the rate", flush=True)
            _print_memory(taken.memory, updates)


def _print_memory(memory: list[tuple[int, float]], updates: int) -> None:
    later = [each for each in memory if each[0] >= updates // 2]
    peak = max(resident for _, resident in memory)
    if len({done for done, _ in later}) > 2:
        slope = linear_regression([done for done, _ in later], [resident for _, resident in later]).slope
        print(f"memory: {peak:.0f} MB at most; {1000.0 * slope:+.3f} MB per 1,000 updates in the second half")


if __name__ == "__main__":
    main()
