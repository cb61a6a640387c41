"""What an attempt to reach a broker tells: each cause apart, within its time."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.embedded import free_port
from broker.probe import probe
from tests.brokers import HOST, Peer, RunningBroker, ScriptedBroker


@contextmanager
def a_listener(answer: bytes | None) -> Iterator[BrokerAddress]:
    """Give somebody who takes one connection and answers so, or hangs (None)."""
    over = threading.Event()
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                if answer is None:
                    over.wait()
                else:
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield BrokerAddress(host=HOST, port=listener.getsockname()[1])
        over.set()
        thread.join()


@pytest.mark.mqtt
def test_broker_that_takes_the_device(broker: RunningBroker) -> None:
    """Any kind; with a long id and a password, too."""
    address = BrokerAddress(host=HOST, port=broker.port, username="u" * 60, password="p" * 100)
    assert probe(address, f"pi-{os.getpid()}").outcome == "accepts"


@pytest.mark.mqtt
def test_session_at_the_broker_stays(mosquitto: RunningBroker) -> None:
    """What waits there for the device still does."""
    with Peer(mosquitto.address, "pi-9"):
        pass
    assert probe(mosquitto.address, "pi-9").outcome == "accepts"


@pytest.mark.parametrize(
    ("code", "outcome", "words"),
    [
        (2, "refuses", "client id"),
        (3, "busy", "not ready"),
        (4, "refuses", "password"),
        (77, "refuses", "77"),
    ],
)
def test_refusals_say_what_the_broker_said(code: int, outcome: str, words: str) -> None:
    """By the code of its answer."""
    with ScriptedBroker(code) as scripted:
        answer = probe(scripted.address, "pi-1")
    assert answer.outcome == outcome
    assert words in answer.reason


def test_closed_port_is_not_an_unreachable_machine() -> None:
    """The machine answers that nothing listens."""
    answer = probe(BrokerAddress(host=HOST, port=free_port()), "pi-1")
    assert answer.outcome == "closed"
    assert "nothing listens at port" in answer.reason


def test_machine_that_drops_everything_is_unreachable() -> None:
    """The backlog of who listens is full: its SYN is dropped, as a firewall does."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        address = BrokerAddress(host=HOST, port=listener.getsockname()[1])
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex((HOST, address.port))
        began = time.monotonic()
        answer = probe(address, "pi-1", within_s=1.0)
        assert time.monotonic() - began < 2.0
    assert answer.outcome == "unreachable"


def test_unknown_name_is_named() -> None:
    """Such a name cannot exist (RFC 6761); a resolver that does not answer is unreachable."""
    answer = probe(BrokerAddress(host="nowhere.invalid", port=1883), "pi-1", within_s=3.0)
    assert answer.outcome in ("unnamed", "unreachable")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n", b"\x15\x03\x01\0\2\2\x46"])
def test_what_is_no_broker_is_told_so(answer: bytes) -> None:
    """One that hangs up, a web server, a TLS port."""
    with a_listener(answer) as address:
        assert probe(address, "pi-1").outcome == "foreign"


def test_broker_that_hangs_is_silent() -> None:
    """Within the time."""
    with a_listener(None) as address:
        began = time.monotonic()
        assert probe(address, "pi-1", within_s=0.5).outcome == "silent"
        assert time.monotonic() - began < 2.0


def test_packet_is_that_of_the_specification(tmp_path: Path) -> None:
    """CONNECT with user name and password, the session kept (MQTT 3.1.1, section 3.1)."""
    seen = b""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        address = BrokerAddress(host=HOST, port=port, username="me", password="ü")  # noqa: S106

        def serve() -> None:
            nonlocal seen
            peer, _ = listener.accept()
            with peer:
                seen = peer.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        probe(address, "pi-1")
        thread.join()
    texts = [b"pi-1", b"me", "ü".encode()]
    body = b"\0\4MQTT\4\xc0\0\x1e" + b"".join(struct.pack(">H", len(text)) + text for text in texts)
    assert seen == bytes([0x10, len(body)]) + body
