"""Agents and aggregators that run: in a thread, as processes, or played by the test itself."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head, Receipt, Status, Update, Verdict, decode, encode
from broker.protocol.topics import FleetTopics
from edge.agent import Agent
from edge.config import DeviceConfig, initialise, load_config, open_store
from edge.guards import Limits
from edge.store import DeviceStore
from tests.brokers import PATIENCE_S, Peer, RunningBroker
from tests.edge.builders import ITEM_KEYS, catalogue_chunks, table_chunks
from trainer.params import Floats

DEVICE = "pi-1"
_POLL_S = 0.02


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until a condition holds, or fail with what was waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        threading.Event().wait(_POLL_S)


def a_directory(path: Path, fleet: str, broker: str, device_id: str = DEVICE) -> Path:
    """Set a device's directory up."""
    training = Limits(max_load_per_core=0.0)  # the machine that tests run on may be busy
    config = DeviceConfig(device_id=device_id, fleet=fleet, broker=broker, scorer="numpy", training=training)
    initialise(path, config)
    return path


@contextmanager
def looking_at(directory: Path) -> Iterator[DeviceStore]:
    """Open a device's store beside whoever else has it open."""
    with closing(open_store(directory)) as store:
        yield store


def record(directory: Path, *items: str) -> None:
    """Record interactions as another process does."""
    with looking_at(directory) as store:
        store.record([(item, 1000.0 + number) for number, item in enumerate(items)])


def told(directory: Path, name: str) -> Any:
    """Give what the agent has left for ``status``."""
    with looking_at(directory) as store:
        return store.fact(name)


class InThread(ABC):
    """Something that runs in a thread until the block ends. What ends it before is raised there."""

    def __init__(self, name: str) -> None:
        self.sentences: list[str] = []
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)

    @abstractmethod
    def _work(self) -> None:
        """Run until `_stop` is set."""

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed over to the test's thread
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"the {self._thread.name} does not stop"
        if self._failure is not None:
            raise self._failure from error


class RunningAgent(InThread):
    """An agent in a thread."""

    def __init__(self, directory: Path, seed: int = 1, root: Path = Path("/"), **environment: str) -> None:
        super().__init__("agent")
        self.agent: Agent | None = None
        self._root = root
        self._environment = environment
        self._directory = directory
        self._seed = seed

    def hear(self, *words: str) -> None:
        """Wait until the newest sentence has these words."""
        wait_until(
            lambda: bool(self.sentences) and all(word in self.sentences[-1] for word in words),
            f"a sentence with {words}",
        )

    def end(self) -> BaseException | None:
        """Wait until the agent ends by itself; give why."""
        self._thread.join(PATIENCE_S)
        failure, self._failure = self._failure, None
        return failure

    def _work(self) -> None:
        with looking_at(self._directory) as store:
            config = load_config(self._directory, self._environment)
            rng = np.random.default_rng(self._seed)
            self.agent = Agent(config, store, self.sentences.append, rng, self._root)
            self.agent.run(self._stop)


class PlayedAggregator:
    """An aggregator that does what the test says."""

    def __init__(self, broker: RunningBroker, fleet: str) -> None:
        self.topics = FleetTopics(fleet)
        self._update = self.topics.update(DEVICE)
        self.peer = Peer(broker.address, f"{fleet}-played", self.topics.update_filter)

    def __enter__(self) -> Self:
        self.peer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peer.__exit__(kind, error, trace)

    def publish_table(
        self, head: Head, table: Floats, item_keys: Catalogue | Sequence[str] = ITEM_KEYS
    ) -> None:
        """Publish what a head announces."""
        for chunk in catalogue_chunks(item_keys):
            self.peer.publish(self.topics.catalogue(chunk.index), encode(chunk), retain=True)
        for chunk in table_chunks(table):
            self.peer.publish(self.topics.snapshot(head.slot, chunk.index), encode(chunk), retain=True)

    def publish_head(self, head: Head) -> None:
        """Announce a version."""
        self.peer.publish(self.topics.head, encode(head), retain=True)

    def publish(self, head: Head, table: Floats, item_keys: Catalogue | Sequence[str] = ITEM_KEYS) -> None:
        """Publish a version whole."""
        self.publish_table(head, table, item_keys)
        self.publish_head(head)

    def next_payload(self) -> bytes:
        """Give the next update as it came."""
        return bytes(self.peer.receive(self._update).payload)

    def next_update(self) -> Update:
        """Give the next update."""
        return decode(self.next_payload(), Update)

    def answer(self, update: Update, verdict: Verdict = "accepted", *, check_in_s: float = 0.2) -> None:
        """Send a receipt."""
        receipt = Receipt(
            incarnation=update.incarnation,
            seq=update.seq,
            verdict=verdict,
            reason="",
            version=update.base_version,
            staleness=0,
            check_in_s=check_in_s,
        )
        self.peer.publish(self.topics.receipt(DEVICE), encode(receipt))


class RunningCommand:
    """One of the project's commands as a process; its lines on stderr are kept in a queue."""

    def __init__(
        self, program: str, *arguments: str, stderr: IO[bytes] | None = None, **environment: str
    ) -> None:
        module = {"edge-client": "edge.cli", "edge-aggregator": "broker.aggregator.cli"}[program]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if stderr is None else stderr,
            text=True,
            env=os.environ | environment,
        )
        self.lines: list[str] = []
        self._incoming: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=program)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._incoming.put(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def hear(self, words: str) -> None:
        """Wait until a line has these words."""
        while not any(words in line for line in self.lines):
            try:
                self.lines.append(self._incoming.get(timeout=PATIENCE_S))
            except queue.Empty:
                raise AssertionError(f"no line with {words!r}, only {self.lines}") from None
        self.lines = [line for line in self.lines if words not in line]

    def send(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, within_s: float = PATIENCE_S) -> int:
        """Send a signal and wait; give the exit code."""
        self._process.send_signal(number)
        return self.wait(within_s)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Wait until it ends; give the exit code."""
        code = self._process.wait(within_s)
        self._reader.join(PATIENCE_S)
        while not self._incoming.empty():
            self.lines.append(self._incoming.get())
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self._process.stderr is not None:
            self._process.stderr.close()


def run_command(program: str, *arguments: str) -> None:
    """Run a command to its end; it must succeed."""
    with RunningCommand(program, *arguments) as command:
        code = command.wait()
        assert code == 0, command.lines


def an_aggregator(directory: Path, fleet: str, item_keys: Sequence[str], *options: str, dim: int = 4) -> Path:
    """Set an aggregator's directory up."""
    items = directory.with_name(f"{directory.name}-items.txt")
    items.write_text("".join(f"{key}\n" for key in item_keys))
    arguments = ["--dir", str(directory), "--fleet", fleet, "--items", str(items), "--dim", str(dim)]
    run_command("edge-aggregator", "init", *arguments, "--seed", "1", *options)
    return directory


def status_of(message: Any) -> Status:
    """Read a device's status."""
    return decode(bytes(message.payload), Status)
