"""Names of files and directories, wherever a program takes one."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker.aggregator.cli import cli as aggregator
from broker.exit_codes import ExitCode
from edge.cli import cli as client
from edge.fleet.cli import cli as fleet
from firmware_tools.cli import cli as firmware

_PROGRAMS = {
    "edge-client": client,
    "edge-aggregator": aggregator,
    "edge-fleet": fleet,
    "firmware-tools": firmware,
}


def _calls(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give a call for each path that can be given, with nothing as its name."""
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from _calls(member, (*words, name))
    before: tuple[str, ...] = ()
    for each in command.params:
        is_argument = isinstance(each, click.Argument)
        if isinstance(each.type, click.Path):
            yield (*words, *(before if is_argument else each.opts[:1]), "")
        if is_argument:
            before += (each.type.choices[0] if isinstance(each.type, click.Choice) else "1",)


@pytest.mark.parametrize("program", _PROGRAMS)
def test_nothing_is_the_name_of_nothing(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unset variable of a script is not the directory that it is called in."""
    monkeypatch.chdir(tmp_path)
    calls = list(_calls(_PROGRAMS[program]))
    assert calls
    for call in calls:
        outcome = CliRunner().invoke(_PROGRAMS[program], call)
        assert outcome.exit_code == ExitCode.USAGE, call
        assert "'' names no " in outcome.output, call
    assert list(tmp_path.iterdir()) == []
