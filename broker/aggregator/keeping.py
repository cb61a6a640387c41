"""What an operator does to a store beside serving it: backups, returning to a version, tables in and out.

Versions only ever grow, as devices refuse nothing else: a rollback and a restore are versions of their own.
"""

import io
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from broker.aggregator.catalogue_changes import rolled_back
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import CONFIG_NAME, DATABASE_NAME, open_store, serving, store_of
from broker.aggregator.overwriting import clear_abandoned, is_backup, require_replaceable
from broker.aggregator.store.copying import copy, replace_all
from broker.aggregator.store.interface import Decree, KeptTable
from broker.aggregator.store.schema import APPLIED
from broker.aggregator.store.sql import SqlStore
from broker.aggregator.store.sqlite import SqliteStore
from broker.aggregator.store.statements import fact
from broker.errors import CorruptError, DataError, FileUnreadableError, InputError
from broker.protocol.catalogue import Catalogue
from broker.storage import (
    SQLITE_SUFFIXES,
    named_failures,
    read_file,
    sqlite_failure,
    sync_directory,
    sync_file,
    write_atomically,
)
from trainer.errors import ParameterError
from trainer.params import Floats

_COPIED_BYTES = 1 << 20
LOST_VERSIONS = 1_000_000
"""More rounds and connections than a fleet has between a backup and the loss of what it is restored for."""
_LONGEST_S = 10 * 365 * 86_400
"""Between a backup and its restoration, for all that a clock may say."""
_COPY_PREFIX = ".restore-"
_LAST_RESTORE = "last-restore.json"
"""In the directory: the numbers that the last one came to."""


def back_up(store: SqlStore, path: Path) -> int:
    """Write a store into a SQLite file, whole or not at all; give the newest version in it.

    Raises
    ------
    InputError
        When the file is the store's own, or there and no backup.
    CorruptError, DiskFullError, InUseError, NotWritableError, StoreLostError
    """
    path = _require_another(store, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    clear_abandoned(path)
    try:
        with named_failures(path):
            # What is in it is nobody else's business: make the file before SQLite does.
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        with closing(SqliteStore(temporary)) as target:
            copy(store, target)
            version = target.load().version
        sync_file(temporary)
        with named_failures(path):
            temporary.replace(path)
        sync_directory(path.parent)
    finally:
        for suffix in SQLITE_SUFFIXES:
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    return version


def _require_another(store: SqlStore, path: Path) -> Path:
    """Refuse a file of the store's own, by whatever name, and any other that is no backup; give the file.

    Who serves a store would go on writing what is gone.
    """
    own_files = (
        [store.path.with_name(store.path.name + suffix) for suffix in SQLITE_SUFFIXES]
        if isinstance(store, SqliteStore)
        else []
    )
    with named_failures(path):
        for own in own_files:
            is_same = path.exists() and own.exists() and path.samefile(own)
            if is_same or os.path.realpath(path) == os.path.realpath(own):
                raise InputError(f"{path} is the store itself; name another file for its backup")
        real = Path(os.path.realpath(path))
        if real.name == DATABASE_NAME and real.with_name(CONFIG_NAME).exists():
            raise InputError(f"{path} is an aggregator's store; name another file for the backup")
    return require_replaceable(path, is_backup, "no backup")


def restore(
    directory: Path, config: AggregatorConfig, backup: Path, now: float, *, another_fleet: bool = False
) -> tuple[int, int]:
    """Replace a directory's store by a backup; give the backup's newest version and the one made of it.

    Devices may have seen versions that the backup does not know. So the restored table becomes a version
    above all that can have been: devices take it, and updates made from lost versions are rejected.

    Parameters
    ----------
    another_fleet : bool
        Also where the store was used by another fleet than the backup's.

    Raises
    ------
    InputError
        When it was, without that; nothing is changed.
    FileUnreadableError, CorruptError, NewerVersionError
        About the backup; nothing is changed.
    DiskFullError, InUseError, NotWritableError, StoreLostError
    """
    with _opened_copy(backup, directory) as source:
        loaded = source.load()
        kept = source.kept_table(loaded.version)
        if kept is None:
            raise CorruptError(f"{backup} lacks its newest table; name another backup")
        found = _target(directory, config, backup, loaded.instance, another_fleet=another_fleet)
        with closing(found) as target, serving(target):
            first = _Numbers(loaded.instance, loaded.version, _session_of(source))
            numbers = _numbers_above(directory, target, first, now - _made_at(source))
            version = numbers.version
            # First, so that these numbers are not given again, whatever becomes of the store.
            write_atomically(directory / _LAST_RESTORE, json.dumps(asdict(numbers)).encode())
            decree = Decree(
                version=version,
                kind="restore",
                kept=kept,
                decreed_at=now,
                source=loaded.version,
                sessions=numbers.session - first.session,
            )
            with source.transaction(reading=True) as reading, target.transaction() as writing:
                replace_all(source, reading, writing)
                target.decree_within(writing, decree)
    return loaded.version, version


@contextmanager
def _opened_copy(backup: Path, directory: Path) -> Iterator[SqlStore]:
    """Open a copy of a backup, in `directory` for a while.

    Opening brings a database to this release's shape. A backup must stay what it was: it is the way back to
    the release that wrote it, and may lie where nothing can be written.
    """
    if not backup.is_file():
        raise FileUnreadableError(f"{backup} is no file; name what edge-aggregator backup has written")
    if backup.stat().st_size == 0:
        raise CorruptError(f"{backup} is empty; name another backup")
    for left in directory.glob(f"{_COPY_PREFIX}*"):  # by one that was killed, as we are alone here
        shutil.rmtree(left, ignore_errors=True)
    with named_failures(directory), TemporaryDirectory(prefix=_COPY_PREFIX, dir=directory) as folder:
        copied = Path(folder) / DATABASE_NAME
        # With its log, where something has opened it, or it is a copy of a store that was served.
        for suffix in ("", "-wal"):
            if (part := backup.with_name(backup.name + suffix)).is_file():
                with _readable(part) as reading, copied.with_name(copied.name + suffix).open("wb") as writing:
                    shutil.copyfileobj(reading, writing, _COPIED_BYTES)
        _require_sound(copied, backup)
        with closing(SqliteStore(copied, name=str(backup))) as store:
            yield store


def _readable(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FileUnreadableError(
            f"{path} cannot be read: {os.strerror(error.errno or 0).lower()}"
        ) from error


def _require_sound(copied: Path, backup: Path) -> None:
    found, tables = _examined(copied)
    if found != "ok":
        raise CorruptError(f"{backup} is damaged ({found}); name another backup; nothing was changed")
    if APPLIED.name not in tables:
        raise CorruptError(f"{backup} holds no fleet; name what edge-aggregator backup has written")


def _examined(database: Path) -> tuple[str, set[str]]:
    """Give ``ok`` or what SQLite finds wrong, and the names of the tables."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            # Below a heading, where something is wrong.
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0]).splitlines()[-1]
            return found, {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        if not isinstance(failure := sqlite_failure(error, database), CorruptError):
            raise failure from error
        return str(error), set()


def _target(
    directory: Path, config: AggregatorConfig, backup: Path, instance: int, *, another_fleet: bool
) -> SqlStore:
    """Open what a backup of `instance` is to replace; what is damaged, or another fleet's, is put aside."""
    why = "damaged"

    def is_replaceable(known: _Numbers | None) -> bool:
        """Tell whether the store was used by no other fleet, or may have been."""
        if known is None or known.instance == instance or not (known.version or known.session):
            return True
        if not another_fleet:
            raise InputError(
                f"{backup} is of another fleet (instance {instance}) than the store of {directory} "
                f"(instance {known.instance}, version {known.version}); name another backup, or add "
                "--another-fleet; nothing was changed"
            )
        return False

    if not config.store:
        # Before it is opened, which brings an earlier release's to this one's shape.
        is_replaceable(_numbers_in(directory / DATABASE_NAME))
    try:
        store = open_store(directory, config)
    except CorruptError:
        if config.store:
            raise
    else:
        if config.store or _examined(directory / DATABASE_NAME)[0] == "ok":
            try:
                if is_replaceable(_numbers_of(store)) or config.store:
                    return store
            except InputError:
                store.close()
                raise
            why = "replaced"
        store.close()
    _put_aside(directory, why)
    return store_of(directory, config)


def _put_aside(directory: Path, why: str) -> None:
    stamp = f".{why}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    # What was put aside within the same second stays, too.
    names = (f"{stamp}-{number}" if number else stamp for number in count())
    aside = next(name for name in names if not any(directory.glob(f"{DATABASE_NAME}{name}*")))
    for suffix in SQLITE_SUFFIXES:
        part = directory / f"{DATABASE_NAME}{suffix}"
        if part.exists():
            with named_failures(part):
                part.rename(directory / f"{DATABASE_NAME}{aside}{suffix}")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What only grows in an instance: the newest version and the newest connection."""

    instance: int
    version: int
    session: int


def _numbers_above(directory: Path, target: SqlStore, backup: _Numbers, elapsed_s: float) -> _Numbers:
    """Give numbers above all that devices may have seen.

    What the target knows is all there was. Where it cannot tell, fewer than `LOST_VERSIONS` have come since
    the restore before, which is noted in the directory. Where that is new, as the machine was lost, the time
    since the backup tells this restore from one on a machine before.
    """
    known, noted = _numbers_of(target), _last_restore(directory)
    if known is not None and known.instance != backup.instance:
        known = None
    if noted is None or noted.instance != backup.instance:
        noted = backup
    if known is not None and known.version >= noted.version:
        return _Numbers(
            backup.instance,
            max(known.version, backup.version) + 1,
            max(known.session, noted.session, backup.session) + LOST_VERSIONS,
        )
    later = int(min(max(elapsed_s, 0.0), _LONGEST_S))
    return _Numbers(
        backup.instance,
        max(noted.version, backup.version + later) + LOST_VERSIONS,
        max(noted.session, backup.session + later) + LOST_VERSIONS,
    )


def _numbers_of(store: SqlStore) -> _Numbers | None:
    with suppress(CorruptError):
        state = store.load()
        return _Numbers(state.instance, state.version, _session_of(store))
    return None


def _numbers_in(database: Path) -> _Numbers | None:
    """Read them from a file of any release, which stays as it is; None where that cannot be."""
    if not database.is_file():
        return None
    with suppress(sqlite3.Error, KeyError), closing(sqlite3.connect(database)) as connection:
        facts = dict(connection.execute("SELECT name, value FROM facts"))
        (version,) = connection.execute("SELECT max(version) FROM versions").fetchone()
        return _Numbers(facts["instance"], version or 0, facts["session"])
    return None


def _session_of(store: SqlStore) -> int:
    with store.transaction(reading=True) as connection:
        return fact(connection, "session")


def _made_at(store: SqlStore) -> float:
    """Give when a store's newest version was made; 0 for the first one, which does not say."""
    newest = store.rounds(1)
    return newest[0].closed_at if newest else 0.0


def _last_restore(directory: Path) -> _Numbers | None:
    with suppress(FileUnreadableError, ValueError, TypeError):
        found = _Numbers(**json.loads(read_file(directory / _LAST_RESTORE)))
        if all(isinstance(each, int) for each in asdict(found).values()):
            return found
    return None


def roll_back(store: SqlStore, version: int, now: float) -> int:
    """Make a new version whose table is an older one's; give its number.

    Rows that the catalogue got since stay as they are. Updates that wait are dropped, as by the guard.

    Raises
    ------
    ParameterError
        When the version's table is not kept any more, or is the newest.
    """
    newest = store.load()
    kept = store.kept_table(version)
    if version == newest.version or kept is None:
        versions = {record.version for record in store.rounds(100_000)} | {0}
        offered = [each for each in versions - {newest.version} if store.kept_table(each) is not None]
        raise ParameterError(
            f"version {version} cannot be returned to; {_offer(offered, version, newest.version)}"
        )
    table, memory = rolled_back(kept.table, kept.strategy_state, newest.table)
    made = newest.version + 1
    store.decree(
        Decree(
            version=made,
            kind="rollback",
            kept=KeptTable(table=table, strategy_state=memory),
            decreed_at=now,
            source=version,
        )
    )
    return made


def _offer(versions: Sequence[int], wanted: int, newest: int) -> str:
    if not versions:
        only = "it" if wanted == newest else f"version {newest}"
        return f"{only} is the only one that is kept"
    return f"version{'s' if len(versions) > 1 else ''} {_ranges(versions)} can"


def _ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges, in their order."""
    spans: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)


def table_file(table: Floats, catalogue: Catalogue) -> bytes:
    """Give a table as ``model.npz``: `E` (rows, dim) float32 and `item_keys` (rows,)."""
    content = io.BytesIO()
    np.savez(content, E=table, item_keys=np.array(catalogue.keys[: len(table)]))
    return content.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import did: the version made, rows taken, and keys of the file that the catalogue lacks."""

    version: int
    rows: int
    unknown: int


def import_table(store: SqlStore, path: Path, now: float) -> Imported:
    """Make a new version of the rows of a ``model.npz``, matched by key; all other rows stay as they are.

    Raises
    ------
    FileUnreadableError, DataError
        About the file; nothing is changed.
    """
    state = store.load()
    values, keys = _read_table(path)
    if values.shape[1] != state.table.shape[1]:
        raise DataError(
            f"{path} has {values.shape[1]} dimensions; this fleet's table has {state.table.shape[1]}"
        )
    row_of = state.catalogue.former | {key: row for row, key in enumerate(state.catalogue.keys)}
    table = state.table.copy()
    taken: set[int] = set()
    for key, row_values in zip(keys, values, strict=True):
        row = row_of.get(key)
        if row is not None and row not in state.catalogue.retired:
            table[row] = row_values
            taken.add(row)
    if not taken:
        raise DataError(f"{path} has no item that this fleet's catalogue has")
    kept = KeptTable(table=table, strategy_state=state.strategy_state)
    version = state.version + 1
    store.decree(Decree(version=version, kind="import", kept=kept, decreed_at=now))
    return Imported(version=version, rows=len(taken), unknown=sum(key not in row_of for key in keys))


def _read_table(path: Path) -> tuple[Floats, list[str]]:
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
            values, keys = arrays["E"], arrays["item_keys"]
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no model.npz with the arrays E and item_keys") from error
    if (
        values.ndim != 2
        or values.dtype != np.float32
        or keys.shape != (len(values),)
        or keys.dtype.kind != "U"
    ):
        raise DataError(
            f"{path}: E has shape {values.shape} and dtype {values.dtype}, item_keys {keys.shape} and "
            f"{keys.dtype}; wanted are (rows, dim) float32 and (rows,) text"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{path}: E has values that are not finite")
    return values, [str(key) for key in keys]
