"""A broker of our own: mosquitto where it is installed, else the pure-Python amqtt, as a child process.

It ends with the process that started it, however that ends, so that a restart finds its port free.
"""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from broker.address import BrokerAddress
from broker.errors import BrokerStartError, MissingExtraError
from broker.storage import named_failures

BrokerKind = Literal["mosquitto", "amqtt"]

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_TCP_LISTEN = "0A"
"""The state's code in /proc/net/tcp (Linux, include/net/tcp_states.h)."""
_PRIVATE_PORTS = range(20_000, 32_000)
"""Below those that the system hands to outgoing connections, which come and go by themselves."""
_LIBC = ctypes.CDLL(None)

_OPEN = "allow_anonymous true"
_SECURE = """\
allow_anonymous false
tls_version tlsv1.2
cafile {ca}
certfile {certificate}
keyfile {key}
crlfile {revoked}
require_certificate true
# Who a client is, its certificate says, not the client: one cannot take another's place.
use_identity_as_username true
use_username_as_clientid true
acl_file {access}"""
_MOSQUITTO_CONF = """\
listener {port} {host}
{who}
# The protocol's largest message with its topic; who sends more is disconnected before it is read.
max_packet_size 135168
# Started as root it would become another user, who may not write here; anyone else it leaves as he is.
user root
persistence true
# A device that never comes back is forgotten; one that comes back later is told everything anew.
persistent_client_expiration 14d
persistence_location {directory}/
autosave_interval 60
# Without this a subscriber to many retained topics gets only the first thousand.
max_queued_messages 0
max_inflight_messages 1000
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureListener:
    """TLS with certificates at both ends.

    Attributes
    ----------
    ca, certificate, key, revoked : Path
        PEM files: who signs clients' certificates, the broker's own, the list of revoked ones.
    access : str
        mosquitto's access rules.
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: Path
    access: str


def mosquitto_path() -> str | None:
    """Find mosquitto; Debian puts it where an ordinary user's PATH does not look."""
    return shutil.which(
        "mosquitto", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/usr/local/sbin"
    )


def choose_broker(wanted: Literal["auto", "mosquitto", "embedded"]) -> BrokerKind:
    """Decide which broker ``--broker auto`` or ``--broker embedded`` means here.

    Raises
    ------
    BrokerStartError
        When mosquitto is asked for and missing.
    MissingExtraError
        When neither is installed.
    """
    if wanted == "mosquitto" and mosquitto_path() is None:
        raise BrokerStartError("mosquitto is not installed; install it (apt-get install mosquitto)")
    if wanted != "embedded" and mosquitto_path() is not None:
        return "mosquitto"
    if find_spec("amqtt") is None:
        raise MissingExtraError("aggregator", "amqtt")
    return "amqtt"


def free_port(host: str = "127.0.0.1") -> int:
    """Find a TCP port that nobody listens on just now.

    Raises
    ------
    BrokerStartError
        When there is none.
    """
    for port in random.SystemRandom().sample(_PRIVATE_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise BrokerStartError(f"no free TCP port was found on {host}")


def reachable_host(listen: str) -> str:
    """Give where clients on this machine find a broker that listens on an address."""
    return "127.0.0.1" if listen in ("0.0.0.0", "") else listen  # noqa: S104


class OwnBroker:
    """A running broker of our own.

    Attributes
    ----------
    address : BrokerAddress
        Where clients on this machine find it.
    """

    def __init__(self, address: BrokerAddress, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = address
        self._process = process
        self._log = log

    def require_running(self) -> None:
        """Notice that it has ended.

        Raises
        ------
        BrokerStartError
            When it has.
        """
        status = self._process.poll()
        if status is not None:
            raise BrokerStartError(
                f"the broker at {self.address} ended with status {status}; its log is {self._log}"
            )

    def reload(self) -> None:
        """Let mosquitto read access rules and revoked certificates again; connections that are there stay."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGHUP)


@contextmanager
def own_broker(
    kind: BrokerKind, host: str, port: int, directory: Path, secure: SecureListener | None = None
) -> Iterator[OwnBroker]:
    """Run a broker while the block runs.

    Parameters
    ----------
    host : str
        The address to listen on.
    directory : Path
        Where it keeps its state and its log; made where missing.
    secure : SecureListener, optional
        TLS; mosquitto only.

    Yields
    ------
    OwnBroker

    Raises
    ------
    BrokerStartError
        When the port is taken, or the broker ends or does not answer.
    """
    _require_free(host, port, secure=secure is not None)
    with named_failures(directory):
        directory.mkdir(parents=True, exist_ok=True)
        log_path = directory / f"{kind}.log"
        command = _command(kind, host, port, directory, secure)
        with log_path.open("ab") as log:
            # preexec_fn is safe here: no other thread has been started yet, and it makes one system call.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,  # noqa: PLW1509
            )
    try:
        address = BrokerAddress(host=reachable_host(host), port=port, secure=secure is not None)
        broker = OwnBroker(address, process, log_path)
        _wait_until_it_listens(broker, process.pid)
        yield broker
    finally:
        end_process(process, _STOP_TIMEOUT_S)


def _command(
    kind: BrokerKind, host: str, port: int, directory: Path, secure: SecureListener | None
) -> list[str]:
    if kind == "amqtt":
        if secure is not None:
            raise BrokerStartError(
                "amqtt has no access rules; TLS needs mosquitto (apt-get install mosquitto)"
            )
        return [sys.executable, "-m", "broker.amqtt_process", host, str(port)]
    who = _OPEN
    if secure is not None:
        access = directory / "access.acl"
        access.write_text(secure.access)
        paths = {name: getattr(secure, name).resolve() for name in ("ca", "certificate", "key", "revoked")}
        who = _SECURE.format(**paths, access=access.resolve())
    configuration = directory / "mosquitto.conf"
    configuration.write_text(
        _MOSQUITTO_CONF.format(host=host, port=port, directory=directory.resolve(), who=who)
    )
    return [mosquitto_path() or "mosquitto", "-c", str(configuration)]


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, and stay out of the terminal's Ctrl-C."""
    os.setpgid(0, 0)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _require_free(host: str, port: int, *, secure: bool) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerStartError(
                f"a broker cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}; "
                "set another port, or join the broker that runs there with --broker "
                f"{BrokerAddress(host=reachable_host(host), port=port, secure=secure)}"
            ) from error


def _wait_until_it_listens(broker: OwnBroker, pid: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        broker.require_running()
        if _listens(pid, broker.address.port):
            return
        time.sleep(_POLL_S)
    raise BrokerStartError(f"the broker did not listen at {broker.address} within {_START_TIMEOUT_S:.0f} s")


def _listens(pid: int, port: int) -> bool:
    """Tell whether the process itself listens on `port`; that somebody answers there would not tell who."""
    process = Path(f"/proc/{pid}")
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    with contextlib.suppress(OSError):
        return any(str(handle.readlink()) in inodes for handle in (process / "fd").iterdir())
    return False


def end_process(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End a child with SIGTERM, and with SIGKILL if it is still there after `timeout_s` seconds."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
