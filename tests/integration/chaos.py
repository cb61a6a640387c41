"""The crash proof of a whole fleet: hundreds of live devices, and SIGKILL for everything that serves them.

A real mosquitto, real ``edge-aggregator start`` processes and virtual devices over real MQTT
(`edge.fleet.live`). With SQLite broker and aggregator are killed, with PostgreSQL broker, three workers and
the database server itself, each as often as the others, at random moments, and started again at once. Then
the fleet comes to rest, all processes are stopped, and what the store says is held against what devices saw.

The seed repeats the order and the pauses, not the operating system's timing. Run it::

    python -m tests.integration.chaos --kills 300 --devices 500 --store postgresql --seed 1
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from unittest.mock import patch

from broker.address import BrokerAddress
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import initialise, load_config, open_store
from broker.aggregator.examination import Judgement, examine
from broker.aggregator.store.interface import Ledger
from broker.aggregator.store.sql import SqlStore
from broker.embedded import free_port
from broker.protocol.messages import Receipt, decode
from broker.protocol.versions import sha256, table_bytes
from edge.fleet import live
from edge.fleet.aggregator_process import AggregatorProcess
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator
from edge.fleet.live import LiveFleet, LiveSettings
from edge.fleet.scenario import load_scenario
from tests.brokers import HOST, PATIENCE_S
from tests.integration.evidence import Finding
from tests.integration.processes import (
    Mortal,
    broker_command,
    command_path,
    seeded,
    wait_until,
)
from tests.postgres import Cluster, running_cluster

Store = Literal["sqlite", "postgresql"]
STORES: tuple[Store, ...] = ("sqlite", "postgresql")
WORKERS = ("a", "b", "c")
MEAN_PAUSE_S = 0.5
"""Before each kill, beside what is waited for."""
_POLL_S = 0.02
_FLEET = "chaos"
_DIM = 16
_WITHOUT_END = 1 << 40
_ALL_VERSIONS = 100_000
_TRACEBACK = "Traceback (most recent call last)"

Key = tuple[str, int, int]
"""A device, its incarnation, and an update's number."""


@dataclass(frozen=True)
class Outcome:
    """What a run has shown."""

    title: str
    findings: Sequence[Finding]

    @property
    def holds(self) -> bool:
        """Whether all promises were kept."""
        return not any(finding.broken for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {finding}" for finding in self.findings)])


class Victim(Protocol):
    """What is killed and started again."""

    name: str
    kills: int

    def kill(self) -> None:
        """End it with SIGKILL."""
        ...

    def start(self) -> None:
        """Start it."""
        ...


class Server:
    """PostgreSQL as a victim; it ends with the thread that started it."""

    def __init__(self, cluster: Cluster) -> None:
        self.name = "postgresql"
        self.kills = 0
        self._cluster = cluster

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._cluster.kill()
        self.kills += 1

    def start(self) -> None:
        """Start it, and wait until it has recovered."""
        self._cluster.start()


class Served(AggregatorProcess):
    """What the fleet asks about its aggregator, of which there may be several, or none just now."""

    def __init__(self, open_it: Callable[[], SqlStore]) -> None:
        self.open = open_it
        with closing(open_it()) as store:
            self._instance = store.load().instance

    def require_running(self) -> None:
        """Take it as it comes."""

    def cpu_seconds(self) -> float:
        """Nobody counts."""
        return 0.0

    def instance(self) -> int:
        """Give what its heads are known by."""
        return self._instance

    def ledger(self) -> Ledger:
        """Add up what became of all updates."""
        with closing(self.open()) as store:
            return store.ledger()

    def newest(self) -> tuple[int, bytes]:
        """Give the newest stored version and its SHA-256."""
        with closing(self.open()) as store:
            (record,) = store.rounds(1)
        return record.version, record.sha256


class Witnessed(LiveFleet):
    """A live fleet that remembers what every receipt said."""

    told: defaultdict[Key, set[str]]

    def _handle(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/receipt") and payload:
            receipt = decode(payload, Receipt)
            device = self._topics.parse(topic).device
            self.told[device, receipt.incarnation, receipt.seq].add(receipt.verdict)
        super()._handle(topic, payload)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is left when everything has ended.

    Attributes
    ----------
    journal : sequence of rows
        device, incarnation, seq, verdict, version.
    versions : dict of rows
        version, updates, dropped, sha256, kind; by version.
    judged : Counter
        Versions by what `examine` says of them.
    told : dict of set of str
        Verdicts by update, as its device got them.
    """

    journal: Sequence[Any]
    versions: Mapping[int, Any]
    judged: Mapping[Judgement, int]
    told: Mapping[Key, set[str]]
    devices: Sequence[VirtualDevice]
    answers: Mapping[Key, str] = field(init=False)

    def __post_init__(self) -> None:
        answers = {(row.device, int(row.incarnation), row.seq): row.verdict for row in self.journal}
        object.__setattr__(self, "answers", answers)

    @classmethod
    def of(cls, store: SqlStore, fleet: Witnessed, devices: Sequence[VirtualDevice]) -> "Evidence":
        """Read it, in plain SQL but for what `fsck` does."""
        journal = "SELECT device, incarnation, seq, verdict, version FROM journal"
        versions = "SELECT version, updates, dropped, sha256, kind FROM versions"
        with store.transaction(reading=True) as connection:
            entries = connection.exec_driver_sql(journal).all()
            made = {row.version: row for row in connection.exec_driver_sql(versions).all()}
        judged = Counter(each.judgement for each in examine(store))
        return cls(journal=entries, versions=made, judged=judged, told=fleet.told, devices=devices)


def chaos(directory: Path, *, store: Store, kills: int, devices: int, seed: int) -> Outcome:
    """Kill what serves a fleet `kills` times in all; give what that has shown.

    Parameters
    ----------
    directory : Path
        Where everything lives; kept by this function.
    """
    with ExitStack() as stack:
        # A fleet whose server is killed all the time may be long without a new version.
        for name in ("FIRST_TABLE_S", "STALLED_S"):
            stack.enter_context(patch.object(live, name, 20.0 * PATIENCE_S))
        directory.mkdir(parents=True, exist_ok=True)
        cluster = stack.enter_context(running_cluster()) if store == "postgresql" else None
        secret = {} if cluster is None else {"PFEDREC_STORE": cluster.new_store()}
        scenario = load_scenario("synthetic", "clean", seed, devices)
        port = free_port(HOST)
        config = AggregatorConfig(
            fleet=_FLEET,
            broker=f"mqtt://{HOST}:{port}",
            store=secret.get("PFEDREC_STORE", ""),
            buffer=max(2, devices // 16),
            deadline_s=1.0,
            check_in_s=devices / 200.0,
            max_idle_passes=1_000_000,
            keep_versions=_ALL_VERSIONS,
            population=devices,
        )
        home = directory / "aggregator"
        items = directory / "items.txt"
        items.write_text("".join(f"{key}\n" for key in scenario.data.item_keys))
        initialise(home, config, items, dim=_DIM, seed=seed, created_at=time.time())
        served = Served(lambda: open_store(home, load_config(home, secret)))
        broker, aggregators = _processes(directory, home, port, secret, seed)
        victims: list[Victim] = [broker, *aggregators]
        if cluster is not None:
            victims.append(Server(cluster))
        people = [VirtualDevice(scenario, user, seed) for user in range(devices)]
        is_here = threading.Event()
        fleet = Witnessed(
            LiveSettings(
                fleet=_FLEET,
                address=BrokerAddress(host=HOST, port=port),
                versions=_WITHOUT_END,
                concurrency=devices,
            ),
            people,
            served,
            Evaluator(scenario),
            lambda _: is_here.set(),
            lambda _: None,
        )
        fleet.told = defaultdict(set)
        trouble: list[str] = []
        with _running([broker, *aggregators]), _living(fleet, is_here, trouble) as rest:
            began = time.monotonic()
            _kill_at_random(victims, kills, seed, fleet, trouble)
            ended = time.monotonic()
            rest()
            rested = time.monotonic()
        with closing(served.open()) as opened:
            evidence = Evidence.of(opened, fleet, people)
    each = ", ".join(f"{victim.name} {victim.kills}" for victim in victims)
    return Outcome(
        f"seed {seed}, {store}, {devices} devices: {kills} kills ({each}) in {ended - began:.0f} s, at rest "
        f"{rested - ended:.0f} s after the last",
        [
            _counted_once(evidence),
            _made_and_journalled(evidence),
            _told_and_journalled(evidence),
            _made_anew(evidence),
            _same_tables(evidence),
            _conduct([broker, *aggregators], trouble),
        ],
    )


def _processes(
    directory: Path, home: Path, port: int, secret: Mapping[str, str], seed: int
) -> tuple[Mortal, list[Mortal]]:
    (directory / "broker").mkdir()
    # At every change it would write all that waits in it, for hundreds of devices, with each message.
    autosave = ("hardly ever", "every second")[seed % 2]
    command = broker_command("mosquitto", port, (directory / "broker").resolve(), autosave)
    broker = Mortal("broker", command, directory / "broker.log")
    start = [command_path("edge-aggregator"), "start", "--dir", str(home)]
    if not secret:
        return broker, [Mortal("aggregator", start, directory / "aggregator.log")]
    return broker, [
        Mortal(f"worker {name}", [*start, "--worker", name], directory / f"worker-{name}.log", secret)
        for name in WORKERS
    ]


@contextmanager
def _running(processes: Sequence[Mortal]) -> Iterator[None]:
    try:
        for process in processes:
            process.start()
        yield
        for process in reversed(processes):
            process.stop()
    finally:
        for process in processes:
            process.clean_up()


@contextmanager
def _living(fleet: LiveFleet, is_here: threading.Event, trouble: list[str]) -> Iterator[Callable[[], None]]:
    """Let a fleet live on a thread, from its first table on; what goes wrong comes to `trouble`.

    Gives what waits until it has come to rest.
    """

    def live() -> None:
        try:
            asyncio.run(fleet.run())
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the findings
            trouble.append(f"the fleet ended with {type(error).__name__}: {error}")

    def rest() -> None:
        fleet.finish()
        thread.join()

    thread = threading.Thread(target=live, name="fleet")
    thread.start()
    try:
        wait_until(lambda: is_here.is_set() or bool(trouble), "a first table", within_s=20.0 * PATIENCE_S)
        yield rest
    finally:
        rest()


def _kill_at_random(
    victims: Sequence[Victim], kills: int, seed: int, fleet: Witnessed, trouble: Sequence[str]
) -> None:
    """Kill one after the other; every second time only after updates were answered again.

    On a busy machine processes would else be killed while they start, and nothing would be under way. Once
    the fleet has ended, nothing more is killed.
    """
    rng = seeded(seed, "chaos")
    order = [victims[number % len(victims)] for number in range(kills)]
    rng.shuffle(order)
    for number, victim in enumerate(order):
        if number % 2 == 0:
            before, until = len(fleet.told), time.monotonic() + 4.0 * PATIENCE_S
            while len(fleet.told) == before and time.monotonic() < until and not trouble:
                time.sleep(_POLL_S)
        if trouble:
            return
        time.sleep(rng.expovariate(1.0 / MEAN_PAUSE_S))
        victim.kill()
        victim.start()


def _counted_once(evidence: Evidence) -> Finding:
    spent = Counter(row.version for row in evidence.journal if row.verdict == "accepted")
    versions = evidence.versions.values()
    broken = [f"{len(evidence.journal) - len(evidence.answers)} are there twice"] * (
        len(evidence.journal) != len(evidence.answers)
    )
    broken += [f"{spent[None]} accepted updates were never counted"] * (spent[None] > 0)
    broken += [
        f"version {row.version}: {row.updates} and {row.dropped} dropped, journalled {spent[row.version]}"
        for row in versions
        if row.updates + row.dropped != spent[row.version]
    ]
    dropped = [row.dropped for row in versions if row.kind == "rollback"]
    return Finding(
        "1. every accepted update is in the journal once, and in one version",
        f"{sum(spent.values())} accepted, in {len(versions) - 1} versions; "
        f"{sum(dropped)} dropped by {len(dropped)} rollbacks",
        broken,
    )


def _made_and_journalled(evidence: Evidence) -> Finding:
    made = {
        (device.name, device.incarnation, seq)
        for device in evidence.devices
        for seq in range(1, device.updates_made + 1)
    }
    there = set(evidence.answers)
    return Finding(
        "2. every update that was made is in the journal, and no other",
        f"{len(made)} made, by {sum(device.updates_made > 0 for device in evidence.devices)} devices; "
        + ", ".join(f"{count} {verdict}" for verdict, count in Counter(evidence.answers.values()).items()),
        [f"{key} is not in the journal" for key in made - there]
        + [f"nobody made {key}" for key in there - made],
    )


def _told_and_journalled(evidence: Evidence) -> Finding:
    broken = []
    for key, verdicts in evidence.told.items():
        first = verdicts - {"duplicate"}
        if key not in evidence.answers or not first <= {evidence.answers[key]}:
            broken.append(f"{key} was told {verdicts}, the journal says {evidence.answers.get(key)}")
    again = sum("duplicate" in verdicts for verdicts in evidence.told.values())
    return Finding(
        "3. what devices were told is what the journal says",
        f"{len(evidence.told)} updates answered, {again} of them more than once or after a crash",
        broken,
    )


def _made_anew(evidence: Evidence) -> Finding:
    judged = evidence.judged
    return Finding(
        "4. every version, made anew from the journal, has its SHA-256",
        ", ".join(f"{count} {name}" for name, count in judged.items()),
        [f"{count} versions are {name}" for name, count in judged.items() if name != "proved"],
    )


def _same_tables(evidence: Evidence) -> Finding:
    newest = max(evidence.versions)
    digest = bytes(evidence.versions[newest].sha256)
    digests = {
        id(device.table): None if device.table is None else sha256(table_bytes(device.table))
        for device in evidence.devices
    }
    return Finding(
        "5. all devices have the newest table",
        f"version {newest}, {len(evidence.devices)} devices",
        [
            f"{device.name} has version {device.session.version}, or another table"
            for device in evidence.devices
            if device.session.version != newest or digests[id(device.table)] != digest
        ],
    )


def _conduct(processes: Sequence[Mortal], trouble: Sequence[str]) -> Finding:
    broken = [*trouble, *(sentence for process in processes for sentence in process.ended_alone)]
    broken += [
        f"{process.log} has a traceback"
        for process in processes
        if process.log.exists() and _TRACEBACK in process.log.read_text(errors="replace")
    ]
    return Finding(
        "6. no process ended by itself, or with a traceback",
        f"{len(processes)} processes and the fleet",
        broken,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.chaos",
        description="Kill everything that serves a live fleet, at random, and check that nothing is lost.",
    )
    parser.add_argument("--seed", default=1, type=int, help="Of order and pauses (default 1).")
    parser.add_argument("--kills", default=300, type=int, help="In all (default 300).")
    parser.add_argument("--devices", default=500, type=int, help="Live devices (default 500).")
    parser.add_argument("--store", choices=STORES, help="One store only.")
    return parser.parse_args()


def main() -> int:
    """Run the proof; give 0 if all promises were kept, else 1."""
    arguments = _arguments()
    holds = True
    for store in STORES if arguments.store is None else (arguments.store,):
        work = Path(tempfile.mkdtemp(prefix=f"pfedrec-chaos-{store}-"))
        outcome = chaos(
            work / "fleet",
            store=store,
            kills=arguments.kills,
            devices=arguments.devices,
            seed=arguments.seed,
        )
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        if outcome.holds:
            shutil.rmtree(work)
        else:
            sys.stdout.write(f"  directories and logs: {work}\n")
        holds &= outcome.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
