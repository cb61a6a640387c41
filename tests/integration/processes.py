"""A fleet of real processes that can be ended with SIGKILL at any moment and started again.

Owns the processes and their directories; knows nothing of what they promise. Only processes that were
started here are ever ended, each by its own id.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from broker.embedded import BrokerKind, free_port, mosquitto_path
from tests.brokers import HOST, PATIENCE_S

FLEET = "kills"
CHECKOUT = Path(__file__).parents[2]
_POLL_S = 0.01

AUTOSAVES = {
    "hardly ever": "autosave_interval 60",
    "every second": "autosave_interval 1",
    "at every change": "autosave_interval 1\nautosave_on_changes true",
}
"""How often mosquitto saves its state, in its configuration's words: what it has forgotten, or remembers
from before, when it comes back."""

_MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
user root
persistence true
persistence_location {directory}/
{autosave}
max_queued_messages 0
log_dest stderr
log_type error
log_type warning
"""


class HarnessError(Exception):
    """The proof cannot go on; says why."""


def command_path(name: str) -> str:
    """Give an installed command of the project's environment."""
    return str(Path(sys.executable).with_name(name))


def environment() -> dict[str, str]:
    """Give what the processes run with: tracebacks are printed, and devices train however busy it is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PFEDREC_")}
    ours = {"PFEDREC_TRACEBACK": "1", "PFEDREC_TRAINING_MAX_LOAD_PER_CORE": "0", "OPENBLAS_NUM_THREADS": "1"}
    ours["PFEDREC_TRY_BROKER"] = "false"  # its messages would be steps to be killed at
    return kept | ours


def run_to_end(*command: str) -> str:
    """Run a command that must succeed; give what it printed.

    Raises
    ------
    HarnessError
        When it fails, or takes too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"{' '.join(command)} did not end within {PATIENCE_S:.0f} s") from error
    if done.returncode:
        raise HarnessError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


class Mortal:
    """A process that is started again and again with the same command.

    Parameters
    ----------
    more : mapping
        Of its environment, beside `environment`.

    Attributes
    ----------
    kills : int
        How often it was ended with SIGKILL.
    ended_alone : list of str
        What it did when nobody had asked it to.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, more: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._more = more or {}
        self.command = list(command)
        self.log = log
        self.kills = 0
        self.ended_alone: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def start(self, command: Sequence[str] | None = None) -> None:
        """Start it, with its own command unless another is given."""
        self._asked = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command or self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment() | dict(self._more),
                cwd=CHECKOUT,
            )

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether it has stopped itself (SIGSTOP) and was not told to go on."""
        if self._process is None or not self.running:
            return False
        look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, look) is not None

    @property
    def asked_to_end(self) -> bool:
        """Whether SIGTERM was sent to it."""
        return self._asked

    def check_running(self) -> None:
        """Note it where it has ended and was not asked to."""
        if not self.running and self._process is not None:
            code = self._process.returncode
            if code or not self._asked:
                self.ended_alone.append(f"{self.name} ended with {code} by itself")
            self._process = None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.check_running()
        if self._process is not None:
            self._end(signal.SIGKILL)
            self.kills += 1

    def go_on(self) -> None:
        """Let it run again after it stopped itself."""
        self._started.send_signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """Send SIGTERM and do not wait."""
        self.check_running()
        if self._process is not None:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it as a service manager does, and note it where it does not end as it should."""
        self.check_running()
        if self._process is not None:
            code = self._end(signal.SIGTERM)
            if code != 0:
                self.ended_alone.append(f"{self.name} ended with {code} when it was told to stop")

    def clean_up(self) -> None:
        """Make sure that it is gone."""
        if self.running:
            self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        process = self._started
        process.send_signal(number)
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.ended_alone.append(f"{self.name} did not end within {PATIENCE_S:.0f} s")
            code = 0
        self._process = None
        return code

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HarnessError(f"{self.name} is not running")
        return self._process


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a fleet is made with; times in seconds."""

    devices: int = 2
    n_items: int = 60
    dim: int = 8
    buffer: int = 4
    deadline_s: float = 0.5
    check_in_s: float = 0.3
    max_idle_passes: int = 30

    @property
    def names(self) -> tuple[str, ...]:
        """The devices' ids."""
        return tuple(f"pi-{number + 1}" for number in range(self.devices))

    @property
    def item_keys(self) -> list[str]:
        """The catalogue."""
        return [f"item-{row:02d}" for row in range(self.n_items)]


class Directories:
    """Where a fleet keeps everything."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.aggregator = path / "aggregator"
        self.aggregator_database = self.aggregator / "state.sqlite3"
        self.broker = path / "broker"
        self.logs = path / "logs"

    def device(self, name: str) -> Path:
        """Give a device's directory."""
        return self.path / name

    def device_database(self, name: str) -> Path:
        """Give a device's database."""
        return self.device(name) / "device.sqlite3"

    def make(self) -> None:
        """Set everything up with the project's own commands."""
        for directory in (self.path, self.broker, self.logs):
            directory.mkdir(parents=True, exist_ok=True)
        settings = self.settings
        items = self.path / "items.txt"
        items.write_text("".join(f"{key}\n" for key in settings.item_keys))
        options = {
            "--dir": self.aggregator,
            "--fleet": FLEET,
            "--items": items,
            "--dim": settings.dim,
            "--buffer": settings.buffer,
            "--deadline": f"{settings.deadline_s}s",
            "--check-in": f"{settings.check_in_s}s",
            "--max-idle-passes": settings.max_idle_passes,
            "--population": settings.devices,
            "--seed": 1,
        }
        flat = [str(part) for option in options.items() for part in option]
        run_to_end(command_path("edge-aggregator"), "init", *flat)
        for name in settings.names:
            where = ["--dir", str(self.device(name)), "--device-id", name, "--fleet", FLEET]
            run_to_end(command_path("edge-client"), "init", *where, "--broker", f"mqtt://{HOST}:1883")
        for name in settings.names[1::2]:
            self.store_few_tables(name)

    def store_few_tables(self, device: str, *, few: bool = True) -> None:
        """Let a device hold newer tables in memory only, from its next start; or let it store each."""
        config = self.device(device) / "config.toml"
        entry = f"table_writes_mb = {1e-9 if few else 0.0}"
        config.write_text(re.sub("(?m)^#? *table_writes_mb = .*$", entry, config.read_text()))

    def copy_to(self, path: Path) -> "Directories":
        """Give a copy: the same fleet at the same moment."""
        shutil.copytree(self.path, path)
        return Directories(path, self.settings)


def broker_command(kind: BrokerKind, port: int, directory: Path, autosave: str) -> list[str]:
    """Give the command of a broker, without the project's way of starting its own."""
    if kind == "amqtt":
        return [sys.executable, "-m", "broker.amqtt_process", HOST, str(port)]
    configuration = directory / "mosquitto.conf"
    configuration.write_text(
        _MOSQUITTO_CONF.format(host=HOST, port=port, directory=directory, autosave=AUTOSAVES[autosave])
    )
    return [mosquitto_path() or "mosquitto", "-c", str(configuration)]


class Fleet:
    """A broker, an aggregator and some devices, each a process of its own."""

    def __init__(self, directories: Directories, kind: BrokerKind, autosave: str) -> None:
        self.directories = directories
        self.settings = directories.settings
        self.port = free_port(HOST)
        url = f"mqtt://{HOST}:{self.port}"
        logs = directories.logs
        self.broker = Mortal(
            "broker",
            broker_command(kind, self.port, directories.broker.resolve(), autosave),
            logs / f"{kind}.log",
        )
        self.aggregator = Mortal(
            "aggregator",
            [
                command_path("edge-aggregator"),
                *("start", "--dir", str(directories.aggregator), "--broker", url),
            ],
            logs / "aggregator.log",
        )
        self.devices = [
            Mortal(
                name,
                [
                    command_path("edge-client"),
                    *("start", "--dir", str(directories.device(name)), "--broker", url),
                ],
                logs / f"{name}.log",
            )
            for name in self.settings.names
        ]

    @property
    def ours(self) -> list[Mortal]:
        """The project's own processes."""
        return [self.aggregator, *self.devices]

    @property
    def all(self) -> list[Mortal]:
        """All processes."""
        return [self.broker, *self.ours]

    def wait_for_broker(self) -> None:
        """Wait until the broker listens."""
        wait_until(self._broker_listens, "the broker listens", self.broker)

    def _broker_listens(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0):
            return True
        return False

    def stop(self) -> None:
        """End everything as a service manager does: the broker last."""
        for process in self.ours:
            process.stop()
        self.broker.stop()

    @property
    def ended_alone(self) -> list[str]:
        """What processes did when nobody had asked them to."""
        return [sentence for process in self.all for sentence in process.ended_alone]


@contextmanager
def leaving_nothing_behind(fleet: Fleet) -> Iterator[None]:
    """End all processes of a fleet with the block, whatever happened in it."""
    try:
        yield
    finally:
        for process in fleet.all:
            process.clean_up()


def wait_until(
    condition: Callable[[], bool], what: str, *processes: Mortal, within_s: float = PATIENCE_S
) -> None:
    """Look again and again until a condition holds.

    Raises
    ------
    HarnessError
        When it does not in time, or one of the processes ends.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        for process in processes:
            process.check_running()
            if process.ended_alone:
                raise HarnessError(f"{process.ended_alone[-1]} before {what}")
        if time.monotonic() > deadline:
            raise HarnessError(f"not within {within_s:.0f} s: {what}")
        time.sleep(_POLL_S)


def seeded(seed: int, purpose: str) -> random.Random:
    """Give a random generator that no other purpose draws from."""
    return random.Random(f"{seed} {purpose}")
