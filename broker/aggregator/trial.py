"""Whether a broker does what a fleet needs of it, tried out on topics that nobody else uses.

Brokers that speak MQTT 3.1.1 differ where it matters here: in what they keep for a client that is away, how
much of it, how large a message may be, and whom they give retained messages to. Each difference is found by
doing what devices and the aggregator do, and comes with its remedy.
"""

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.address import BrokerAddress
from broker.connection import KEEPALIVE_S
from broker.errors import PFedRecError
from broker.findings import Finding, Level, note, ok, problem, unchecked
from broker.probe import probe
from broker.protocol.topics import Filter, FleetTopics, Topic
from broker.protocol.wire import MAX_MESSAGE_BYTES
from broker.tls import TlsFiles

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

_ANSWER_S = 5.0
"""Longest wait for one answer; a broker that is slower would not serve a fleet."""
_MANY = 1_100
"""Messages that wait for a slow reader: a newly started aggregator gets a status of each device at once."""
_CHECKS = ("broker", "strangers", "topics", "sessions", "retained", "sizes", "queue")


class _TrialError(PFedRecError):
    """The broker did not do what was asked; the message says what."""


class _Client:
    """A client that waits for each answer."""

    def __init__(self, address: BrokerAddress, name: str, *, clean: bool) -> None:
        self.received: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._granted: queue.SimpleQueue[list[ReasonCode]] = queue.SimpleQueue()
        self._connected = threading.Event()
        self._lost = threading.Event()
        self._reads = threading.Event()
        self._reads.set()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=clean,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        context = address.context()
        if context is not None:
            client.tls_set_context(context)
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        client.on_connect = lambda *_: self._connected.set()
        client.on_disconnect = lambda *_: self._lost.set()
        client.on_subscribe = lambda _client, _userdata, _mid, codes, _properties: self._granted.put(codes)
        client.on_message = self._on_message
        client.max_inflight_messages_set(100)
        self._client = client
        client.connect(address.host, address.port, keepalive=KEEPALIVE_S)
        client.loop_start()
        if not self._connected.wait(_ANSWER_S):
            self.close()
            raise _TrialError("a second client is not taken")

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._reads.wait()
        self.received.put((message.topic, bytes(message.payload)))

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        with contextlib.suppress(AttributeError):  # its thread has ended between paho's look and the join
            self._client.loop_stop()

    @property
    def is_lost(self) -> bool:
        """Whether the broker has ended the connection."""
        return self._lost.is_set()

    def subscribe(self, *filters: Filter) -> None:
        """Subscribe at QoS 1, and see that it is granted."""
        self._client.subscribe([(str(each), 1) for each in filters])
        try:
            codes = self._granted.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise _TrialError("a subscription is not answered") from None
        if any(code.is_failure for code in codes):
            raise _TrialError("a subscription is refused")

    def publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> paho.MQTTMessageInfo:
        """Publish at QoS 1."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_AGAIN):
            raise _TrialError("the broker ends the connection")
        return info

    def deliver(self, topic: Topic, payload: bytes, *, retain: bool = False) -> bool:
        """Publish at QoS 1 and wait; tell whether it was acknowledged."""
        info = self.publish(topic, payload, retain=retain)
        until = time.monotonic() + _ANSWER_S
        while not info.is_published() and not self.is_lost and time.monotonic() < until:
            info.wait_for_publish(0.05)
        return info.is_published()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Read nothing while the block runs: the network's thread waits within its callback."""
        self._reads.clear()
        try:
            yield
        finally:
            self._reads.set()

    def next(self, topic: Topic | None = None) -> tuple[str, bytes] | None:
        """Give the next message on a topic, or on any; None when none comes.

        Others are dropped: brokers like amqtt send what is retained on topics that were not asked for.
        """
        until = time.monotonic() + _ANSWER_S
        with contextlib.suppress(queue.Empty):
            while True:
                message = self.received.get(timeout=max(until - time.monotonic(), 0.0))
                if topic is None or message[0] == topic:
                    return message
        return None


class Trial:
    """Tries a broker.

    Parameters
    ----------
    topics : FleetTopics
        Of the fleet, below whose topics it is tried, as the access rules allow the aggregator those only.
    """

    def __init__(self, address: BrokerAddress, topics: FleetTopics) -> None:
        self._address = address
        self._topics = topics
        self._token = secrets.token_hex(4)
        self._count = 0
        self._is_alone = False

    def findings(self) -> list[Finding]:
        """Make all checks, each with a finding; a broker that is not there has the others unchecked."""
        answer = probe(self._address, self._name())
        if answer.outcome != "accepts":
            remedy = "start the broker, or correct broker, user name and password in config.toml"
            rest = [unchecked(check, "the broker does not take us") for check in _CHECKS[1:]]
            return [problem("broker", answer.reason, remedy), *rest]
        found = [ok("broker", f"{self._address} takes the aggregator"), self._strangers()]
        checks = (self._granted, self._sessions, self._retained, self._sizes, self._queue)
        for name, check in zip(_CHECKS[2:], checks, strict=True):
            try:
                found.append(check())
            except (_TrialError, OSError) as error:
                remedy = "look into the broker's log, and at what it allows this client"
                found.append(problem(name, str(error), remedy))
            if name == "topics" and (found[-1].level is Level.PROBLEM or self._is_alone):
                why = "it needs topics"
                if self._is_alone:
                    why = "the broker takes ids from certificates, so that there cannot be two of us"
                return [*found, *(unchecked(each, why) for each in _CHECKS[3:])]
        return found

    def _strangers(self) -> Finding:
        stranger = replace(self._address, username=None, password=None)
        if stranger.secure:
            stranger = stranger.with_tls(TlsFiles(ca=stranger.tls.ca))
        if probe(stranger, self._name()).outcome != "accepts":
            return ok("strangers", "nobody is taken without a name or certificate")
        if self._address.host in ("localhost", "::1") or self._address.host.startswith("127."):
            return ok("strangers", "anybody on this machine is taken")
        remedy = "edge-aggregator init --secure (docs/security.md), or names with passwords in the broker"
        return note("strangers", "anybody who reaches it can publish as any device", remedy)

    def _granted(self) -> Finding:
        topic = self._topic("own")
        with self._client() as before, self._client() as client:
            client.subscribe(self._topics.update_filter, self._topics.status_filter)
            client.subscribe(Filter(topic))
            client.deliver(topic, b"own")
            message = client.next(topic)
            self._is_alone = before.is_lost
        if message is not None:
            return ok("topics", "the aggregator may read and write below the fleet's topics")
        remedy = f"let this client read and write {self._topics.everything} (mosquitto: acl_file)"
        return problem("topics", "a message below the fleet's topics does not come back", remedy)

    def _sessions(self) -> Finding:
        topic, name = self._topic("away"), self._name()
        with self._client(name, clean=False) as away:
            away.subscribe(Filter(topic))
        with self._client() as sender:
            sender.deliver(topic, b"while you were away")
        with self._client(name, clean=False) as back:
            arrived = back.next(topic)
        with self._client(name):  # ends the session
            pass
        if arrived is not None:
            return ok("sessions", "messages for a client that is away are kept")
        remedy = (
            "let it keep sessions of clients that are away (amqtt does so only for those with a user name); "
            "till then updates and receipts are sent again, which costs traffic but loses nothing"
        )
        return note("sessions", "a message for a client that was away was lost", remedy)

    def _retained(self) -> Finding:
        kept, other = self._topic("kept"), self._topic("other")
        with self._client() as sender, self._cleared(sender, kept):
            sender.deliver(kept, b"kept", retain=True)
            with self._client() as reader:
                reader.subscribe(Filter(kept))
                if reader.next(kept) is None:
                    remedy = "switch retained messages on; without them no device finds the model"
                    return problem("retained", "a retained message did not come", remedy)
            with self._client() as stranger:
                stranger.subscribe(Filter(other))
                sender.deliver(other, b"asked for")
                message = stranger.next()
                leaked = 0
                while message is not None and message[0] != other:
                    leaked, message = leaked + 1, stranger.next()
        if leaked:
            remedy = "use mosquitto where devices must not see each other's status; nothing else is affected"
            found = "retained messages come to who did not ask for them, as with amqtt"
            return note("retained", found, remedy)
        return ok("retained", "retained messages come to who asks for them, and to nobody else")

    def _sizes(self) -> Finding:
        topic = self._topic("large")
        with self._client() as reader:
            reader.subscribe(Filter(topic))
            with self._client() as sender:
                taken = sender.deliver(topic, bytes(MAX_MESSAGE_BYTES))
            arrived = reader.next(topic) if taken else None
        if arrived is not None and len(arrived[1]) == MAX_MESSAGE_BYTES:
            return ok("sizes", f"messages of {MAX_MESSAGE_BYTES} bytes come through")
        remedy = (
            f"allow {MAX_MESSAGE_BYTES + 4096} bytes: mosquitto max_packet_size, EMQX mqtt.max_packet_size, "
            "RabbitMQ max_message_size, NATS max_payload"
        )
        return problem("sizes", f"a message of {MAX_MESSAGE_BYTES} bytes does not come through", remedy)

    def _queue(self) -> Finding:
        topic = self._topic("many")
        with self._client() as reader, self._client() as sender:
            reader.subscribe(Filter(topic))
            with reader.pausing():
                last = [sender.publish(topic, b"x") for _ in range(_MANY)][-1]
                with contextlib.suppress(RuntimeError, ValueError):
                    last.wait_for_publish(4 * _ANSWER_S)
            count = 0
            while count < _MANY and reader.next(topic) is not None:
                count += 1
        if count == _MANY:
            return ok("queue", f"{_MANY} messages wait for a slow reader")
        remedy = "allow longer queues: mosquitto max_queued_messages 0, EMQX mqtt.max_mqueue_len infinity"
        return problem("queue", f"of {_MANY} messages for a slow reader {count} came", remedy)

    @contextmanager
    def _client(self, name: str | None = None, *, clean: bool = True) -> Iterator[_Client]:
        client = _Client(self._address, name or self._name(), clean=clean)
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def _cleared(self, client: _Client, topic: Topic) -> Iterator[None]:
        try:
            yield
        finally:
            client.deliver(topic, b"", retain=True)

    def _name(self) -> str:
        self._count += 1
        return f"pfedrec-trial-{self._token}-{self._count}"

    def _topic(self, name: str) -> Topic:
        return self._topics.trial(self._token, name)
