"""Directories and files of ours: locked, whole or not at all, and every failure one sentence."""

import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from broker.aggregator.decisions import CloseRound, Journal
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.sqlite import SqliteStore
from broker.errors import (
    CorruptError,
    DiskFullError,
    FileUnreadableError,
    InUseError,
    NotInitialisedError,
    NotWritableError,
)
from broker.storage import (
    connect_sqlite,
    exclusive,
    is_in_use,
    make_directory,
    named_failures,
    os_failure,
    read_file,
    require_initialised,
    sqlite_failure,
    write_atomically,
)
from tests.broker.aggregator.builders import a_genesis, a_round, an_entry

NOBODY = 65534

HOLDER = """
import sys
from pathlib import Path
from broker.storage import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let a second process hold the lock of a directory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Give up root's rights, where the tests have them, for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


# --- the lock ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_directory_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    """Two processes never work in one directory."""
    with held_by_another_process(tmp_path):
        assert is_in_use(tmp_path)
        with pytest.raises(InUseError, match="in use by another process"), exclusive(tmp_path):
            pytest.fail("the lock was given twice")


@pytest.mark.process
@pytest.mark.parametrize("way", ["SIGKILL", "end"])
def test_lock_ends_with_its_process(tmp_path: Path, way: str) -> None:
    """However the process ends, the directory is free afterwards."""
    with held_by_another_process(tmp_path) as holder:
        if way == "SIGKILL":
            holder.send_signal(signal.SIGKILL)
        else:
            assert holder.stdin is not None
            holder.stdin.close()
        holder.wait(timeout=30)

        assert not is_in_use(tmp_path)
        with exclusive(tmp_path):
            pass


def test_lock_can_be_taken_again_after_the_block(tmp_path: Path) -> None:
    """The block's end frees it, also by an exception."""
    with exclusive(tmp_path):
        assert is_in_use(tmp_path)
    assert not is_in_use(tmp_path)
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        _ = 1 / 0
    assert not is_in_use(tmp_path)


def test_lock_of_a_missing_directory_cannot_be_taken(tmp_path: Path) -> None:
    """There is nothing to lock."""
    with pytest.raises(NotWritableError, match="no such file"), exclusive(tmp_path / "missing"):
        pytest.fail("there is no such directory")


# --- directories and files ---------------------------------------------------------------------------


def test_directory_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    """The probe that proves it writable does not stay."""
    path = tmp_path / "a" / "b"

    make_directory(path)
    make_directory(path)

    assert list(path.iterdir()) == []


def test_directory_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    """The sentence names the path and the reason."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(
        NotWritableError, match=r"file/below cannot be written: not a directory; choose another"
    ):
        make_directory(tmp_path / "file" / "below")


def test_directory_in_the_place_of_a_file_cannot_be_made(tmp_path: Path) -> None:
    """A file is no directory."""
    (tmp_path / "file").write_bytes(b"kept")

    with pytest.raises(NotWritableError, match="file exists"):
        make_directory(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"kept"


def test_directory_without_permission_cannot_be_used(tmp_path: Path) -> None:
    """A directory of somebody else is named."""
    tmp_path.chmod(0o500)

    with as_an_ordinary_user(), pytest.raises(NotWritableError, match="permission denied"):
        make_directory(tmp_path)


def test_directory_without_its_marker_names_the_command(tmp_path: Path) -> None:
    """Whoever forgot `init` is told which command to run; a directory of that name is no marker."""
    (tmp_path / "marker").mkdir()

    with pytest.raises(NotInitialisedError, match="has no marker; set the directory up with: do this"):
        require_initialised(tmp_path, "marker", "do this")


def test_directory_with_its_marker_is_initialised(tmp_path: Path) -> None:
    """The file that `init` writes last is all that counts."""
    (tmp_path / "marker").write_bytes(b"")

    require_initialised(tmp_path, "marker", "do this")


@pytest.mark.parametrize(("name", "reason"), [("missing", "no such file"), (".", "is a directory")])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """What the user named is in the sentence, with the reason."""
    with pytest.raises(FileUnreadableError, match=reason):
        read_file(tmp_path / name)


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """Only the new content is there afterwards, and nothing else."""
    path = tmp_path / "file"
    path.write_bytes(b"a much longer content than before")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_atomic_write_sets_the_mode(tmp_path: Path, mode: int) -> None:
    """A file with a secret is never readable by others, not even for a moment."""
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"x", mode=mode)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_atomic_write_that_fails_keeps_the_old_file(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fails, the old content stays and no left-over does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(NotWritableError, match="input/output error"):
            write_atomically(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_into_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """It makes files, not directories."""
    with pytest.raises(NotWritableError):
        write_atomically(tmp_path / "missing" / "file", b"x")


# --- errors ------------------------------------------------------------------------------------------


def test_atomic_write_does_not_take_the_place_of_a_pipe(tmp_path: Path) -> None:
    """Or of a device, as in ``--out /dev/stdout``: the file would be there for the whole machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)

    for path in (pipe, link):
        with pytest.raises(NotWritableError, match=f"{path} is no regular file"):
            write_atomically(path, b"x")

    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_named_failures_lets_everything_else_pass(tmp_path: Path) -> None:
    """Only what the system says about a path is translated."""
    with pytest.raises(ZeroDivisionError), named_failures(tmp_path):
        _ = 1 / 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_a_full_disk(number: int) -> None:
    """Both mean that something must be freed."""
    error = os_failure(OSError(number, "x"), Path("dir"))

    assert isinstance(error, DiskFullError)
    assert "dir" in str(error)


def test_os_failure_without_a_path_takes_the_errors_own() -> None:
    """At the top of a program nobody knows the path but the error."""
    assert "here/it" in str(os_failure(OSError(errno.EACCES, "x", "here/it"), None))
    assert "the output" in str(os_failure(OSError(errno.ENOSPC, "x"), None))


def test_os_failure_without_a_number_says_what_it_says() -> None:
    """Some errors carry a text only."""
    assert "odd thing" in str(os_failure(OSError("odd thing"), Path("dir")))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, DiskFullError),
        (sqlite3.SQLITE_CORRUPT, CorruptError),
        (sqlite3.SQLITE_CORRUPT_INDEX, CorruptError),
        (sqlite3.SQLITE_NOTADB, CorruptError),
        (sqlite3.SQLITE_BUSY, InUseError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, InUseError),
        (sqlite3.SQLITE_LOCKED, InUseError),
        (sqlite3.SQLITE_READONLY, NotWritableError),
        (sqlite3.SQLITE_CANTOPEN, NotWritableError),
        (sqlite3.SQLITE_IOERR_WRITE, NotWritableError),
        (None, NotWritableError),
    ],
)
def test_sqlites_codes_have_names(tmp_path: Path, code: int | None, kind: type[Exception]) -> None:
    """Primary and extended codes alike; what has none is about the file in general."""
    error = sqlite3.OperationalError("what SQLite says")
    if code is not None:
        error.sqlite_errorcode = code

    named = sqlite_failure(error, tmp_path / "state.sqlite3")

    assert type(named) is kind
    assert "state.sqlite3" in str(named)


def test_io_error_where_the_space_is_unknown_is_a_full_disk(tmp_path: Path) -> None:
    """SQLite reports some full disks as I/O errors; a vanished directory has no space either."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE

    assert isinstance(sqlite_failure(error, tmp_path / "gone" / "state.sqlite3"), DiskFullError)


# --- databases ---------------------------------------------------------------------------------------


def test_database_is_opened_for_durability(tmp_path: Path) -> None:
    """A write-ahead log, synced at every commit, and foreign keys that hold."""
    with closing(connect_sqlite(tmp_path / "state.sqlite3")) as connection:
        asked = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS]

    assert dict(zip(PRAGMAS, asked, strict=True)) == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    """Its name and what SQLite says are in the sentence."""
    path = tmp_path / "state.sqlite3"
    path.write_bytes(b"text" * 100)

    with pytest.raises(CorruptError, match=r"state\.sqlite3 is damaged .*backup"):
        connect_sqlite(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be kept out of what was root's")
def test_directory_that_may_not_be_looked_into_is_said(tmp_path: Path) -> None:
    """It is not written to."""
    path = tmp_path / "secret"
    path.mkdir(mode=0o700)

    with as_an_ordinary_user(), pytest.raises(FileUnreadableError, match="marker cannot be read: permission"):
        require_initialised(path, "marker", "do this")


# --- a service that is not root, and an administrator who is --------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_root_makes_belongs_to_the_directorys_owner(tmp_path: Path) -> None:
    """A service that runs as that user would not be able to read it."""
    ours = tmp_path / "ours"
    ours.mkdir()
    os.chown(ours, NOBODY, NOBODY)
    (ours / "roots").touch(mode=0o600)

    make_directory(ours / "new" / "folder")
    write_atomically(ours / "new" / "secret", b"x", mode=0o600)
    write_atomically(ours / "roots", b"x", mode=0o600)
    with exclusive(ours):
        pass
    SqliteStore(ours / "state.sqlite3").close()

    assert {path.name: path.stat().st_uid for path in ours.rglob("*")} == dict.fromkeys(
        ["new", "folder", "secret", "roots", "lock", "state.sqlite3"], NOBODY
    )


# --- a disk that is really full ----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount the small file system that this fills")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.decode().strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill_up(disk: Path) -> Path:
    """Leave not a byte free; give the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for _ in range(4096):
            try:
                file.write(bytes(4096))
            except OSError:
                return ballast
    pytest.fail("the small disk is larger than it should be")


@pytest.mark.root
def test_directory_on_a_full_disk_is_not_made(small_disk: Path) -> None:
    """A directory in which nothing can be written is of no use."""
    fill_up(small_disk)

    with pytest.raises(DiskFullError, match="no space is left"):
        make_directory(small_disk / "dir")

    assert list((small_disk / "dir").iterdir()) == []


@pytest.mark.root
def test_atomic_write_on_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    """The old content survives, and no half of the new one stays behind."""
    path = small_disk / "file"
    path.write_bytes(b"old")
    ballast = fill_up(small_disk)

    with pytest.raises(DiskFullError):
        write_atomically(path, b"new" * 10_000)

    assert path.read_bytes() == b"old"
    assert sorted(small_disk.iterdir()) == [ballast, path]
    ballast.unlink()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.root
def test_database_on_a_full_disk_cannot_be_made(small_disk: Path) -> None:
    """No space for the first page is a full disk, not a damaged database."""
    fill_up(small_disk)

    with pytest.raises(DiskFullError):
        SqliteStore(small_disk / "state.sqlite3")


@pytest.mark.root
def test_commit_on_a_full_disk_changes_nothing(small_disk: Path) -> None:
    """What could not be stored is not there, what was is, and with space the store goes on."""
    path = small_disk / "state.sqlite3"
    store = SqliteStore(path)
    store.initialise(a_genesis())
    store.commit(Batch(commands=[Journal(an_entry(seq=1))], closed_at=0.0))
    ballast = fill_up(small_disk)
    devices = [f"device-{number:050}" for number in range(2_000)]

    with pytest.raises(DiskFullError, match="free some and start again"):
        store.commit(
            Batch(commands=[Journal(an_entry(seq=2)), CloseRound(a_round(1))], devices=devices, closed_at=0.0)
        )

    assert store.load().version == 0
    assert store.load().seen == set()
    assert [update.seq for update, _, _ in store.pending()] == [1]
    ballast.unlink()
    store.commit(Batch(commands=[Journal(an_entry(seq=2)), CloseRound(a_round(1))], closed_at=0.0))
    store.close()
    reopened = SqliteStore(path)
    assert reopened.load().version == 1
    assert reopened.ledger().counted == 2
    reopened.close()
