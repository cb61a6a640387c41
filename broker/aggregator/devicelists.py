"""The operator's lists of devices in a directory, an id a line: ``blocked.txt``, ``allowed.txt``.

Commands write them, people may as well; a running aggregator follows them within a second.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from broker.aggregator.admission import Admission
from broker.errors import ConfigError, FileUnreadableError
from broker.protocol.topics import checked_id
from broker.storage import hold, named_failures, read_file, sync_directory, write_atomically
from trainer.errors import ParameterError

BLOCKED_NAME = "blocked.txt"
ALLOWED_NAME = "allowed.txt"
_LOCK_WAIT_S = 10.0


def read_list(path: Path) -> frozenset[str] | None:
    """Read a list; None if there is no file.

    Raises
    ------
    ConfigError
        When a line is no device's id, or the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        lines = read_file(path).decode().split("\n")
        ids = (line.strip() for line in lines)
        return frozenset(
            checked_id(each, "the device id") for each in ids if each and not each.startswith("#")
        )
    except (FileUnreadableError, UnicodeDecodeError, ParameterError) as error:
        raise ConfigError(f"{path}: {error}") from error


def remove_list(path: Path) -> None:
    """Remove a list, if there is one.

    Raises
    ------
    NotWritableError, InUseError
    """
    held = hold(path.parent, wait_s=_LOCK_WAIT_S)
    try:
        with named_failures(path):
            path.unlink(missing_ok=True)
        sync_directory(path.parent)
    finally:
        os.close(held)


def change_list(path: Path, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> int | None:
    """Change a list, made where something is added; give its new length, None if there is none.

    Raises
    ------
    ConfigError, NotWritableError, DiskFullError, InUseError
    """
    held = hold(path.parent, wait_s=_LOCK_WAIT_S)
    try:
        before, added = read_list(path), set(add)
        if before is None and not added:
            return None  # an empty list is another thing
        ids = ((before or frozenset()) | added) - set(remove)
        write_atomically(path, "".join(f"{each}\n" for each in sorted(ids)).encode())
    finally:
        os.close(held)
    return len(ids)


class FollowedLists:
    """Keeps an `Admission` as the files say."""

    def __init__(self, directory: Path) -> None:
        self._paths = directory / BLOCKED_NAME, directory / ALLOWED_NAME
        self._seen: tuple[tuple[int, int, int], ...] | None = None

    def follow(self, admission: Admission) -> bool:
        """Take the lists over if they have changed; tell whether they had.

        Raises
        ------
        ConfigError
            When one cannot be read; the lists before stay, and the next change is looked at.
        """
        seen = tuple(map(_look, self._paths))
        if seen == self._seen:
            return False
        self._seen = seen
        blocked, allowed = map(read_list, self._paths)
        admission.blocked, admission.allowed = blocked or frozenset(), allowed
        return True


def _look(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
