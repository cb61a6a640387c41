"""Versions in a store, their tables and what is known of their quality: statements within a transaction."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select, update

from broker.aggregator.decisions import ClosedRound
from broker.aggregator.guard import Restorable, VersionQuality
from broker.aggregator.store import catalogue_rows
from broker.aggregator.store.interface import Batch, KeptTable, RoundRecord
from broker.aggregator.store.schema import (
    BODIES,
    CATALOGUE_CHANGES,
    JOURNAL,
    QUALITY,
    STRATEGY_STATE,
    VERSIONS,
)
from broker.aggregator.store.statements import fact, upsert
from broker.errors import CorruptError
from broker.protocol.versions import sha256, table_bytes
from trainer.params import Floats

ROLLBACKS = select(VERSIONS.c.version).where(VERSIONS.c.kind == "rollback")
_GAVE_UP = VERSIONS.c.kind.in_(("rollback", "restore"))
"""Versions that were made of an earlier one: those between are not built upon."""


def newest(connection: Connection) -> int | None:
    """Give the newest version; None before there is one."""
    return connection.execute(select(func.max(VERSIONS.c.version))).scalar()


def given_up(connection: Connection, after: int = -1) -> list[tuple[int, int]]:
    """Give the pairs (source, version) of versions above `after` that gave up what lies between the two."""
    query = select(VERSIONS.c.source, VERSIONS.c.version).where(
        (VERSIONS.c.version > after) & _GAVE_UP & VERSIONS.c.source.is_not(None)
    )
    return [(row.source, row.version) for row in connection.execute(query)]


def add_round(connection: Connection, closed: ClosedRound, batch: Batch, *, kept: bool) -> None:
    """Add the version that a round made, with its table where that is `kept`."""
    add(
        connection,
        closed.version,
        closed.table,
        closed.strategy_state,
        kept=kept,
        updates=closed.updates,
        staleness_sum=closed.staleness_sum,
        bytes_up=closed.bytes_up,
        by_deadline=closed.by_deadline,
        closed_at=batch.closed_at,
        population=closed.population,
        strategy=batch.strategy,
        dropped=closed.dropped,
        kind="round" if closed.restored is None else "rollback",
        source=closed.restored,
    )
    if closed.catalogue_step is not None:
        catalogue_rows.apply(connection, closed.catalogue_step, closed.version, closed.table)
        note_retired(connection, closed.version)


def add(
    connection: Connection,
    version: int,
    table: Floats,
    strategy_state: Mapping[str, Floats],
    *,
    kept: bool = True,
    **figures: Any,
) -> None:
    """Add a version; `figures` are columns of its row, in place of those of one without updates."""
    content = table_bytes(table)
    # Most versions leave the catalogue alone.
    retired = connection.execute(
        select(VERSIONS.c.retired).order_by(VERSIONS.c.version.desc()).limit(1)
    ).scalar_one_or_none()
    nothing = {
        "dropped": 0,
        "updates": 0,
        "staleness_sum": 0,
        "bytes_up": 0,
        "by_deadline": False,
        "kind": "round",
    }
    connection.execute(
        insert(VERSIONS),
        nothing
        | {
            "version": version,
            "item_table": content if kept else None,
            "sha256": sha256(content),
            "retired": retired,
        }
        | figures,
    )
    if strategy_state and kept:
        connection.execute(
            insert(STRATEGY_STATE),
            [
                {
                    "version": version,
                    "name": name,
                    "width": values.shape[1],
                    "content": values.astype("<f4").tobytes(),
                }
                for name, values in strategy_state.items()
            ],
        )


def note_retired(connection: Connection, version: int) -> None:
    """Keep with a version which rows are retired now."""
    rows = np.array(sorted(catalogue_rows.read(connection).retired), dtype="<u4")
    connection.execute(
        update(VERSIONS).where(VERSIONS.c.version == version).values(retired=rows.tobytes() or None)
    )


def forget(connection: Connection, keep_versions: int) -> None:
    """Drop what lies before the window; the oldest table that is left is the one it begins with."""
    oldest = connection.execute(
        select(VERSIONS.c.version).order_by(VERSIONS.c.version.desc()).offset(keep_versions).limit(1)
    ).scalar_one_or_none()
    if oldest is None:
        return
    before = (VERSIONS.c.version < oldest) & VERSIONS.c.item_table.is_not(None)
    # The base's own updates are of no use any more, though its table is.
    first = connection.execute(select(func.min(VERSIONS.c.version)).where(before)).scalar()
    spent = JOURNAL.c.version.between(oldest if first is None else first, oldest)
    connection.execute(delete(BODIES).where(BODIES.c.id.in_(select(JOURNAL.c.id).where(spent))))
    if first is not None:
        # Also of versions that a batch with many rounds made without a table.
        left = VERSIONS.c.version.between(first, oldest - 1)
        connection.execute(update(VERSIONS).where(left).values(item_table=None, retired=None))
    connection.execute(delete(STRATEGY_STATE).where(STRATEGY_STATE.c.version < oldest))


def kept_table(connection: Connection, version: int, store: str) -> KeptTable | None:
    """Give a version's table and what the strategy remembered then; None where they are not kept.

    Raises
    ------
    CorruptError
        About `store`, as messages call it, when the table does not have its SHA-256.
    """
    row = connection.execute(
        select(VERSIONS.c.item_table, VERSIONS.c.sha256, VERSIONS.c.retired).where(
            VERSIONS.c.version == version
        )
    ).one_or_none()
    if row is None or row.item_table is None:
        return None
    if sha256(row.item_table) != row.sha256:
        raise CorruptError(
            f"{store}: the table of version {version} does not have its SHA-256; "
            "restore it from a backup or init a new directory"
        )
    state = connection.execute(
        select(STRATEGY_STATE).where(STRATEGY_STATE.c.version == version).order_by(STRATEGY_STATE.c.name)
    )
    return KeptTable(
        table=np.frombuffer(row.item_table, dtype="<f4").reshape(-1, fact(connection, "dim")),
        strategy_state={
            each.name: np.frombuffer(each.content, dtype="<f4").reshape(-1, each.width) for each in state
        },
        retired=frozenset(np.frombuffer(row.retired or b"", dtype="<u4").tolist()),
    )


def before(
    connection: Connection, newest: int, store: str
) -> tuple[Restorable | None, VersionQuality | None]:
    """Give the version before the newest one and what is known of that, if reports of it still matter."""
    row = connection.execute(select(QUALITY).where(QUALITY.c.version == newest)).one_or_none()
    kind = connection.execute(select(VERSIONS.c.kind).where(VERSIONS.c.version == newest)).scalar_one()
    if kind != "round" or (row is not None and row.finding not in ("trial", "unjudged")):
        return None, None
    kept = kept_table(connection, newest - 1, store)
    if kept is None:
        return None, None
    restorable = Restorable(version=newest - 1, table=kept.table, memory=kept.strategy_state)
    return restorable, None if row is None else VersionQuality(**row._asdict())


def keep_quality(connection: Connection, quality: VersionQuality) -> None:
    """Keep what devices have reported of a version, in place of what was kept before."""
    values = asdict(quality)
    kept = upsert(connection, QUALITY)
    connection.execute(
        kept.on_conflict_do_update(
            index_elements=["version"], set_={name: kept.excluded[name] for name in values}
        ),
        values,
    )


def records(connection: Connection, limit: int) -> list[RoundRecord]:
    """Give the newest versions above 0, the newest first."""
    columns = [column for column in VERSIONS.c if column.name != "item_table"]
    changed = VERSIONS.c.version.in_(select(CATALOGUE_CHANGES.c.version)).label("catalogue_changed")
    query = select(*columns, changed).where(VERSIONS.c.version > 0).order_by(VERSIONS.c.version.desc())
    quality = {
        row.version: VersionQuality(**row._asdict())
        for row in connection.execute(select(QUALITY).order_by(QUALITY.c.version.desc()).limit(limit))
    }
    return [
        RoundRecord(
            version=row.version,
            updates=row.updates,
            staleness_mean=row.staleness_sum / max(1, row.updates),
            bytes_up=row.bytes_up,
            by_deadline=row.by_deadline,
            closed_at=row.closed_at,
            sha256=row.sha256,
            catalogue_changed=bool(row.catalogue_changed),
            kind=row.kind,
            source=row.source,
            population=row.population,
            strategy=row.strategy,
            dropped=row.dropped,
            quality=quality.get(row.version),
        )
        for row in connection.execute(query.limit(limit))
    ]
