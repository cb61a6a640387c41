"""A PostgreSQL of the tests' own: a cluster in a temporary directory, on a free port of 127.0.0.1.

Root may not run PostgreSQL: then it is the user ``postgres`` of Debian's package, by ``setpriv``.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from broker.embedded import end_process, free_port

try:
    import psycopg
except ImportError:  # the device's tests do without it, where there is no wheel
    _HAS_CLIENT = False
else:
    _HAS_CLIENT = True

PASSWORD = "tests-own"  # noqa: S105 - of a cluster that ends with the test
_START_S = 60.0
_POLL_S = 0.05
_STOP_S = 20.0
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 64MB
max_wal_size = 1GB
log_min_messages = fatal
"""


def programs() -> Path | None:
    """Find the newest server's programs; Debian keeps them off the PATH. None without a client, too."""
    if not _HAS_CLIENT:
        return None
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: int(each.parts[-3]))
    elsewhere = shutil.which("initdb")
    return found[-1].parent if found else Path(elsewhere).resolve().parent if elsewhere else None


def _as_user(command: Sequence[str]) -> list[str]:
    if os.getuid() != 0:
        return list(command)
    user = pwd.getpwnam("postgres")
    ids = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--inh-caps=-all")
    return ["setpriv", *ids, "--pdeathsig=SIGINT", "--", *command]


class Cluster:
    """A running server whose user `pfedrec` may make databases."""

    def __init__(self, bin_folder: Path, folder: Path) -> None:
        self._bin = bin_folder
        self._folder = folder
        self._numbers = count(1)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make the cluster's files."""
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            for each in (self._folder, password):
                shutil.chown(each, "postgres", "postgres")
        command = [str(self._bin / "initdb"), "-D", str(self._folder / "data"), "-U", "pfedrec", "-E", "UTF8"]
        command += ["--no-locale", "-A", "scram-sha-256", "--no-sync", f"--pwfile={password}"]
        subprocess.run(_as_user(command), check=True, capture_output=True, cwd="/")
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)

    def start(self) -> None:
        """Start the server, and wait until it answers; it ends with the thread that calls this."""
        command = [str(self._bin / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port)]
        deadline = time.monotonic() + _START_S
        while True:
            if self._process is None or self._process.poll() is not None:
                # Where one was killed, its children may still hold its memory for a moment.
                with (self._folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(_as_user(command), stdout=log, stderr=log, cwd="/")
            with suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres")):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()[-500:]}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """End the server with SIGKILL: its children notice, and end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the server."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)  # "fast": open connections are ended
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
            if self._process.poll() is None:
                end_process(self._process, _STOP_S)

    def url(self, database: str, password: str = PASSWORD) -> str:
        """Give a database's address."""
        return f"postgresql://pfedrec:{password}@127.0.0.1:{self.port}/{database}"

    def new_store(self) -> str:
        """Give the address of an empty schema: made in a moment, and apart from all others."""
        name = f"fleet{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return self.url("postgres") + f"?options=-csearch_path%3D{name}"

    def new_database(self, encoding: str) -> str:
        """Give the address of a new database of some encoding, without a locale."""
        name = f"fleet{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0".encode())
        return self.url(name)


@contextmanager
def running_cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """Run a server of its own while the block runs; unless `durable` it does not wait for the disk."""
    bin_folder = programs()
    assert bin_folder is not None, "PostgreSQL is not installed; install it (apt-get install postgresql)"
    with tempfile.TemporaryDirectory(prefix="pfedrec-pg-") as folder:
        cluster = Cluster(bin_folder, Path(folder))
        cluster.make()
        if not durable:
            with (Path(folder) / "data" / "postgresql.conf").open("a") as file:
                file.write("fsync = off\n")
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
