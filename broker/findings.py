"""What an examination finds: one `Finding` a check, and what to do about it.

Nothing here looks at anything; ``edge-client doctor`` and ``edge-aggregator doctor`` do.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    UNCHECKED = "unchecked"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it (empty: nothing)."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """Give a finding that asks for nothing."""
    return Finding(check=check, level=Level.OK, found=found)


def unchecked(check: str, found: str) -> Finding:
    """Give a finding about what could not be looked at."""
    return Finding(check=check, level=Level.UNCHECKED, found=found)


def note(check: str, found: str, remedy: str) -> Finding:
    """Give a finding that may be left as it is."""
    return Finding(check=check, level=Level.NOTE, found=found, remedy=remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    """Give a finding that something must be done about."""
    return Finding(check=check, level=Level.PROBLEM, found=found, remedy=remedy)
