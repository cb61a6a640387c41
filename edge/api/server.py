"""Serves the local API: one thread, sockets that never block it, and bounds on everything a client can take.

There is nothing that a client can hold for longer than its deadline, and nothing that grows with the number
of clients beyond `MAX_CONNECTIONS` heads and `_MAX_BODIES_BYTES` of bodies. While nobody calls, the thread
sleeps without a timeout. Calls are answered one after the other: all of them need the one database.

This file knows sockets and times; what a request is, is in `messages`, what it does, in `endpoints`.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from broker.errors import AddressInUseError
from edge import memory
from edge.api.endpoints import Endpoints
from edge.api.messages import CONTINUE, Head, HttpError, Request, RequestReader, Response

_LOG = logging.getLogger(__name__)

HOST = "127.0.0.1"
MAX_CONNECTIONS = 24
IDLE_S = 60.0
"""How long a connection may wait for its next request."""
REQUEST_S = 20.0
"""How long a request may take to arrive, from its first byte to its last."""
ANSWER_S = 20.0
"""How long a client may take to read its answer."""
LINGER_S = 2.0
"""What comes after a refusal is read and dropped for so long, else the client might not see the answer."""
_MAX_REFUSED = 8
"""More connections that are only told so; others beyond them are closed without a word."""
_MAX_BODIES_BYTES = 12_000_000
"""Of all bodies that are being received; more than the largest that is allowed."""
_LARGE_BYTES = 500_000
_READ_BYTES = 64 * 1024
_BACKLOG = 128
"""Who connects to a socket file while it is full is refused at once, so it is not small."""
_PAUSE_S = 1.0
"""Without a free file descriptor nothing can be accepted, and the next try would come at once."""


class _Phase(Enum):
    IDLE = "idle"
    RECEIVING = "receiving"
    ANSWERING = "answering"
    LINGERING = "lingering"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that accepts; `trusted` tells that the file system decides who may come."""

    socket: socket.socket
    trusted: bool


class _Client:
    """One connection, and how long it may go on."""

    def __init__(self, peer: socket.socket, *, trusted: bool, reader: RequestReader, now: float) -> None:
        self.socket = peer
        self.trusted = trusted
        self.reader = reader
        self.outgoing = memoryview(b"")
        self.ends = False
        self.phase = _Phase.IDLE
        self.deadline = now + IDLE_S

    def enter(self, phase: _Phase, deadline: float) -> None:
        """Begin a phase; a request's deadline stays what it was as it goes on."""
        if phase is not self.phase:
            self.phase, self.deadline = phase, deadline

    @property
    def body_bytes(self) -> int:
        """What its body takes, or will take."""
        return self.reader.expected_bytes


class ApiServer:
    """A thread that serves some listeners until `stop`; they are closed then.

    Parameters
    ----------
    endpoints : Endpoints
        Used by the thread alone.
    """

    def __init__(self, listeners: list[Listener], endpoints: Endpoints) -> None:
        self._listeners = listeners
        self._endpoints = endpoints
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._accept_at = 0.0
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="api")
        for listener in listeners:
            listener.socket.settimeout(0.0)
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the call that is being answered, close everything, and wait until that is done."""
        self._wake.send(b"x")
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                ready = self._selector.select(self._timeout())
                now = time.monotonic()
                # New ones last: by then it is known which of the others are idle.
                for key, events in sorted(ready, key=lambda each: isinstance(each[0].data, Listener)):
                    if key.fileobj is self._woken:
                        return
                    if isinstance(key.data, Listener):
                        self._accept(key.data, now)
                    else:
                        self._serve(key.data, events)
                self._close_late(time.monotonic())
        except Exception:  # noqa: BLE001 - the device goes on without its API; the log says why
            _LOG.exception("the local API has ended")
        finally:
            self._close_all()

    def _timeout(self) -> float | None:
        moments = [client.deadline for client in self._clients]
        if self._accept_at:
            moments.append(self._accept_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _close_all(self) -> None:
        for client in list(self._clients):
            self._close(client)
        for listener in self._listeners:
            listener.socket.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    # -- connections -------------------------------------------------------------------------------

    def _accept(self, listener: Listener, now: float) -> None:
        try:
            peer, _ = listener.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _LOG.warning("the local API cannot accept a connection: %s", os.strerror(error.errno or 0))
            self._pause(now)
            return
        peer.settimeout(0.0)
        has_place = len(self._clients) < MAX_CONNECTIONS or self._make_room()
        if not has_place and len(self._clients) >= MAX_CONNECTIONS + _MAX_REFUSED:
            peer.close()
            return
        client = self._client(peer, trusted=listener.trusted, now=now)
        self._clients.add(client)
        self._selector.register(peer, selectors.EVENT_READ, client)
        if not has_place:
            self._refuse(client, HttpError(503, "too many connections; try again", {"Retry-After": "1"}))

    def _client(self, peer: socket.socket, *, trusted: bool, now: float) -> _Client:
        def admit(head: Head) -> None:
            self._endpoints.admit(head, trusted=trusted)
            expected = sum(each.body_bytes for each in self._clients if each is not client)
            if expected + head.content_length > _MAX_BODIES_BYTES:
                raise HttpError(503, "other large requests are being received", {"Retry-After": "1"})

        client = _Client(peer, trusted=trusted, reader=RequestReader(admit), now=now)
        return client

    def _make_room(self) -> bool:
        """Close a connection that waits for a request or for its end; tell whether there was one."""
        waiting = [each for each in self._clients if each.phase in (_Phase.IDLE, _Phase.LINGERING)]
        if waiting:
            self._close(min(waiting, key=lambda client: client.deadline))
        return bool(waiting)

    def _pause(self, now: float) -> None:
        for listener in self._listeners:
            self._selector.unregister(listener.socket)
        self._accept_at = now + _PAUSE_S

    def _close_late(self, now: float) -> None:
        if self._accept_at and now >= self._accept_at:
            self._accept_at = 0.0
            for listener in self._listeners:
                self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        for client in [each for each in self._clients if now >= each.deadline]:
            if client.phase is _Phase.RECEIVING:
                self._refuse(client, HttpError(408, f"the request did not arrive within {REQUEST_S:g} s"))
            else:
                self._close(client)

    def _close(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.socket)
        client.socket.close()

    # -- requests ----------------------------------------------------------------------------------

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._receive(client):
                return
            while self._send(client):
                if not self._answer_next(client):
                    return
        except OSError:  # the peer has gone
            self._close(client)

    def _receive(self, client: _Client) -> bool:
        """Take what has come; tell whether a request may be there whole now."""
        data = client.socket.recv(_READ_BYTES)
        if not data:
            self._close(client)
            return False
        if client.phase is _Phase.LINGERING:
            return False
        client.reader.receive(data)
        return True

    def _send(self, client: _Client) -> bool:
        """Send what is left of an answer; tell whether it is gone and another request may follow."""
        if client.phase is not _Phase.ANSWERING:
            return True
        try:
            client.outgoing = client.outgoing[client.socket.send(client.outgoing) :]
        except BlockingIOError:
            return False
        if client.outgoing:
            return False
        now = time.monotonic()
        self._selector.modify(client.socket, selectors.EVENT_READ, client)
        if client.ends:
            client.socket.shutdown(socket.SHUT_WR)
            client.enter(_Phase.LINGERING, now + LINGER_S)
            return False
        client.enter(_Phase.IDLE, now + IDLE_S)
        return True

    def _answer_next(self, client: _Client) -> bool:
        """Answer the next request if it is there whole. One at a time, so that answers cannot pile up."""
        now = time.monotonic()
        try:
            request = client.reader.next_request()
        except HttpError as error:
            self._refuse(client, error)
            return True
        if request is None:
            if client.reader.take_continue():
                client.socket.send(CONTINUE)
            if client.reader.begun:
                client.enter(_Phase.RECEIVING, now + REQUEST_S)
            return False
        client.ends = not request.head.keep_alive
        self._begin_answer(client, self._answered(request))
        large = len(request.body) >= _LARGE_BYTES
        del request
        if large:
            memory.give_back()
        return True

    def _refuse(self, client: _Client, error: HttpError) -> None:
        client.ends = True
        client.reader.forget()
        self._begin_answer(client, Response.of_error(error).encode(keep_alive=False))

    def _begin_answer(self, client: _Client, answer: bytes) -> None:
        client.outgoing = memoryview(answer)
        client.enter(_Phase.ANSWERING, time.monotonic() + ANSWER_S)
        self._selector.modify(client.socket, selectors.EVENT_WRITE, client)

    def _answered(self, request: Request) -> bytes:
        response = self._endpoints.answer(request)
        head = request.head
        return response.encode(keep_alive=head.keep_alive, with_body=head.method != "HEAD")


# -- where it listens --------------------------------------------------------------------------------


@contextmanager
def socket_file(path: Path) -> Iterator[Listener]:
    """Listen on a socket file that only this user can open; it goes with the block.

    Whoever calls holds the directory's lock: a file that is there was left by a process that has ended.

    Raises
    ------
    OSError
        When the file system cannot hold one.
    """
    listener = socket.socket(socket.AF_UNIX)
    # A socket's address has at most 107 bytes, a path may have more: so it is named from an open directory.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        # The file takes its mode from the socket, so there is no moment at which others could connect.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    try:
        yield Listener(listener, trusted=True)
    finally:
        listener.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def local_port(port: int) -> Iterator[Listener]:
    """Listen on a port of this machine alone.

    Raises
    ------
    AddressInUseError
        When another program has the port.
    """
    try:
        listener = socket.create_server((HOST, port), backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise AddressInUseError(
            f"the local API cannot listen on {HOST}:{port}: {reason}; set another api_port in config.toml"
        ) from error
    with listener:
        yield Listener(listener, trusted=False)
