"""How many interactions a device keeps, and which go first.

Training needs each item's newest interaction. So above the bound the oldest *repeats* go first:
interactions with an item that has a newer one. Only if that is not enough, the oldest interactions go
altogether, and their items with them; so do those older than the bound on age.

The state of the interactions (`revision`) does not change: nothing is trained anew for it, and what a pass
has learnt stays learnt until the next one.
"""

import sqlite3
from dataclasses import dataclass

from edge import erasure

DAY_S = 86_400.0
AT_ONCE = 1_000
"""Most interactions that one run removes."""

_TOO_OLD = "SELECT id FROM interactions WHERE at < ? ORDER BY at, id LIMIT ?"
_REPEATS = (
    "SELECT id FROM (SELECT id, at, row_number() OVER (PARTITION BY item ORDER BY at DESC, id DESC) AS place "
    "FROM interactions) WHERE place > 1 ORDER BY at, id LIMIT ?"
)
_OLDEST = "SELECT id FROM interactions ORDER BY at, id LIMIT ?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """The rule.

    Attributes
    ----------
    most : int
        Interactions to keep; 0 keeps any number.
    days : float
        Their age in days; 0 keeps them for ever.
    """

    most: int = 0
    days: float = 0.0

    def too_old_before(self, now: float, newest: float) -> float | None:
        """Give the time before which interactions are too old, None if none is.

        Counted from the newest interaction where that is earlier than `now`: a clock that is years ahead
        for a moment must not cost the user everything.
        """
        return min(now, newest) - self.days * DAY_S if self.days else None


def compact(connection: sqlite3.Connection, rule: Retention, now: float, *, at_once: int = AT_ONCE) -> int:
    """Remove what the rule does not keep, at most `at_once`; give how many. Within a transaction."""
    [(total, newest)] = connection.execute("SELECT count(*), max(at) FROM interactions").fetchall()
    if not total:
        return 0
    removed = 0
    too_old = rule.too_old_before(now, newest)
    if too_old is not None:
        removed += _remove(connection, _TOO_OLD, too_old, at_once)
    for query in (_REPEATS, _OLDEST):
        surplus = min(total - removed - rule.most, at_once - removed) if rule.most else 0
        if surplus > 0:
            removed += _remove(connection, query, surplus)
    erasure.count(connection, erasure.REMOVED, removed)
    return removed


def _remove(connection: sqlite3.Connection, query: str, *parameters: float) -> int:
    # The query is one of the constants above.
    return connection.execute(f"DELETE FROM interactions WHERE id IN ({query})", parameters).rowcount  # noqa: S608
