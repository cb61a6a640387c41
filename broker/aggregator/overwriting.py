"""What the commands that write a file for the operator may write over: nothing but their own kind.

They put a new file in the place of the old one. That would take a lock from who holds it, a pipe from who
reads it and a device from the whole machine; so what is there has to be a file that such a command has
written.
"""

import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote
from zipfile import BadZipFile, ZipFile

from broker.aggregator.directory import CONFIG_NAME
from broker.errors import InputError
from broker.storage import SQLITE_SUFFIXES, named_failures

_LINE_BYTES = 1 << 20
_TABLES = {"migrations", "facts", "versions", "catalogue", "journal"}
"""Of every release's backup."""


def require_replaceable(path: Path, is_earlier: Callable[[Path], bool], what: str) -> Path:
    """Refuse to write over what is there unless it is an earlier file of the same kind; give where to write.

    A symbolic link is followed: what it points to has to be such a file, and is replaced; the link stays.

    Parameters
    ----------
    is_earlier : callable
        Tells whether a regular file is of the kind.
    what : str
        What to call one that is not.

    Raises
    ------
    InputError
        Nothing was opened but a regular file.
    NotWritableError
        When that cannot be read.
    """
    with named_failures(path):
        if not path.exists():
            found = "a link to nothing" if path.is_symlink() else None
        elif not path.is_file():
            found = "no regular file"
        else:
            found = None if is_earlier(path) else what
    if found is not None:
        raise InputError(f"{path} is there, and is {found}; name another file; nothing was written")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def clear_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left of `path`: ``.NAME.PID``, and SQLite's beside it."""
    suffixes = "|".join(map(re.escape, SQLITE_SUFFIXES))
    form = re.compile(rf"\.{re.escape(path.name)}\.([0-9]{{1,9}})({suffixes})")
    with suppress(OSError):  # whoever cannot see or remove them can write all the same, or is told why not
        for each in path.parent.iterdir():
            found = form.fullmatch(each.name)
            if found and (int(found[1]) == os.getpid() or not _is_running(int(found[1]))):
                each.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def is_backup(path: Path) -> bool:
    """Tell whether it is a database with a fleet's tables."""
    try:
        # Nothing is written beside it.
        with closing(sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)) as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            return {name for (name,) in connection.execute(query)} >= _TABLES
    except sqlite3.Error:
        return False


def is_table_file(path: Path) -> bool:
    """Tell whether it has a table's two arrays, by their names, and nothing else."""
    with suppress(BadZipFile), ZipFile(path) as archive:
        return {"E.npy", "item_keys.npy"} == set(archive.namelist())
    return False


def is_rounds_file(path: Path) -> bool:
    """Tell whether its first line is a round's; an empty one is that of a fleet without rounds.

    In an aggregator's directory an empty file is the directory's: its lock, or a list.
    """
    if path.stat().st_size == 0:
        real = Path(os.path.realpath(path))
        return not any((above / CONFIG_NAME).exists() for above in (real.parent, real.parent.parent))
    with path.open("rb") as file, suppress(ValueError):
        found = json.loads(file.readline(_LINE_BYTES))
        return isinstance(found, dict) and {"version", "sha256"} <= found.keys()
    return False
