"""What programs log: lines for people on a terminal or in a file, lines with a level for systemd's journal.

The journal takes a level from ``<N>`` at the beginning of a line (sd-daemon(3)), and knows the time and the
program by itself. ``JOURNAL_STREAM`` names the device and inode of the stream that leads there
(systemd.exec(5)): a stream that was redirected does not, whatever the environment says.
"""

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
"""Levels of syslog(3)."""
_PLAIN = "%(asctime)s %(levelname)s %(message)s"


def leads_to_journal(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether what is written to a stream reaches the journal."""
    try:
        found = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return found is not None and environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def marked(text: str, level: int) -> str:
    """Give a text as it is to be written to stderr: in the journal each of its lines has a level."""
    return _marked(text, level) if leads_to_journal(sys.stderr) else text


def _marked(text: str, level: int) -> str:
    return "\n".join(f"<{level}>{line}" for line in text.splitlines() or [""])


def set_up_logging(*, verbose: bool) -> None:
    """Let this process's log go to stderr."""
    handler = logging.StreamHandler()
    if leads_to_journal(sys.stderr):
        handler.setFormatter(_JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter(_PLAIN))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


class _JournalFormatter(logging.Formatter):
    """The message, its level in front of every line, a traceback's too."""

    def format(self, record: logging.LogRecord) -> str:
        level = DEBUG
        for least, each in ((logging.INFO, INFO), (logging.WARNING, WARNING), (logging.ERROR, ERROR)):
            level = each if record.levelno >= least else level
        return _marked(super().format(record), level)
