"""Every command of README.md is run, in a directory of its own; what takes long is run on less."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.embedded import free_port

_ROOT = Path(__file__).resolve().parents[1]
_README = (_ROOT / "README.md").read_text()
_BLOCKS = re.findall(r"```sh\n(.*?)```", _README, flags=re.DOTALL)
_TABLE_COMMANDS = re.findall(r"^\|.*?`((?:edge-|scripts/|for )[^`]* --[^`]*)`", _README, flags=re.MULTILINE)
_LESS = (
    (r"--rounds \d+", "--rounds 2"),
    (r"--versions \d+", "--versions 6"),
    (r"--devices \d+", "--devices 20"),
    (r"for seed in [\d ]+;", "for seed in 0;"),
)

pytestmark = [pytest.mark.process, pytest.mark.mqtt]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory that looks like the checkout, with a small file where MovieLens would be."""
    (tmp_path / "scripts").symlink_to(_ROOT / "scripts")
    (tmp_path / "ml-100k").mkdir()
    lines = (
        f"{user}\t{(user * 7 + step * 11) % 150}\t4\t{step}\n" for user in range(40) for step in range(15)
    )
    (tmp_path / "ml-100k" / "u.data").write_text("".join(lines))
    return tmp_path


def _run(script: str, place: Path, timeout_s: float = 150.0) -> subprocess.CompletedProcess[str]:
    port = free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PFEDREC_PORT": str(port),
    }
    for pattern, less in _LESS:
        script = re.sub(pattern, less, script)
    return subprocess.run(
        ["bash", "-e", "-c", script.replace(":1883", f":{port}")],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _own_blocks() -> Iterator[str]:
    for block in _BLOCKS:
        # The test command would run this test again.
        lines = [line for line in block.splitlines() if not line.startswith("scripts/test")]
        yield "\n".join(lines)


@pytest.mark.parametrize("block", list(_own_blocks()))
def test_readme_block_runs(block: str, place: Path) -> None:
    """A block of README.md runs to its end as it stands, and no process says a traceback."""
    result = _run(block, _ROOT if "scripts/demo" in block else place)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("command", _TABLE_COMMANDS)
def test_readme_measured_command_runs(command: str, place: Path) -> None:
    """A command beside a measured figure runs, on less."""
    result = _run(command, place)

    assert result.returncode == 0, result.stdout + result.stderr
