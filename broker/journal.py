"""What programs log: lines for people on a terminal or in a file, lines with a level for systemd's journal.

The journal takes a level from ``<N>`` at the beginning of a line (sd-daemon(3)), and knows the time and the
program by itself. As JSON each line is an object with ``time``, ``level``, ``message`` and the fields of what
happened, in the journal behind its level. ``JOURNAL_STREAM`` names the device and inode of the stream that
leads there (systemd.exec(5)): a stream that was redirected does not, whatever the environment says.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
"""Levels of syslog(3)."""
_NAMES = {ERROR: "error", WARNING: "warning", NOTICE: "notice", INFO: "info", DEBUG: "debug"}
_PLAIN = "%(asctime)s %(levelname)s %(message)s"


def leads_to_journal(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether what is written to a stream reaches the journal."""
    try:
        found = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return found is not None and environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Trouble(str):
    """A sentence about what somebody may have to mend: in the journal a warning, not a notice."""

    __slots__ = ()


def marked(text: str, level: int) -> str:
    """Give a text as it is to be written to stderr: in the journal each of its lines has a level."""
    if _Form.json:
        text = _object(text, level, time.time(), {})
    return _marked(text, level) if leads_to_journal(sys.stderr) else text


def _marked(text: str, level: int) -> str:
    return "\n".join(f"<{level}>{line}" for line in text.splitlines() or [""])


class _Form:
    """How this process writes to stderr; of the process, as stderr is."""

    json = False


def _object(text: str, level: int, at: float, fields: Mapping[str, object]) -> str:
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    facts = {"time": when, "level": _NAMES[level], "message": text, **fields}
    return json.dumps(facts, ensure_ascii=False, default=str)


def set_level(name: str) -> None:
    """Set the least that is logged: debug, info, warning or error."""
    logging.getLogger().setLevel(name.upper())


def set_up_logging(*, verbose: bool, form: str = "text") -> None:
    """Let this process's log go to stderr, as ``text`` or as ``json``."""
    _Form.json = form == "json"
    handler = logging.StreamHandler()
    if _Form.json:
        handler.setFormatter(_JsonFormatter())
    elif leads_to_journal(sys.stderr):
        handler.setFormatter(_JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter(_PLAIN))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def _level_of(record: logging.LogRecord) -> int:
    level = DEBUG
    for least, each in ((logging.INFO, INFO), (logging.WARNING, WARNING), (logging.ERROR, ERROR)):
        level = each if record.levelno >= least else level
    return level


_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _JsonFormatter(logging.Formatter):
    """One object a line; what a call gave as ``extra`` are its fields."""

    def format(self, record: logging.LogRecord) -> str:
        level = _level_of(record)
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        fields["logger"] = record.name
        line = _object(record.getMessage(), level, record.created, fields)
        return _marked(line, level) if leads_to_journal(sys.stderr) else line


class _JournalFormatter(logging.Formatter):
    """The message, its level in front of every line, a traceback's too."""

    def format(self, record: logging.LogRecord) -> str:
        level = _level_of(record)
        return _marked(super().format(record), level)
