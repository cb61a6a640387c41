"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, for a fleet's operator; GET and HEAD only.

No secrets pass here, and nothing can be changed; still it is for the machine itself or a network of the
operator's own: nobody is asked who they are. The server itself, `answering`, is enrolment's, too.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from broker.aggregator.health import Health
from broker.errors import AddressInUseError

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
_MOST_AT_ONCE = 16


@contextmanager
def listening(
    host: str, port: int, render: Callable[[], bytes], content_type: str, health: Health
) -> Iterator[int]:
    """Serve while the block runs; port 0 takes any free one.

    Yields
    ------
    int
        The port.

    Raises
    ------
    AddressInUseError
        When the port cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S
        server_version = "edge-aggregator"
        sys_version = ""

        def do_GET(self) -> None:
            """Answer."""
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, content_type, render())
            elif path in ("/healthz", "/readyz"):
                wrong = health.complaints() if path == "/healthz" else health.waits_for()
                self._answer(
                    503 if wrong else 200, "text/plain", ("\n".join(wrong or ["ok"]) + "\n").encode()
                )
            else:
                self._answer(404, "text/plain", b"there are /metrics, /healthz and /readyz\n")

        do_HEAD = do_GET  # noqa: N815 - the name is the base's

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's name
            """Say nothing of what is asked every few seconds."""

    with answering(
        lambda: BoundedServer((host, port), Handler),
        "metrics",
        f"the metrics cannot be served at {host}:{port}",
        "set another metrics_port in config.toml",
    ) as taken:
        yield taken


@contextmanager
def answering(make: Callable[[], ThreadingHTTPServer], name: str, failure: str, remedy: str) -> Iterator[int]:
    """Let a server answer in threads while the block runs.

    Parameters
    ----------
    make : callable
        Makes the server, which listens from then on.
    name : str
        The thread's.
    failure, remedy : str
        What to say when it cannot listen, before and after the system's reason.

    Yields
    ------
    int
        The port.

    Raises
    ------
    AddressInUseError
        When the port cannot be listened on.
    """
    try:
        server = make()
    except OSError as error:
        raise AddressInUseError(f"{failure}: {(error.strerror or str(error)).lower()}; {remedy}") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name=name, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


class BoundedServer(ThreadingHTTPServer):
    """Answers in threads, of which there are so many and no more: who comes above that is hung up on."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.Semaphore(_MOST_AT_ONCE)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is a place left."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's
        """Note that somebody left in the middle."""
        _LOG.debug("a request ended early")
