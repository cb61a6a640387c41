"""How many updates a second an aggregator takes, beside a subscriber that only counts them.

    python -m benchmarks.aggregator [--repeat N] [--updates N] [--publishers N] [--store NAME] [--encoding E]
    python -m benchmarks.aggregator --workers N [...]
    python -m benchmarks.aggregator --broker mosquitto|amqtt|mqtt://HOST:PORT [...]

One mosquitto, as the project runs it; publishers in processes of their own send updates of about 16 KB (410
rows of 32 dimensions in int8) at QoS 1 as fast as the broker takes them. First to a plain paho subscriber
that counts; then, in the same run, to ``edge-aggregator start`` until each is accepted, journalled, receipted
and aggregated. The figure is the ratio of the two, in the median of ``--repeat`` such pairs: rates differ by
a fifth from one to the next. Beside it the CPU time of each update in the subscriber's process and in the
aggregator's, which depends less on what else the machine does. Memory is the kernel's
(``VmRSS``), its slope the median of those between each two looks in the second half of the run, so that a
pause of the broker, in which what waits here is worked off and given back, does not count. PostgreSQL is a
cluster of its own, with ``fsync`` on; ``--store both`` has SQLite and PostgreSQL in one run.

With ``--workers N``, one worker and then N of them take the same, from PostgreSQL; each update has an
incarnation of its own, as a device sends the next only after a receipt, and publishers are bare sockets: the
processors are for what is measured. What each kind of process used of the
processors is shown beside: where those are all taken, as on a small machine, more workers take no more.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.address import BrokerAddress
from broker.aggregator.directory import load_config, open_store
from broker.embedded import free_port, own_broker
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Update, encode
from broker.protocol.topics import FleetTopics, Topic
from tests.postgres import Cluster, running_cluster

_HOST, _FLEET = "127.0.0.1", "load"
_ITEMS, _DIM, _ROWS = 1_682, 32, 410
_DEVICES = 50
_IN_FLIGHT = 100
_PATIENCE_S = 120.0


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


class Taken(NamedTuple):
    """Updates a second, CPU of each in µs, memory where it was looked at, as (updates, MB).

    And the CPU of each update by kind of process, of all that this one has started.
    """

    per_second: float
    cpu_us: float
    memory: list[tuple[int, float]]
    by_kind_us: dict[str, float]

    def __str__(self) -> str:
        return f"{self.per_second:8.0f} updates a second, {self.cpu_us:5.0f} µs of CPU each"


def updates(number: int, load: Load, instance: int) -> Iterator[tuple[Topic, bytes]]:
    """Give one publisher's share, by its devices in turn."""
    rng = np.random.default_rng(number)
    rows = np.sort(rng.choice(_ITEMS, _ROWS, replace=False)).astype(np.int64)
    values = (1e-3 * rng.standard_normal((_ROWS, _DIM))).astype(np.float32)
    body = ENCODINGS[load.encoding].encode(SparseChange(rows=rows, change=values))
    topics = [FleetTopics(_FLEET).update(f"load-{number}-{device}") for device in range(_DEVICES)]
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
        yield topics[place % _DEVICES], encode(update)


def publish(address: BrokerAddress, number: int, load: Load, instance: int, start: Barrier) -> None:
    """Send one publisher's share, and wait until the broker has all of it."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"publisher-{number}", protocol=paho.MQTTv311)
    client.max_inflight_messages_set(_IN_FLIGHT)
    client.connect(address.host, address.port)
    client.loop_start()
    start.wait()
    sent: list[paho.MQTTMessageInfo] = []
    for topic, payload in updates(number, load, instance):
        sent.append(client.publish(topic, payload, qos=1))
        if len(sent) > 2 * _IN_FLIGHT:  # paho's queue would hold all of them
            sent.pop(0).wait_for_publish(_PATIENCE_S)
    for each in sent:
        each.wait_for_publish(_PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def publish_bare(address: BrokerAddress, number: int, load: Load, instance: int, start: Barrier) -> None:
    """Do as `publish`, with as little of the processors as can be: packets straight to a socket."""
    with socket.create_connection((address.host, address.port), timeout=_PATIENCE_S) as peer:
        name = f"publisher-{number}".encode()
        variable = b"\0\4MQTT\4\2\0\0" + len(name).to_bytes(2, "big") + name
        peer.sendall(bytes((0x10, len(variable))) + variable)
        _receive(peer, 4)
        start.wait()
        sent = confirmed = 0
        for topic, payload in updates(number, load, instance):
            mid = sent % 65_535 + 1
            content = len(topic).to_bytes(2, "big") + topic.encode() + mid.to_bytes(2, "big") + payload
            head, size = bytearray((0x32,)), len(content)
            while size > 127:
                head.append(size & 127 | 128)
                size >>= 7
            head.append(size)
            peer.sendall(bytes(head) + content)
            sent += 1
            if sent - confirmed == 2 * _IN_FLIGHT:
                confirmed += _receive(peer, 4 * _IN_FLIGHT) // 4
        _receive(peer, 4 * (sent - confirmed))
        peer.sendall(b"\xe0\0")


def _receive(peer: socket.socket, size: int) -> int:
    """Take so many bytes of PUBACKs and give how many; the broker sends nothing else."""
    left = size
    while left:
        found = len(peer.recv(left))
        if not found:
            sys.exit("the broker has ended the connection")
        left -= found
    return size


@contextlib.contextmanager
def publishing(address: BrokerAddress, load: Load, instance: int) -> Iterator[float]:
    """Let all publishers send; give when they began, on the monotonic clock."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(load.publishers + 1)
    processes = [
        spawn.Process(
            target=publish_bare if load.apart else publish, args=(address, number, load, instance, start)
        )
        for number in range(load.publishers)
    ]
    for process in processes:
        process.start()
    start.wait()
    yield time.monotonic()
    for process in processes:
        process.join()


def counted(address: BrokerAddress, load: Load) -> Taken:
    """Give what a subscriber takes that only counts."""
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
        cpu_s = time.process_time()
        _wait(lambda: ended_at > 0.0, lambda: seen)
        cpu_s = time.process_time() - cpu_s
    client.disconnect()
    client.loop_stop()
    return Taken(load.total / (ended_at - began_at), 1e6 * cpu_s / load.total, [], {})


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
    }
    if store:
        environment["PFEDREC_STORE"] = store
    if workers:
        environment["PFEDREC_TRY_BROKER"] = "false"
    program = str(Path(sys.executable).parent / "edge-aggregator")
    options = ["--fleet", _FLEET, "--items", str(items), "--dim", str(_DIM), "--encoding", load.encoding]
    made = subprocess.run(
        [program, "init", "--dir", str(shop), *options], env=environment, check=False, capture_output=True
    )
    if made.returncode:
        sys.exit(made.stderr.decode())
    with contextlib.closing(open_store(shop, load_config(shop, environment))) as opened:
        instance = opened.load().instance
    command = [program, "start", "--dir", str(shop), "--broker", str(address)]
    with contextlib.ExitStack() as stack:
        running: dict[int, int] = {}
        for name in [f"worker-{number}" for number in range(workers)] or [""]:
            port = free_port()
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--worker", name] if name else command,
                    env=environment | {"PFEDREC_METRICS_PORT": str(port)},
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.terminate)
            running[port] = process.pid
        _wait(lambda: all(_page(port, "readyz") is not None for port in running), lambda: 0)
        memory: list[tuple[int, float]] = []

        def look() -> int:
            done = sum(map(_accepted, running))
            memory.append((done, sum(map(_resident_mb, running.values()))))
            return done

        cpu_s, by_kind_s = sum(map(_cpu_s, running.values())), _cpu_by_kind_s()
        with publishing(address, load, instance) as began_at:
            # Looking takes from what it looks at: often only towards the end.
            _wait(
                lambda: look() >= load.total,
                lambda: memory[-1][0],
                lambda: 0.25 if memory[-1][0] > 0.9 * load.total else 1.0,
            )
            ended_at, cpu_s = time.monotonic(), sum(map(_cpu_s, running.values())) - cpu_s
            by_kind_us = {
                kind: 1e6 * (seconds - by_kind_s.get(kind, 0.0)) / load.total
                for kind, seconds in _cpu_by_kind_s().items()
            }
        return Taken(load.total / (ended_at - began_at), 1e6 * cpu_s / load.total, memory, by_kind_us)


def _wait(
    done: Callable[[], bool], progress: Callable[[], int], pause_s: Callable[[], float] = lambda: 0.25
) -> None:
    seen, at = -1, time.monotonic()
    while not done():
        if progress() != seen:
            seen, at = progress(), time.monotonic()
        if time.monotonic() > at + _PATIENCE_S:
            sys.exit(f"nothing went on for {_PATIENCE_S:.0f} s, at {seen} updates")
        time.sleep(pause_s())


def _page(port: int, path: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/{path}", timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return None


def _accepted(port: int) -> int:
    wanted = 'pfedrec_updates_total{verdict="accepted"}'
    lines = (_page(port, "metrics") or "").splitlines()
    return next((int(float(line.split()[-1])) for line in lines if line.startswith(wanted)), 0)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024.0 for line in lines if line.startswith("VmRSS:"))


def _cpu_s(pid: int) -> float:
    """Give the CPU time that a process has had, in seconds (proc(5): utime and stime)."""
    figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_by_kind_s() -> dict[str, float]:
    """Give the CPU time, in seconds, of all that this process has started and still runs, by name."""
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--publishers", type=int, default=4)
    parser.add_argument("--store", choices=["sqlite", "postgresql", "both"], default="sqlite")
    parser.add_argument("--encoding", choices=sorted(ENCODINGS), default="int8")
    parser.add_argument("--repeat", type=int, default=1, help="pairs of runs, by turns")
    parser.add_argument("--workers", type=int, default=0, help="with a PostgreSQL store")
    parser.add_argument("--broker", default="mosquitto", help="mosquitto, amqtt, or mqtt://HOST:PORT")
    arguments = parser.parse_args()
    many = arguments.workers
    load = Load(arguments.updates, arguments.publishers, arguments.encoding, apart=bool(many))
    stores = ["sqlite", "postgresql"] if arguments.store == "both" else [arguments.store]
    runs = (
        [("postgresql", count) for count in sorted({1, many})] if many else [(store, 0) for store in stores]
    )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        cluster = None
        if any(store == "postgresql" for store, _ in runs):
            cluster = stack.enter_context(running_cluster(durable=True))
        ratios: dict[str, list[float]] = {}
        for turn in range(arguments.repeat):
            (folder / str(turn)).mkdir()
            # With a broker of its own: what one keeps for an aggregator is of the turn before.
            with _at_broker(arguments.broker, folder / str(turn) / "broker") as address:
                _measure(address, load, runs, folder / str(turn), cluster, ratios)
        if arguments.repeat > 1:
            for who, found in ratios.items():
                shown = ", ".join(f"{ratio:.2f}" for ratio in sorted(found))
                print(f"{who}: {median(found):.2f} of the rate in the median ({shown})")


@contextlib.contextmanager
def _at_broker(kind: str, folder: Path) -> Iterator[BrokerAddress]:
    if kind not in ("mosquitto", "amqtt"):
        yield BrokerAddress.parse(kind)
        return
    with own_broker("mosquitto" if kind == "mosquitto" else "amqtt", _HOST, free_port(), folder) as own:
        yield own.address


def _measure(
    address: BrokerAddress,
    load: Load,
    runs: Sequence[tuple[str, int]],
    folder: Path,
    cluster: Cluster | None,
    ratios: dict[str, list[float]],
) -> None:
    """Let the subscriber and all that is to be measured take the same, and print it."""
    baseline = counted(address, load._replace(updates=min(load.updates, 20_000)))
    print(f"a subscriber that counts: {baseline}", flush=True)
    first = 0.0
    for store, workers in runs:
        url = cluster.new_store() if store == "postgresql" and cluster is not None else ""
        taken = aggregated(address, folder / f"{store}-{workers}", load, url, workers)
        who = f"{workers} worker{'s' * (workers > 1)}" if workers else f"edge-aggregator, {store}"
        beside = f", {taken.per_second / first:.2f} of one worker's" if first else ""
        ratio = taken.per_second / baseline.per_second
        ratios.setdefault(who, []).append(ratio)
        print(f"{who}: {taken}; {ratio:.2f} of the rate{beside}", flush=True)
        if workers:
            first = first or taken.per_second
            each = (f"{kind} {used:.0f} µs" for kind, used in sorted(taken.by_kind_us.items()))
            print(f"CPU of each, by process: {', '.join(each)}", flush=True)
        _print_memory(taken.memory, load.updates)


def _print_memory(memory: list[tuple[int, float]], updates: int) -> None:
    later = [each for each in memory if each[0] >= updates // 2]
    peak = max(resident for _, resident in memory)
    if len({done for done, _ in later}) > 2:
        slope = median(
            (resident - before) / (done - earlier)
            for (earlier, before), (done, resident) in itertools.combinations(later, 2)
            if done > earlier
        )
        print(f"memory: {peak:.0f} MB at most; {1000.0 * slope:+.3f} MB per 1,000 updates in the second half")


if __name__ == "__main__":
    main()
