"""Fixtures that several tests of the device need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge import disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a file system of 1 MB."""
    folder = tmp_path / "small"
    with disks.small_disk(folder):
        yield folder
