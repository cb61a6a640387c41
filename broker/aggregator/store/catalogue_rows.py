"""The catalogue and the queue of its changes in a store: statements within a transaction that others open.

SQLAlchemy Core without a dialect of its own.
"""

from sqlalchemy import Connection, func, insert, select, update

from broker.aggregator.catalogue_changes import CatalogueChange, CatalogueStep, apply_change
from broker.aggregator.store.schema import CATALOGUE, CATALOGUE_CHANGES, FORMER_KEYS
from broker.protocol.catalogue import Catalogue
from broker.protocol.versions import table_bytes
from trainer.params import Floats

_IS_QUEUED = CATALOGUE_CHANGES.c.version.is_(None) & CATALOGUE_CHANGES.c.refused.is_(None)


def read(connection: Connection) -> Catalogue:
    """Give the catalogue."""
    rows = connection.execute(
        select(CATALOGUE.c.item_key, CATALOGUE.c.retired).order_by(CATALOGUE.c.row)
    ).all()
    former = connection.execute(select(FORMER_KEYS.c.item_key, FORMER_KEYS.c.row)).all()
    return Catalogue(
        tuple(key for key, _ in rows),
        frozenset(row for row, (_, retired) in enumerate(rows) if retired),
        {name.item_key: name.row for name in former},
    )


def queued(connection: Connection) -> list[tuple[int, CatalogueChange]]:
    """Give the changes that wait, in order.

    Raises
    ------
    ValueError
        When one cannot be read.
    """
    rows = connection.execute(
        select(CATALOGUE_CHANGES.c.id, CATALOGUE_CHANGES.c.content)
        .where(_IS_QUEUED)
        .order_by(CATALOGUE_CHANGES.c.id)
    )
    return [(number, CatalogueChange.from_json(content)) for number, content in rows]


def queue(connection: Connection, change: CatalogueChange, dim: int, queued_at: float) -> int:
    """Check a change against the catalogue that the queued ones lead to, and queue it; give its number."""
    catalogue = read(connection)
    for _, waiting in queued(connection):
        catalogue = apply_change(catalogue, waiting, dim).catalogue
    apply_change(catalogue, change, dim)
    last = connection.execute(select(func.max(CATALOGUE_CHANGES.c.id))).scalar_one()
    number = 1 + (last or 0)
    connection.execute(
        insert(CATALOGUE_CHANGES), {"id": number, "content": change.to_json(), "queued_at": queued_at}
    )
    return number


def refuse(connection: Connection, number: int, reason: str) -> None:
    """Take a change from the queue."""
    connection.execute(
        update(CATALOGUE_CHANGES).where(CATALOGUE_CHANGES.c.id == number).values(refused=reason)
    )


def outcome(connection: Connection, number: int) -> int | str | None:
    """Give the version that made a change, or why it was refused; None while it waits."""
    row = connection.execute(
        select(CATALOGUE_CHANGES.c.version, CATALOGUE_CHANGES.c.refused).where(
            CATALOGUE_CHANGES.c.id == number
        )
    ).one()
    return row.refused if row.version is None else int(row.version)


def apply(connection: Connection, step: CatalogueStep, version: int, table: Floats) -> None:
    """Bring the catalogue to what a version made of it, and take the change from the queue."""
    before, after = read(connection), step.catalogue
    for row, (old, new) in enumerate(zip(before.keys, after.keys, strict=False)):
        if old != new:
            # Two rows may have exchanged keys: one of them gives its own up first.
            _set(connection, row, item_key=f"\t{row}")
    for row, (old, new) in enumerate(zip(before.keys, after.keys, strict=False)):
        if old != new:
            _set(connection, row, item_key=new)
    for row in sorted(before.retired ^ after.retired):
        if row < len(before.keys):
            _set(connection, row, retired=row in after.retired)
    added = [
        {"row": row, "item_key": after.keys[row], "retired": row in after.retired}
        for row in range(len(before.keys), len(after.keys))
    ]
    if added:
        connection.execute(insert(CATALOGUE), added)
    for key in before.former.keys() - after.former.keys():
        connection.execute(FORMER_KEYS.delete().where(FORMER_KEYS.c.item_key == key))
    new_names = [
        {"item_key": key, "row": row} for key, row in after.former.items() if key not in before.former
    ]
    if new_names:
        connection.execute(insert(FORMER_KEYS), new_names)
    connection.execute(
        update(CATALOGUE_CHANGES)
        .where(CATALOGUE_CHANGES.c.id == step.number)
        .values(version=version, starts=table_bytes(table[len(before.keys) :]))
    )


def _set(connection: Connection, row: int, **values: object) -> None:
    connection.execute(update(CATALOGUE).where(CATALOGUE.c.row == row).values(**values))
