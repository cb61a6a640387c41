"""Paho's client, with a way of its own for the messages.

Paho connects, subscribes, keeps the connection alive and comes back; of messages it takes note in many
places, which costs more than all that an aggregator does with one. Here what is published at QoS 1 waits in a
dict for its PUBACK and is sent again by the next connection (MQTT 3.1.1, section 4.4), unless it is to be
retained: its owner publishes that again. What comes goes straight to the owner, who acknowledges it.

A broker's PUBACK comes behind all that it sends us; of an aggregator that has fallen behind, minutes later.
Therefore only the newest messages are remembered, and a number may be used again before it is confirmed,
which no broker minds: it confirms each PUBLISH, and remembers none of QoS 1.

Six of paho's private names are used: ``_create_socket``, ``_packet_queue``, ``_out_packet``,
``_mid_generate``, ``_last_bytes_received`` and ``_ping_t``.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from broker.mqttsocket import BufferedSocket

_MOST_UNDER_WAY: Final = 20_000
_MOST_UNDER_WAY_BYTES: Final = 16 * 1024 * 1024
"""Messages without a PUBACK beyond which the oldest is forgotten."""
_PUBLISH, _PUBACK = 0x30, 0x40
_DUP, _RETAIN = 8, 1
_QOS_SHIFT = 1


class _UnderWay:
    """The newest messages without a PUBACK, by number; used by two threads."""

    def __init__(self) -> None:
        self._packets: OrderedDict[int, bytes] = OrderedDict()  # a dict looks long for its oldest
        self._bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, mid: int) -> bool:
        return mid in self._packets

    def add(self, mid: int, packet: bytes) -> None:
        """Remember a packet, and forget the oldest where there are too many."""
        with self._lock:
            self._packets[mid] = packet
            self._bytes += len(packet)
            while len(self._packets) > _MOST_UNDER_WAY or self._bytes > _MOST_UNDER_WAY_BYTES:
                self._bytes -= len(self._packets.popitem(last=False)[1])

    def confirmed(self, mid: int) -> None:
        """Forget a packet."""
        with self._lock:
            self._bytes -= len(self._packets.pop(mid, b""))

    def all(self) -> list[bytes]:
        """Give the packets, the oldest first."""
        with self._lock:
            return list(self._packets.values())


class Client(paho.Client):
    """See the module. Made with ``manual_ack``; one thread publishes, acknowledges and gathers.

    Attributes
    ----------
    wait_for_room : callable
        See `BufferedSocket`.
    on_arrival : callable
        Given topic, payload, number, QoS (0 or 1) and whether it was retained, from the network thread.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.wait_for_room: Callable[[float], bool] = lambda _: True
        self.on_arrival: Callable[[str, bytes, int, int, bool], None] = lambda *_: None
        self._under_way = _UnderWay()
        # The socket of a connection that the broker has accepted.
        self._accepted: Any = None
        self._gathered: bytearray | None = None
        self._gathered_for: Any = None
        # What was meant for one connection must not get into the next.
        self._connecting = threading.Lock()

    def send(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Publish at QoS 1, by the connection that there is, or the next."""
        mid = self._mid_generate()
        while mid in self._under_way:
            mid = self._mid_generate()
        name = topic.encode()
        head = bytearray((_PUBLISH | 1 << _QOS_SHIFT | (_RETAIN if retain else 0),))
        length = len(name) + len(payload) + 4
        while length > 127:
            head.append(length & 127 | 128)
            length >>= 7
        head.append(length)
        packet = b"".join((head, len(name).to_bytes(2, "big"), name, mid.to_bytes(2, "big"), payload))
        if not retain:
            self._under_way.add(mid, packet)
        self._put(packet, self._accepted)

    def acknowledge(self, mid: int, sock: Any) -> None:
        """Tell the broker that a message of QoS 1, which came by `sock`, is taken care of."""
        self._put(bytes((_PUBACK, 2, mid >> 8, mid & 255)), sock)

    def send_again(self) -> None:
        """Send what the broker has not confirmed, as it has accepted a new connection."""
        self._accepted = self.socket()
        for packet in self._under_way.all():
            self._queue(bytes((packet[0] | _DUP,)) + packet[1:], self._accepted)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Send what is published and acknowledged within the block together, at its end."""
        self._gathered, self._gathered_for = bytearray(), self._accepted
        try:
            yield
        finally:
            packets, self._gathered = self._gathered, None
            if packets:
                self._queue(packets, self._gathered_for)
            self._gathered_for = None

    def _put(self, packet: bytes, sock: Any) -> None:
        if self._gathered is None:
            self._queue(packet, sock)
            return
        if sock is not self._gathered_for:
            if sock is not self._accepted:  # of an earlier connection
                return
            self._gathered.clear()
            self._gathered_for = sock
        self._gathered += packet

    def _queue(self, packets: bytes | bytearray, sock: Any) -> None:
        """Have paho write packets, if `sock` is still the connection's."""
        with self._connecting:
            if sock is not None and sock is self.socket():
                # Paho looks no further at what has a QoS.
                self._packet_queue(packets[0] & 0xF0, packets, 0, 1)

    def _take(self, first: int, packet: memoryview) -> bool:
        """Take a PUBLISH or PUBACK; see `BufferedSocket`."""
        kind, size = first & 0xF0, len(packet)
        if kind == _PUBACK and size >= 2:
            self._under_way.confirmed(packet[0] << 8 | packet[1])
            return True
        if kind != _PUBLISH or size < 2:
            return False
        qos = first >> _QOS_SHIFT & 3
        after = 2 + (packet[0] << 8 | packet[1])
        start = after + 2 * qos
        if qos > 1 or start > size:
            return False
        topic = str(packet[2:after], "utf-8", "replace")
        mid = packet[after] << 8 | packet[after + 1] if qos else 0
        self.on_arrival(topic, bytes(packet[start:]), mid, qos, bool(first & _RETAIN))
        return True

    def _create_socket(self) -> Any:
        with self._connecting:
            self._accepted = None
            self._out_packet.clear()
        return BufferedSocket(super()._create_socket(), self.wait_for_room, self._take)

    def loop_misc(self) -> MQTTErrorCode:
        """Look whether the broker is still there."""
        sock = self.socket()
        if isinstance(sock, BufferedSocket):
            # Its answer to a ping may come behind many messages, or a slow one; paho sees neither, and would
            # wait for nothing but the answer.
            self._last_bytes_received = max(self._last_bytes_received, sock.read_at)
            if self._ping_t > 0.0:
                self._ping_t = max(self._ping_t, sock.read_at)
        return super().loop_misc()

    def loop_stop(self) -> MQTTErrorCode:
        """End the network thread."""
        try:
            return super().loop_stop()
        except AttributeError:  # it has ended by itself between paho's look at it and the join
            return MQTTErrorCode.MQTT_ERR_SUCCESS

    def want_write(self) -> bool:
        """Tell whether something waits to be written."""
        sock = self.socket()
        return super().want_write() or (isinstance(sock, BufferedSocket) and sock.unsent)

    def loop_write(self) -> MQTTErrorCode:
        """Write what waits."""
        code = super().loop_write()
        sock = self.socket()
        if isinstance(sock, BufferedSocket):
            sock.flush()
        return code
