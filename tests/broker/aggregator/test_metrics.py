"""What the aggregator tells Prometheus and its operator, and what the rules and pictures ask for."""

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import load_config, open_store
from broker.aggregator.guard import VersionQuality
from broker.aggregator.health import Health
from broker.aggregator.listener import listening
from broker.aggregator.metrics import CONTENT_TYPE, Metrics
from broker.aggregator.service import AggregatorService
from broker.aggregator.watching import WorkedBatch, refusal_name
from broker.embedded import free_port
from broker.errors import AddressInUseError, HashMismatchError, MalformedError
from broker.protocol.messages import encode
from tests.broker.aggregator.builders import a_change, an_update
from tests.broker.aggregator.fleet import Device, make_directory
from tests.brokers import HOST, PATIENCE_S, RunningBroker
from tests.edge.running import RunningCommand

_OPERATIONS = Path(__file__).resolve().parents[3] / "docs" / "operations"
_PROMQL = re.compile(r"\b((?:pfedrec|process)_[a-z_]+)(?:\{([^}]*)\})?")


class Idle:
    """A service that does nothing."""

    version = buffered = queued = overflows = devices_seen = devices_online = 0
    broker_connected = head_published = True
    turned_at = float("inf")


def samples(metrics: Metrics) -> dict[str, float]:
    """Give all series by name and labels."""
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


@contextmanager
def watched(path: Path, broker: RunningBroker) -> Iterator[tuple[Metrics, AggregatorService]]:
    """Serve a directory and count."""
    store, stop = open_store(path), threading.Event()
    metrics = Metrics("shop", lambda: 1.0)
    service = AggregatorService(load_config(path, {}), store, broker.address, lambda _: None, metrics)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(service.run, stop)
            try:
                yield metrics, service
            finally:
                stop.set()
                running.result(PATIENCE_S)
    finally:
        store.close()


def get(port: int, path: str) -> tuple[int, str]:
    """Ask over HTTP."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.mqtt
def test_what_happened_is_counted(mosquitto: RunningBroker, tmp_path: Path) -> None:
    """Verdicts, refusals by name, rounds, staleness, bytes, devices; and health over HTTP."""
    path = make_directory(
        tmp_path / "a", AggregatorConfig(fleet="shop", buffer=2, deadline_s=0.0, population=4)
    )
    with (
        watched(path, mosquitto) as (metrics, service),
        listening(HOST, 0, metrics.render, CONTENT_TYPE, Health(service, path)) as port,
        Device(mosquitto.address, "shop") as device,
    ):
        head = device.head()
        updates = [
            an_update(seq=seq, instance=head.instance, change=a_change(seq, n_items=head.rows, dim=head.dim))
            for seq in (1, 2)
        ]
        device.show_status()
        device.send_bytes(b"no update")
        for update in (updates[0], updates[0], updates[1]):
            device.send(update)
        device.send(replace(updates[1], seq=3, instance=head.instance + 1))
        device.head(lambda each: each.version == 1)
        found = samples(metrics)
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (200, "ok\n")
        assert get(port, "/else")[0] == 404
        status, text = get(port, "/metrics")
        assert status == 200
        assert "pfedrec_updates_total" in text
        wanted = {
            "pfedrec_updates_total,verdict=accepted": 2,
            "pfedrec_updates_total,verdict=duplicate": 1,
            "pfedrec_updates_total,verdict=rejected": 1,
            "pfedrec_refused_messages_total,reason=malformed": 1,
            "pfedrec_rounds_closed_total,by=buffer": 1,
            "pfedrec_update_staleness_versions_count": 2,
            "pfedrec_version": 1,
            "pfedrec_buffered_updates": 0,
            "pfedrec_devices_seen": 1,
            "pfedrec_devices_online": 1,
            "pfedrec_broker_connected": 1,
            "pfedrec_foreign_heads_total": 0,
        }
        assert {name: found.get(name) for name in wanted} == wanted
        assert found["pfedrec_received_bytes_total"] > 3 * len(encode(updates[0]))
        assert found["pfedrec_sent_bytes_total,kind=head"] > 0
        mosquitto.stop()
        while service.broker_connected:
            threading.Event().wait(0.01)
        assert get(port, "/readyz") == (503, "the broker is not connected\n")
        assert get(port, "/healthz")[0] == 200
        mosquitto.start()


@pytest.mark.mqtt
def test_second_aggregator_of_a_fleet_is_noticed(mosquitto: RunningBroker, tmp_path: Path) -> None:
    """By its head, which the broker keeps."""
    config = AggregatorConfig(fleet="shop", deadline_s=0.0)
    first, second = (make_directory(tmp_path / name, config) for name in "ab")
    with watched(first, mosquitto), Device(mosquitto.address, "shop") as device:
        device.head()
    with watched(second, mosquitto) as (metrics, _), Device(mosquitto.address, "shop") as device:
        while samples(metrics)["pfedrec_foreign_heads_total"] < 1:
            threading.Event().wait(0.01)


@pytest.mark.postgres
@pytest.mark.mqtt
@pytest.mark.process
def test_store_that_is_away_is_told_and_no_reason_to_end(mosquitto: RunningBroker, tmp_path: Path) -> None:
    """A liveness probe would end a process that only waits."""
    port = free_port(HOST)
    path = make_directory(tmp_path / "a", AggregatorConfig(fleet="shop", metrics_port=port))
    store = "postgresql://nobody@127.0.0.1:1/none"
    joined = ["--dir", str(path), "--broker", mosquitto.url]
    with RunningCommand("edge-aggregator", "start", *joined, PFEDREC_STORE=store) as running:
        running.hear("trying again until it is back")
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "the store does not answer\n")
        assert get(port, "/metrics")[0] == 200


def test_loop_that_hangs_is_not_healthy(tmp_path: Path) -> None:
    """After a minute without a turn."""
    idle = Idle()
    idle.turned_at = float("-inf")
    assert "has not gone round" in Health(idle, tmp_path).complaints()[0]


def test_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    """With what to do."""
    health = Health(Idle(), tmp_path)
    with (
        listening(HOST, 0, lambda: b"", "text/plain", health) as port,
        pytest.raises(AddressInUseError, match="set another metrics_port"),
        listening(HOST, port, lambda: b"", "text/plain", health),
    ):
        pass


def test_refusals_are_named_after_their_class() -> None:
    """So that a new class has a name at once."""
    assert refusal_name(HashMismatchError("x")) == "hash_mismatch"
    assert refusal_name(MalformedError("x")) == "malformed"


def _exported() -> dict[str, set[str]]:
    """Give every name that is exported, with its labels."""
    metrics = Metrics("shop", lambda: 1.0)
    metrics.began(Idle())
    metrics.worked(WorkedBatch(messages=1, bytes_up=1, refusals=["malformed"], commit_seconds=0.1))
    metrics.judged(VersionQuality(version=1, finding="bad", reports=2, hits=1, hits_before=2))
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def _rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((_OPERATIONS / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def _expressions() -> list[str]:
    panels = json.loads((_OPERATIONS / "dashboard.json").read_text())["panels"]
    return [rule["expr"] for rule in _rules()] + [t["expr"] for panel in panels for t in panel["targets"]]


def test_rules_and_dashboard_ask_for_what_is_exported() -> None:
    """Every metric with these labels; `job` and `instance` are Prometheus' own."""
    exported = _exported()
    asked = [match for expression in _expressions() for match in _PROMQL.findall(expression)]
    assert asked
    for name, matchers in asked:
        assert name in exported, name
        assert set(re.findall(r"(\w+)\s*=", matchers)) <= exported[name] | {"job"}, (name, matchers)
    grouped = {
        label
        for e in _expressions()
        for group in re.findall(r"by \(([^)]*)\)", e)
        for label in group.split(", ")
    }
    assert grouped <= {label for labels in exported.values() for label in labels} | {"instance"}


def test_every_metric_of_ours_is_on_the_dashboard_or_in_a_rule() -> None:
    """None that nobody looks at."""
    asked = {name for expression in _expressions() for name, _ in _PROMQL.findall(expression)}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in _exported()}
    ours = {name for name in families if name.startswith("pfedrec_")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert ours - shown <= {"pfedrec_aggregator_info", "pfedrec_sent_bytes", "pfedrec_updates"} | {
        name for name in ours if f"{name}_total" in shown
    }


def test_every_rule_has_a_remedy() -> None:
    """One sentence each."""
    for rule in _rules():
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["remedy"].endswith(".")


@pytest.mark.process
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool; apt-get install prometheus")
def test_prometheus_finds_the_rules_and_names_right() -> None:
    """Its own checker has nothing to say."""
    found = subprocess.run(
        ["promtool", "check", "rules", str(_OPERATIONS / "alerts.yml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    metrics = Metrics("shop", lambda: 1.0)
    metrics.began(Idle())
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), check=False, capture_output=True
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, b"")


def test_nothing_is_left_in_the_library_s_own_registry() -> None:
    """Two services in one process do not meet."""
    assert not [family for family in REGISTRY.collect() if family.name.startswith("pfedrec")]
