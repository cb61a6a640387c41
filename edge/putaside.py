"""Putting a damaged database aside, and another in its place: never deleted, never half done.

The new database is first made whole and durable under the name ``NAME.rebuilt-TIME``. From then on whoever
opens the directory finishes what is left, a few renames, in an order that can be cut off anywhere:

1. the damaged file becomes ``NAME.damaged-TIME``, its write-ahead log, if anything
   is in it, ``NAME.damaged-TIME-wal``;
2. durably: a log of the old database would be played into the new one;
3. ``NAME.rebuilt-TIME`` becomes ``NAME``.
"""

import time
from pathlib import Path

from broker.storage import named_failures, sync_directory

_REBUILT, _DAMAGED = ".rebuilt-", ".damaged-"


def stamp(now: float) -> str:
    """Give the time of a rebuild as it stands in names: UTC, to the second."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))


def rebuilt_name(database: Path, moment: str) -> Path:
    """Give the name of the database that is to take the place of the damaged one; free at this moment."""
    number = 1
    while True:
        suffix = moment if number == 1 else f"{moment}-{number}"
        if not database.with_name(f"{database.name}{_DAMAGED}{suffix}").exists():
            return database.with_name(f"{database.name}{_REBUILT}{suffix}")
        number += 1


def damaged_files(database: Path) -> list[Path]:
    """Give what was put aside, the oldest first."""
    return sorted(database.parent.glob(f"{database.name}{_DAMAGED}*"))


def unfinished(database: Path) -> list[Path]:
    """Give databases that are whole and wait for their name."""
    return sorted(database.parent.glob(f"{database.name}{_REBUILT}*"))


def finish(database: Path) -> Path | None:
    """Put the damaged database aside and the new one in its place; give the new name of the damaged one.

    None if nothing waits. The caller keeps everybody else from opening it.

    Raises
    ------
    NotWritableError, DiskFullError
    """
    aside: Path | None = None
    with named_failures(database):
        for rebuilt in unfinished(database):
            suffix = rebuilt.name.removeprefix(f"{database.name}{_REBUILT}")
            aside = database.with_name(f"{database.name}{_DAMAGED}{suffix}")
            if database.exists():
                database.rename(aside)
            log = database.with_name(f"{database.name}-wal")
            if log.exists() and log.stat().st_size:
                log.rename(aside.with_name(f"{aside.name}-wal"))
            log.unlink(missing_ok=True)
            database.with_name(f"{database.name}-shm").unlink(missing_ok=True)
            sync_directory(database.parent)
            rebuilt.rename(database)
            sync_directory(database.parent)
    return aside
