"""A device's local API that is called over real sockets, and what a call leaves."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, Self

from broker.embedded import free_port
from edge.config import SOCKET_NAME, DeviceConfig, initialise, load_config
from edge.services import services, token
from tests.brokers import HOST, PATIENCE_S
from tests.edge.running import looking_at

NOBODY = f"mqtt://{HOST}:1"


class Answer(NamedTuple):
    """What came back."""

    status: int
    value: Any
    headers: dict[str, str]


class SocketFileConnection(HTTPConnection):
    """The standard library's client, through a socket file."""

    def __init__(self, path: Path) -> None:
        super().__init__("device", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the file."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


class RunningApi:
    """The services of a device without its agent, until the block ends."""

    def __init__(self, directory: Path, *, port: bool = False, **settings: str) -> None:
        self.directory = directory
        self.sentences: list[str] = []
        self.port = free_port(HOST) if port else 0
        self._settings = {f"PFEDREC_{name.upper()}": value for name, value in settings.items()}
        self._running = ExitStack()

    def __enter__(self) -> Self:
        environment = self._settings | {"PFEDREC_API_PORT": str(self.port)}
        config = load_config(self.directory, environment)
        self._running.enter_context(services(config, self.directory, self.sentences.append))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def token(self) -> str:
        """The API's token."""
        return token(self.directory)

    def connection(self) -> HTTPConnection:
        """Give a connection: to the port if there is one, else to the socket file."""
        if self.port:
            return HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        return SocketFileConnection(self.directory / SOCKET_NAME)

    def raw(self) -> socket.socket:
        """Give a plain socket to the same."""
        connection = self.connection()
        connection.connect()
        return connection.sock

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make one call; a body that is not bytes is sent as JSON."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with closing(self.connection()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, content, named)
            response = connection.getresponse()
            value = response.read()
            return Answer(response.status, json.loads(value) if value else None, dict(response.headers))


def a_device(path: Path) -> Path:
    """Set a device's directory up."""
    initialise(path, DeviceConfig(device_id="pi-1", fleet="shop", broker=NOBODY, scorer="numpy"))
    return path


def stored(directory: Path) -> int:
    """Give how many interactions there are."""
    with looking_at(directory) as store:
        return store.interacted().total


def a_listen(number: int = 0, **track: Any) -> dict[str, Any]:
    """Give a listen as players send it."""
    names = {"artist_name": f"Artist {number % 7}", "track_name": f"Track {number}"}
    return {"listened_at": 1_600_000_000 + number, "track_metadata": names | track}


def a_submission(*listens: Any, kind: str = "import") -> dict[str, Any]:
    """Give a submission of listens."""
    return {"listen_type": kind, "payload": list(listens)}


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Run something in a thread while the block runs; wait for its end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
