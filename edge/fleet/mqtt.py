"""What aiomqtt needs help with: brokers that are not there yet, cancellation, and what it says too much."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import aiomqtt

from broker.address import BrokerAddress
from broker.errors import RefusedError, UnreachableError
from broker.protocol.topics import Topic

QUIET = logging.getLogger(f"{__name__}.aiomqtt")
"""aiomqtt warns of more than ten publishes under way, which for a fleet is the aim."""
QUIET.setLevel(logging.CRITICAL)

BROKER_S = 10.0
OWN_BROKER_S = 60.0
"""One that the aggregator starts: on a busy machine its process takes long to come up."""
_POLL_S = 0.1


async def forget_earlier_run(address: BrokerAddress, fleet: str) -> None:
    """Have a broker that is not ours drop what it keeps for the aggregator of an earlier run.

    It keeps the updates that an interrupted run left; the virtual devices of the next have the same names.

    Raises
    ------
    UnreachableError
        When no broker answers.
    RefusedError
        When it refuses the aggregator.
    """
    await wait_for_broker(address, lambda: None)
    try:
        async with aiomqtt.Client(
            address.host,
            address.port,
            username=address.username,
            password=address.password,
            identifier=f"pfedrec-{fleet}-aggregator",
            tls_context=address.context(),
            clean_session=True,
            timeout=BROKER_S,
            logger=QUIET,
        ):
            return
    except aiomqtt.MqttCodeError as error:
        raise RefusedError(
            f"the broker {address} refuses the aggregator: {str(error.rc).lower()}; "
            "check the user name and password in the address"
        ) from error
    except aiomqtt.MqttError as error:
        raise UnreachableError(f"what listens at {address} does not answer as an MQTT broker") from error


async def wait_for_broker(
    address: BrokerAddress, require_running: Callable[[], None], within_s: float | None = None
) -> None:
    """Wait until the broker takes connections: ours is being started by the aggregator just now.

    Parameters
    ----------
    require_running : callable
        Raises when whoever starts it has ended.
    within_s : float, optional
        `BROKER_S` unless given.

    Raises
    ------
    UnreachableError
        When no broker answers.
    """
    deadline = time.monotonic() + (BROKER_S if within_s is None else within_s)
    while True:
        require_running()
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"no broker answers at {address} ({_system_words(error)}); "
                    "start one there, or leave out --broker to run one"
                ) from error
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            return


def notice_cancellation() -> None:
    """End a task that was cancelled within `asyncio.wait_for`.

    Python 3.11 forgets a cancellation that comes together with the result, and aiomqtt may replace it by
    an error of the connection that it closes; the task would wait for messages for ever (gh-86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _system_words(error: OSError) -> str:
    """Give the system's words; asyncio puts its own in their place, except for names it cannot resolve."""
    if error.errno is None or error.errno < 0:
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


def forget_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keep aiomqtt's futures of a lost connection, which nobody waits for, from being reported."""
    if not isinstance(context.get("exception"), aiomqtt.MqttError | OSError):
        loop.default_exception_handler(context)


async def publish_in_order(
    client: aiomqtt.Client, topic: Topic, payloads: list[bytes], *, retain: bool
) -> None:
    """Publish at QoS 1, one after the other; given up when the connection is lost."""
    try:
        for payload in payloads:
            await client.publish(topic, payload, qos=1, retain=retain)
    except aiomqtt.MqttError:
        return  # The connection's own task notices, and the session sends again once it is back.


async def set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event that others set, at most `timeout_s` seconds, and clear it."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
    event.clear()
