"""Runs one of the project's commands and stops it, with SIGSTOP, at its n-th step.

    python -m tests.integration.steps N edge-client start --dir ...

A step is a moment between two effects that outlive the process: before each writing SQL statement and
each COMMIT, before each call of the connection (publish, acknowledge, subscribe), before each packet goes
to the socket, and after it, and before each message to a board. Everything that the process does between two
steps is lost with it, so that killing it at each of them is killing it anywhere. N = 0 never stops.

The whole process stands still, its network thread too, until whoever started it kills it or lets it go on.
The step's name is the last line of its log, as ``step N: ...``.

Updates without a receipt are sent again after 2 s instead of 30 s, so that a sweep does not wait long.
"""

import importlib
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import paho.mqtt.client as paho

from broker.connection import Connection
from broker.storage import connect_sqlite
from edge.gateway.port import Wire

PROGRAMS = {
    "edge-client": ("edge.cli", "edge.database"),
    "edge-aggregator": ("broker.aggregator.cli", "broker.aggregator.store.sqlite"),
}
"""For each program the module of its command and the module that opens its database."""

_RESEND_S = 2.0
_WRITES = ("INSERT", "UPDATE", "DELETE")
_PACKETS = {1: "CONNECT", 3: "PUBLISH", 4: "PUBACK", 8: "SUBSCRIBE", 10: "UNSUBSCRIBE", 14: "DISCONNECT"}
"""By the high half of an MQTT 3.1.1 packet's first byte (its table 2.1); PINGREQ means nothing here."""


class Steps:
    """Counts steps and stops the process at the n-th."""

    def __init__(self, stop_at: int) -> None:
        self._stop_at = stop_at
        self._count = 0
        self._lock = threading.Lock()

    def come_to(self, name: str) -> None:
        """Come to a step."""
        with self._lock:
            self._count += 1
            if self._count == self._stop_at:
                sys.stderr.write(f"step {self._count}: {name}\n")
                sys.stderr.flush()
                # To this thread, which so goes no further; the others stop with it.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def watch_database(steps: Steps, module: str) -> None:
    """Make steps of what changes the database."""

    def connect(path: Path, *page_bytes: int) -> sqlite3.Connection:
        connection = connect_sqlite(path, *page_bytes)
        connection.set_trace_callback(_StatementWatch(steps))
        return connection

    patch.object(importlib.import_module(module), "connect_sqlite", connect).start()


class _StatementWatch:
    """Is told of each statement before it runs; names those that write."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._writing = False
        self._before = ""

    def __call__(self, statement: str) -> None:
        words = statement.split(None, 3)
        name = ""
        if words[:2] == ["BEGIN", "IMMEDIATE"]:
            self._writing, name = True, "BEGIN"
        elif words[:1] == ["COMMIT"] and self._writing:
            self._writing, name = False, "COMMIT"
        elif words[:1] and words[0] in _WRITES:
            name = f"{words[0]} {words[1] if words[0] == 'UPDATE' else words[2]}"
        if name and name != self._before:  # a row like the one before makes no difference
            self._steps.come_to(f"before {name}")
        self._before = name or self._before


def watch_connection(steps: Steps) -> None:
    """Make steps of what goes to the broker."""
    for name in ("publish", "acknowledge", "subscribe", "unsubscribe"):
        patch.object(Connection, name, _watched_call(steps, name, getattr(Connection, name))).start()
    patch.object(Wire, "write", _watched_line(steps, Wire.write)).start()
    patch.object(paho.Client, "_sock_send", _watched_send(steps, paho.Client._sock_send)).start()


def _watched_call(steps: Steps, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(connection: Connection, *arguments: Any, **options: Any) -> Any:
        about = ""
        if name == "publish":
            levels = [level for level in str(arguments[0]).split("/") if not level.isdigit()]
            about = f" {levels[-1]}"
        steps.come_to(f"before {name}{about}")
        return original(connection, *arguments, **options)

    return call


def _watched_line(steps: Steps, original: Callable[..., None]) -> Callable[..., None]:
    def write(wire: Wire, message: bytes) -> None:
        steps.come_to(f"before line {message[0]:#x}")
        original(wire, message)

    return write


def _watched_send(steps: Steps, original: Callable[..., int]) -> Callable[..., int]:
    def send(client: paho.Client, content: bytes | bytearray) -> int:
        packet = _PACKETS.get(content[0] >> 4)
        if packet is not None:
            steps.come_to(f"before sending {packet}")
        sent = original(client, content)
        if packet is not None:
            steps.come_to(f"after sending {packet}")
        return sent

    return send


def main() -> None:
    """Run the command that the arguments name."""
    stop_at, program, *arguments = sys.argv[1:]
    cli, store = PROGRAMS[program]
    steps = Steps(int(stop_at))
    watch_database(steps, store)
    watch_connection(steps)
    patch("edge.session.RESEND_S", _RESEND_S).start()
    sys.argv = [program, *arguments]
    importlib.import_module(cli).main()


if __name__ == "__main__":
    main()
