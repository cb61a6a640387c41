"""Fixtures that several tests of the device need."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli import main
from tests.edge import disks
from tests.edge.commands import Call, Outcome


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a file system of 1 MB."""
    folder = tmp_path / "small"
    with disks.small_disk(folder):
        yield folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls ``edge-client`` as its entry point does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edge-client", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(int(ending.value.code or 0), out, err)

    return run
