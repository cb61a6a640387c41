"""The whole short life of one device with its installed commands, wherever it runs.

It is set up, records, learns with a fleet that is served elsewhere until its first update is accepted,
ends, and recommends. The facts of where it ran, with the times of a pass and of both scorers on a
catalogue of MovieLens 100K's size, are printed as JSON::

    python -m tests.integration.one_device --broker mqtt://127.0.0.1:1883 --fleet shop item-3 item-14
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edge.scorer import Scorer, make_scorer
from tests.brokers import PATIENCE_S
from tests.integration.processes import HarnessError, Mortal, command_path, run_to_end, wait_until
from trainer.local import local_pass
from trainer.params import Hyperparameters, ScoreFunction
from trainer.sampling import NegativeSampler

N_ITEMS, DIM, N_POSITIVES = 1682, 32, 106
"""MovieLens 100K: its items, and the items of its average user."""
TOLERANCE = 1e-5
"""Between the logits of two scorers, which add up 32 products of about 1 in orders of their own."""
_REPEATS = 5


def live(directory: Path, broker: str, fleet: str, scorer: str, items: Sequence[str]) -> dict[str, Any]:
    """Go through a device's life; give what it recommends, and its own account of its updates.

    Raises
    ------
    HarnessError
        When a command fails, no update is accepted in time, or the device does not end as it should.
    """
    client, device = command_path("edge-client"), directory / "device"
    where = ("--dir", str(device))
    identity = ("--device-id", f"pi-{platform.machine()}", "--fleet", fleet, "--broker", broker)
    run_to_end(client, "init", *where, *identity, "--scorer", scorer)
    run_to_end(client, "record", *where, *items)

    def status() -> dict[str, Any]:
        told: dict[str, Any] = json.loads(run_to_end(client, "status", *where, "--json"))
        return told

    running = Mortal("edge-client", [client, "start", *where], directory / "log")
    try:
        running.start()
        wait_until(
            lambda: status()["receipts"].get("accepted", 0) > 0,
            "an update is accepted",
            running,
            within_s=2.0 * PATIENCE_S,
        )
        running.stop()
    finally:
        running.clean_up()
    if running.ended_alone:
        raise HarnessError(f"{running.ended_alone[-1]}; its log says: {running.log.read_text()[-2000:]}")
    best = json.loads(run_to_end(client, "recommend", *where, "--top", "5", "--json"))
    if not best["personal"] or set(items) & {each["item"] for each in best["items"]}:
        raise HarnessError(f"these are no personal recommendations of items not yet seen: {best}")
    after = status()
    facts = {name: after[name] for name in ("version", "updates_made", "receipts", "scorer")}
    return facts | {"recommended": [each["item"] for each in best["items"]]}


def speed(scorer: str) -> dict[str, Any]:
    """Give the milliseconds of a local pass and of scoring the catalogue, the quickest of a few.

    Raises
    ------
    HarnessError
        When the scorer and numpy disagree.
    """
    rng = np.random.default_rng(1)
    table = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    table.setflags(write=False)
    score_function = ScoreFunction(w=(rng.normal(size=DIM) / DIM).astype(np.float32), b=0.5)
    positives = np.sort(rng.choice(N_ITEMS, N_POSITIVES, replace=False))
    sampler = NegativeSampler.excluding(N_ITEMS, positives)
    exact, chosen = make_scorer("numpy"), make_scorer("tflite" if scorer == "tflite" else "numpy")
    difference = np.abs(exact.logits(table, score_function) - chosen.logits(table, score_function)).max()
    if not difference <= TOLERANCE:
        raise HarnessError(f"the logits of {chosen.name} and numpy differ by {difference}")

    def scoring(by: Scorer) -> Callable[[], object]:
        return lambda: by.logits(table, score_function)

    def a_pass() -> object:
        return local_pass(table, score_function, positives, sampler, Hyperparameters(), rng)

    times = {"pass_ms": a_pass, f"score_{exact.name}_ms": scoring(exact)}
    times[f"score_{chosen.name}_ms"] = scoring(chosen)
    found: dict[str, Any] = {name: _milliseconds(work) for name, work in times.items()}
    return found | {"largest_difference": float(difference)}


def _milliseconds(work: Callable[[], object]) -> float:
    def once() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return round(1000.0 * min(once() for _ in range(_REPEATS)), 3)


def main() -> int:
    """Run it; give 0 if all went well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("items", nargs="+", metavar="ITEM", help="what the user interacts with")
    parser.add_argument("--broker", required=True, help="mqtt://HOST:PORT")
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--scorer", choices=("tflite", "numpy"), default="tflite")
    arguments = parser.parse_args()
    facts: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version()}
    facts |= {name: version(name) for name in ("numpy", "cbor2", "paho-mqtt", "pfedrec-edge")}
    if arguments.scorer == "tflite":
        facts["tflite-runtime"] = version("tflite-runtime")
    try:
        with tempfile.TemporaryDirectory(prefix="pfedrec-device-") as directory:
            facts |= live(
                Path(directory), arguments.broker, arguments.fleet, arguments.scorer, arguments.items
            )
        facts |= speed(arguments.scorer)
    except HarnessError as error:
        sys.stderr.write(f"one_device: {error}\n")
        return 1
    sys.stdout.write(f"{json.dumps(facts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
