"""Gives certificates to devices that bring a claim: HTTPS, two calls, for as long as it is wanted.

::

    GET /ca.pem                                    the authority's certificate: the device compares its hash
    POST /enrol {"device", "code", "request"}      200 {"certificate", "head_keys", "fleet", "broker"}
                                                   403, 429, 400, 503 {"error": a sentence}

The secret key stays on the device: it sends a request for a certificate. The code is asked for once, by the
first key that brings it (`broker.authority.claims`). Wrong tries are bounded by address; a connection has one
request, a size and a time. No code is ever written to a log.
"""

import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

from broker.aggregator.admission import Buckets
from broker.aggregator.listener import BoundedServer, answering
from broker.aggregator.refusals import RefusalLog
from broker.authority.authority import Authority
from broker.authority.certificates import Request, read_request
from broker.claim import is_code
from broker.errors import ClaimRefusedError, FileUnreadableError, InputError, SetupError
from broker.protocol.topics import checked_id
from broker.storage import read_file
from trainer.errors import ParameterError

MOST_BYTES = 16 * 1024
_TIMEOUT_S = 10.0
_LONGEST_S = 30.0
"""Of one connection, whatever it does meanwhile."""
_TRIES, _TRIES_PER_S = 10.0, 0.1
"""Wrong ones of one address: ten at once, then one every ten seconds."""


_OURS = "the authority cannot be used; its operator's log says why"


class TooManyTriesError(ClaimRefusedError):
    """Wrong codes from one address, one after the other."""


@dataclass(frozen=True, slots=True)
class _Asked:
    device: str
    code: str
    request: Request


class Enrolment:
    """Answers what devices ask; it knows no network.

    Parameters
    ----------
    broker : str
        The broker's address as devices are told it.
    now : callable
        Gives the time, with its zone.
    say : callable
        Told one sentence about each device that has enrolled.
    """

    def __init__(
        self, authority: Authority, broker: str, now: Callable[[], datetime], say: Callable[[str], None]
    ) -> None:
        self._authority = authority
        self._now = now
        self._say = say
        self._tries = Buckets(_TRIES, _TRIES_PER_S)
        self._log = RefusalLog()
        self._lock = threading.Lock()
        self._common = {"fleet": authority.fleet, "broker": broker}
        self.ca = read_file(authority.path / "ca.pem")

    def answer(self, content: bytes, address: str) -> dict[str, str]:
        """Give a device its certificate, and whom to believe.

        Raises
        ------
        InputError
            When the question is none.
        ClaimRefusedError, TooManyTriesError
        SetupError, FileUnreadableError
            When the authority cannot be used.
        """
        peer, seconds = _network(address), time.monotonic()
        with self._lock:  # one after the other: they write the same register
            if self._tries.take(peer, 0.0, seconds) < 1.0:
                raise TooManyTriesError(
                    "too many wrong claims from this address; wait a minute and try again"
                )
            who = address
            try:
                asked = _parsed(content)
                who = f"{asked.device} at {address}"
                certificate = self._authority.enrol(asked.device, asked.code, asked.request, self._now())
                head_keys = read_file(self._authority.path / "head_key.pub").decode()
            except Exception as error:
                # A lock that is held, a full disk or a key that is away says nothing about who asks.
                if not isinstance(error, SetupError | FileUnreadableError):
                    self._tries.take(peer, 1.0, seconds)
                self._log.note(type(error).__name__, f"{who} got no certificate: {error}", seconds)
                raise
        self._say(f"{asked.device} has enrolled from {address}")
        return self._common | {"head_keys": head_keys, "certificate": certificate.decode()}


def _parsed(content: bytes) -> _Asked:
    try:
        parsed = json.loads(content)
        texts = [parsed[name] for name in ("device", "code", "request")]
        if set(parsed) != {"device", "code", "request"} or not all(isinstance(text, str) for text in texts):
            raise InputError("a claim is device, code and request")
        if not is_code(texts[1]):
            raise InputError("a claim is device, code and request, and this code has another form")
        device = checked_id(texts[0], "the device id")
    except (KeyError, TypeError, ValueError, ParameterError, RecursionError) as error:
        raise InputError("a claim is JSON of device, code and request") from error
    try:
        return _Asked(device, texts[1], read_request(texts[2].encode()))
    except ValueError as error:
        raise InputError(f"the request for a certificate cannot be used: {error}") from error


def _network(address: str) -> str:
    """Give whom an address belongs to: of IPv6 everybody has 2^64."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


@contextmanager
def enrolling(enrolment: Enrolment, authority: Authority, host: str, port: int) -> Iterator[int]:
    """Answer over HTTPS while the block runs; port 0 takes any free one.

    Yields
    ------
    int
        The port.

    Raises
    ------
    AddressInUseError
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(authority.path / "server.pem", authority.path / "server.key")
    with answering(
        lambda: _TlsServer(context, enrolment, (host, port), _Handler),
        "enrolment",
        f"claims cannot be answered at {host}:{port}",
        "give another --port",
    ) as taken:
        yield taken


class _TlsServer(BoundedServer):
    """Speaks TLS in the thread of each connection, so that one who does not speak it holds up nobody."""

    def __init__(self, context: ssl.SSLContext, enrolment: Enrolment, *arguments: Any) -> None:
        self._context = context
        self.enrolment = enrolment
        super().__init__(*arguments)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection, for a while."""
        request.settimeout(_TIMEOUT_S)
        with self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
            timer = threading.Timer(_LONGEST_S, _hang_up, [secure])
            timer.daemon = True
            timer.start()
            try:
                secure.do_handshake()
                super().finish_request(secure, client_address)
            finally:
                timer.cancel()


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError, ValueError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: "_TlsServer"
    timeout = _TIMEOUT_S
    server_version = "edge-aggregator"
    sys_version = ""

    def do_GET(self) -> None:
        """Give the authority's certificate."""
        if self.path == "/ca.pem":
            self._answer(200, self.server.enrolment.ca, "application/x-pem-file")
        else:
            self._say(404, "there are GET /ca.pem and POST /enrol")

    def do_POST(self) -> None:
        """Give a certificate."""
        length = self.headers.get("Content-Length", "")
        is_number = length.isascii() and length.isdigit()
        size = int(length) if is_number and len(length) < 10 else MOST_BYTES + 1
        # What is not read before the end of a connection may take the answer with it.
        content = self.rfile.read(min(size, 2 * MOST_BYTES)) if is_number else b""
        if self.path != "/enrol":
            self._say(404, "there are GET /ca.pem and POST /enrol")
        elif size > MOST_BYTES:
            self._say(413, f"a claim has a length, of at most {MOST_BYTES} bytes")
        else:
            self._enrol(content)

    def _enrol(self, content: bytes) -> None:
        try:
            answer = self.server.enrolment.answer(content, self.client_address[0])
        except TooManyTriesError as error:
            self._say(429, str(error))
        except ClaimRefusedError as error:
            self._say(403, str(error))
        except FileUnreadableError:  # one of the authority's
            self._say(503, _OURS)
        except InputError as error:
            self._say(400, str(error))
        except Exception:  # noqa: BLE001 - who asks has an answer; `Enrolment` has noted it
            self._say(503, _OURS)
        else:
            self._answer(200, json.dumps(answer).encode(), "application/json")

    def _say(self, code: int, sentence: str) -> None:
        self._answer(code, json.dumps({"error": sentence}).encode(), "application/json")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's name
        """Say nothing; `Enrolment` does."""
