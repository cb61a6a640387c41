"""What a device costs, against its budgets: one command, one table.

    python benchmarks/device.py [--items N[,N]] [--idle SECONDS]

For each catalogue a broker, an aggregator and one ``edge-client start`` run as processes of their own; the
user has 100 interactions. Memory and processor time are the kernel's figures for the client's process
(``/proc/PID/status``, ``stat``), bytes written those that it and ``edge-client record`` hand over to the
kernel (``/proc/PID/io``, wchar) in a day of 24 check-ins and 50 interactions, played in a few minutes; newer
tables, which are stored by the clock, are added as ``table_writes_mb`` allows them on average. The pass and
the ranking are timed in this process, the latter as a ratio to bare ``Interpreter.invoke()``.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from simulations import one_thread

# However busy the machine is, the device trains.
# A day is played in minutes: what the clock allows of tables is added, not measured.
os.environ.update(
    one_thread() | {"PFEDREC_TRAINING_MAX_LOAD_PER_CORE": "0", "PFEDREC_TABLE_WRITES_MB": "1e-9"}
)

import numpy as np

from broker.embedded import free_port
from broker.presets import load_preset
from edge.config import DeviceConfig
from edge.scorer import TfliteScorer, top_k
from trainer.local import local_pass
from trainer.params import initial_score_function, initial_table
from trainer.sampling import NegativeSampler

_BIN = Path(sys.executable).parent
_INTERACTIONS = 100
_DIM = 32
_CHECK_INS_A_DAY, _INTERACTIONS_A_DAY = 24, 50
_MIB = 1024.0


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    measured: float
    budget: float | None
    unit: str


def program(name: str, *arguments: object) -> list[str]:
    """Give a command of this installation."""
    return [str(_BIN / name), *map(str, arguments)]


def call(name: str, *arguments: object) -> str:
    """Run a command to its end; give what it printed."""
    done = subprocess.run(program(name, *arguments), check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return done.stdout


@contextlib.contextmanager
def started(name: str, *arguments: object) -> Iterator[int]:
    """Run a service meanwhile; give its process number."""
    with subprocess.Popen(
        program(name, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def memory_mb(pid: int, name: str) -> float:
    """Give ``VmRSS`` or ``VmHWM`` in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) / _MIB


def cpu_s(pid: int) -> float:
    """Give the processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int | str) -> int:
    """Give the bytes that a process has handed over to the kernel to write."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def status(device: Path) -> dict[str, Any]:
    """Ask a device."""
    facts: dict[str, Any] = json.loads(call("edge-client", "status", "--dir", device, "--json"))
    return facts


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Look until a condition holds."""
    deadline = time.monotonic() + 300.0
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come")
        time.sleep(0.2)


def in_operation(n_items: int, idle_s: float) -> list[Figure]:
    """Measure a client that trains and syncs, rests, and lives through a day."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        items = [f"item-{row:06d}" for row in range(n_items)]
        (work / "items").write_text("\n".join(items) + "\n")
        port, device = free_port(), work / "device"
        shop = ("--fleet", "bench", "--items", work / "items", "--port", port, "--seed", 1)
        rounds = ("--buffer", 1, "--check-in", "2s", "--max-idle-passes", 3)
        call("edge-aggregator", "init", "--dir", work / "shop", *shop, *rounds)
        broker = f"mqtt://127.0.0.1:{port}"
        call(
            "edge-client",
            "init",
            "--dir",
            device,
            "--device-id",
            "pi",
            "--fleet",
            "bench",
            "--broker",
            broker,
        )
        call("edge-client", "record", "--dir", device, *items[: 3 * _INTERACTIONS : 3])
        with (
            started("edge-aggregator", "start", "--dir", work / "shop"),
            started("edge-client", "start", "--dir", device) as pid,
        ):
            wait_for(lambda: status(device)["reason"].startswith("resting"), "rest")
            peak = memory_mb(pid, "VmHWM")
            before = cpu_s(pid)
            time.sleep(idle_s)
            idle_cpu = (cpu_s(pid) - before) / idle_s
            idle = memory_mb(pid, "VmRSS")
            first = _seconds(lambda: call("edge-client", "recommend", "--dir", device))
            written = _a_day(pid, device, items)
        each = 2 * 4 * n_items * _DIM / 1e6  # into the log, and into the file
        tables = min(DeviceConfig.table_writes_mb, _CHECK_INS_A_DAY * each)
        return [
            Figure("warm start to first recommendation", first, 1.0, "s"),
            Figure("resident, idle", idle, 60.0 if n_items <= 2_000 else None, "MB"),
            Figure("resident, peak", peak, 80.0 if n_items <= 2_000 else 200.0, "MB"),
            Figure("processor, idle", 100.0 * idle_cpu, 0.5, "%"),
            Figure("written a day, but for newer tables", written / 1e6, None, "MB"),
            Figure("written a day, with them as allowed", written / 1e6 + tables, 10.0, "MB"),
        ]


def _a_day(pid: int, device: Path, items: list[str]) -> int:
    """Record 50 interactions while the table goes through 24 versions; give the bytes written."""
    before = written_bytes(pid)
    recording = 0
    version = status(device)["version"]
    for check_in in range(_CHECK_INS_A_DAY):
        share = range(
            check_in * _INTERACTIONS_A_DAY // _CHECK_INS_A_DAY,
            (check_in + 1) * _INTERACTIONS_A_DAY // _CHECK_INS_A_DAY,
        )
        for number in share:
            recording += _recording(device, items[(7 * number + 1) % len(items)])
        wanted = version + check_in + 1
        wait_for(lambda wanted=wanted: status(device)["version"] >= wanted, f"version {wanted}")  # type: ignore[misc]
    return written_bytes(pid) - before + recording


def _recording(device: Path, item: str) -> int:
    """Record an interaction in a process; give the bytes that it wrote."""
    script = (
        "import sys\n"
        "from edge.cli import cli\n"
        f"cli.main(['record', '--dir', {str(device)!r}, {item!r}], standalone_mode=False)\n"
        "print(next(l.split()[1] for l in open('/proc/self/io') if l.startswith('wchar')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _seconds(what: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _beside(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float]:
    """Time two by turns, so that what else the machine does falls on both."""
    pairs = [(_seconds(one, 1), _seconds(other, 1)) for _ in range(times)]
    ones, others = zip(*pairs, strict=True)
    return median(ones), median(others)


def in_process(n_items: int) -> list[Figure]:
    """Time a local pass, and a ranking beside what the interpreter alone needs."""
    rng = np.random.default_rng(0)
    table, function = initial_table(n_items, _DIM, rng), initial_score_function(_DIM, rng)
    table.flags.writeable = False
    positives = rng.choice(n_items, _INTERACTIONS, replace=False)
    sampler = NegativeSampler.excluding(n_items, positives)
    hyperparameters = load_preset("device", "pfedrec").hyperparameters(n_items)
    one_pass = _seconds(lambda: local_pass(table, function, positives, sampler, hyperparameters, rng), 51)
    scorer = TfliteScorer()

    def ranked() -> None:
        top_k(scorer.logits(table, function), 10, positives)

    ranked()
    # The table is placed; the interpreter alone is what is left of a call.
    interpreter = scorer._interpreter  # noqa: SLF001 - the baseline is what it does alone
    bare, whole = _beside(interpreter.invoke, ranked, 2_001)
    return [
        Figure("one local pass", 1e3 * one_pass, 5.0, "ms"),
        Figure("top-10 / bare invoke", whole / bare, 3.0 if n_items <= 2_000 else 1.5, "x"),
        Figure("top-10", 1e6 * whole, None, "us"),
        Figure("bare invoke", 1e6 * bare, None, "us"),
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", default="1682,100000", help="sizes of catalogues")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of rest to look at")
    options = parser.parse_args()
    for n_items in map(int, options.items.split(",")):
        print(f"\n{n_items} items, dim {_DIM}, {_INTERACTIONS} interactions; load {os.getloadavg()[0]:.1f}")
        for figure in (*in_operation(n_items, options.idle), *in_process(n_items)):
            budget = "" if figure.budget is None else f"<= {figure.budget:g}"
            mark = "" if figure.budget is None else "ok" if figure.measured <= figure.budget else "OVER"
            print(
                f"  {figure.what:<36} {figure.measured:10.2f} {figure.unit:<3} {budget:<8} {mark}", flush=True
            )


if __name__ == "__main__":
    main()
