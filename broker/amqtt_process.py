"""The embedded broker's process: ``python -m broker.amqtt_process HOST PORT``; ends on SIGTERM."""

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from typing import Any

from amqtt.broker import Broker

_PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class SteadySubscriptions(dict[str, Any]):
    """Subscriptions by filter, which may change while somebody goes through them.

    amqtt 0.12 goes through them for every client that connects, waits in between for what it sends, and
    drops the client with a RuntimeError when another one subscribes meanwhile.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self.keys()))


async def serve(host: str, port: int) -> None:
    """Run the broker until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    broker = Broker(
        {"listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}}, "plugins": _PLUGINS}
    )
    broker._subscriptions = SteadySubscriptions()  # noqa: SLF001 - amqtt offers no other way
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
