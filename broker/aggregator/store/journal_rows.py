"""The journal in a store: statements within a transaction that others open; see `schema`."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, bindparam, case, func, select, update

from broker.aggregator.decisions import CloseRound
from broker.aggregator.store.interface import Ledger, PlacedEntry
from broker.aggregator.store.schema import ANSWERED, BODIES, JOURNAL
from broker.aggregator.store.statements import fact, insert_rows, upsert
from broker.aggregator.store.version_rows import ROLLBACKS
from broker.errors import CorruptError, ProtocolError
from broker.protocol.messages import MAX_TRANSFER_BYTES, Update, decode

IS_PENDING = JOURNAL.c.version.is_(None) & (JOURNAL.c.verdict == "accepted")


def add(connection: Connection, ids: Sequence[int], entries: Sequence[PlacedEntry]) -> None:
    """Journal entries under `ids`, without noting them as answered."""
    columns = ("id", "device", "incarnation", "seq", "verdict", "staleness", "base_version", "version")
    insert_rows(
        connection,
        JOURNAL,
        columns,
        [
            (
                number,
                entry.device,
                str(entry.incarnation),
                entry.seq,
                entry.verdict,
                entry.staleness,
                entry.base_version,
                version,
            )
            for number, (entry, version, _) in zip(ids, entries, strict=True)
        ],
    )
    bodies = [(number, entry.body) for number, (entry, _, kept) in zip(ids, entries, strict=True) if kept]
    insert_rows(connection, BODIES, ("id", "body"), bodies)


def note_answered(connection: Connection, entries: Sequence[PlacedEntry]) -> None:
    """Note the newest entry of each device and incarnation as what was answered last."""
    if not entries:
        return
    newest = {(entry.device, str(entry.incarnation)): entry for entry, _, _ in entries}
    noted = upsert(connection, ANSWERED)
    connection.execute(
        noted.on_conflict_do_update(
            index_elements=["device", "incarnation"],
            set_={"seq": noted.excluded.seq, "verdict": noted.excluded.verdict},
        ),
        [
            {"device": device, "incarnation": incarnation, "seq": entry.seq, "verdict": entry.verdict}
            for (device, incarnation), entry in newest.items()
        ],
    )


def spend(connection: Connection, rounds: Sequence[CloseRound], store: str) -> None:
    """Mark as their own what rounds spend of earlier batches: the first of them all that waits.

    Raises
    ------
    CorruptError
        About `store`, as messages call it, when something of that does not wait.
    """
    for command in rounds:
        if command.spends is not None:
            _spend_named(connection, command.spends, command.round.version, store)
    whole = next((command for command in rounds if command.spends is None), None)
    if whole is not None:
        spend_pending(connection, whole.round.version)


def spend_pending(connection: Connection, version: int) -> int:
    """Mark what waits as a version's own, which counts it, or drops it as a rollback; give how many."""
    return connection.execute(update(JOURNAL).where(IS_PENDING).values(version=version)).rowcount


def _spend_named(connection: Connection, ids: Sequence[int], version: int, store: str) -> None:
    """Mark entries as a version's own, in this order, which is kept: it may be another than the ids'."""
    if not ids:
        return
    mark = update(JOURNAL).where((JOURNAL.c.id == bindparam("spent")) & IS_PENDING)
    rows = [{"spent": number, "position": place} for place, number in enumerate(ids)]
    done = connection.execute(mark.values(version=version, place=bindparam("position")), rows)
    if done.rowcount != len(ids):
        raise CorruptError(
            f"{store}: {len(ids) - done.rowcount} updates of version {version} are not there, "
            "or were counted before; nothing was changed"
        )


def updates(connection: Connection, which: ColumnElement[bool], store: str) -> list[tuple[Update, int, int]]:
    """Give updates in the order in which they were counted, each with its staleness and size in bytes.

    Raises
    ------
    CorruptError
        When one cannot be read.
    """
    query = (
        select(BODIES.c.body, JOURNAL.c.staleness)
        .join_from(JOURNAL, BODIES, JOURNAL.c.id == BODIES.c.id)
        .where(which)
        .order_by(JOURNAL.c.place, JOURNAL.c.id)
    )
    rows = connection.execute(query).all()
    try:
        return [
            (decode(row.body, Update, max_bytes=MAX_TRANSFER_BYTES), row.staleness, len(row.body))
            for row in rows
        ]
    except ProtocolError as error:
        raise CorruptError(
            f"{store}: an update in the journal cannot be read ({error}); "
            "restore it from a backup or init a new directory"
        ) from error


def ledger(connection: Connection, prefix: str) -> Ledger:
    """Add up what became of the updates of devices whose ids begin with `prefix`."""
    became = case(
        (JOURNAL.c.verdict != "accepted", JOURNAL.c.verdict),
        (JOURNAL.c.version.is_(None), "pending"),
        (JOURNAL.c.version.in_(ROLLBACKS), "dropped"),
        else_="counted",
    ).label("became")
    query = (
        select(became, func.count())
        .where(func.substr(JOURNAL.c.device, 1, len(prefix)) == prefix)  # LIKE ignores case
        .group_by(became)
    )
    counts: dict[str, int] = {row.became: row[1] for row in connection.execute(query)}
    return Ledger(
        counted=counts.get("counted", 0),
        pending=counts.get("pending", 0),
        stale=counts.get("stale", 0),
        rejected=counts.get("rejected", 0),
        duplicates=fact(connection, "duplicates"),
        refused=fact(connection, "refused"),
        dropped=counts.get("dropped", 0),
    )
