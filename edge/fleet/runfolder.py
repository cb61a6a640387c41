"""A run's folder: the files from which anyone can recompute every figure.

``config.json``, ``metrics.jsonl``, ``summary.json``, ``model.npz``, ``candidates.npz``, and when asked for
``users.npz``. docs/architecture.md names every key.
"""

import json
import resource
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import AlreadyInitialisedError
from broker.storage import make_directory, named_failures
from edge.fleet.evaluator import Evaluator, RoundQuality, Snapshot
from edge.fleet.scenario import Scenario
from trainer.metrics import RankingMetrics

FILES = ("config.json", "metrics.jsonl", "summary.json", "model.npz", "users.npz", "candidates.npz")
_PACKAGES = ("pfedrec-edge", "numpy", "paho-mqtt", "cbor2", "aiomqtt", "SQLAlchemy", "amqtt")


@dataclass(kw_only=True, slots=True)
class Stopwatch:
    """Seconds of wall-clock time spent in one round's parts."""

    train: float = 0.0
    aggregate: float = 0.0
    evaluate: float = 0.0
    total: float = 0.0


@dataclass(kw_only=True, slots=True)
class Traffic:
    """Message payloads of one round, in bytes, and how many updates and check-ins made them."""

    bytes_up: int = 0
    updates: int = 0
    bytes_down: int = 0
    device_rounds: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundReport:
    """What one round of the results was like."""

    number: int
    version: int
    quality: RoundQuality
    watch: Stopwatch
    traffic: Traffic
    staleness_mean: float


@dataclass(kw_only=True, slots=True)
class Totals:
    """What the summary is made from."""

    watches: list[Stopwatch] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


class RunFolder:
    """Writes a run's files as the run goes on; the first when its first round is done.

    So a run that comes to nothing leaves the folder as it was, and can be tried again.

    Raises
    ------
    AlreadyInitialisedError
        When the folder holds a run and `overwrite` is false; nothing is changed.
    DiskFullError, NotWritableError
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = path
        with named_failures(path):
            present = [name for name in FILES if (path / name).exists()]
        if present and not overwrite:
            raise AlreadyInitialisedError(
                f"{path} holds a run already ({present[0]}); choose another --out, or give --overwrite"
            )
        make_directory(path)
        self._totals = Totals()
        packages = {"python": python_version()} | {name: _version(name) for name in _PACKAGES}
        self._config = {**config, "packages": packages}

    def add_round(self, report: RoundReport) -> None:
        """Append one line of ``metrics.jsonl``."""
        traffic, quality = report.traffic, report.quality
        line = {
            "round": report.number,
            "version": report.version,
            "seconds": round(report.watch.total, 6),
            "updates": traffic.updates,
            "bytes_up": traffic.bytes_up,
            "bytes_down": traffic.bytes_down,
            "staleness_mean": round(report.staleness_mean, 4),
            "val": {"hr": quality.val.hr, "ndcg": quality.val.ndcg},
            "test": {"hr": quality.test.hr, "ndcg": quality.test.ndcg},
        }
        if not self._totals.watches:
            self._begin()
        with named_failures(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        totals = self._totals
        totals.watches.append(report.watch)
        totals.traffic.bytes_up += traffic.bytes_up
        totals.traffic.updates += traffic.updates
        totals.traffic.bytes_down += traffic.bytes_down
        totals.traffic.device_rounds += traffic.device_rounds

    def _begin(self) -> None:
        with named_failures(self.path):
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        self._write_json("config.json", self._config)

    def finish(
        self, scenario: Scenario, evaluator: Evaluator, facts: Mapping[str, Any], *, save_users: bool
    ) -> dict[str, Any]:
        """Write the arrays and the summary; give the summary."""
        best = evaluator.best
        _save_arrays(self.path / "model.npz", E=best.table, item_keys=np.array(scenario.data.item_keys))
        _save_arrays(self.path / "candidates.npz", val=scenario.val, test=scenario.test)
        if save_users:
            _save_users(self.path / "users.npz", scenario.data.user_keys, best)
        summary = self._summary(scenario, evaluator, facts)
        self._write_json("summary.json", summary)
        return summary

    def _summary(self, scenario: Scenario, evaluator: Evaluator, facts: Mapping[str, Any]) -> dict[str, Any]:
        watches, traffic = self._totals.watches, self._totals.traffic
        views = {
            name: {"sampled": _figures(view.sampled), "full": _figures(view.full)}
            for name, view in evaluator.final().items()
        }
        return {
            "dataset": {
                "name": scenario.name,
                "users": scenario.n_users,
                "items": scenario.data.n_items,
                "interactions": int(scenario.data.indptr[-1]),
            },
            "algorithm": facts["algorithm"],
            "protocol": scenario.protocol,
            "mode": facts["mode"],
            "encoding": facts["encoding"],
            "seed": facts["seed"],
            "rounds": len(watches),
            "best_round": evaluator.best.round,
            "test": views,
            "seconds_per_round": {
                "median": median(watch.total for watch in watches),
                "train": median(watch.train for watch in watches),
                "aggregate": median(watch.aggregate for watch in watches),
                "evaluate": median(watch.evaluate for watch in watches),
            },
            "bytes_up_per_update": traffic.bytes_up / max(1, traffic.updates),
            "bytes_down_per_device_round": traffic.bytes_down / max(1, traffic.device_rounds),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def _write_text(self, name: str, content: str) -> None:
        with named_failures(self.path):
            (self.path / name).write_text(content)


def _figures(metrics: RankingMetrics) -> dict[str, float]:
    return {"hr@10": metrics.hr, "ndcg@10": metrics.ndcg}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an ``.npz``, whole or not at all.

    `numpy.savez` leaves a half one on a full disk, and its archive's finaliser complains on stderr.
    """
    temporary = path.with_name(f".{path.name}")
    with named_failures(path):
        try:
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)  # type: ignore[no-untyped-call]
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _save_users(path: Path, user_keys: Sequence[str], best: Snapshot) -> None:
    lengths = [0 if result is None else result.rows.size for result in best.results]
    own_indptr = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    own_rows = np.empty(own_indptr[-1], dtype=np.int64)
    own_values = np.empty((own_indptr[-1], best.table.shape[1]), dtype=np.float32)
    for result, begin, end in zip(best.results, own_indptr[:-1], own_indptr[1:], strict=True):
        if result is not None:
            own_rows[begin:end], own_values[begin:end] = result.rows, result.values
    _save_arrays(
        path,
        user_keys=np.array(user_keys),
        W=best.W,
        b=best.b,
        own_indptr=own_indptr,
        own_rows=own_rows,
        own_values=own_values,
    )
