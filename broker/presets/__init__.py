"""Presets: named sets of training settings, as TOML files with comments.

A preset is one of those that ship with the package, or a file of the same form. Who trains asks it for the
settings of one algorithm; single entries can be overridden.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from broker.errors import ConfigError
from broker.storage import read_file
from trainer.algorithms import ALGORITHMS
from trainer.baselines import BASELINES
from trainer.errors import ParameterError
from trainer.params import MAX_DIM, Hyperparameters, item_lr
from trainer.privacy import require_noise
from trainer.taste import TasteSettings

_SHIPPED = files("broker.presets")
SelectBy = Literal["hr", "ndcg"]
_TABLES = (*ALGORITHMS, *BASELINES)
PRESETS = ("device", "paper")
"""The presets that ship with the package; ``device`` is the default everywhere."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Settings of one algorithm; the files explain each.

    Raises
    ------
    ParameterError
        When a value is out of its range.
    """

    rounds: int = 100
    dim: int = 32
    scale: float = 1.0
    lr: float = 0.1
    lr_eta: float = 80.0
    negatives: int = 4
    batch_size: int = 256
    decay: float = 0.0
    select_by: SelectBy = "hr"
    taste_recency: float = 0.0
    taste_strength: float = 0.0
    untimed_taste_strength: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 1_000_000:
            raise ParameterError(f"rounds is {self.rounds}; it must lie between 1 and 1000000")
        if not 1 <= self.dim <= MAX_DIM:
            raise ParameterError(f"dim is {self.dim}; it must lie between 1 and {MAX_DIM}")
        if not 0.0 < self.scale <= 100.0:
            raise ParameterError(f"scale is {self.scale}; it must lie between 0 and 100")
        if not 0.0 <= self.lr_eta <= 1e6:
            raise ParameterError(f"lr_eta is {self.lr_eta}; it must lie between 0 and 1e6")
        if self.select_by not in get_args(SelectBy):
            raise ParameterError(f"select_by is {self.select_by!r}; it must be hr or ndcg")
        # Checked by name here: where it takes effect it is a taste's strength like the other.
        if not 0.0 <= self.untimed_taste_strength <= 100.0:
            raise ParameterError(
                f"untimed_taste_strength is {self.untimed_taste_strength}; it must lie between 0 and 100"
            )
        require_noise(self.noise)
        _ = (self.hyperparameters(1), self.taste(timed=True), self.taste(timed=False))

    def hyperparameters(self, n_items: int) -> Hyperparameters:
        """Give what a local pass needs, for a catalogue of `n_items`."""
        return Hyperparameters(
            lr=self.lr,
            item_lr=item_lr(self.lr, n_items, self.lr_eta),
            negatives=self.negatives,
            batch_size=self.batch_size,
            decay=self.decay,
        )

    def taste(self, *, timed: bool) -> TasteSettings:
        """Give the settings of the own view, for interactions whose order is one of time or means nothing."""
        if timed:
            return TasteSettings(recency=self.taste_recency, strength=self.taste_strength)
        return TasteSettings(strength=self.untimed_taste_strength)


@cache
def _shipped(name: str) -> bytes:
    return (_SHIPPED / f"{name}.toml").read_bytes()


def load_preset(name: str, algorithm: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """Read the preset that ships as `name`, or else the file of that name, for one algorithm.

    Raises
    ------
    ConfigError
        When the file is no TOML, or an entry is unknown, ill typed or out of range.
    ParameterError
        When an override is.
    FileUnreadableError
        When there is neither.
    """
    content = _shipped(name) if name in PRESETS else read_file(Path(name))
    try:
        parsed = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {name} is not valid TOML: {error}") from error
    values = {key: value for key, value in parsed.items() if not isinstance(value, dict)}
    for table, entries in parsed.items():
        if isinstance(entries, dict) and table not in _TABLES:
            raise ConfigError(f"preset {name}: {table!r} is no algorithm; known are {', '.join(_TABLES)}")
        if not isinstance(entries, dict) and table in _TABLES:
            raise ConfigError(f"preset {name}: {table} must be a table, not {entries!r}")
    for table in (algorithm.partition("+")[0], algorithm):
        values |= parsed.get(table, {})
    preset = _built(values, f"preset {name}", ConfigError)
    return _built(dataclasses.asdict(preset) | dict(overrides or {}), "", ParameterError)


def _built(values: Mapping[str, Any], where: str, kind: type[ConfigError] | type[ParameterError]) -> Preset:
    types = get_type_hints(Preset)
    prefix = f"{where}: " if where else ""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise kind(f"{prefix}unknown entry {key!r}; known are {', '.join(types)}")
        wanted = types[key] if isinstance(types[key], type) else str
        checked[key] = float(value) if wanted is float and type(value) is int else value
        if type(checked[key]) is not wanted:
            raise kind(f"{prefix}{key} must be {_KINDS[wanted]}, not {value!r}")
    try:
        return Preset(**checked)
    except ParameterError as error:
        raise kind(f"{prefix}{error}") from error


_KINDS = {int: "a whole number", float: "a number", str: "text"}
