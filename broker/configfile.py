"""Configuration: a commented TOML file, overridden by ``PFEDREC_*`` variables, overridden by flags.

A program's configuration is one frozen dataclass whose fields carry their help (`option`). This file turns
such a class into a file and back; it does not know any program's fields.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from broker.errors import ConfigError
from broker.storage import read_file
from trainer.errors import ParameterError

ENVIRONMENT_PREFIX = "PFEDREC_"

_T = TypeVar("_T")


def option(default: Any, help_text: str) -> Any:
    """Declare a field with its default and the comment that the file carries."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def to_toml(config: Any) -> str:
    """Write a configuration with its comments; every field on a line of its own."""
    lines = []
    for field in dataclasses.fields(config):
        lines += [
            f"# {field.metadata['help']}",
            f"{field.name} = {_literal(getattr(config, field.name))}",
            "",
        ]
    return "\n".join(lines)


def _literal(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's, too, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load(kind: type[_T], path: Path, environment: Mapping[str, str], **flags: Any) -> _T:
    """Read a configuration.

    Parameters
    ----------
    flags
        Values that win over the file and the environment; None means not given.

    Raises
    ------
    ConfigError
        When the file is no TOML, or an entry of it or of the environment is unknown, ill typed or out of
        range.
    ParameterError
        When a flag is out of range.
    FileUnreadableError
        When the file cannot be read.
    """
    try:
        content = tomllib.loads(read_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in types:
            raise ConfigError(f"{path}: unknown entry {name!r}; known are {', '.join(types)}")
        values[name] = _typed(value, types[name], f"{path}: {name}")
    # One source after the other, so that the sentence names the one that is wrong.
    config = _built(kind, values, str(path))
    for name, wanted in types.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            where = f"the environment variable {variable}"
            values[name] = _parsed(environment[variable], wanted, where)
            config = _built(kind, values, where)
    given = {name: value for name, value in flags.items() if value is not None}
    return kind(**values | given) if given else config


def _built(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    try:
        return kind(**values)
    except ParameterError as error:
        raise ConfigError(f"{where}: {error}") from error


def _typed(value: object, wanted: type, where: str) -> object:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{where} must be {_KIND_NAMES[wanted]}, not {value!r}")
    return value


def _parsed(text: str, wanted: type, where: str) -> object:
    if wanted is bool and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    try:
        return cast("object", wanted(text)) if wanted is not bool else _typed(text, wanted, where)
    except ValueError:
        raise ConfigError(f"{where} must be {_KIND_NAMES[wanted]}, not {text!r}") from None


_KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
