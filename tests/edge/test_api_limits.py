"""What a program on the device cannot do to the local API: hang it, fill the memory, or keep others out."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.api import server
from edge.api.messages import MAX_HEAD_BYTES
from tests.edge.calling import RunningApi, a_device, a_listen, a_submission, stored

STATUS = b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n"
BEGUN = b"POST /1/submit-listens HTTP/1.1\r\nHost: a\r\nContent-Length: "


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningApi]:
    """Give a new device's API on its socket file."""
    with RunningApi(a_device(tmp_path / "me")) as running:
        yield running


def read_all(link: socket.socket) -> bytes:
    """Read until the API closes."""
    found = b""
    while data := link.recv(65536):
        found += data
    return found


def send_for_ever(link: socket.socket, payload: bytes) -> None:
    """Send the same again and again, until that fails."""
    while True:
        link.sendall(payload)


def test_request_that_does_not_come_is_given_up(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head or its body; a byte now and then does not help."""
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    for begun in (b"GET /v1/st", BEGUN + b"100\r\n\r\n{"):
        with api.raw() as link:
            link.sendall(begun)
            stop = threading.Event()

            def trickle(link: socket.socket = link, stop: threading.Event = stop) -> None:
                while not stop.wait(0.02):
                    try:
                        link.sendall(b" ")
                    except OSError:
                        return

            thread = threading.Thread(target=trickle)
            thread.start()
            answer = link.recv(10_000)
            stop.set()
            thread.join()
            assert answer.startswith(b"HTTP/1.1 408 ")


def test_connection_that_nobody_uses_is_closed(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first request, and between two."""
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    with api.raw() as fresh, api.raw() as used:
        used.sendall(STATUS)
        assert read_all(used).startswith(b"HTTP/1.1 200 ")
        assert read_all(fresh) == b""


def test_client_that_does_not_read_is_given_up(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers do not pile up: the next request waits until the last answer is gone."""
    monkeypatch.setattr(server, "ANSWER_S", 0.3)
    with api.raw() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.settimeout(5.0)
        with pytest.raises(OSError, match=r"Broken pipe|reset|timed out"):
            send_for_ever(link, b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        assert api.call("GET", "/v1/status").status == 200


def test_many_requests_at_once_are_answered_in_order(api: RunningApi) -> None:
    """However many come in one piece."""
    with api.raw() as link:
        link.sendall(STATUS * 400 + b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answers = read_all(link)
    assert answers.count(b"HTTP/1.1 200 ") == 400
    assert answers.count(b"HTTP/1.1 404 ") == 1


def test_connections_beyond_the_limit_take_the_place_of_idle_ones(api: RunningApi) -> None:
    """So holding many does not keep others out."""
    with ExitStack() as stack:
        links = [stack.enter_context(api.raw()) for _ in range(server.MAX_CONNECTIONS)]
        for _ in range(3):
            assert api.call("GET", "/v1/status").status == 200
        assert read_all(links[0]) == b""
        links[-1].sendall(STATUS)
        assert links[-1].recv(10_000).startswith(b"HTTP/1.1 200 ")


def test_connections_beyond_the_limit_are_told_to_come_again(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all others are in the middle of a request; they have their place once those are given up."""
    monkeypatch.setattr(server, "REQUEST_S", 0.5)
    with ExitStack() as stack:
        links = [stack.enter_context(api.raw()) for _ in range(server.MAX_CONNECTIONS)]
        for link in links:
            link.sendall(b"GET /")
        answer = api.call("GET", "/v1/status")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        for link in links:
            read_all(link)
        assert api.call("GET", "/v1/status").status == 200


def test_large_bodies_are_received_one_at_a_time(api: RunningApi) -> None:
    """Together they would be more than a small board has."""
    with api.raw() as first, api.raw() as second:
        first.sendall(BEGUN + b"10000000\r\nExpect: 100-continue\r\n\r\n")
        assert first.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        second.sendall(BEGUN + b"10000000\r\n\r\n")
        assert read_all(second).startswith(b"HTTP/1.1 503 ")
        small = a_submission(a_listen())
        assert api.call("POST", "/1/submit-listens", small).status == 200
    with api.raw() as third:
        third.sendall(BEGUN + b"10000000\r\nExpect: 100-continue\r\n\r\n")
        assert third.recv(1000).startswith(b"HTTP/1.1 100 ")


def test_head_that_is_too_large_is_refused(api: RunningApi) -> None:
    """The client sees the answer although it goes on sending."""
    with api.raw() as link:
        link.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES * 2)
        assert read_all(link).startswith(b"HTTP/1.1 431 ")


def test_request_that_breaks_off_stores_nothing(api: RunningApi) -> None:
    """Though its head is good."""
    body = b'{"interactions": [{"item": "bread"}]}'
    with api.raw() as link:
        head = f"POST /v1/interactions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body) + 1}\r\n\r\n"
        link.sendall(head.encode() + body)
        link.shutdown(socket.SHUT_WR)
        assert read_all(link) == b""
    assert stored(api.directory) == 0


@pytest.mark.parametrize("noise", [b"\0" * 1000, b"\x16\x03\x01" * 50, b"\r\n" * 500, b"SSH-2.0-x\r\n\r\n"])
def test_what_is_no_http_does_no_harm(api: RunningApi, noise: bytes) -> None:
    """The next call is served."""
    with api.raw() as link:
        link.sendall(noise)
        link.shutdown(socket.SHUT_WR)
        read_all(link)
    assert api.call("GET", "/v1/status").status == 200


def test_descriptors_that_run_out_pause_the_api(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on when there are some again; meanwhile the thread does not spin."""
    monkeypatch.setattr(server, "_PAUSE_S", 0.1)
    tries = []
    accept = socket.socket.accept

    def refuse(listener: socket.socket) -> tuple[socket.socket, object]:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refuse)
    assert api.call("GET", "/v1/status").status == 200
    assert len(tries) == 3


def test_api_stops_in_the_middle_of_requests(tmp_path: Path) -> None:
    """At once, and everybody is hung up on."""
    with ExitStack() as stack:
        with RunningApi(a_device(tmp_path / "me")) as api:
            links = [stack.enter_context(api.raw()) for _ in range(3)]
            links[0].sendall(b"GET /v1")
            links[1].sendall(BEGUN + b"10000\r\n\r\n{")
            assert api.call("GET", "/v1/status").status == 200
        for link in links:
            assert read_all(link) == b""
