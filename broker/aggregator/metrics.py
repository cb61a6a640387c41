"""The aggregator's figures for Prometheus: the only file that imports prometheus_client.

All names begin with ``pfedrec_`` and end with their unit; no label has a device, an item or a text from a
message for its value, so that the number of series is bounded: ``verdict`` by the protocol, ``reason`` by the
classes of errors, ``kind`` by the topics, ``by`` by the ways in which a version is made, ``finding`` by what
the guard can find.

A new figure is one attribute here and one line in `worked`; a new refusal's class is counted by its name.
"""

import collections
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from broker.aggregator.guard import VersionQuality
from broker.aggregator.watching import Watch, Watched, WorkedBatch
from broker.protocol.messages import Verdict

CONTENT_TYPE = CONTENT_TYPE_LATEST
FINDINGS = ("good", "bad", "unjudged")
KINDS = ("head", "snapshot", "delta", "catalogue", "release", "receipt")
_STALENESS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_MESSAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics(Watch):
    """Counts what the service tells; `render` gives it in Prometheus' text format.

    Parameters
    ----------
    fleet : str
    store_bytes : callable
        Gives the store's size in bytes.
    """

    def __init__(self, fleet: str, store_bytes: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._looks: dict[str, Gauge] = {}
        ProcessCollector(registry=self.registry)
        self._updates = Counter(
            "pfedrec_updates", "Updates answered, by verdict.", ["verdict"], registry=self.registry
        )
        self._refused = Counter(
            "pfedrec_refused_messages",
            "Messages that were no updates, by the reason's name.",
            ["reason"],
            registry=self.registry,
        )
        self._rounds = Counter(
            "pfedrec_rounds_closed", "Rounds closed, by what closed them.", ["by"], registry=self.registry
        )
        self._closed_at = Gauge(
            "pfedrec_last_round_timestamp_seconds",
            "When the newest round closed, since the epoch; 0: none since the start.",
            registry=self.registry,
        )
        self._staleness = Histogram(
            "pfedrec_update_staleness_versions",
            "Versions that accepted updates were behind.",
            buckets=_STALENESS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "pfedrec_batch_messages",
            "Messages worked on in one turn of the loop.",
            buckets=_MESSAGES,
            registry=self.registry,
        )
        self._commit = Histogram(
            "pfedrec_commit_duration_seconds",
            "Time of a transaction of the store.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._received = Counter(
            "pfedrec_received_bytes", "Bytes of received messages.", registry=self.registry
        )
        self._sent = Counter(
            "pfedrec_sent_bytes",
            "Bytes of published messages, by kind, each counted once whoever reads it.",
            ["kind"],
            registry=self.registry,
        )
        self._connections = Counter(
            "pfedrec_broker_connections", "Connections made to the broker.", registry=self.registry
        )
        self._foreign = Counter(
            "pfedrec_foreign_heads",
            "Heads of this fleet that another aggregator published.",
            registry=self.registry,
        )
        self._judged = Counter(
            "pfedrec_versions_judged",
            "Versions that the guard has come to a finding about.",
            ["finding"],
            registry=self.registry,
        )
        self._hits = Gauge(
            "pfedrec_quality_hit_ratio",
            "HR@10 that devices report of the version judged last, and of the tables that they had before.",
            ["table"],
            registry=self.registry,
        )
        self._reports = Gauge(
            "pfedrec_quality_reports",
            "Devices that have reported the version judged last.",
            registry=self.registry,
        )
        info = Gauge(
            "pfedrec_aggregator_info", "1, with the release.", ["fleet", "release"], registry=self.registry
        )
        info.labels(fleet=fleet, release=_release()).set(1)
        Gauge("pfedrec_store_size_bytes", "Size of the store.", registry=self.registry).set_function(
            store_bytes
        )
        # A series that is there from the beginning can be told from one that is missing.
        for verdict in get_args(Verdict):
            self._updates.labels(verdict=verdict)
        for by in ("buffer", "deadline", "catalogue", "rollback"):
            self._rounds.labels(by=by)
        for finding in FINDINGS:
            self._judged.labels(finding=finding)
        for kind in KINDS:
            self._sent.labels(kind=kind)

    def render(self) -> bytes:
        """Give all figures."""
        return generate_latest(self.registry)

    def began(self, watched: Watched) -> None:
        """Look at the service whenever somebody asks."""
        looks: dict[str, tuple[str, Callable[[], float]]] = {
            "version": ("Newest version of the table.", lambda: watched.version),
            "buffered_updates": ("Updates in the open round.", lambda: watched.buffered),
            "queued_events": ("Events that wait to be worked on.", lambda: watched.queued),
            "devices_seen": ("Devices that ever came.", lambda: watched.devices_seen),
            "devices_online": ("Devices whose newest status is online.", lambda: watched.devices_online),
            "broker_connected": ("1 while connected to the broker.", lambda: watched.broker_connected),
            "head_published": ("1 once a head is on this connection.", lambda: watched.head_published),
            "left_at_broker_events": (
                "Events since the start for which the queue had no room; they come again.",
                lambda: watched.overflows,
            ),
        }
        for name, (text, look) in looks.items():
            # After a lost store there is another service to look at.
            if name not in self._looks:
                self._looks[name] = Gauge(f"pfedrec_{name}", text, registry=self.registry)
            self._looks[name].set_function(look)

    def worked(self, batch: WorkedBatch) -> None:
        """Count a turn of the loop."""
        if batch.messages:
            self._batch.observe(batch.messages)
            self._received.inc(batch.bytes_up)
        for verdict, count in collections.Counter(each.verdict for each in batch.receipts).items():
            self._updates.labels(verdict=verdict).inc(count)
        for receipt in batch.receipts:
            if receipt.verdict == "accepted":
                self._staleness.observe(receipt.staleness)
        for name in batch.refusals:
            self._refused.labels(reason=name).inc()
        for closed in batch.rounds:
            self._rounds.labels(by=closed.closed_by).inc()
            self._closed_at.set_to_current_time()
        if batch.commit_seconds is not None:
            self._commit.observe(batch.commit_seconds)

    def connected(self) -> None:
        """Count a connection."""
        self._connections.inc()

    def sent(self, kind: str, n_bytes: int) -> None:
        """Count what was published."""
        self._sent.labels(kind=kind).inc(n_bytes)

    def judged(self, quality: VersionQuality) -> None:
        """Count a finding, and keep what it was found from."""
        self._judged.labels(finding=quality.finding).inc()
        self._reports.set(quality.reports)
        if quality.reports:
            self._hits.labels(table="new").set(quality.hits / quality.reports)
            self._hits.labels(table="before").set(quality.hits_before / quality.reports)

    def foreign_head(self) -> None:
        """Count a head of somebody else's."""
        self._foreign.inc()


def _release() -> str:
    try:
        return version("pfedrec-edge")
    except PackageNotFoundError:
        return "unknown"
