"""Fixtures of the fleet's tests."""

import sys

import pytest

from edge.fleet.cli import main
from tests.fleet.builders import Call, Outcome


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls ``edge-fleet`` as its entry point does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edge-fleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(int(ending.value.code or 0), out, err)

    return run
