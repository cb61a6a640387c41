"""Configuration files: comments, types, what wins over what, and the sentences for what is wrong."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.configfile import load, option, to_toml
from broker.errors import ConfigError, FileUnreadableError
from trainer.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A configuration with an option of each type."""

    name: str = option("", "What it is called.")
    size: int = option(3, "How large it is.")
    rate: float = option(0.5, "How fast it is.")
    loud: bool = option(default=False, help_text="Whether it is loud.")

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ParameterError(f"size is {self.size}; it must be 0 or more")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give where a configuration is."""
    return tmp_path / "config.toml"


def read(path: Path, text: str, environment: dict[str, str] | None = None, **flags: object) -> Sample:
    """Read a configuration with this text."""
    path.write_text(text)
    return load(Sample, path, environment or {}, **flags)


def test_file_has_a_comment_above_every_option() -> None:
    """Whoever opens the file sees what each line is for."""
    lines = to_toml(Sample(name="x")).split("\n")

    assert lines[:3] == ["# What it is called.", 'name = "x"', ""]
    assert len(lines) == 3 * len(fields(Sample))
    assert tomllib.loads("\n".join(lines)) == {"name": "x", "size": 3, "rate": 0.5, "loud": False}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.builds(
        Sample,
        name=st.text(st.characters(codec="utf-8")),
        size=st.integers(0, 2**63 - 1),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        loud=st.booleans(),
    )
)
def test_written_configuration_is_read_as_it_was(config: Sample, path: Path) -> None:
    """Any text, number and truth value survives the file."""
    path.write_bytes(to_toml(config).encode())

    assert load(Sample, path, {}) == config


def test_missing_entries_have_their_defaults(path: Path) -> None:
    """An empty file is a configuration."""
    assert read(path, "") == Sample()


def test_whole_number_is_a_number(path: Path) -> None:
    """Nobody must write 2.0 for 2."""
    config = read(path, "rate = 2\n")

    assert type(config.rate) is float
    assert config.rate == 2.0


def test_environment_wins_over_the_file(path: Path) -> None:
    """A variable for each option, with the option's type."""
    environment = {
        "PFEDREC_NAME": "from outside",
        "PFEDREC_SIZE": "7",
        "PFEDREC_RATE": "1e-3",
        "PFEDREC_LOUD": "TRUE",
        "PFEDREC_UNKNOWN": "is for somebody else",
        "SIZE": "9",
    }

    config = read(path, 'name = "x"\nsize = 1\n', environment)

    assert config == Sample(name="from outside", size=7, rate=0.001, loud=True)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_environment_has_four_words_for_truth(path: Path, text: str, *, value: bool) -> None:
    """What a variable can say for true and false."""
    assert read(path, "", {"PFEDREC_LOUD": text}).loud is value


def test_flags_win_over_all_and_none_is_not_given(path: Path) -> None:
    """A flag that was not given changes nothing."""
    config = read(path, "size = 1\n", {"PFEDREC_SIZE": "2", "PFEDREC_NAME": "e"}, size=3, name=None)

    assert (config.size, config.name) == (3, "e")


def test_flag_that_turns_something_off_wins(path: Path) -> None:
    """False and 0 are values."""
    config = read(path, "loud = true\n", size=0, loud=False)

    assert (config.size, config.loud) == (0, False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("size = ", "not valid TOML"),
        ("size = 1\nsize = 2\n", "not valid TOML"),
        ('nmae = "x"\n', "unknown entry 'nmae'; known are name, size, rate, loud"),
        ("[section]\nsize = 1\n", "unknown entry 'section'"),
        ('size = "1"\n', "size must be a whole number, not '1'"),
        ("size = 1.0\n", "size must be a whole number, not 1.0"),
        ("size = true\n", "size must be a whole number, not True"),
        ("rate = true\n", "rate must be a number, not True"),
        ('rate = "fast"\n', "rate must be a number, not 'fast'"),
        ("name = 5\n", "name must be text, not 5"),
        ("name = 2024-01-01\n", "name must be text"),
        ("loud = 1\n", "loud must be true or false, not 1"),
        ("size = -1\n", "size is -1; it must be 0 or more"),
    ],
)
def test_wrong_file_is_named_with_the_entry(path: Path, text: str, sentence: str) -> None:
    """The sentence names the file and what is wrong in it."""
    with pytest.raises(ConfigError) as caught:
        read(path, text)

    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_file_that_is_not_utf8_is_no_toml(path: Path) -> None:
    """TOML is UTF-8."""
    path.write_bytes(b'name = "\xe9"\n')

    with pytest.raises(ConfigError, match="not valid TOML"):
        load(Sample, path, {})


@pytest.mark.parametrize(
    ("variable", "text", "kind"),
    [
        ("PFEDREC_SIZE", "many", "a whole number"),
        ("PFEDREC_SIZE", "1.5", "a whole number"),
        ("PFEDREC_SIZE", "", "a whole number"),
        ("PFEDREC_RATE", "fast", "a number"),
        ("PFEDREC_LOUD", "yes", "true or false"),
    ],
)
def test_wrong_variable_is_named(path: Path, variable: str, text: str, kind: str) -> None:
    """The sentence names the variable, not the file."""
    with pytest.raises(ConfigError, match=f"{variable} must be {kind}, not '{text}'"):
        read(path, "", {variable: text})


def test_missing_file_cannot_be_read(path: Path) -> None:
    """A file that is not there is no empty configuration."""
    with pytest.raises(FileUnreadableError, match="no such file"):
        load(Sample, path, {})
