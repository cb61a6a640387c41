"""What runs beside a device's agent, as the configuration says: the local API, the link to home automation.

Each has a thread and a database connection of its own; the agent notices what they record as it notices
``edge-client record``. Neither is needed for the other, nor for the agent.
"""

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from broker.errors import CorruptError
from broker.storage import read_file, write_atomically
from edge import memory
from edge.api.endpoints import Endpoints
from edge.api.server import ApiServer, Listener, local_port, socket_file
from edge.config import SOCKET_NAME, TOKEN_NAME, DeviceConfig, open_store
from edge.homelink import HomeLink, left_behind, place_of
from edge.store import Model

_TOKEN_BYTES = 32


@contextmanager
def services(
    config: DeviceConfig,
    directory: Path,
    say: Callable[[str], None],
    newest: Callable[[], Model | None] = lambda: None,
) -> Iterator[None]:
    """Serve and link until the block ends. The caller holds the directory's lock.

    Parameters
    ----------
    newest : callable
        Gives the newest table, which may be in memory only; called by another thread.

    Raises
    ------
    AddressInUseError
        When the API's port cannot be listened on.
    CorruptError, DiskFullError, InUseError, NotWritableError, FileUnreadableError
        From the directory.
    """
    memory.share_one_arena()
    with ExitStack() as stack:
        listeners = _listeners(config, directory, say, stack)
        if listeners:
            store = stack.enter_context(closing(open_store(directory)))
            server = ApiServer(listeners, Endpoints(config, store, token(directory), newest))
            server.start()
            stack.callback(server.stop)
        _link_home(config, directory, say, stack)
        yield


def token(directory: Path) -> str:
    """Give the API's token; it is made when it is asked for first, in a file that only this user can read.

    Raises
    ------
    CorruptError
        When the file is empty.
    DiskFullError, NotWritableError, FileUnreadableError
    """
    path = directory / TOKEN_NAME
    if not path.exists():
        write_atomically(path, f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n".encode(), mode=0o600)
    found = read_file(path).decode(errors="replace").strip()
    if not found:
        raise CorruptError(f"{path} is empty; remove it, and the next start makes a new token")
    return found


def _link_home(config: DeviceConfig, directory: Path, say: Callable[[str], None], stack: ExitStack) -> None:
    store = stack.enter_context(closing(open_store(directory)))
    home, left = config.home_address, left_behind(store)
    here = None if home is None else place_of(home)
    for place in left.keys() - {here}:
        say(
            f"sensors of this device are still announced at {place}; to take them away, start once with that "
            "home_broker and home_enabled = false"
        )
    if home is not None and (config.home_enabled or here in left):
        stack.enter_context(_running(HomeLink(config, home, store, say)))


def _listeners(
    config: DeviceConfig, directory: Path, say: Callable[[str], None], stack: ExitStack
) -> list[Listener]:
    listeners = []
    if config.api_socket:
        path = directory / SOCKET_NAME
        try:
            listeners.append(stack.enter_context(socket_file(path)))
        except OSError as error:
            # On by default, so a file system without sockets must not keep the device from its work.
            reason = os.strerror(error.errno or 0).lower()
            say(f"the local API is not served: {path} cannot be made: {reason}")
    if config.api_port:
        listeners.append(stack.enter_context(local_port(config.api_port)))
        say(f"local API on http://127.0.0.1:{config.api_port}, token in {directory / TOKEN_NAME}")
    return listeners


@contextmanager
def _running(link: HomeLink) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=link.run, args=(stop,), name="home")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
