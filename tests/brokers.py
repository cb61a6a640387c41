"""Real MQTT brokers on 127.0.0.1 and a plain client, for tests.

A `RunningBroker` can be killed and started again on the same port. A `Peer` is a paho client without any
of the project's code: what it sees is what any tool would see.
"""

import os
import queue
import select
import signal
import socket
import threading
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.address import BrokerAddress
from broker.embedded import BrokerKind, free_port, mosquitto_path, own_broker

KINDS: tuple[BrokerKind, ...] = ("mosquitto", "amqtt")
HOST = "127.0.0.1"
SLOWNESS = float(os.environ.get("PFEDREC_SLOWNESS", "1"))
"""How many times slower than an ordinary machine this one is; an emulated one is about 10 times."""
PATIENCE_S = 30.0 * SLOWNESS
"""How long anything is waited for before a test fails."""

_T = TypeVar("_T")


def require(kind: BrokerKind) -> None:
    """Skip the test that asks where the broker is not installed."""
    if kind == "mosquitto" and mosquitto_path() is None:
        pytest.skip("mosquitto is not installed; to run this test: apt-get install mosquitto")


class RunningBroker:
    """A broker of one kind, run as the project runs it."""

    def __init__(self, kind: BrokerKind, directory: Path) -> None:
        require(kind)
        self.kind = kind
        self.port = free_port(HOST)
        self._directory = directory
        self._running = ExitStack()

    @property
    def address(self) -> BrokerAddress:
        """Where it is, or will be again."""
        return BrokerAddress(host=HOST, port=self.port)

    @property
    def url(self) -> str:
        """Its address as a command takes it."""
        return str(self.address)

    def start(self) -> None:
        """Start it and wait until it listens."""
        with warnings.catch_warnings():
            # From Python 3.12 on any fork beside threads warns; the clients of a restarted broker have some.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._running.enter_context(own_broker(self.kind, HOST, self.port, self._directory))

    def stop(self) -> None:
        """End it as the project does."""
        self._running.close()

    def kill(self) -> None:
        """End it with SIGKILL."""
        kill_and_wait(self._pid())
        self.stop()

    def signal(self, number: int) -> None:
        """Send a signal, for example to let it hang."""
        os.kill(self._pid(), number)

    def _pid(self) -> int:
        (found,) = [
            pid for pid in children_of(os.getpid()) if str(self.port) in command_of(pid) or self._owns(pid)
        ]
        return found

    def _owns(self, pid: int) -> bool:
        return any(argument.startswith(f"{self._directory}/") for argument in command_of(pid))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()


def children_of(parent: int) -> list[int]:
    """Give the ids of a process's children."""
    result = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                status = (path / "status").read_text()
            except OSError:  # it has ended meanwhile
                continue
            if f"\nPPid:\t{parent}\n" in status:
                result.append(int(path.name))
    return result


def command_of(pid: int) -> list[str]:
    """Give a process's arguments."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def kill_and_wait(pid: int) -> None:
    """End a process with SIGKILL and wait until it has ended."""
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(handle)
    finally:
        os.close(handle)


def wait_for_end(handle: int) -> None:
    """Wait until the process of a pidfd has ended, whoever its parent is."""
    ended, _, _ = select.select([handle], [], [], PATIENCE_S)
    assert ended, "the process did not end"


def wait_for(events: "queue.Queue[Any]", kind: type[_T]) -> _T:
    """Give the next event of a kind; those before it are dropped."""
    deadline = time.monotonic() + PATIENCE_S
    seen: list[object] = []
    while True:
        try:
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"no {kind.__name__} came, only {seen[-10:]}") from None
        if isinstance(event, kind):
            return event
        seen.append(event)


class Peer:
    """A plain MQTT 3.1.1 client that keeps what it receives in a queue."""

    def __init__(self, address: BrokerAddress, client_id: str, *filters: str) -> None:
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self._ready = threading.Event()
        self._filters = filters
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv311)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _client, _userdata, message: self.messages.put(message)
        self._client.connect_async(address.host, address.port, keepalive=30)

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        if self._filters:
            client.subscribe([(each, 1) for each in self._filters])
        else:
            self._ready.set()

    def __enter__(self) -> Self:
        self._client.loop_start()
        assert self._ready.wait(PATIENCE_S), "the broker did not confirm the subscription"
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        with suppress(AttributeError):  # its thread has ended between paho's look and the join
            self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1 and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def receive(self, topic: str) -> paho.MQTTMessage:
        """Give the next message on a topic; those on others before it are dropped."""
        deadline = time.monotonic() + PATIENCE_S
        seen: list[str] = []
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing came on {topic}, only on {seen[-10:]}") from None
            if message.topic == topic:
                return message
            seen.append(message.topic)


class ScriptedBroker:
    """Answers each connection with the next of some CONNACK codes; the last one for ever."""

    def __init__(self, *codes: int) -> None:
        self._codes = list(codes)
        self._listener = socket.create_server((HOST, 0))
        self.address = BrokerAddress(host=HOST, port=self._listener.getsockname()[1])
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._peer = peer
                with peer:
                    peer.recv(65536)
                    code = self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]
                    peer.sendall(bytes([0x20, 2, 0, code]))
                    while peer.recv(65536):
                        pass

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # Closing alone does not wake a thread that waits in accept or recv.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._peer is not None:
            with suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
