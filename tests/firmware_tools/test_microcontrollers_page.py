"""Every command of docs/microcontrollers.md is run, in a directory of its own, on less data."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import free_port
from firmware_tools.targets import TARGETS

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = (_ROOT / "docs" / "microcontrollers.md").read_text()
_BLOCKS = re.findall(r"```sh\n(.*?)```", _PAGE, flags=re.DOTALL)
_LESS = [
    (r"--rounds \d+", "--rounds 2"),
    (r"verify ", "verify --max-loss 100 "),
    (r"\b1883\b", str(free_port("127.0.0.1"))),
]
_CLEAN = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
"""What a block has started in the background ends with it, even where it fails."""
if importlib.util.find_spec("tensorflow") is None:
    # What TensorFlow would make; the sentence without it is tested elsewhere.
    _LESS += [(r"firmware-tools build .*", "true"), (r".*films-int8.tflite$", "true")]


pytestmark = [pytest.mark.process, pytest.mark.mcu]


def _missing() -> list[str]:
    return [
        p
        for board in ("m4f", "host")
        for p in (*TARGETS[board].missing_to_build(), *TARGETS[board].missing_to_run())
    ]


@pytest.mark.skipif(
    bool(_missing()), reason=f"not installed: apt-get install {' '.join(TARGETS['m4f'].packages)}"
)
def test_commands_of_the_page_work_one_after_the_other(tmp_path: Path) -> None:
    """From ratings to a board that passes its self-test."""
    (tmp_path / "ml-100k").mkdir()
    lines = (
        f"{user}\t{(user * 7 + step * 11) % 150}\t4\t{step}\n" for user in range(40) for step in range(15)
    )
    (tmp_path / "ml-100k" / "u.data").write_text("".join(lines))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    assert _BLOCKS
    for block in _BLOCKS:
        script = block
        for pattern, less in _LESS:
            script = re.sub(pattern, less, script, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-e", "-c", _CLEAN + script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_table_lists_every_board() -> None:
    """With the packages that it needs."""
    for target in TARGETS.values():
        assert f"`{target.name}`" in _PAGE
        assert all(package in _PAGE for package in target.packages)
