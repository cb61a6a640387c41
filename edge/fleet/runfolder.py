"""A run's folder: the files from which anyone can recompute every figure.

``config.json``, ``metrics.jsonl``, ``summary.json``, ``model.npz``, ``candidates.npz``, ``ranks.npz``, and
``users.npz`` when asked for. docs/architecture.md names every key.
"""

import json
import os
import resource
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import AlreadyInitialisedError, CorruptError
from broker.storage import hold, make_directory, named_failures, read_file, write_atomically
from edge.fleet.outcome import FleetModel, Outcome, RoundQuality
from edge.fleet.scenario import Scenario
from trainer.errors import ParameterError
from trainer.metrics import TOP_KS, metrics_from_ranks
from trainer.params import Rows

CHECKPOINT = "checkpoint.npz"
"""The state of a run that goes on; removed at its end."""
FILES = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "model.npz",
    "users.npz",
    "candidates.npz",
    "ranks.npz",
    CHECKPOINT,
)
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


OnRound = Callable[[RoundReport], None]


@dataclass(kw_only=True, slots=True)
class Totals:
    """What the summary is made from; `watches` only of the rounds that this process has made."""

    seconds: list[float] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


class RunFolder:
    """Writes a run's files as the run goes on; the first when its first round is done.

    So a run that comes to nothing leaves the folder as it was, and can be tried again.

    Raises
    ------
    AlreadyInitialisedError
        When the folder holds a run and neither `overwrite` nor `resume` is given, or a finished one; nothing
        is changed; also when it is a device's or an aggregator's directory.
    InUseError
        When another process writes a run into it.
    ParameterError
        When the run to resume was begun with another `config`.
    DiskFullError, NotWritableError
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], *, overwrite: bool, resume: bool = False
    ) -> None:
        self.path = path
        with named_failures(path):
            present = [name for name in FILES if (path / name).exists()]
        if present and not (overwrite or resume):
            raise AlreadyInitialisedError(
                f"{path} holds a run already ({present[0]}); choose another --out, or give --overwrite"
            )
        if resume and "summary.json" in present:
            raise AlreadyInitialisedError(f"{path} holds a finished run; there is nothing to resume")
        if (path / "config.toml").exists():
            raise AlreadyInitialisedError(
                f"{path} is the directory of a device or an aggregator; choose another --out"
            )
        make_directory(path)
        # Until it is closed or forgotten, or the process ends, however that ends.
        self._release = weakref.finalize(self, os.close, hold(path))
        self._totals = Totals()
        packages = {"python": python_version()} | {name: _version(name) for name in _PACKAGES}
        self._config = {**config, "packages": packages}
        if resume and "config.json" in present:
            self._require_same_config()

    def _require_same_config(self) -> None:
        content = read_file(self.path / "config.json")
        try:
            there = json.loads(content)
        except ValueError as error:
            raise CorruptError(f"{self.path}/config.json is no JSON ({error})") from error
        here = json.loads(json.dumps(self._config))
        differing = [name for name in here if there.get(name) != here[name]]
        if differing:
            name = differing[0]
            raise ParameterError(
                f"the run in {self.path} was begun with {name} {there.get(name)!r}, not {here[name]!r}; "
                "resume it with the same options"
            )

    def resume_at(self, done: int) -> None:
        """Take the first `done` rounds as they were written; what was written after them is dropped.

        Raises
        ------
        CorruptError
            When fewer were written.
        """
        if done == 0:
            return
        metrics = self.path / "metrics.jsonl"
        lines = read_file(metrics).splitlines(keepends=True)[:done]
        try:
            rounds = [json.loads(line) for line in lines]
        except ValueError as error:
            raise CorruptError(f"{metrics} has a line that is no JSON ({error})") from error
        if len(rounds) < done:
            raise CorruptError(f"{metrics} has {len(rounds)} rounds; its checkpoint was made after {done}")
        write_atomically(metrics, b"".join(lines))
        totals = self._totals
        for line in rounds:
            totals.seconds.append(line["seconds"])
            totals.traffic.bytes_up += line["bytes_up"]
            totals.traffic.bytes_down += line["bytes_down"]
            # In step, every device takes part in every round.
            totals.traffic.updates += line["updates"]
            totals.traffic.device_rounds += line["updates"]

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
        if not self._totals.seconds:
            self._begin()
        with named_failures(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        totals = self._totals
        totals.seconds.append(round(report.watch.total, 6))
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
        self, scenario: Scenario, outcome: Outcome, facts: Mapping[str, Any], *, save_users: bool
    ) -> dict[str, Any]:
        """Write the arrays and the summary; give the summary."""
        user_keys = np.array(scenario.data.user_keys)
        model = outcome.model
        if model is not None:
            network = {"network": model.shared.network} if model.shared.network.size else {}
            item_keys = np.array(scenario.data.item_keys)
            _save_arrays(self.path / "model.npz", E=model.shared.table, item_keys=item_keys, **network)
        _save_arrays(self.path / "candidates.npz", val=scenario.val, test=scenario.test)
        ranks = {
            f"{view}_{ranking}": getattr(of_view, ranking).astype(np.int32)
            for view, of_view in outcome.ranks.items()
            for ranking in ("sampled", "full")
        }
        _save_arrays(self.path / "ranks.npz", user_keys=user_keys, **ranks)
        if save_users and model is not None:
            _save_users(self.path / "users.npz", user_keys, model)
        summary = self._summary(scenario, outcome, facts)
        self._write_json("summary.json", summary)
        with named_failures(self.path):
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        return summary

    def close(self) -> None:
        """Let others write into the folder."""
        self._release()

    def _summary(self, scenario: Scenario, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, Any]:
        seconds, watches, traffic = self._totals.seconds, self._totals.watches, self._totals.traffic
        views = {
            name: {"sampled": _figures(ranks.sampled), "full": _figures(ranks.full)}
            for name, ranks in outcome.ranks.items()
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
            "rounds": len(seconds),
            "best_round": outcome.round,
            "test": views,
            "seconds_per_round": {
                "median": median(seconds),
                **{part: _median(watches, part) for part in ("train", "aggregate", "evaluate")},
            },
            **({} if outcome.recovered_f1 is None else {"positives_recovered_f1": outcome.recovered_f1}),
            "bytes_up_per_update": traffic.bytes_up / max(1, traffic.updates),
            "bytes_down_per_device_round": traffic.bytes_down / max(1, traffic.device_rounds),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + outcome.workers_rss_mb,
        }

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def _write_text(self, name: str, content: str) -> None:
        write_atomically(self.path / name, content.encode())


def _figures(ranks: Rows) -> dict[str, float]:
    """Give HR and NDCG at each k."""
    at = {k: metrics_from_ranks(ranks, k) for k in TOP_KS}
    return {f"{name}@{k}": getattr(metrics, name) for k, metrics in at.items() for name in ("hr", "ndcg")}


def _median(watches: list[Stopwatch], part: str) -> float:
    return median(getattr(watch, part) for watch in watches) if watches else 0.0


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


def _save_users(path: Path, user_keys: NDArray[Any], model: FleetModel) -> None:
    none = (np.empty(0, dtype=np.int64), np.empty((0, model.W.shape[1]), dtype=np.float32))
    own = model.own or [none] * len(user_keys)
    shift = {} if model.shift is None else {"shift": model.shift}
    _save_arrays(
        path,
        user_keys=user_keys,
        W=model.W,
        b=model.b,
        own_indptr=np.concatenate(([0], np.cumsum([rows.size for rows, _ in own]))).astype(np.int64),
        own_rows=np.concatenate([rows for rows, _ in own]),
        own_values=np.concatenate([values for _, values in own]),
        **shift,
    )
