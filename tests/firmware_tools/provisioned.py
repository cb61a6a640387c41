"""A fleet's directory to provision from, and the command as a process."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import initialise
from broker.aggregator.security import AUTHORITY_NAME, make_authority
from broker.authority.authority import Authority

NOW = datetime.now(UTC).replace(microsecond=0)
COMMAND = (sys.executable, "-c", "from firmware_tools.cli import main; main()", "provision")


def a_shop(path: Path, port: int = 8883) -> Authority:
    """Set a secured aggregator's directory up; give its authority."""
    path.mkdir()
    items = path / "items.txt"
    items.write_text("bread\nmilk\n")
    make_authority(path, "shop", ("localhost",), NOW)
    config = AggregatorConfig(fleet="shop", secure=True, port=port)
    initialise(path, config, items, dim=4, seed=1, created_at=NOW.timestamp())
    return Authority(path / AUTHORITY_NAME)


def begun(shop: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin ``firmware-tools provision devices`` as a process."""
    return subprocess.Popen(
        [*COMMAND, "devices", "--dir", str(shop), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ids_in(folder: Path) -> set[str]:
    """Give the devices that a folder has."""
    return {path.name for path in (folder / "devices").iterdir()}


def modes_of(paths: Sequence[Path]) -> set[int]:
    """Give the permission bits of files."""
    return {path.stat().st_mode & 0o777 for path in paths}
