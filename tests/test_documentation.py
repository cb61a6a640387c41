"""Help texts and documents that must not fall behind the code."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker.aggregator.cli import cli as aggregator
from edge.cli import cli as client
from edge.fleet.cli import cli as fleet
from firmware_tools.cli import cli as firmware

_ROOT = Path(__file__).resolve().parents[1]
_PROGRAMS: dict[str, click.Group] = {
    "edge-client": client,
    "edge-aggregator": aggregator,
    "edge-fleet": fleet,
    "firmware-tools": firmware,
}


def _commands() -> Iterator[tuple[str, click.Command]]:
    for program, group in _PROGRAMS.items():
        yield program, group
        for name, command in group.commands.items():
            yield f"{program} {name}", command


@pytest.mark.parametrize(("name", "command"), list(_commands()), ids=lambda value: str(value)[:40])
def test_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    """``--help`` of every command says what it does, shows an example, and explains every option."""
    # As within its group: a command keeps the help option that it is first asked for with.
    result = CliRunner().invoke(command, ["--help"], help_option_names=["-h", "--help"])

    assert result.exit_code == 0
    assert f"  {name.split(maxsplit=1)[0]} " in result.output
    assert all(p.help for p in command.params if isinstance(p, click.Option) and p.name != "help")


@pytest.mark.parametrize(("program", "group"), list(_PROGRAMS.items()), ids=lambda value: str(value)[:40])
def test_readme_lists_every_command(program: str, group: click.Group) -> None:
    """README.md's table of commands has exactly the commands that there are."""
    readme = (_ROOT / "README.md").read_text()

    (listed,) = re.findall(rf"^\| `{program} ([^`]*)` \|", readme, flags=re.MULTILINE)

    assert set(listed.split(" · ")) == set(group.commands)


def test_documents_link_to_files_that_exist() -> None:
    """No relative link of README.md, CONTRIBUTING.md and docs/ is dead."""
    documents = [_ROOT / "README.md", _ROOT / "CONTRIBUTING.md", *(_ROOT / "docs").glob("*.md")]

    dead = [
        f"{document.name}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / target).exists()
    ]

    assert dead == []


def test_architecture_names_only_files_that_exist() -> None:
    """The table of owners in docs/architecture.md leads to files of the tree."""
    text = (_ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Where an idea lives")[1].split("\n## ")[0]
    missing = []
    for row in re.findall(r"^\|[^|]*\|([^|]*)\|$", section, flags=re.MULTILINE)[2:]:
        folder = _ROOT
        for name in re.findall(r"`([^`]+)`", row):
            path = (_ROOT if "/" in name else folder) / name
            folder = path.parent
            if not path.exists():
                missing.append(name)

    assert missing == []


def test_guides_copy_of_the_directory_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds the authority's secret keys."""
    directory = tmp_path / "shop"
    (directory / "authority").mkdir(parents=True)
    (directory / "config.toml").touch()
    guide = (_ROOT / "docs" / "operating.md").read_text()
    (line,) = re.findall(r"^sudo sh -c '(.* tar cf .*)'$", guide, flags=re.MULTILINE)
    line = line.replace("/var/lib/pfedrec-shop", str(directory)).replace("/srv/backups", str(tmp_path))

    subprocess.run(["sh", "-c", line], check=True)

    assert (tmp_path / "rest.tar").stat().st_mode & 0o777 == 0o600
