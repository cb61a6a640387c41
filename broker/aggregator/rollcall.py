"""Who serves a fleet at a broker: asked by an aggregator before it says anything there itself.

Two aggregators of one fleet with stores of their own would make its devices drop what they have learnt, in
turns. Each shows its presence, retained, with a last will; but a broker that was killed may keep what is not
true any more. So whoever comes calls, and only who answers now is there.
"""

import queue
import secrets
import time

from broker.address import BrokerAddress
from broker.connection import Connected, Connection, EventQueue, Received
from broker.errors import InUseError, ProtocolError
from broker.protocol.messages import Status, decode
from broker.protocol.topics import Filter, FleetTopics

_CONNECTS_WITHIN_S = 5.0
_ANSWERS_WITHIN_S = 3.0
"""After a call; waited for only where somebody seems to be there."""


def require_alone(address: BrokerAddress, fleet: str, *, worker: str | None, instance: int) -> None:
    """Refuse to serve a fleet that somebody else serves; a broker that does not answer is no matter here.

    Parameters
    ----------
    worker : str or None
        The name of one of several workers, whose fellows, of the same `instance`, are welcome.

    Raises
    ------
    InUseError
    """
    for name, status in who_serves(address, fleet).items():
        if worker is None or status.incarnation != instance:
            raise InUseError(
                f"fleet {fleet} is served at {address} by another aggregator ({name}, version "
                f"{status.version}); end that one, or give one of the two another fleet name"
            )


def who_serves(address: BrokerAddress, fleet: str) -> dict[str, Status]:
    """Give the aggregators that answer a call, by their names; none where no broker answers."""
    topics = FleetTopics(fleet)
    events = EventQueue()
    token = secrets.token_hex(8)
    connection = Connection(address, f"pfedrec-{fleet}-call-{token}", events, clean=True)
    seem_there: set[str] = set()
    there: dict[str, Status] = {}
    until = time.monotonic() + _CONNECTS_WITHIN_S
    connection.start()
    try:
        while (left := until - time.monotonic()) > 0.0:
            try:
                event = events.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, Connected):
                connection.subscribe([topics.presence_filter, Filter(topics.call)])
                connection.publish(topics.call, token.encode())
                until = time.monotonic() + _ANSWERS_WITHIN_S
                continue
            if not isinstance(event, Received):
                break  # not to be reached, or not for us: `start` will say so
            connection.acknowledge(event)  # amqtt sends one after the other
            if event.topic == topics.call:
                if event.payload == token.encode() and seem_there <= set(there):
                    break  # what is retained has come before: nobody else seems to be there
            else:
                _note(topics, event, seem_there, there)
                if there and seem_there <= set(there):
                    break
    finally:
        connection.stop()
    return there


def _note(topics: FleetTopics, message: Received, seem_there: set[str], there: dict[str, Status]) -> None:
    try:
        name = topics.parse(message.topic).worker
        status = decode(message.payload, Status) if message.payload else None
    except ProtocolError:
        return
    if status is None or not status.online:
        seem_there.discard(name)
        there.pop(name, None)
    elif message.retained:
        seem_there.add(name)
    else:
        there[name] = status
