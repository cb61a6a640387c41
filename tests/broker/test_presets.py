"""Presets: those that ship with the package, files of the same form, and single entries given otherwise."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import click
import pytest

from broker.commandline import Setting, toml_value
from broker.errors import ConfigError, FileUnreadableError
from broker.presets import PRESETS, Preset, load_preset
from trainer.algorithms import ALGORITHMS
from trainer.baselines import BASELINES
from trainer.errors import ParameterError

NAMES = sorted({**ALGORITHMS, **BASELINES})


def a_file(folder: Path, content: str) -> str:
    """Write a preset; give its name."""
    path = folder / "own.toml"
    path.write_text(content)
    return str(path)


# -- those that ship -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("name", PRESETS)
def test_shipped_preset_loads_for_every_algorithm(name: str, algorithm: str) -> None:
    """And gives hyperparameters for catalogues of any size."""
    preset = load_preset(name, algorithm)

    for n_items in (2, 1682, 100_000):
        hyperparameters = preset.hyperparameters(n_items)
        assert hyperparameters.lr == preset.lr
        expected = max(0.0, preset.lr * n_items * preset.lr_eta - preset.lr)
        assert hyperparameters.item_lr == pytest.approx(expected)
        assert hyperparameters.negatives == preset.negatives
        assert hyperparameters.batch_size == preset.batch_size
        assert hyperparameters.decay == preset.decay


def test_paper_is_the_published_setting() -> None:
    """Which are the class's defaults, too."""
    assert load_preset("paper", "pfedrec") == Preset()


def test_algorithms_table_overrides_the_common_entries() -> None:
    """The form with DualPer has those of its base, unless it has its own; the others have none of it."""
    plain, base, personal = (load_preset("paper", name) for name in ("fedmf", "fedncf", "fedncf+dualper"))

    assert plain == Preset()
    assert (base.scale, base.lr, base.lr_eta) == (0.3, 2.0, 2.0)
    assert personal == dataclasses.replace(base, lr=1.0)


def test_taste_depends_on_whether_order_is_time() -> None:
    """Without an order of time there is no recency, and the strength is another."""
    preset = load_preset("device", "pfedrec")

    timed, untimed = preset.taste(timed=True), preset.taste(timed=False)

    assert (timed.recency, timed.strength) == (preset.taste_recency, preset.taste_strength)
    assert (untimed.recency, untimed.strength) == (0.0, preset.untimed_taste_strength)
    assert load_preset("paper", "pfedrec").taste(timed=True).strength == 0.0


# -- files -----------------------------------------------------------------------------------------


def test_file_is_a_preset(tmp_path: Path) -> None:
    """What it does not say is as published; whole numbers serve as numbers."""
    name = a_file(tmp_path, 'rounds = 7 # few\nlr = 1\n[fedmf]\ndim = 4\n["fedmf+dualper"]\nlr = 0.5\n')

    assert load_preset(name, "pfedrec") == Preset(rounds=7, lr=1.0)
    assert load_preset(name, "fedmf") == Preset(rounds=7, lr=1.0, dim=4)
    assert load_preset(name, "fedmf+dualper") == Preset(rounds=7, lr=0.5, dim=4)
    assert type(load_preset(name, "pfedrec").lr) is float


@pytest.mark.parametrize("table", ["fedmff", "pfedrec+dualper", "Preset"])
def test_table_of_no_algorithm_is_refused(tmp_path: Path, table: str) -> None:
    """A misspelt name would silently train with other settings."""
    name = a_file(tmp_path, f'["{table}"]\ndim = 4\n')

    with pytest.raises(ConfigError, match="is no algorithm; known are pfedrec, "):
        load_preset(name, "pfedrec")


def test_empty_file_is_the_published_setting(tmp_path: Path) -> None:
    """It changes nothing."""
    assert load_preset(a_file(tmp_path, ""), "pfedrec") == Preset()


WRONG: list[tuple[str, Any]] = [
    ("rounds", 0),
    ("rounds", 1_000_001),
    ("rounds", 2.0),
    ("rounds", True),
    ("rounds", "7"),
    ("dim", 0),
    ("dim", 1025),
    ("scale", 0.0),
    ("scale", 101.0),
    ("scale", math.nan),
    ("lr", -0.1),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", "fast"),
    ("lr", False),
    ("lr_eta", -1.0),
    ("lr_eta", 1e7),
    ("negatives", 0),
    ("negatives", 1001),
    ("batch_size", 0),
    ("batch_size", 65537),
    ("decay", -0.1),
    ("decay", 11.0),
    ("decay", math.nan),
    ("select_by", "loss"),
    ("select_by", 10),
    ("taste_recency", -1.0),
    ("taste_strength", 101.0),
    ("untimed_taste_strength", -1.0),
    ("noise", -1.0),
    ("noise", math.nan),
    ("learning_rate", 0.1),
    ("lr ", 0.1),
]


def as_toml(value: Any) -> str:
    """Write a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_entry_of_a_file_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """By the names of file and entry; also in an algorithm's table, when that is asked for."""
    line = f'"{key}" = {as_toml(value)}\n'
    top, table = a_file(tmp_path, line), tmp_path / "table.toml"
    table.write_text(f"rounds = 3\n[fedmf]\n{line}")

    for name, algorithm in ((top, "pfedrec"), (str(table), "fedmf"), (str(table), "fedmf+dualper")):
        with pytest.raises(ConfigError) as refusal:
            load_preset(name, algorithm)
        assert name in str(refusal.value)
        assert key in str(refusal.value)
    assert load_preset(str(table), "pfedrec") == Preset(rounds=3)


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_override_is_refused(key: str, value: Any) -> None:
    """By the entry's name: it is the caller's mistake, not the file's."""
    with pytest.raises(ParameterError, match=key):
        load_preset("device", "pfedrec", {key: value})


def test_unknown_entry_is_told_what_is_known() -> None:
    """All of them."""
    with pytest.raises(ParameterError) as refusal:
        load_preset("paper", "pfedrec", {"epochs": 3})

    for field in dataclasses.fields(Preset):
        assert field.name in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"rounds = ", b"rounds = 3\nrounds = 4", b"\xff\xfe", b"{}", b"lr = 0.1 0.2"], ids=repr
)
def test_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    """By its name."""
    path = tmp_path / "own.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="not valid TOML"):
        load_preset(str(path), "pfedrec")


@pytest.mark.parametrize("content", ["fedmf = 3", "fedmf = [1]", 'fedmf = "x"', "[[fedmf]]\nlr = 1"])
def test_algorithm_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    """Whoever is trained: it is no entry."""
    name = a_file(tmp_path, content)

    for algorithm in ("pfedrec", "fedmf", "fedmf+dualper"):
        with pytest.raises(ConfigError, match="fedmf"):
            load_preset(name, algorithm)


def test_table_within_a_table_is_refused(tmp_path: Path) -> None:
    """An entry has a value."""
    with pytest.raises(ConfigError, match="lr"):
        load_preset(a_file(tmp_path, "[fedmf.lr]\nfirst = 1\n"), "fedmf")


@pytest.mark.parametrize("name", ["papers", "no/such/preset.toml", "paper.toml", "Paper"])
def test_missing_preset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A name that is neither shipped nor a file."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileUnreadableError, match=name):
        load_preset(name, "pfedrec")


def test_folder_is_no_preset(tmp_path: Path) -> None:
    """Nor anything else that cannot be read."""
    with pytest.raises(FileUnreadableError):
        load_preset(str(tmp_path), "pfedrec")


# -- overrides -------------------------------------------------------------------------------------


def test_override_counts_more_than_the_file_and_its_tables(tmp_path: Path) -> None:
    """For any algorithm."""
    name = a_file(tmp_path, "lr = 0.3\n[fedmf]\nlr = 0.4\n")

    assert load_preset(name, "fedmf", {"lr": 2, "rounds": 9}) == Preset(lr=2.0, rounds=9)
    assert load_preset(name, "pfedrec", {}) == load_preset(name, "pfedrec") == Preset(lr=0.3)


def test_overrides_are_not_changed() -> None:
    """The mapping may be used again."""
    overrides = {"lr": 1, "select_by": "ndcg"}

    load_preset("paper", "pfedrec", overrides)

    assert overrides == {"lr": 1, "select_by": "ndcg"}
    assert type(overrides["lr"]) is int


# -- KEY=VALUE on a command line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1_000", 1000),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("'ndcg'", "ndcg"),
        ('"ndcg"', "ndcg"),
        ("[1, 2]", [1, 2]),
        ("ndcg", "ndcg"),
        ("", ""),
        ("a = b", "a = b"),
        ("1.2.3", "1.2.3"),
        ("runs/one", "runs/one"),
        ("True", "True"),
        ("3 4", "3 4"),
        ("3\nother = 4", "3\nother = 4"),
    ],
)
def test_value_is_as_in_toml_or_text(text: str, value: Any) -> None:
    """What is no single TOML value is given back as it is."""
    found = toml_value(text)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_number_that_is_none_is_one_in_toml(text: str) -> None:
    """It is for the settings to refuse it."""
    assert not math.isfinite(toml_value(text))


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("lr=0.5", ("lr", 0.5)),
        (" lr = 0.5 ", ("lr", 0.5)),
        ("select_by=ndcg", ("select_by", "ndcg")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
    ],
)
def test_setting_is_cut_at_the_first_sign(argument: str, setting: tuple[str, Any]) -> None:
    """Spaces around key and value do not count."""
    assert Setting().convert(argument, None, None) == setting


@pytest.mark.parametrize("argument", ["lr", "", "=3", "  =3"])
def test_setting_without_key_or_sign_is_refused(argument: str) -> None:
    """By the form that it should have."""
    with pytest.raises(click.BadParameter, match="KEY=VALUE"):
        Setting().convert(argument, None, None)
