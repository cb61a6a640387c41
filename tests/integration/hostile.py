"""Hostile messages against a live aggregator on mosquitto, beside honest devices.

Messages of thirteen kinds are drawn from a seed and published by clients that can reach every topic, as
anybody can where no certificates are asked for. Then every one is accounted for: refused with a name,
answered as rejected or duplicate, or held as a chunk that never became whole. Honest devices send updates all
the while; each must be counted once. The aggregator's memory is looked at, and the length of its log.

    python -m tests.integration.hostile --messages 200000 --seed 1
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.aggregator.directory import open_store
from broker.aggregator.refusals import LINES
from broker.embedded import free_port
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Head, Receipt, Update, decode, encode
from tests.brokers import HOST, PATIENCE_S
from tests.integration.attacks import ATTACKERS, DIM, FLEET, ITEMS, TOPICS, Attacker

HONEST = 20
_PAUSE_S = 0.1
"""Between an honest device's receipt and its next update."""
RATE = 1_800
"""Updates a minute that one device may send: above what replays make of an honest one, below a flood."""
_LONG = 100_000
"""So many messages warm everything up in the first half."""
_IS_OF_A_ROUND = re.compile(r"\bversion \d+ ?(:|is unjudged|is good)")
_AHEAD = 4_000
"""Messages that may wait at the broker: a flood there is the broker's to bound, not ours."""


class Honest:
    """Devices that send one update after the other, each after the receipt for the one before."""

    def __init__(self, port: int, head: Head) -> None:
        self._head = head
        self._rng = np.random.default_rng(0)
        self._lock = threading.Lock()
        self.verdicts: Counter[str] = Counter()
        self._newest: dict[str, tuple[int, bytes]] = {}
        self._answered: list[tuple[str, bytes]] = []
        self._stopping = threading.Event()
        self._next = {f"honest-{number}": 1 for number in range(HONEST)}
        self._thread = threading.Thread(target=self._work, name="honest")
        self._client = a_client(port, "honest")
        self._client.on_message = lambda _client, _data, message: self._receive(message)
        self._client.subscribe([(str(TOPICS.receipt(f"honest-{number}")), 1) for number in range(HONEST)])

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def _work(self) -> None:
        while not self._stopping.wait(_PAUSE_S):
            with self._lock:
                due, self._next = self._next, {}
                for name, seq in due.items():
                    self._send(name, seq)

    def replayable(self) -> tuple[str, bytes] | None:
        """Give one of the updates that were answered last."""
        with self._lock:
            return self._answered[int(self._rng.integers(len(self._answered)))] if self._answered else None

    def _send(self, name: str, seq: int) -> None:
        rows = np.sort(self._rng.choice(ITEMS, 5, replace=False))
        change = self._rng.standard_normal((5, DIM), dtype=np.float32) * np.float32(1e-3)
        payload = encode(
            Update(
                instance=self._head.instance,
                incarnation=7,
                seq=seq,
                base_version=0,
                encoding="float32",
                body=ENCODINGS["float32"].encode(SparseChange(rows=rows, change=change)),
            )
        )
        self._newest[name] = seq, payload
        self._client.publish(TOPICS.update(name), payload, qos=1)

    def _receive(self, message: paho.MQTTMessage) -> None:
        name = TOPICS.parse(str(message.topic)).device
        receipt = decode(bytes(message.payload), Receipt)
        with self._lock:
            seq, payload = self._newest.get(name, (0, b""))
            # A replay's receipt comes here, too, and says nothing new; a device leaves it alone.
            if (receipt.incarnation, receipt.seq) != (7, seq) or receipt.verdict == "duplicate":
                return
            self.verdicts[receipt.verdict] += 1
            self._answered = [*self._answered[-200:], (TOPICS.update(name), payload)]
            del self._newest[name]
            self._next[name] = seq + 1

    def finish(self) -> None:
        """Wait for the last receipts."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while self._newest and time.monotonic() < deadline:
            time.sleep(0.05)
        self._client.disconnect()
        self._client.loop_stop()
        if self._newest:
            raise AssertionError(f"without an answer: {sorted(self._newest)}")


def a_client(port: int, name: str) -> paho.Client:
    """Connect a client."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311)
    client.max_inflight_messages_set(200)
    ready = threading.Event()
    client.on_connect = lambda *_: ready.set()
    client.connect(HOST, port)
    client.loop_start()
    if not ready.wait(PATIENCE_S):
        raise AssertionError("no connection to the broker")
    return client


def the_head(port: int) -> Head:
    """Wait for the aggregator's head."""
    client = a_client(port, "onlooker")
    found: list[bytes] = []
    arrived = threading.Event()

    def take(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        found.append(bytes(message.payload))
        arrived.set()

    client.on_message = take
    client.subscribe(TOPICS.head, 1)
    if not arrived.wait(PATIENCE_S):
        raise AssertionError("no head")
    client.disconnect()
    client.loop_stop()
    return decode(found[0], Head)


class Figures:
    """What ``/metrics`` says."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{HOST}:{port}/metrics"

    def read(self) -> dict[str, float]:
        """Give all figures by name and labels."""
        with urllib.request.urlopen(self._url, timeout=PATIENCE_S) as answer:  # noqa: S310 - http, to ourselves
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def received(self) -> float:
        """Messages that the aggregator has worked on."""
        return self.read().get("pfedrec_batch_messages_sum", 0.0)


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    sent: dict[str, int]
    refused: dict[str, int]
    verdicts: dict[str, int]
    honest: dict[str, int]
    counted: int
    rss_mb: tuple[float, ...]
    round_lines: int
    other_lines: int
    seconds: float

    def summary(self) -> str:
        """Give it for people, as JSON."""
        return json.dumps(vars(self) | {"rss_mb": [round(each) for each in self.rss_mb]}, indent=1)


def run(directory: Path, messages: int, seed: int) -> Outcome:
    """Attack an aggregator in `directory` with so many messages; every claim is asserted.

    Raises
    ------
    AssertionError
        When a claim does not hold.
    """
    port, metrics = free_port(), free_port()
    shop = _aggregator(directory, port, metrics)
    log = directory / "aggregator.log"
    began = time.monotonic()
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "broker.aggregator.cli", "start", "--dir", str(shop)], stderr=stream
        ) as process,
    ):
        try:
            _wait_for_port(port)
            head, figures = the_head(port), Figures(metrics)
            honest = Honest(port, head)
            honest.start()
            sent, accounted, memory = _attack(
                port, Attacker(seed, head, honest.replayable), messages, figures, process
            )
            honest.finish()
            _settle(figures)
            found = figures.read()
            assert process.poll() is None, "the aggregator has ended"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert process.returncode == 0
    refused = {
        match[1]: int(value)
        for name, value in found.items()
        if (match := re.fullmatch(r'pfedrec_refused_messages_total\{reason="(.*)"\}', name))
    }
    verdicts = {
        match[1]: int(value)
        for name, value in found.items()
        if (match := re.fullmatch(r'pfedrec_updates_total\{verdict="(.*)"\}', name))
    }
    store = open_store(shop)
    try:
        ledger = store.ledger("honest-")
    finally:
        store.close()
    lines = log.read_text(errors="replace").splitlines()
    round_lines = sum(_IS_OF_A_ROUND.search(line) is not None for line in lines)
    outcome = Outcome(
        sent=dict(sent),
        refused=refused,
        verdicts=verdicts,
        honest=dict(honest.verdicts),
        counted=ledger.counted + ledger.pending,
        rss_mb=tuple(memory),
        round_lines=round_lines,
        other_lines=len(lines) - round_lines,
        seconds=round(time.monotonic() - began, 1),
    )
    _judge(outcome, accounted)
    return outcome


def _judge(outcome: Outcome, accounted: Counter[str]) -> None:
    # Each message is in one place. What is above the rate is refused as such, whatever it is.
    unfinished = outcome.refused.get("unfinished_transfer", 0)
    refused = sum(outcome.refused.values()) - unfinished
    answered = sum(outcome.verdicts.values()) - sum(outcome.honest.values())
    expected = sum(accounted[each] for each in ("refused", "answered", "answered or refused"))
    assert refused + answered == expected, (outcome, accounted)
    assert outcome.verdicts.get("accepted", 0) == outcome.honest.get("accepted", 0), outcome
    # An attacker's newer whole replaces its older one; one per attacker may still be open.
    assert accounted["held"] - ATTACKERS <= unfinished <= accounted["held"], outcome
    assert set(outcome.honest) == {"accepted"}, outcome
    assert outcome.counted == outcome.honest["accepted"] > 0, outcome
    assert max(outcome.rss_mb) < outcome.rss_mb[0] + 300.0, outcome
    if sum(outcome.sent.values()) >= _LONG:
        half = outcome.rss_mb[len(outcome.rss_mb) // 2]
        assert max(outcome.rss_mb) < half + 20.0, outcome
        assert {"rate_limit", "too_many_incarnations"} <= set(outcome.refused), outcome
    # Honest rounds have a line or two each; of refusals there are a few of a kind a minute.
    minutes = 1 + outcome.seconds // 60
    assert outcome.other_lines < 20 + (LINES + 2) * len(outcome.refused) * minutes, outcome


def _aggregator(directory: Path, port: int, metrics: int) -> Path:
    items = directory / "items.txt"
    items.write_text("".join(f"item {number}\n" for number in range(ITEMS)))
    shop = directory / "shop"
    options = ["--dir", str(shop), "--fleet", FLEET, "--items", str(items), "--dim", str(DIM)]
    options += ["--port", str(port), "--max-staleness", "100000", "--buffer", "50", "--seed", "1"]
    subprocess.run(
        [sys.executable, "-m", "broker.aggregator.cli", "init", *options], check=True, capture_output=True
    )
    config = shop / "config.toml"
    text = config.read_text()
    for name, value in (
        ("metrics_port", metrics),
        ("updates_per_minute", float(RATE)),
        ("broker", '"mosquitto"'),
    ):
        text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    config.write_text(text)
    return shop


def _attack(
    port: int, attacker: Attacker, messages: int, figures: Figures, process: "subprocess.Popen[bytes]"
) -> tuple[Counter[str], Counter[str], list[float]]:
    clients = [a_client(port, f"attacker-{number}") for number in range(4)]
    sent: Counter[str] = Counter()
    accounted: Counter[str] = Counter()
    memory = [_rss_mb(process.pid)]
    before = figures.received()
    for number in range(messages):
        attack = attacker.draw()
        sent[attack.kind] += 1
        accounted[attack.accounted] += 1
        info = clients[number % 4].publish(attack.topic, attack.payload, qos=1)
        if number % 500 == 499:
            info.wait_for_publish(PATIENCE_S)
            while number - accounted["elsewhere"] - (figures.received() - before) > _AHEAD:
                time.sleep(0.05)
        if number % max(1, messages // 20) == 0:
            memory.append(_rss_mb(process.pid))
    for client in clients:
        client.disconnect()
        client.loop_stop()
    return sent, accounted, memory


def _settle(figures: Figures) -> None:
    """Wait until the aggregator has worked on all that was sent."""
    before, quiet_since = -1.0, time.monotonic()
    while time.monotonic() < quiet_since + 2.0:
        received = figures.received()
        if received != before:
            before, quiet_since = received, time.monotonic()
        time.sleep(0.1)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _rss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(match[1]) / 1024.0 if match else 0.0


def main() -> None:
    """Run the proof from a shell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as directory:
        print(run(Path(directory), arguments.messages, arguments.seed).summary())  # noqa: T201 - a proof's result


if __name__ == "__main__":
    main()
