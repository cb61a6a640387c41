"""The link to home automation's MQTT broker: announces the status sensors, and records what is commanded.

A thread of its own, with a connection and a database connection of its own. Whatever goes wrong here is said
once and never ends the device. `edge.homeassistant` says what travels.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from importlib.metadata import version as package_version

from broker.address import BrokerAddress
from broker.connection import Connected, Connection, EventQueue, LinkEvent, Lost, Received, Refused
from broker.errors import ParameterError, PFedRecError
from broker.protocol.topics import Topic
from edge.config import DeviceConfig
from edge.erasure import LEFT_ON_BROKERS
from edge.facts import device_facts
from edge.homeassistant import HomeTopics, read_command, read_left_behind, state_payload
from edge.store import DeviceStore

_LOG = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Between looks whether a sensor has another value."""
_STOP_S = 0.5
"""Longest wait for an event: bounds how long a stop request goes unnoticed."""


def place_of(address: BrokerAddress) -> str:
    """Name a broker without the user's name and password."""
    return f"{address.host}:{address.port}"


def left_behind(store: DeviceStore) -> dict[str, list[Topic]]:
    """Give the topics that hold retained messages of this device, by broker (see `place_of`)."""
    return read_left_behind(store.fact(LEFT_ON_BROKERS))


class HomeLink:
    """One device's link, or, with ``home_enabled = false``, its taking back of what it left there.

    Parameters
    ----------
    store : DeviceStore
        Of its own: the thread alone works on it.
    say : callable
        Told one sentence when something needs attention and one when that has passed.
    """

    def __init__(
        self, config: DeviceConfig, address: BrokerAddress, store: DeviceStore, say: Callable[[str], None]
    ) -> None:
        self._config = config
        self._address = address
        self._store = store
        self._say = say
        self._topics = HomeTopics(prefix=config.home_prefix, fleet=config.fleet, device=config.device_id)
        self._events = EventQueue()
        # The broker keeps commands for this id while the device is away.
        self._connection = Connection(
            address,
            self._topics.node,
            self._events,
            last_will=(lambda _: (self._topics.availability, b"offline")) if config.home_enabled else None,
        )
        self._gone = False
        self._ended = False
        self._look_at = 0.0
        self._changes: int | None = None
        self._told = b""

    def run(self, stop: threading.Event) -> None:
        """Keep the link until `stop` is set."""
        if self._config.shares_fleet_broker:
            self._say(
                f"home automation shares the fleet's broker {self._address}: its operator can read the "
                "status sensors and each item that is recorded by MQTT"
            )
        self._connection.start()
        try:
            while not (stop.is_set() or self._ended):
                self._guarded(self._step)
            if self._config.home_enabled:
                self._connection.publish(self._topics.availability, b"offline", retain=True)
        finally:
            self._connection.stop()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except PFedRecError as error:
            # For example a full disk, which the agent meets, too, and which ends the device there.
            _LOG.warning("home automation: %s", error)
        except Exception:  # noqa: BLE001 - whatever it is, the device goes on
            _LOG.exception("the link to home automation has ended")
            self._ended = True

    def _step(self) -> None:
        event = self._next_event()
        if event is not None:
            self._handle(event)
        now = time.monotonic()
        if now >= self._look_at and self._config.home_enabled:
            self._look_at = now + _LOOK_S
            changes = self._store.changes()
            if changes != self._changes:
                self._changes = changes
                self._tell()

    def _next_event(self) -> LinkEvent | None:
        try:
            return self._events.get(timeout=_STOP_S)
        except queue.Empty:
            return None

    def _handle(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                if self._gone:
                    self._say("home automation's broker is back")
                self._gone = False
                if self._config.home_enabled:
                    self._announce()
                else:
                    self._take_away()
            case Lost(reason):
                if not self._gone:
                    self._say(f"home automation: {reason}; trying again until it is back")
                self._gone = True
            case Refused(reason):
                self._say(
                    f"home automation's broker {self._address} refuses the device: {reason}; "
                    "check home_broker; the device goes on without it"
                )
                self._ended = True
            case Received(topic=self._topics.removed):
                self._connection.unsubscribe([self._topics.removed_filter])
                self._remember([])
                self._say(f"the sensors were taken away from {self._address}")
                self._ended = True
            case Received():
                self._record(event)
                self._connection.acknowledge(event)

    def _announce(self) -> None:
        announcements = self._topics.announcements(package_version("pfedrec-edge"))
        kept = self._topics.retained()
        before = self._left()
        # First, so that a crash cannot leave messages that nobody knows of.
        self._remember([*kept, *(topic for topic in before if topic not in kept)])
        for topic in before:
            if topic not in kept:
                self._clear(topic)
        for topic, payload in announcements.items():
            self._connection.publish(topic, payload, retain=True)
        self._told = b""
        self._tell()
        self._connection.publish(self._topics.availability, b"online", retain=True)
        self._connection.subscribe([self._topics.record_filter])

    def _take_away(self) -> None:
        self._connection.unsubscribe([self._topics.record_filter])
        for topic in self._left():
            self._clear(topic)
        # The broker takes messages in order: when this one comes back, the others have arrived.
        self._connection.subscribe([self._topics.removed_filter])
        self._connection.publish(self._topics.removed, b"removed")

    def _clear(self, topic: Topic) -> None:
        self._connection.publish(topic, b"", retain=True)

    def _left(self) -> list[Topic]:
        return left_behind(self._store).get(place_of(self._address), [])

    def _remember(self, topics: list[Topic]) -> None:
        everywhere = left_behind(self._store) | {place_of(self._address): topics}
        kept = {place: topics for place, topics in everywhere.items() if topics}
        self._store.set_facts(**{LEFT_ON_BROKERS: json.dumps(kept)})

    def _tell(self) -> None:
        state = state_payload(device_facts(self._config, self._store, running=True))
        if state != self._told and self._connection.connected:
            self._told = state
            self._connection.publish(self._topics.state, state, retain=True)

    def _record(self, message: Received) -> None:
        if message.retained:
            # It would count again with each connection.
            _LOG.warning("a command on %s is not recorded: it is retained", message.topic[:200])
            return
        try:
            command = read_command(message.payload, time.time())
        except ParameterError as error:
            _LOG.warning("a command on %s is not recorded: %s", message.topic[:200], error)
            return
        self._store.record_once([(command.item, command.at, command.identity)])
        self._tell()
