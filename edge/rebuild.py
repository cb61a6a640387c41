"""A sound database for a device that starts: checked, and if it is damaged, made anew from what can be read.

The damaged file is put aside (`edge.putaside`), never deleted. Kept is, in this order of worth: the
interactions, from every page that can be read (`edge.salvage`); the personal state; the item table and
the catalogue, if they have their hashes, else they are fetched again; what the device counts.

The device gets a new incarnation, as numbers of updates may be lost: a number given twice would be
taken for a duplicate. The update that waited is not carried over for the same reason: it may have been
received, and with a new incarnation it would count twice. The fleet loses one pass of this device.

Only ``start`` and ``reset`` do this, which have the directory for themselves; other commands say in one
sentence that it is damaged.
"""

import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import CorruptError, PFedRecError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import VERDICTS, Head, decode
from broker.protocol.topics import Topic
from broker.protocol.versions import catalogue_bytes, sha256
from broker.storage import connect_sqlite, named_failures, sync_directory
from edge.config import DATABASE_NAME, alone, open_store
from edge.erasure import ASKED_FOR, ERASURES, HEAD_KEY, HELD_HEAD, LEFT_ON_BROKERS, REMOVED, WITHDRAWN
from edge.homeassistant import read_left_behind
from edge.personal import Personal
from edge.putaside import finish, rebuilt_name, stamp
from edge.salvage import Interaction, salvage
from edge.scheduler import Progress
from edge.store import DeviceStore, insert_catalogue, personal_bytes, personal_from_bytes
from trainer.errors import DataError
from trainer.params import Floats

_COUNTS = (*(field.name for field in fields(Progress)), "seq", "connection", WITHDRAWN, REMOVED, ERASURES)
_LOG_IS_MISSING = (
    "the write-ahead log of {path} is missing; what was recorded last before the device stopped may be lost"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Remains:
    """What can be read of a damaged database.

    Attributes
    ----------
    interactions : list of Interaction
    revision : int
        The newest id ever given, as far as can be told.
    counts : dict
        Facts that are numbers.
    asked_for : str
        See `edge.erasure.ASKED_FOR`.
    receipts : dict
        From verdicts to how many came.
    personal : Personal or None
    head : bytes or None
        That of the table which `personal` belongs to.
    table : bytes or None
        That table, if it has its hash.
    catalogue : Catalogue or None
        If it has its hash.
    waiting : int
        Updates in the outbox.
    identities : list of (bytes, int)
        What tells interactions that are sent again, with the ids of those kept.
    left_on_brokers : dict
        Topics that hold messages on home automation's brokers.
    held : bytes or None
        The head of the newest table, where that was in memory only.
    head_key : str
        The newest key that has signed a head here.
    """

    interactions: list[Interaction]
    revision: int
    counts: dict[str, int]
    asked_for: str
    receipts: dict[str, int]
    personal: Personal | None
    head: bytes | None
    table: bytes | None
    catalogue: Catalogue | None
    waiting: int
    identities: list[tuple[bytes, int]]
    left_on_brokers: dict[str, list[Topic]]
    held: bytes | None
    head_key: str

    @property
    def missing(self) -> int | None:
        """Interactions that were there and cannot be read, None if that cannot be told."""
        if not self.counts:
            return None
        gone = self.counts.get(REMOVED, 0) + self.counts.get(ERASURES, 0)
        return max(0, self.revision - gone - len(self.interactions))


def open_sound_store(directory: Path, say: Callable[[str], None]) -> DeviceStore:
    """Open the database of a directory that the caller has for itself; rebuild it first if it is damaged.

    Parameters
    ----------
    say : callable
        Told in one sentence what was kept and what was lost.

    Raises
    ------
    NotInitialisedError, NewerVersionError, DiskFullError, InUseError, NotWritableError
        Nothing was changed.
    """
    path = directory / DATABASE_NAME
    log_is_missing = _beside(path, "shm").exists() and not _beside(path, "wal").exists()
    try:
        store = _checked(directory)
    except CorruptError as error:
        with alone(directory):
            remains = read(path)
            aside = rebuild(path, remains, time.time())
        say(_told(str(error).partition(";")[0], remains, aside))
        return open_store(directory)
    if log_is_missing:
        say(_LOG_IS_MISSING.format(path=path))
    return store


def _checked(directory: Path) -> DeviceStore:
    store = open_store(directory)
    try:
        store.check()
    except BaseException:
        store.close()
        raise
    return store


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}-{suffix}")


def _told(damage: str, remains: Remains, aside: Path | None) -> str:
    kept = [f"{len(remains.interactions)} interactions"]
    lost = []
    if remains.missing is None:
        lost.append("perhaps some interactions")
    elif remains.missing:
        lost.append(f"{remains.missing} interactions")
    for name, there in (
        ("the personal state", remains.personal is not None),
        ("the item table, which is fetched again", remains.table is not None),
    ):
        (kept if there else lost).append(name.partition(",")[0] if there else name)
    if remains.waiting:
        lost.append("an update that waited")
    where = f"; the damaged file is {aside.name}" if aside is not None and aside.exists() else ""
    what = f"kept {_listed(kept)}, lost {_listed(lost) or 'nothing'}"
    return f"{damage}; a new database was made: {what}{where}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# -- reading what is left --------------------------------------------------------------------------


def read(path: Path) -> Remains:
    """Read whatever can be read of a damaged database, or of none. It is not changed.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    with named_failures(path):
        interactions = salvage(path)
    # A copy, as SQLite may tidy up what it opens: it deletes the log of an empty file.
    copy = path.with_name(f"{path.name}.copy")
    _remove(copy)
    try:
        with named_failures(copy):
            for suffix in ("", "-wal"):
                original = path.with_name(f"{path.name}{suffix}")
                if original.exists():
                    private = copy.with_name(f"{copy.name}{suffix}")
                    private.touch(mode=0o600)
                    shutil.copyfile(original, private)
        return _remains(copy, interactions)
    finally:
        _remove(copy)


def _remains(path: Path, interactions: list[Interaction]) -> Remains:
    facts = dict(_query(path, "SELECT name, value FROM facts"))
    counts = {
        name: value for name in _COUNTS if type(value := facts.get(name)) is int and -1 <= value < 1 << 53
    }
    receipts = {
        verdict: count
        for verdict, count in _query(path, "SELECT verdict, count FROM receipts")
        if verdict in VERDICTS and type(count) is int and count > 0
    }
    head_bytes, head = _head(path)
    catalogue = _catalogue(path, head)
    # One without the other would stay that way: the device fetches what is another than the head says.
    table = None if catalogue is None else _table(path, head)
    return Remains(
        interactions=interactions,
        revision=_revision(path, interactions, counts),
        counts=counts,
        asked_for=asked_for if isinstance(asked_for := facts.get(ASKED_FOR), str) else "",
        receipts=receipts,
        personal=_personal(path, head, table),
        head=head_bytes,
        table=table,
        catalogue=catalogue,
        waiting=len(_query(path, "SELECT seq FROM outbox")),
        identities=_identities(path, {row.id for row in interactions}),
        left_on_brokers=read_left_behind(facts.get(LEFT_ON_BROKERS)),
        held=_sound_head(facts.get(HELD_HEAD))[0],
        head_key=head_key if isinstance(head_key := facts.get(HEAD_KEY), str) else "",
    )


def _query(path: Path, query: str) -> list[Any]:
    """Give a query's rows; none if they cannot all be read."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(query).fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return []


def _identities(path: Path, kept: set[int]) -> list[tuple[bytes, int]]:
    rows = _query(path, "SELECT identity, interaction FROM identities")
    return [(identity, row) for identity, row in rows if type(identity) is bytes and row in kept]


def _head(path: Path) -> tuple[bytes | None, Head | None]:
    rows = _query(path, "SELECT head FROM model")
    return _sound_head(rows[0][0]) if rows else (None, None)


def _sound_head(content: object) -> tuple[bytes | None, Head | None]:
    """Give an encoded head, and what it says; neither if it is none."""
    if type(content) is not bytes:
        return None, None
    try:
        return content, decode(content, Head)
    except PFedRecError:
        return None, None


def _table(path: Path, head: Head | None) -> bytes | None:
    rows = _query(path, "SELECT item_table FROM model")
    if not rows or head is None or type(rows[0][0]) is not bytes:
        return None
    return rows[0][0] if sha256(rows[0][0]) == head.sha256 else None


def _catalogue(path: Path, head: Head | None) -> Catalogue | None:
    rows = _query(path, "SELECT item, retired FROM catalogue ORDER BY row")
    # In a database of an older release no row is marked.
    rows = rows or [(key, 0) for (key,) in _query(path, "SELECT item FROM catalogue ORDER BY row")]
    former = _query(path, "SELECT item, row FROM former_keys")
    try:
        found = Catalogue(
            tuple(key for key, _ in rows),
            frozenset(row for row, (_, retired) in enumerate(rows) if retired),
            dict(former),
        )
        fits = head is not None and sha256(catalogue_bytes(found)) == head.catalogue_sha256
    except (DataError, PFedRecError, TypeError, ValueError):
        return None
    return found if fits else None


def _personal(path: Path, head: Head | None, table: bytes | None) -> Personal | None:
    """Give the personal state if it is sound and we know which table it belongs to."""
    rows = _query(path, "SELECT w, b, own_rows, own_values FROM personal")
    if not rows or head is None:
        return None
    try:
        personal = personal_from_bytes(*rows[0])
    except ValueError:
        return None
    shape: Floats = (
        np.empty((head.rows, head.dim), dtype=np.float32) if table is None else _array(table, head)
    )
    return personal if personal.fits(shape) else None


def _array(table: bytes, head: Head) -> Floats:
    return np.frombuffer(table, dtype="<f4").reshape(head.rows, head.dim)


def _revision(path: Path, interactions: list[Interaction], counts: dict[str, int]) -> int:
    sequence = _query(path, "SELECT seq FROM sqlite_sequence WHERE name = 'interactions'")
    known = [seq for (seq,) in sequence if type(seq) is int]
    known += [row.id for row in interactions[-1:]]
    known += [counts.get(name, 0) for name in ("trained_revision", "contributed_revision")]
    return max(known)


# -- making it anew --------------------------------------------------------------------------------


def rebuild(path: Path, remains: Remains, now: float) -> Path | None:
    """Make a new database of what is left and put the old one aside; give that one's new name.

    The caller keeps everybody else from opening the database.

    Raises
    ------
    DiskFullError, NotWritableError
        The damaged database is still in its place.
    """
    draft = path.with_name(f"{path.name}.draft")
    _remove(draft)
    try:
        DeviceStore(draft).close()
        with named_failures(draft), closing(connect_sqlite(draft)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            _fill(connection, remains, int(now))
            connection.execute("COMMIT")
        with named_failures(path):
            draft.rename(rebuilt_name(path, stamp(now)))
    finally:
        _remove(draft)
    sync_directory(path.parent)
    return finish(path)


def _fill(connection: sqlite3.Connection, remains: Remains, now: int) -> None:
    connection.executemany(
        "INSERT INTO interactions (id, item, at) VALUES (?, ?, ?)",
        [(row.id, row.item, row.at) for row in remains.interactions],
    )
    connection.executemany("INSERT INTO identities VALUES (?, ?)", remains.identities)
    connection.execute("DELETE FROM sqlite_sequence")
    # One more than ever given: the session trains anew with what is left.
    revision = remains.revision + 1
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('interactions', ?)", (revision,))
    counts = dict(remains.counts)
    # The number of connections must go on to grow; nobody has connected every second since 1970.
    counts.setdefault("connection", now)
    counts[WITHDRAWN] = counts.get(WITHDRAWN, 0) + remains.waiting
    # What cannot be told apart any more begins anew: all that is gone is no longer missing.
    counts[REMOVED] = revision - len(remains.interactions) - counts.get(ERASURES, 0)
    counts["incarnation"] = secrets.randbits(53)
    left = {LEFT_ON_BROKERS: json.dumps(remains.left_on_brokers), ASKED_FOR: remains.asked_for}
    left[HEAD_KEY] = remains.head_key
    connection.executemany("INSERT INTO facts (name, value) VALUES (?, ?)", list((counts | left).items()))
    connection.executemany("INSERT INTO receipts VALUES (?, ?)", list(remains.receipts.items()))
    if remains.personal is not None:
        connection.execute("INSERT INTO personal VALUES (1, ?, ?, ?, ?)", personal_bytes(remains.personal))
    if remains.held is not None:
        connection.execute("INSERT INTO facts VALUES (?, ?)", (HELD_HEAD, remains.held))
    if remains.head is not None:
        # Without its table the head only tells whose the personal state is.
        connection.execute("INSERT INTO model VALUES (1, ?, ?)", (remains.head, remains.table or b""))
    if remains.catalogue is not None:
        insert_catalogue(connection, remains.catalogue)


def _remove(draft: Path) -> None:
    with named_failures(draft):
        for each in draft.parent.glob(f"{draft.name}*"):
            each.unlink()
