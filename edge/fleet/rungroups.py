"""Runs that differ in their seed alone, as groups with a name that tells each from the others."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from edge.fleet.finishedrun import FinishedRun

METHOD_NAMES = {
    "pfedrec": "PFedRec",
    "fedmf": "FedMF",
    "fedmf+dualper": "FedMF + DualPer",
    "fedncf": "FedNCF",
    "fedncf+dualper": "FedNCF + DualPer",
    "fedrecon": "FedRecon",
    "fedrecon+dualper": "FedRecon + DualPer",
    "mf": "MF, centralised",
    "ncf": "NCF, centralised",
    "ials": "iALS",
    "ease": "EASE^R",
    "item-knn": "item-kNN",
    "popularity": "popularity",
}
"""The methods of the main comparison, in its order."""
ABLATION_NAMES = {
    "pfedrec": "PFedRec",
    "pfedrec-user": "user side only",
    "pfedrec-item": "item side only",
    "pfedrec-neither": "neither",
    "pfedrec-joint": "both, joint steps",
}

_FIRST = ("dataset", "protocol", "mode", "encoding", "preset")
"""Told wherever they differ; of the others only as many as are needed."""
_NO_SETTING = {
    "command", "data", "seed", "packages", "algorithm", "protocol", "mode", "encoding",
    "port", "broker", "fleet", "overrides",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunGroup:
    """Runs of the same settings, one for each seed, by seed.

    Attributes
    ----------
    label : str
        The method, and in brackets what tells the group from others of that method.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return self.runs[0].algorithm

    @property
    def protocol(self) -> str:
        """Whether training avoided held-out items."""
        return str(self.runs[0].summary["protocol"])

    @property
    def same_users(self) -> bool:
        """Whether a user's key means the same person under all seeds; generated data is drawn by seed."""
        return not any(run.is_generated for run in self.runs)

    def spread(self, view: str, ranking: str, name: str) -> tuple[float, float | None]:
        """Give mean and sample standard deviation of a figure over the seeds; of one run there is none."""
        figures = [run.figure(view, ranking, name) for run in self.runs]
        return mean(figures), stdev(figures) if len(figures) > 1 else None


def group_runs(runs: Sequence[FinishedRun], names: Mapping[str, str]) -> tuple[list[RunGroup], list[str]]:
    """Put runs of the same settings together.

    Parameters
    ----------
    names : mapping
        What people call an algorithm; the groups come in its order, others after them by their own name.

    Returns
    -------
    (list of RunGroup, list of str)
        The second has a sentence for each run whose seed its group has already.
    """
    left_out = []
    by_settings: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        of_seed = by_settings.setdefault(json.dumps(_identity(run), sort_keys=True), {})
        if run.seed in of_seed:
            left_out.append(f"{run.path} repeats {of_seed[run.seed].path}")
        else:
            of_seed[run.seed] = run
    grouped = [tuple(of_seed[seed] for seed in sorted(of_seed)) for of_seed in by_settings.values()]
    order = list(names)
    grouped.sort(key=lambda of: order.index(of[0].algorithm) if of[0].algorithm in names else len(order))
    labels = _labels([of[0] for of in grouped], names)
    return [RunGroup(label=label, runs=of) for label, of in zip(labels, grouped, strict=True)], left_out


def _identity(run: FinishedRun) -> dict[str, Any]:
    """Give all that a run was asked for, but for the seed."""
    settings = {key: value for key, value in _flat(run.config) if key.split(".")[0] not in _NO_SETTING}
    first = {key: run.summary.get(key) for key in ("algorithm", "protocol", "mode", "encoding")}
    return first | settings | {"dataset": run.dataset_name, "hold_out": run.hold_out}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _labels(runs: Sequence[FinishedRun], names: Mapping[str, str]) -> list[str]:
    labels = []
    identities = [_identity(run) for run in runs]
    for run, mine in zip(runs, identities, strict=True):
        rivals = [other for other in identities if other["algorithm"] == run.algorithm]
        told = ", ".join(_told(key, mine.get(key)) for key in _telling(rivals))
        labels.append(names.get(run.algorithm, run.algorithm) + (f" ({told})" if told else ""))
    return labels


def _telling(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give few keys that tell all identities apart; those that everybody knows come first."""
    if len(identities) == 1:
        return []
    others = sorted({key for identity in identities for key in identity} - set(_FIRST))
    told = [key for key in _FIRST if _n_distinct(identities, [key]) > 1]
    apart = _n_distinct(identities, told)
    for key in others:
        distinct = _n_distinct(identities, [*told, key])
        if distinct > apart:
            told.append(key)
            apart = distinct
    return told


def _n_distinct(identities: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({json.dumps([each.get(key) for key in keys]) for each in identities})


def _told(key: str, value: Any) -> str:
    name = key.rpartition(".")[2]
    if key in ("dataset", "protocol", "mode", "encoding"):
        return str(value)
    if key == "hold_out":
        return f"held out {value}"
    if key == "data_sha256":
        return f"data {str(value)[:8]}"
    return f"{name} {value}"
