"""What a device's idle connection costs a mosquitto: kilobytes each, and processor time for a head to all.

    python -m benchmarks.connections [--connections N]

As many plain sockets as devices connect, each with a last will, and subscribe to heads and to their own
receipts, as a device does. Memory is the broker's own (``VmRSS``), without the system's buffers. Then one
head is published, and each connection gets it.
"""

import argparse
import os
import resource
import select
import socket
import struct
import tempfile
import time
from pathlib import Path

from broker.embedded import free_port, own_broker
from broker.protocol.topics import FleetTopics
from tests.brokers import children_of

_HOST = "127.0.0.1"
_TOPICS = FleetTopics("idle")
_HEAD_BYTES = 700
_PATIENCE_S = 120.0


def _text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(content)) + content


def _packet(kind: int, body: bytes) -> bytes:
    length = b""
    left = len(body)
    while True:
        left, digit = divmod(left, 128)
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + length + body


def _connect(port: int, name: str) -> socket.socket:
    """Give a connection that has a last will and its subscriptions."""
    link = socket.create_connection((_HOST, port), timeout=_PATIENCE_S)
    will = _text(_TOPICS.status(name)) + _text(b"x" * 93)
    # Clean session, a will of QoS 1 that is retained, a keepalive of 10 minutes.
    link.sendall(
        _packet(0x10, _text("MQTT") + bytes([4, 0x2E]) + struct.pack(">H", 600) + _text(name) + will)
    )
    assert link.recv(4)[:1] == b"\x20", "the broker refuses a connection"
    filters = _text(_TOPICS.head) + b"\x01" + _text(_TOPICS.receipt(name)) + b"\x01"
    link.sendall(_packet(0x82, struct.pack(">H", 1) + filters))
    assert link.recv(6)[:1] == b"\x90", "the broker refuses a subscription"
    return link


def _resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--connections", type=int, default=5_000)
    count = parser.parse_args().connections
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, count + 1_000), most))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        port = free_port()
        with own_broker("mosquitto", _HOST, port, Path(folder)):
            (pid,) = children_of(os.getpid())
            before = _resident_kb(pid)
            links = [_connect(port, f"device-{number}") for number in range(count)]
            print(f"{count} connections: {(_resident_kb(pid) - before) / count:.1f} KB each", flush=True)
            began, used = time.monotonic(), _processor_s(pid)
            links[0].sendall(_packet(0x30, _text(_TOPICS.head) + b"x" * _HEAD_BYTES))
            poll = select.epoll()
            for link in links:
                poll.register(link, select.EPOLLIN)
            waiting = {link.fileno() for link in links}
            while waiting and time.monotonic() < began + _PATIENCE_S:
                for number, _ in poll.poll(1.0):
                    waiting.discard(number)
                    poll.unregister(number)
            seconds = time.monotonic() - began
            print(
                f"a head to all: {1e6 * (_processor_s(pid) - used) / count:.1f} µs of mosquitto's processor "
                f"time each, {seconds:.2f} s in all; {len(waiting)} did not get it"
            )
            for link in links:
                link.close()


if __name__ == "__main__":
    main()
