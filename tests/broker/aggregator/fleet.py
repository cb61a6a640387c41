"""A device and an onlooker, as plain MQTT clients, and an aggregator to talk to."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from broker.address import BrokerAddress
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import initialise, load_config, open_store
from broker.aggregator.service import AggregatorService
from broker.aggregator.store.interface import Ledger
from broker.protocol.chunks import Assembly, cut
from broker.protocol.messages import Chunk, Head, Receipt, Status, Update, decode, encode
from broker.protocol.topics import FleetTopics
from broker.protocol.versions import catalogue_from_bytes, sha256, table_from_bytes
from broker.protocol.wire import MAX_MESSAGE_BYTES
from tests.brokers import PATIENCE_S, Peer
from trainer.params import Floats


def make_directory(path: Path, config: AggregatorConfig, *, n_items: int = 6, dim: int = 3) -> Path:
    """Set an aggregator's directory up; give it."""
    items = path.with_name(f"{path.name}-items.txt")
    items.write_text("".join(f"item {number}\n" for number in range(n_items)))
    initialise(path, config, items, dim=dim, seed=1, created_at=0.0)
    return path


@contextmanager
def serving(path: Path, address: BrokerAddress, said: list[str] | None = None) -> Iterator[AggregatorService]:
    """Run the aggregator of a directory on a thread, as its command would; give it."""
    store = open_store(path)
    stop = threading.Event()
    try:
        with ThreadPoolExecutor(1) as pool:
            service = AggregatorService(
                load_config(path, {}), store, address, (said if said is not None else []).append
            )
            running = pool.submit(service.run, stop)
            try:
                yield service
            finally:
                stop.set()
                running.result(PATIENCE_S)
    finally:
        store.close()


def ledger_of(path: Path) -> Ledger:
    """Give the sums of a directory, also while it is served."""
    store = open_store(path)
    try:
        return store.ledger()
    finally:
        store.close()


class Device(Peer):
    """A client that sees everything its fleet publishes and sends updates as one device."""

    def __init__(self, address: BrokerAddress, fleet: str, name: str = "pi") -> None:
        self.name = name
        self.topics = FleetTopics(fleet)
        self._latest: dict[str, bytes] = {}
        super().__init__(
            address,
            f"{fleet}-{name}",
            self.topics.head,
            self.topics.snapshot_filter(0),
            self.topics.snapshot_filter(1),
            self.topics.catalogue_filter,
            self.topics.receipt(name),
        )

    def _take(self) -> tuple[str, bytes]:
        message = self.messages.get(timeout=PATIENCE_S)
        if not message.topic.startswith(self.topics.head.removesuffix("head")):
            return self._take()  # amqtt gives retained messages also to those who did not ask
        self._latest[message.topic] = bytes(message.payload)
        return message.topic, bytes(message.payload)

    def head(self, wanted: Callable[[Head], bool] = lambda _: True) -> Head:
        """Wait for a head that is as wanted; one that is there already counts."""
        content = self._latest.get(self.topics.head)
        while content is None or not wanted(decode(content, Head)):
            self._take()
            content = self._latest.get(self.topics.head)
        return decode(content, Head)

    def table(self, head: Head) -> Floats:
        """Wait until the table that a head announces is there, and check it."""
        topics = [self.topics.snapshot(head.slot, index) for index in range(head.chunks)]
        return table_from_bytes(self._whole(topics, head.table_bytes, head.sha256), head)

    def catalogue(self, head: Head) -> tuple[str, ...]:
        """Wait until the catalogue that a head announces is there, and check it."""
        topics = [self.topics.catalogue(index) for index in range(head.catalogue_chunks)]
        return catalogue_from_bytes(
            self._whole(topics, head.catalogue_bytes, head.catalogue_sha256), head
        ).keys

    def _whole(self, topics: Sequence[str], size: int, digest: bytes) -> bytes:
        while True:
            assembly = Assembly(size, digest)
            for topic in topics:
                chunk = decode(self._latest[topic], Chunk) if topic in self._latest else None
                if chunk is not None and assembly.fits(chunk):
                    assembly.add(chunk)
            if assembly.complete:
                return assembly.whole()
            self._take()

    def receipt(self) -> Receipt:
        """Wait for the next receipt."""
        topic, payload = self._take()
        while topic != self.topics.receipt(self.name):
            topic, payload = self._take()
        return decode(payload, Receipt)

    def send(self, update: Update) -> Receipt:
        """Send an update, in chunks where it is large, and wait for its receipt."""
        payload = encode(update)
        if len(payload) <= MAX_MESSAGE_BYTES:
            return self.send_bytes(payload)
        *first, last = [encode(chunk) for chunk in cut(payload, sha256(payload))]
        for chunk in first:
            self.publish(self.topics.update(self.name), chunk)
        return self.send_bytes(last)

    def send_bytes(self, payload: bytes) -> Receipt:
        """Send anything as an update and wait for its receipt."""
        self.publish(self.topics.update(self.name), payload)
        return self.receipt()

    def show_status(self, *, online: bool = True) -> None:
        """Publish a status."""
        status = Status(
            online=online, session=1, incarnation=1, version=None, scorer="numpy", software="test"
        )
        self.publish(self.topics.status(self.name), encode(status), retain=True)
