"""Whether a broker takes this device: one connection by hand, bounded in time.

paho says of an attempt that failed only that it failed; whoever has to mend it wants to know whether nobody
has that name, nothing listens there, or nothing comes back.
"""

import socket
import struct
import threading
from dataclasses import dataclass
from typing import Literal

from broker.address import BrokerAddress
from broker.errand import Errand
from broker.tls import connection_trouble

WITHIN_S = 10.0

Outcome = Literal[
    "accepts", "refuses", "busy", "closed", "unreachable", "unnamed", "silent", "foreign", "distrusted"
]

_CONNACK_BYTES = 4
_BUSY = 3
_REASONS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it does not allow this client id",
    _BUSY: "it is not ready",
    4: "user name or password is wrong",
    5: "user name, password or client id is not allowed",
}
"""MQTT 3.1.1, table 3.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of it.

    Attributes
    ----------
    outcome : str
        "closed": the machine answers, but nothing listens at the port; "unreachable": no way leads there, or
        nothing comes back; "unnamed": the name is unknown; "silent" and "foreign": something listens that
        does not answer as an MQTT broker does; "distrusted": one end does not accept the other's certificate.
    reason : str
        The same in words, with what was found.
    """

    outcome: Outcome
    reason: str


def probe(address: BrokerAddress, client_id: str, within_s: float = WITHIN_S) -> Answer:
    """Connect as this device does, and leave at once; its session at the broker stays as it is.

    A client of the same id that is connected would lose its connection.

    Parameters
    ----------
    within_s : float
        Seconds for all of it, the look-up of the name included.
    """
    over = threading.Event()
    timer = threading.Timer(within_s, over.set)
    timer.daemon = True
    timer.start()
    try:
        answer = Errand(lambda: _ask(address, client_id, within_s)).result(over)
    finally:
        timer.cancel()
    return answer or Answer(outcome="unreachable", reason=f"no answer within {within_s:g} s")


def _ask(address: BrokerAddress, client_id: str, within_s: float) -> Answer:
    try:
        # A little less than the whole, so that the reason is the socket's own.
        link = socket.create_connection((address.host, address.port), timeout=0.9 * within_s)
    except socket.gaierror as error:
        return Answer(outcome="unnamed", reason=f"the name {address.host} is unknown ({error.strerror})")
    except ConnectionRefusedError:
        return Answer(
            outcome="closed", reason=f"{address.host} answers, but nothing listens at port {address.port}"
        )
    except TimeoutError:
        return Answer(outcome="unreachable", reason=f"{address.host} does not answer")
    except (OSError, UnicodeError) as error:
        return Answer(outcome="unreachable", reason=f"no way leads to {address.host} ({error})")
    context = address.context()
    if context is not None:
        try:
            link = context.wrap_socket(link, server_hostname=address.host)
        except OSError as error:
            link.close()
            return Answer(outcome="distrusted", reason=connection_trouble(error) or f"no TLS there ({error})")
    with link:
        try:
            return _greet(link, address, client_id)
        except TimeoutError:
            return Answer(outcome="silent", reason="what listens there says nothing")
        except OSError as error:
            if address.secure:  # with TLS 1.3 a client learns only now that its certificate is not accepted
                reason = connection_trouble(error) or f"it ends the connection ({error})"
                return Answer(outcome="distrusted", reason=reason)
            return Answer(outcome="foreign", reason=f"what listens there ends the connection ({error})")


def _greet(link: socket.socket, address: BrokerAddress, client_id: str) -> Answer:
    link.sendall(_connect(address, client_id))
    answer = b""
    while len(answer) < _CONNACK_BYTES:
        more = link.recv(_CONNACK_BYTES - len(answer))
        if not more:
            return Answer(outcome="foreign", reason="what listens there ends the connection")
        answer += more
    if answer[:2] != bytes([0x20, 2]):
        return Answer(outcome="foreign", reason="what listens there is no MQTT broker")
    if answer[3]:
        reason = _REASONS.get(answer[3], f"code {answer[3]}")
        return Answer(outcome="busy" if answer[3] == _BUSY else "refuses", reason=reason)
    link.sendall(bytes([0xE0, 0]))  # DISCONNECT
    return Answer(outcome="accepts", reason=f"{address} takes this device")


def _connect(address: BrokerAddress, client_id: str) -> bytes:
    """Give the CONNECT packet, of a session that outlives the connection (MQTT 3.1.1, section 3.1)."""
    flags, texts = 0, [client_id]
    if address.username is not None:
        flags |= 0x80
        texts.append(address.username)
        if address.password is not None:
            flags |= 0x40
            texts.append(address.password)
    body = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", 30) + b"".join(map(_text, texts))
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return b"\x10" + length + body


def _text(value: str) -> bytes:
    content = value.encode()[:65535]
    return struct.pack(">H", len(content)) + content
