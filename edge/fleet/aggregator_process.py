"""The aggregator of a live run: set up in a directory of its own, and run as a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import initialise, open_store
from broker.aggregator.store.interface import Ledger
from broker.configfile import ENVIRONMENT_PREFIX
from broker.embedded import end_process, end_with_parent
from broker.errors import BrokerStartError
from edge.fleet.device import ID_PREFIX

_STOP_TIMEOUT_S = 20.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class AggregatorProcess:
    """A running ``edge-aggregator start``."""

    def __init__(
        self, directory: Path, config: AggregatorConfig, process: subprocess.Popen[bytes], log: Path
    ) -> None:
        self.directory = directory
        self._config = config
        self._process = process
        self._log = log

    def require_running(self) -> None:
        """Notice that it has ended.

        Raises
        ------
        BrokerStartError
            With the last thing it said.
        """
        if self._process.poll() is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise BrokerStartError(f"the aggregator has ended; it said: {lines[-1]}")

    def cpu_seconds(self) -> float:
        """Give the processor time it has used so far."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def ledger(self) -> Ledger:
        """Add up what became of the virtual devices' updates, while it runs or afterwards."""
        store = open_store(self.directory, self._config)
        try:
            return store.ledger(ID_PREFIX)
        finally:
            store.close()

    def instance(self) -> int:
        """Give what its heads are known by."""
        store = open_store(self.directory, self._config)
        try:
            return store.load().instance
        finally:
            store.close()

    def newest(self) -> tuple[int, bytes]:
        """Give the newest stored version and its SHA-256."""
        store = open_store(self.directory, self._config)
        try:
            (record,) = store.rounds(1)
        finally:
            store.close()
        return record.version, record.sha256

    def stop(self) -> None:
        """End it as an operator would, with SIGTERM."""
        end_process(self._process, _STOP_TIMEOUT_S)


@contextmanager
def aggregator_process(
    directory: Path,
    config: AggregatorConfig,
    item_keys: tuple[str, ...],
    *,
    dim: int,
    scale: float,
    seed: int,
) -> Iterator[AggregatorProcess]:
    """Set up and run an aggregator while the block runs.

    Parameters
    ----------
    directory : Path
        A new one; the caller removes it.
    """
    items = directory / "items.txt"
    items.write_text("".join(f"{key}\n" for key in item_keys))
    home = directory / "aggregator"
    initialise(home, config, items, dim=dim, scale=scale, seed=seed, created_at=time.time())
    log = directory / "aggregator.log"
    command = [sys.executable, "-m", "broker.aggregator.cli", "start", "--dir", str(home)]
    # The run's own settings are complete; those of the user's environment are meant for other aggregators.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no thread runs yet
        )
    running = AggregatorProcess(home, config, process, log)
    try:
        yield running
    finally:
        running.stop()
