"""The log as people and as systemd's journal read it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.journal import leads_to_journal

LOG = """
import logging
from broker.commandline import say
from broker.journal import set_up_logging
set_up_logging(verbose={verbose})
say("the broker is back")
log = logging.getLogger("a")
log.debug("small"); log.info("one\\ntwo"); log.warning("odd")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bad")
"""


def logged(path: Path, *, journal: bool, verbose: bool = False, program: str = LOG) -> list[str]:
    """Give what a process writes to stderr, a file here."""
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        inode = found.st_ino if journal else found.st_ino + 1
        subprocess.run(
            [sys.executable, "-c", program.replace("{verbose}", str(verbose))],
            stderr=file,
            env=os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{inode}"},
            check=True,
            timeout=60,
        )
    return path.read_text().splitlines()


@pytest.mark.process
def test_every_line_in_the_journal_has_a_level(tmp_path: Path) -> None:
    """A traceback's, too; times and programs are the journal's own."""
    lines = logged(tmp_path / "log", journal=True, verbose=True)
    assert lines[:6] == ["<5>the broker is back", "<7>small", "<6>one", "<6>two", "<4>odd", "<3>bad"]
    assert lines[6].startswith("<3>Traceback")
    assert all(line.startswith("<3>") for line in lines[5:])


@pytest.mark.process
def test_trouble_is_a_warning_in_the_journal(tmp_path: Path) -> None:
    """So that `journalctl -p warning` shows it: what a service waits for, or has refused."""
    program = """
import signal, threading
from broker.commandline import say
from broker.aggregator.recovery import serve_with
from broker.errors import ConfigError, StoreLostError
from broker.servicing import Service
from broker.supervisor import Supervisor
stop = threading.Event()
def lost(): raise StoreLostError("the store is away")
def told(sentence): say(sentence); stop.set()
serve_with(lost, print, stop, told)
class Serving: state, reconfigure = "state", print
def load(): raise ConfigError("buffer is none")
service = Service(Supervisor({}), load, say)
service.listen()
signal.raise_signal(signal.SIGHUP)
service.each_round(Serving())
"""
    assert [line[:3] for line in logged(tmp_path / "log", journal=True, program=program)] == ["<4>", "<4>"]


@pytest.mark.process
def test_stream_that_was_redirected_is_for_people(tmp_path: Path) -> None:
    """Though the service runs under systemd."""
    lines = logged(tmp_path / "log", journal=False)
    assert lines[0] == "the broker is back"
    assert lines[1].endswith(" INFO one")
    assert not any(line.startswith("<") for line in lines)


def test_stream_that_is_closed_leads_nowhere(tmp_path: Path) -> None:
    """And no stream does."""
    with (tmp_path / "log").open("w") as file:
        found = os.fstat(file.fileno())
        environment = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert leads_to_journal(file, environment)
    assert not leads_to_journal(file, environment)
    assert not leads_to_journal(None, environment)
