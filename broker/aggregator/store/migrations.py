"""How the database came to its present shape: ordered steps, each recorded with its effect.

A step runs in the same transaction as its entry in ``migrations``. A database with an entry that is not
listed here was made by a later release and is left untouched.
"""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection

from broker.errors import NewerVersionError

MIGRATIONS: Sequence[tuple[str, Sequence[str]]] = (
    (
        "0001 first light",
        (
            "CREATE TABLE facts (name VARCHAR PRIMARY KEY, value BIGINT NOT NULL)",
            "CREATE TABLE start (weights BLOB NOT NULL)",
            "CREATE TABLE catalogue (row INTEGER PRIMARY KEY, item_key VARCHAR NOT NULL UNIQUE)",
            """CREATE TABLE versions (version BIGINT PRIMARY KEY, item_table BLOB, sha256 BLOB NOT NULL,
                 updates INTEGER NOT NULL, staleness_sum INTEGER NOT NULL, bytes_up BIGINT NOT NULL,
                 by_deadline BOOLEAN NOT NULL, closed_at FLOAT NOT NULL)""",
            """CREATE TABLE journal (id INTEGER PRIMARY KEY, device VARCHAR NOT NULL,
                 incarnation VARCHAR NOT NULL, seq BIGINT NOT NULL, verdict VARCHAR NOT NULL,
                 staleness INTEGER NOT NULL, base_version BIGINT NOT NULL, version BIGINT, body BLOB,
                 UNIQUE (device, incarnation, seq))""",
            "CREATE INDEX journal_pending ON journal (id) WHERE body IS NOT NULL",
            """CREATE TABLE answered (device VARCHAR NOT NULL, incarnation VARCHAR NOT NULL,
                 seq BIGINT NOT NULL, verdict VARCHAR NOT NULL, PRIMARY KEY (device, incarnation))""",
            "CREATE TABLE devices (device VARCHAR PRIMARY KEY)",
        ),
    ),
    (
        "0002 strategy state",
        (
            """CREATE TABLE strategy_state (version BIGINT NOT NULL, name VARCHAR NOT NULL,
                 width INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (version, name))""",
        ),
    ),
    (
        "0003 changes of the catalogue",
        (
            "ALTER TABLE catalogue ADD COLUMN retired BOOLEAN NOT NULL DEFAULT 0",
            "CREATE TABLE former_keys (item_key VARCHAR PRIMARY KEY, row INTEGER NOT NULL)",
            """CREATE TABLE catalogue_changes (id INTEGER PRIMARY KEY, content VARCHAR NOT NULL,
                 queued_at FLOAT NOT NULL, version BIGINT, refused VARCHAR, starts BLOB)""",
        ),
    ),
)


def migrate(connection: Connection, path: Path) -> None:
    """Bring the database to the newest shape; the caller's transaction holds all of it or nothing.

    Raises
    ------
    NewerVersionError
        When a later release has been here; nothing is changed.
    """
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY)")
    applied = set(connection.exec_driver_sql("SELECT name FROM migrations").scalars())
    unknown = applied - {name for name, _ in MIGRATIONS}
    if unknown:
        raise NewerVersionError(
            f"{path} was written by a later release ({', '.join(sorted(unknown))}); "
            "upgrade pfedrec-edge, or use another directory; nothing was changed"
        )
    for name, statements in MIGRATIONS:
        if name not in applied:
            for statement in statements:
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql("INSERT INTO migrations (name) VALUES (?)", (name,))
