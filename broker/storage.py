"""A directory of ours: made, locked against a second process, and its failures named.

Both programs that keep a directory (aggregator and device) use it. It does not know what is inside.
"""

import errno
import fcntl
import os
import pwd
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from broker.errors import (
    CorruptError,
    DiskFullError,
    FileUnreadableError,
    InUseError,
    NotInitialisedError,
    NotWritableError,
    PFedRecError,
)

SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Of a database's files: itself, and what SQLite keeps beside it."""
_LOCK_NAME = "lock"
_NEARLY_NOTHING_BYTES = 64 * 1024
_SQLITE_CODE_MASK = 0xFF
"""Extended result codes carry the primary one in their low byte (sqlite.org/rescode.html)."""
_BUSY_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.02


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Turn what the file system and SQLite raise about `path` into errors with one clear sentence.

    Raises
    ------
    DiskFullError, NotWritableError, CorruptError, InUseError
    """
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_failure(error, path) from error
    except OSError as error:
        raise os_failure(error, path) from error


def os_failure(error: OSError, path: Path | None) -> PFedRecError:
    """Give the named error for what the operating system said about `path` (None: as the error says)."""
    path = path or Path(str(error.filename or "the output"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return NotWritableError(f"{path} cannot be written: {reason.lower()}; choose another directory")


def _disk_full(path: Path) -> DiskFullError:
    return DiskFullError(f"no space is left for {path}; free some and start again, nothing was lost")


def sqlite_failure(error: sqlite3.Error, path: Path) -> PFedRecError:
    """Give the named error for what SQLite raised about the database `path`."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _SQLITE_CODE_MASK
    match code:
        case sqlite3.SQLITE_FULL:
            return _disk_full(path)
        case sqlite3.SQLITE_IOERR if _free_bytes(path) < _NEARLY_NOTHING_BYTES:
            return _disk_full(path)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CorruptError(
                f"{path} is damaged ({error}); restore it from a backup or init a new directory"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return InUseError(f"{path} is locked by another process; end it or wait, then call again")
    if _is_read_only(path):
        return NotWritableError(
            f"{path} cannot be used: its file system is read-only; mount it writable (mount -o remount,rw), "
            "or copy the directory to another one and use that"
        )
    return NotWritableError(f"{path} cannot be used: {error}; check the directory and its permissions")


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0


def make_directory(path: Path) -> None:
    """Make `path` and its parents where missing, and prove that a file can be written in it.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    with named_failures(path):
        made = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for each in reversed(made):
            _give_to_owner(each)
            # Or a power failure may take the directory with all that was synced in it.
            sync_directory(each.parent)
        probe = path / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"pfedrec")
        finally:
            probe.unlink(missing_ok=True)


def require_initialised(path: Path, marker: str, command: str) -> None:
    """Check that `path` holds the file `marker`, which ``init`` writes last.

    Raises
    ------
    NotInitialisedError
        With the command to run.
    """
    try:
        there = (path / marker).is_file()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise FileUnreadableError(f"{path / marker} cannot be read: {reason}; call as its owner") from error
    if not there:
        raise NotInitialisedError(f"{path} has no {marker}; set the directory up with: {command}")


def user_name(uid: int) -> str:
    """Give a user's name, the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def require_database(path: Path, remedy: str = "restore it from a backup or init a new directory") -> None:
    """Check that a directory that was set up still has its database.

    Raises
    ------
    CorruptError
        When it is missing or empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise CorruptError(f"{path} is missing or empty; {remedy}")


_SHORT_WAITS_S = (0.01, 0.05, 0.1, 0.0)
"""A few tries, as `is_in_use` holds the lock for a moment."""


def _lock(
    handle: int, sentence: str, kind: int = fcntl.LOCK_EX, waits_s: Iterable[float] = _SHORT_WAITS_S
) -> None:
    for wait_s in waits_s:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(wait_s)
        else:
            return
    raise InUseError(sentence)


@contextmanager
def exclusive(path: Path, *, with_others: bool = False) -> Iterator[None]:
    """Hold the directory's lock; it ends with the process, however that ends.

    Parameters
    ----------
    with_others : bool
        Share it with those who do the same; who wants it alone is kept out all the same.

    Raises
    ------
    InUseError
        When another process holds it.
    DiskFullError, NotWritableError
    """
    sentence = f"{path} is in use by another process; end that one first"
    with lock_file(path / _LOCK_NAME, sentence, shared=with_others):
        yield


@contextmanager
def lock_file(path: Path, sentence: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is made; it ends with the process, however that ends.

    Parameters
    ----------
    sentence : str
        What to say when another process holds it.
    shared : bool
        With others who share it, too.

    Raises
    ------
    InUseError
    DiskFullError, NotWritableError
    """
    with named_failures(path):
        _make_new(path, 0o644)
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(handle, sentence, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def hold(path: Path, *, shared: bool = False, wait_s: float | None = None) -> int:
    """Lock a directory as it is, without a file in it; give the handle, whose closing ends it.

    Parameters
    ----------
    shared : bool
        With others who share it, too.
    wait_s : float, optional
        How long to wait for others in seconds; a moment unless given.

    Raises
    ------
    InUseError
        When another process, or another handle of this one, holds it.
    NotWritableError
    """
    waits_s = _SHORT_WAITS_S if wait_s is None else [_LOCK_POLL_S] * max(1, round(wait_s / _LOCK_POLL_S))
    with named_failures(path):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sentence = f"{path} is in use by another process; end that one first"
        _lock(handle, sentence, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waits_s)
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_in_use(path: Path) -> bool:
    """Tell whether a process holds the directory's lock: a look, which may be out of date at once."""
    try:
        with exclusive(path):
            return False
    except InUseError:
        return True


def read_file(path: Path) -> bytes:
    """Read a file that the user named.

    Raises
    ------
    FileUnreadableError
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def open_file(path: Path) -> BinaryIO:
    """Open a file that the user named, which may be too large to be read at once.

    Raises
    ------
    FileUnreadableError
        When it is none; a folder, too.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FileUnreadableError:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return FileUnreadableError(f"{path} cannot be read: {reason}")


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` whole or not at all, durably; see `replacing`.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Replace `path` by what the block writes, whole or, if the block fails, not at all; durably.

    What root writes belongs to the directory's owner: a service that runs as that user has to read it.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with named_failures(path):
        if path.exists() and not path.is_file():
            raise NotWritableError(f"{path} is no regular file, and is not replaced by one; name another")
        try:
            temporary.unlink(missing_ok=True)
            _make_new(temporary, mode)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make what was done to a file, its length too, outlive a power failure; none if there is no such file.

    Raises
    ------
    NotWritableError, DiskFullError
    """
    with named_failures(path), suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_directory(path: Path) -> None:
    """Make what was made, renamed or removed in `path` outlive a power failure, where the file system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_private(path: Path) -> None:
    """Make a file that only this user can read where there is none; SQLite's own would be for all.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    if str(path) != ":memory:":
        with named_failures(path):
            _make_new(path, 0o600)


def _make_new(path: Path, mode: int) -> None:
    """Make an empty file where there is none; as root, for the directory's owner."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return
    try:
        _give_to_owner(path, handle)
    finally:
        os.close(handle)


def _give_to_owner(path: Path, handle: int | None = None) -> None:
    """As root, give what was just made to the owner of the directory that it is in, where that can be."""
    if os.geteuid() != 0:
        return
    directory = path.parent.stat()
    with suppress(OSError):  # some file systems have no owners, some containers' root may not change them
        if handle is None:
            os.chown(path, directory.st_uid, directory.st_gid, follow_symlinks=False)
        else:
            os.fchown(handle, directory.st_uid, directory.st_gid)


def connect_sqlite(path: Path, page_bytes: int = 4096) -> sqlite3.Connection:
    """Open a database in WAL mode with full durability; transactions are begun by hand.

    Parameters
    ----------
    page_bytes : int
        Of a database that is made; one that is there keeps its own.

    Raises
    ------
    CorruptError, DiskFullError, InUseError, NotWritableError
    """
    with named_failures(path):
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA page_size = {page_bytes}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
    return connection
