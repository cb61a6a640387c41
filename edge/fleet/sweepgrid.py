"""What a sweep is made of: options, the combinations of their values, and each run with its folder.

This file knows what runs there are and what their folders hold; it starts none of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import CorruptError
from broker.presets import Preset, load_preset
from broker.storage import named_failures, read_file
from edge.fleet.runfolder import CHECKPOINT, FILES
from edge.fleet.scenario import Scenario
from edge.fleet.simulatecommand import SimulateOptions
from trainer.algorithms import ALGORITHMS
from trainer.baselines import BASELINES
from trainer.errors import ParameterError
from trainer.sampling import Protocol

FIGURES = ("hr@10", "ndcg@10")
_MAX_SEED = 2**53 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """What ``edge-fleet sweep`` was asked for.

    Attributes
    ----------
    values : mapping
        The values to try for entries of the preset.
    """

    data: str
    algorithms: tuple[str, ...] = ("pfedrec",)
    preset: str = "device"
    protocol: Protocol = "clean"
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """One value for everything that is swept but the seed.

    Attributes
    ----------
    values : mapping
        Entries of the preset, in the order of their names and of the types that the preset has.
    """

    algorithm: str
    values: Mapping[str, Any]
    preset: Preset

    def folder_of(self, seed: int) -> str:
        """Give the name of a run's folder: no space, no slash, and the same whenever it is asked for."""
        values = [f"{key}={as_text(value)}" for key, value in self.values.items()]
        return ",".join((self.algorithm, *values, f"seed={seed}"))


def seeds_of(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``.

    Raises
    ------
    ParameterError
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) <= _MAX_SEED for part in parts):
        raise ParameterError(
            f"--seeds is {text!r}; it must be whole numbers from 0 to {_MAX_SEED} with commas between them"
        )
    return tuple(int(part) for part in parts)


def values_of(settings: Sequence[tuple[str, tuple[Any, ...]]]) -> dict[str, tuple[Any, ...]]:
    """Collect the values to try by key.

    Raises
    ------
    ParameterError
        When a key comes twice.
    """
    values: dict[str, tuple[Any, ...]] = {}
    for key, listed in settings:
        if key in values:
            raise ParameterError(f"{key} is given twice; list all its values once, as in {key}=V1,V2")
        values[key] = listed
    return values


def as_text(value: Any) -> str:
    """Write a preset's value as short as it can be told from others."""
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def combinations(options: SweepOptions) -> list[Combination]:
    """Give every combination; all of their values are in range.

    Raises
    ------
    ParameterError, ConfigError, FileUnreadableError
        About an algorithm, a value or the preset.
    """
    known = (*ALGORITHMS, *BASELINES)
    keys = sorted(options.values)
    found: list[Combination] = []
    for algorithm in options.algorithms:
        if algorithm not in known:
            raise ParameterError(f"unknown algorithm {algorithm!r}; known are {', '.join(known)}")
        for values in product(*(options.values[key] for key in keys)):
            preset = load_preset(options.preset, algorithm, dict(zip(keys, values, strict=True)))
            typed = {key: getattr(preset, key) for key in keys}
            found.append(Combination(algorithm=algorithm, values=typed, preset=preset))
    seen: set[str] = set()
    for name in (each.folder_of(seed) for each in found for seed in options.seeds):
        if name in seen:
            raise ParameterError(f"the combination {name} is listed twice; give each value once")
        seen.add(name)
    return found


class SweepRun:
    """One combination with one seed, and the folder that is or will be its own."""

    def __init__(self, options: SweepOptions, combination: Combination, seed: int, out: Path) -> None:
        self.preset = combination.preset
        self.path = out / combination.folder_of(seed)
        self.options = SimulateOptions(
            data=options.data,
            algorithm=combination.algorithm,
            preset=options.preset,
            protocol=options.protocol,
            seed=seed,
            overrides=combination.values,
        )
        self._figures: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name

    @property
    def seed(self) -> int:
        """Its own."""
        return self.options.seed

    def figures(self) -> dict[str, Any] | None:
        """Give what the run came to; None before it is finished, also where its last file was cut short.

        Raises
        ------
        CorruptError
        """
        if self._figures is None:
            summary = _read_json(self.path / "summary.json")
            self._figures = None if summary is None else self._read_figures(summary)
        return self._figures

    def _read_figures(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        content = read_file(self.path / "metrics.jsonl")
        try:
            rounds = [json.loads(line) for line in content.splitlines()]
            (best,) = [line["val"] for line in rounds if line["round"] == summary["best_round"]]
            own = summary["test"]["own"]
            return {
                "best_round": summary["best_round"],
                "validation": {"hr@10": best["hr"], "ndcg@10": best["ndcg"]},
                "test": {name: own["sampled"][name] for name in FIGURES},
                "test_full": {name: own["full"][name] for name in FIGURES},
            }
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(
                f"{self.path} is damaged: metrics.jsonl lacks the best round; remove it to run it again"
            ) from error

    def require_same(self, scenario: Scenario) -> None:
        """Check that what the folder holds is this very run, as its name does not say it all.

        Raises
        ------
        ParameterError
            Also when the settings do not suit the data.
        """
        here = {
            "data_sha256": scenario.sha256,
            "hold_out": scenario.data.hold_out,
            "protocol": scenario.protocol,
            **{name: getattr(self.preset, name) for name in ("rounds", "dim", "scale", "noise", "select_by")},
            "hyperparameters": asdict(self.preset.hyperparameters(scenario.data.n_items)),
            "taste": asdict(self.preset.taste(timed=scenario.data.timed)),
        }
        # Runs from before it was written down held out the last items.
        there = {"hold_out": "last"} | (_read_json(self.path / "config.json") or here)
        for name, value in here.items():
            if there.get(name) != value:
                raise ParameterError(
                    f"{self.path} was run with {name} {there.get(name)!r}, not {value!r}; "
                    "give the same options, or choose another --out"
                )

    def rounds_done(self) -> int:
        """Give how many rounds the checkpoint saves; 0 where it cannot be read, as the run will tell."""
        try:
            with np.load(self.path / CHECKPOINT, allow_pickle=False) as content:
                return int(content["done"])
        except Exception:  # noqa: BLE001 - only an estimate of the time left depends on it
            return 0

    def tidy(self) -> None:
        """Remove what a kill leaves half written."""
        with named_failures(self.path):
            if _read_json(self.path / "summary.json") is None:
                (self.path / "summary.json").unlink(missing_ok=True)
            for name in FILES:
                for path in self.path.glob(f".{name}*"):
                    path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read an object; None where there is none, or only a part of one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
