"""One MQTT 3.1.1 connection on paho's network thread.

Device and aggregator use it alike. Callbacks do three things: convert, put an event on a bounded queue,
return; whoever owns the queue decides. Nothing here knows a topic's meaning.

What paho needs help with:

* an exception in a callback ends its network thread silently: every callback is guarded;
* a message above the broker's limit puts it in an endless loop of reconnects: sizes are checked before;
* it waits the same time as everyone else before it reconnects: the wait is drawn anew for each
  attempt, uniform up to a bound that doubles (full jitter), so that a fleet does not return at once;
* it acknowledges a message when the callback returns: here the owner does, with `acknowledge`, once the
  message is stored.
"""

import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from broker.address import BrokerAddress
from broker.errors import SchemaError
from broker.mqttclient import Client
from broker.protocol.topics import Filter, Topic
from broker.protocol.wire import MAX_MESSAGE_BYTES
from broker.tls import connection_trouble

_LOG = logging.getLogger(__name__)

QUEUE_EVENTS = 20_000
"""More than any broker keeps in flight for one client; see `Connection.overflows`."""
WINDOW_EVENTS = 1_000
"""What mosquitto, as the project runs it, is to have under way for a client. Release 2.0.11 keeps to it only
until the first acknowledgement; then it sends all that it has."""
_RESTING_EVENTS = 2 * WINDOW_EVENTS
_RESTING_BYTES = 32 * 1024 * 1024
"""A queue that has either is not read for until half of it is worked off: the rest waits at the broker."""
KEEPALIVE_S = 30
_FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
SERVERS_LONGEST_WAIT_S = 5.0
"""Of an aggregator: there is one, or a few, and a fleet waits for it."""
_SHORTEST_WAIT_S = 0.05
_STOP_S = 1.0
"""Longest wait for the network thread's end. It may hang in a name's resolution or a connection's attempt for
many seconds, or on a broker that takes nothing any more; then it ends with the process."""
_HELD_S = 10.0
"""A connection that held so long begins the waits anew; two clients of one id end each other's sooner."""
_PASSING_REFUSAL: Final = "Server unavailable"
"""The one CONNACK refusal (MQTT 3.1.1, table 3.1) that trying again can cure."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection; the session number and last will are those of `number`."""

    number: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refuses this client, for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended, or an attempt to make one failed; it is tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message. ``acknowledge`` it when it is taken care of.

    `connection` is the number of the connection that it came by: `mid` means another message in the next.
    `retained` tells that the broker had kept it: it may have been received before.
    """

    topic: str
    payload: bytes
    mid: int
    qos: int
    connection: int
    retained: bool = False


LinkEvent: TypeAlias = Connected | Refused | Lost | Received


class EventSink(Protocol):
    """A bounded queue's entrance, as the network thread needs it."""

    def put_nowait(self, item: LinkEvent, /) -> None:
        """Take an event or raise `queue.Full`."""
        ...


class EventQueue(queue.Queue[LinkEvent]):
    """Bounded for messages, which the broker keeps until they are acknowledged; never full for the rest.

    Long before it is full, nothing more is read from the network (`wait_for_room`).

    Parameters
    ----------
    loose_bytes : int, optional
        Bytes in the queue above which messages of QoS 0 are dropped: of those with QoS 1 the broker has
        only so many under way, of these any number.
    """

    def __init__(self, loose_bytes: int | None = None) -> None:
        self._loose_bytes = loose_bytes
        self._bytes = 0
        self._room = threading.Event()
        self._room.set()
        super().__init__()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until more may be read; tell whether it may."""
        return self._room.wait(timeout_s)

    def put_nowait(self, item: LinkEvent) -> None:
        """Take an event or raise `queue.Full`."""
        if isinstance(item, Received) and (
            self.qsize() >= QUEUE_EVENTS
            or (item.qos == 0 and self._loose_bytes is not None and self._bytes >= self._loose_bytes)
        ):
            raise queue.Full
        super().put_nowait(item)

    def take_now(self, most: int) -> list[LinkEvent]:
        """Take what is there, at most so many events."""
        with self.mutex:
            return [self._get() for _ in range(min(most, self._qsize()))]

    def _put(self, item: LinkEvent) -> None:
        if isinstance(item, Received):
            self._bytes += len(item.payload)
        super()._put(item)
        if self._bytes >= _RESTING_BYTES or self._qsize() >= _RESTING_EVENTS:
            self._room.clear()

    def _get(self) -> LinkEvent:
        item = super()._get()
        if isinstance(item, Received):
            self._bytes -= len(item.payload)
        if self._bytes <= _RESTING_BYTES // 2 and self._qsize() <= _RESTING_EVENTS // 2:
            self._room.set()
        return item


def jittered_waits(
    draw: Callable[[float, float], float], longest_s: float = LONGEST_WAIT_S
) -> Iterator[float]:
    """Give waits in seconds between attempts, without end: full jitter below a bound that doubles."""
    bound = _FIRST_WAIT_S
    while True:
        yield max(_SHORTEST_WAIT_S, draw(0.0, bound))
        bound = min(2.0 * bound, longest_s)


class Connection:
    """A connection that comes back by itself.

    Parameters
    ----------
    client_id : str
        The broker keeps this client's subscriptions and queue while it is away.
    sink : EventSink
        Receives events from the network thread.
    last_will : callable, optional
        Called with the number of the connection about to be made (1, 2, ...), from the network thread;
        gives the topic and payload that the broker publishes, retained, when the connection breaks.
    clean : bool
        Whether the broker forgets the subscriptions and the queue with the connection instead.
    longest_wait_s : float
        Between two attempts to connect.

    Raises
    ------
    ConfigError
        When the address has TLS files that cannot be used.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        sink: EventSink,
        *,
        last_will: Callable[[int], tuple[Topic, bytes]] | None = None,
        clean: bool = False,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self.address = address
        self.connected = False
        self.overflows = 0
        """Events dropped as the owner did not keep up; unacknowledged, so the broker sends them again."""
        self._sink = sink
        self._last_will = last_will
        self._number = 0
        self._client_id = client_id
        self._connected_at = 0.0
        self._answered = False
        self._longest_wait_s = longest_wait_s
        self._waits = self._new_waits()
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        if isinstance(sink, EventQueue):
            self._client.wait_for_room = sink.wait_for_room
        context = address.context()
        if context is not None:
            self._client.tls_set_context(context)
        if address.username is not None:
            self._client.username_pw_set(address.username, address.password)
        self._client.on_pre_connect = _guarded(self._on_pre_connect)
        self._client.on_connect = _guarded(self._on_connect)
        self._client.on_connect_fail = _guarded(self._on_connect_fail)
        self._client.on_disconnect = _guarded(self._on_disconnect)
        self._client.on_message = _guarded(self._on_message)
        self._client.on_arrival = _guarded(self._on_arrival)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._client.connect_async(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Send what is queued, disconnect without the last will, end the network thread; a second at most."""
        self._client.disconnect()
        ending = threading.Thread(target=self._client.loop_stop, name="mqtt-end", daemon=True)
        ending.start()
        ending.join(_STOP_S)
        self.connected = False
        if not ending.is_alive():
            # paho leaves what woke its thread to the garbage collector, which complains of open sockets.
            self._client._reset_sockets(sockpair_only=True)  # noqa: SLF001

    def subscribe(self, filters: list[Filter], *, qos: int = 1) -> None:
        """Subscribe; QoS 0 for what is retained and asked for anew, so that no broker queues it meanwhile."""
        self._client.subscribe([(str(each), qos) for each in filters])

    def unsubscribe(self, filters: list[Filter]) -> None:
        """End subscriptions."""
        self._client.unsubscribe([str(each) for each in filters])

    def publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1; dropped while there is no connection, as `Connected` makes owners send again.

        Raises
        ------
        SchemaError
            When the payload is larger than the protocol allows.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise SchemaError(f"{len(payload)} bytes for {topic}; a message has at most {MAX_MESSAGE_BYTES}")
        if self.connected:
            self._client.send(topic, payload, retain=retain)

    def gathered(self) -> AbstractContextManager[None]:
        """Send what is acknowledged and published within the block together, at its end."""
        return self._client.gathered()

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that a message is taken care of; it will not send it again.

        A message of an earlier connection is left alone: the broker sends it again anyway, and its number
        may belong to one that nobody has taken care of.
        """
        sock = self._client.socket()  # before the look at the number: it is of no later connection
        if not (message.qos and self.connected and message.connection == self._number):
            return
        if message.qos == 1:
            self._client.acknowledge(message.mid, sock)
        else:  # more than was asked for; paho has taken its first half
            self._client.ack(message.mid, message.qos)

    def _on_pre_connect(self, client: paho.Client, _userdata: Any) -> None:
        self._number += 1
        self._answered = False
        if self._last_will is not None:
            topic, payload = self._last_will(self._number)
            client.will_set(topic, payload, qos=1, retain=True)

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: Any,
        _flags: paho.ConnectFlags,
        code: ReasonCode,
        _properties: Any,
    ) -> None:
        self._answered = True
        if not code.is_failure:
            self._client.send_again()
            self.connected = True
            self._connected_at = time.monotonic()
            self._put(Connected(self._number))
        elif str(code) == _PASSING_REFUSAL:
            self._wait_longer(client)
            self._put(Lost(f"{self.address} answers: {str(code).lower()}"))
        else:
            self._put(Refused(str(code).lower()))

    def _on_connect_fail(self, client: paho.Client, _userdata: Any) -> None:
        self._wait_longer(client)
        # paho calls back from where it handles the error; a handshake that fails is worth more words.
        trouble = connection_trouble(sys.exc_info()[1])
        self._put(
            Lost(f"no broker answers at {self.address}" if trouble is None else f"{self.address}: {trouble}")
        )

    def _on_disconnect(
        self,
        client: paho.Client,
        _userdata: Any,
        _flags: paho.DisconnectFlags,
        code: ReasonCode,
        _properties: Any,
    ) -> None:
        was_connected, self.connected = self.connected, False
        held = was_connected and time.monotonic() - self._connected_at >= _HELD_S
        if held:
            self._waits = self._new_waits()
        self._wait_longer(client)
        if was_connected and code.is_failure:
            hint = "" if held else f"; perhaps another client has the id {self._client_id}"
            self._put(Lost(f"the connection to {self.address} was lost{hint}"))
        elif not self._answered:
            # With TLS 1.3 a client learns only now that its certificate is not accepted.
            reason = "does not answer as an MQTT broker"
            if self.address.secure:
                reason = "ends the connection; perhaps it does not accept our certificate (revoked, expired?)"
            self._put(Lost(f"what listens at {self.address} {reason}"))

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        # Only what no broker should send takes this way: QoS 2, and more than any message of the protocol.
        self._on_arrival(message.topic, bytes(message.payload), message.mid, message.qos, message.retain)

    def _on_arrival(self, topic: str, payload: bytes, mid: int, qos: int, retained: bool) -> None:  # noqa: FBT001
        self._put(Received(topic, payload, mid, qos, self._number, retained))

    def _new_waits(self) -> Iterator[float]:
        return jittered_waits(random.SystemRandom().uniform, self._longest_wait_s)

    def _wait_longer(self, client: paho.Client) -> None:
        wait = next(self._waits)
        # Setting the bounds also forgets paho's own growing delay, so that `wait` is what it waits.
        client.reconnect_delay_set(wait, wait)  # type: ignore[arg-type] # paho takes fractions of a second

    def _put(self, event: LinkEvent) -> None:
        try:
            self._sink.put_nowait(event)
        except queue.Full:
            self.overflows += 1
            # The 1st, 2nd, 4th, 8th and so on: whoever floods must not fill a log.
            if self.overflows.bit_count() == 1:
                _LOG.warning("the event queue is full; %d events were left to be sent again", self.overflows)


_C = TypeVar("_C", bound=Callable[..., None])


def _guarded(callback: _C) -> Callable[..., None]:
    """Keep paho's network thread alive whatever a callback raises."""

    def call(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # noqa: BLE001 - whatever it is, the thread must go on
            _LOG.exception("an MQTT callback failed")

    return call
