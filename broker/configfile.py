"""Configuration: a commented TOML file, overridden by ``PFEDREC_*`` variables, overridden by flags.

A program's configuration is one frozen dataclass whose fields carry their help (`option`); a field that is
such a class itself (`section`) is a table of the file. This file turns such a class into a file and back; it
does not know any program's fields.
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


def section(kind: type[Any], help_text: str) -> Any:
    """Declare a field that is a table of its own, `kind`'s fields its entries; by default all of theirs."""
    return dataclasses.field(default_factory=kind, metadata={"help": help_text})


def to_toml(config: Any) -> str:
    """Write a configuration with its comments; every field on a line of its own, tables last."""
    lines, tables = [], []
    for field in dataclasses.fields(config):
        comment, value = f"# {field.metadata['help']}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables += [comment, f"[{field.name}]", to_toml(value)]
        else:
            lines += [comment, f"{field.name} = {_literal(value)}", ""]
    return "\n".join(lines + tables)


def _literal(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's, too, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load(kind: type[_T], path: Path, environment: Mapping[str, str], **flags: Any) -> _T:
    """Read a configuration; see `load_over`, with nothing over the file."""
    return load_over(kind, path, environment, {}, flags)


def load_over(
    kind: type[_T],
    path: Path,
    environment: Mapping[str, str],
    over: Mapping[str, Any],
    flags: Mapping[str, Any],
) -> _T:
    """Read a configuration.

    Parameters
    ----------
    over : mapping
        Entries that win over the file's, tables entry by entry.
    flags : mapping
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
    config = _read(kind, _laid_over(content, over), str(path), ENVIRONMENT_PREFIX, environment)
    given = {name: value for name, value in flags.items() if value is not None}
    return cast("_T", dataclasses.replace(cast("Any", config), **given)) if given else config


def _laid_over(content: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(content)
    for name, value in over.items():
        before = result.get(name)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        result[name] = {**before, **value} if both and before is not None else value
    return result


def require_valid(kind: type[Any], content: Mapping[str, Any], where: str) -> None:
    """Check entries that are no file yet.

    Raises
    ------
    ConfigError
    """
    _read(kind, content, where, ENVIRONMENT_PREFIX, {})


def _read(
    kind: type[_T], content: Mapping[str, Any], where: str, prefix: str, environment: Mapping[str, str]
) -> _T:
    """Give one table; the environment's variables for it begin with `prefix`."""
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in types:
            raise ConfigError(f"{where}: unknown entry {name!r}; known are {', '.join(types)}")
        if not _is_section(types[name]):
            values[name] = _typed(value, types[name], f"{where}: {name}")
    for name, wanted in types.items():
        if _is_section(wanted):
            table = content.get(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{where}: {name} must be a table, not {table!r}; write [{name}]")
            values[name] = _read(wanted, table, f"{where}: [{name}]", f"{prefix}{name.upper()}_", environment)
    config = _built(kind, values, where)
    given: dict[str, tuple[object, str]] = {}
    for name, wanted in types.items():
        variable = prefix + name.upper()
        if variable in environment and not _is_section(wanted):
            source = f"the environment variable {variable}"
            given[name] = (_parsed(environment[variable], wanted, source), source)
    try:
        # Together, as one may allow what another asks for.
        return kind(**(values | {name: value for name, (value, _) in given.items()}))
    except ParameterError:
        # One source after the other, so that the sentence names the one that is wrong.
        for name, (value, source) in given.items():
            values[name] = value
            config = _built(kind, values, source)
    return config


def _is_section(wanted: type[Any]) -> bool:
    return dataclasses.is_dataclass(wanted)


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
