"""What the user, or the retention rule, takes out of the device's memory.

Statements on a connection that is within a transaction; `edge.store` opens it. A removed row's bytes are
overwritten in its page; `scrub` then makes the file anew, so that they stand nowhere in it or its log.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WITHDRAWN, REMOVED, ERASURES = "withdrawn", "removed", "erasures"
"""Facts that count: updates that left the outbox without an answer; interactions that were removed; how
often the user has forgotten something."""
LEFT_ON_BROKERS = "home_topics"
"""A fact: the retained messages on home automation's brokers; only who knows of them can take them away."""
ASKED_FOR = "asked_for"
"""A fact: what the broker still sends of a download that was cut off, until it is told not to."""
HELD_HEAD = "held_head"
"""A fact: the head of the newest table, where that was held in memory only."""
HEAD_KEY = "head_key"
"""A fact: the newest key that has signed a head here; earlier ones count no more."""
_KEPT_BY_RESET = ("connection", LEFT_ON_BROKERS, ASKED_FOR, HEAD_KEY)
"""Of the first: its statuses must go on to grow, or the fleet takes them for old last wills."""

_ALL_NAMES = (
    "item IN ({0}) OR item IN (WITH theirs (row) AS (SELECT row FROM catalogue WHERE item IN ({0}) "
    "UNION SELECT row FROM former_keys WHERE item IN ({0})) "
    "SELECT item FROM catalogue WHERE row IN theirs UNION SELECT item FROM former_keys WHERE row IN theirs)"
)
"""An item may have been recorded under another of its names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which interactions are meant: of these items (None: of all), from `since` on, before `until`."""

    items: Sequence[str] | None = None
    since: float | None = None
    until: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.items is None and self.since is None and self.until is None

    def where(self) -> tuple[str, list[Any]]:
        """Give a condition on a row of the interactions, and its parameters."""
        conditions, parameters = ["1"], list[Any]()
        if self.items is not None:
            numbers = ", ".join(f"?{number}" for number in range(1, len(self.items) + 1))
            conditions.append(f"({_ALL_NAMES.format(numbers)})")
            parameters += self.items
        for condition, bound in (("at >= ?", self.since), ("at < ?", self.until)):
            if bound is not None:
                conditions.append(condition)
                parameters.append(bound)
        return " AND ".join(conditions), parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """What was erased.

    Attributes
    ----------
    interactions : int
    left : int
        Interactions that are still there.
    personal : bool
        Whether there was a personal state, which is gone.
    withdrawn : int or None
        Number of the update that waited for its receipt and was taken back.
    may_have_left : bool
        Whether that update was sent before, so that the aggregator may have it.
    received : bool
        Whether the aggregator has had updates of this device before.
    """

    interactions: int
    left: int
    personal: bool
    withdrawn: int | None
    may_have_left: bool
    received: bool


def count(connection: sqlite3.Connection, name: str, by: int) -> None:
    """Add to a fact that counts."""
    if by:
        connection.execute(
            "INSERT INTO facts (name, value) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, by),
        )


@contextmanager
def overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite what is deleted, within a transaction."""
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA secure_delete = OFF")


def forget(connection: sqlite3.Connection, selection: Selection) -> Erased:
    """Delete the selected interactions, and what was learnt with them: the personal state and the outbox.

    If none is there, nothing changes.
    """
    where, parameters = selection.where()
    # The condition is put together from the constants above.
    removed = connection.execute(f"DELETE FROM interactions WHERE {where}", parameters).rowcount  # noqa: S608
    [(left,)] = connection.execute("SELECT count(*) FROM interactions").fetchall()
    received = _has_received(connection)
    if not removed and not selection.everything:
        return Erased(
            interactions=0, left=left, personal=False, withdrawn=None, may_have_left=False, received=received
        )
    personal = connection.execute("DELETE FROM personal").rowcount > 0
    withdrawn, sent = _withdraw(connection)
    # The session sees another state of the interactions and trains anew, but has no news for the fleet.
    before = revision(connection)
    connection.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'interactions'")
    connection.execute(
        "UPDATE facts SET value = ? WHERE name = 'contributed_revision' AND value >= ?", (before + 1, before)
    )
    count(connection, REMOVED, removed)
    count(connection, ERASURES, 1)
    return Erased(
        interactions=removed,
        left=left,
        personal=personal,
        withdrawn=withdrawn,
        may_have_left=sent,
        received=received,
    )


def reset(connection: sqlite3.Connection, incarnation: int, *, keep_interactions: bool) -> Erased:
    """Make a fresh device of it, with a new `incarnation`."""
    received = _has_received(connection)
    withdrawn, sent = _withdraw(connection)
    personal = connection.execute("DELETE FROM personal").rowcount > 0
    for table in ("model", "catalogue", "former_keys", "receipts"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - from the list above
    removed = 0
    if not keep_interactions:
        removed = connection.execute("DELETE FROM interactions").rowcount
        connection.execute("DELETE FROM sqlite_sequence")
    connection.execute(
        f"DELETE FROM facts WHERE name NOT IN ({', '.join('?' * len(_KEPT_BY_RESET))})",  # noqa: S608
        _KEPT_BY_RESET,
    )
    connection.execute("INSERT INTO facts (name, value) VALUES ('incarnation', ?)", (incarnation,))
    [(left,)] = connection.execute("SELECT count(*) FROM interactions").fetchall()
    return Erased(
        interactions=removed,
        left=left,
        personal=personal,
        withdrawn=withdrawn,
        may_have_left=sent,
        received=received,
    )


def revision(connection: sqlite3.Connection) -> int:
    """Give the state of the interactions: the newest id ever given, which no deletion takes back."""
    rows = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'interactions'").fetchall()
    return int(rows[0][0]) if rows else 0


def scrub(connection: sqlite3.Connection) -> bool:
    """Make the file anew from what is left, and empty its log; tell whether nobody was in the way.

    Not within a transaction. The copy that SQLite makes meanwhile stays in memory.
    """
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("VACUUM")
    [(busy, *_)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy


def _withdraw(connection: sqlite3.Connection) -> tuple[int | None, bool]:
    waiting = connection.execute("DELETE FROM outbox RETURNING seq, sends").fetchall()
    count(connection, WITHDRAWN, len(waiting))
    if not waiting:
        return None, False
    return max(seq for seq, _ in waiting), any(sends for _, sends in waiting)


def _has_received(connection: sqlite3.Connection) -> bool:
    rows = connection.execute(
        "SELECT 1 FROM receipts WHERE verdict IN ('accepted', 'duplicate') AND count > 0"
    ).fetchall()
    return bool(rows)
