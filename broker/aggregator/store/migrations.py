"""How the database came to its present shape: ordered steps, each recorded with its effect.

A step runs in the same transaction as its entry in ``migrations``. A database with an entry that is not
listed here was made by a later release and is left untouched. The statements are SQLite's; PostgreSQL is told
the same in its own words.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, insert

from broker.aggregator.store.schema import APPLIED
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
    (
        "0004 kept bodies",
        (
            "CREATE TABLE bodies (id BIGINT PRIMARY KEY, body BLOB NOT NULL)",
            "INSERT INTO bodies (id, body) SELECT id, body FROM journal WHERE body IS NOT NULL",
            "DROP INDEX journal_pending",
            "ALTER TABLE journal DROP COLUMN body",
            "ALTER TABLE journal ADD COLUMN place BIGINT",
            "CREATE INDEX journal_pending ON journal (id) WHERE version IS NULL AND verdict = 'accepted'",
            "CREATE INDEX journal_version ON journal (version) WHERE version IS NOT NULL",
            "ALTER TABLE versions ADD COLUMN kind VARCHAR DEFAULT 'round' NOT NULL",
            "ALTER TABLE versions ADD COLUMN source BIGINT",
            "ALTER TABLE versions ADD COLUMN population BIGINT",
            "ALTER TABLE versions ADD COLUMN strategy VARCHAR",
            "ALTER TABLE versions ADD COLUMN retired BLOB",
            "CREATE INDEX versions_kept ON versions (version) WHERE item_table IS NOT NULL",
        ),
    ),
    (
        "0005 guard",
        (
            "ALTER TABLE versions ADD COLUMN dropped INTEGER DEFAULT 0 NOT NULL",
            """CREATE TABLE quality (version BIGINT PRIMARY KEY, finding VARCHAR NOT NULL,
                 reports INTEGER NOT NULL, candidates INTEGER NOT NULL, hits INTEGER NOT NULL,
                 hits_before INTEGER NOT NULL, beaten INTEGER NOT NULL, beaten_before INTEGER NOT NULL,
                 ndcg FLOAT NOT NULL, ndcg_before FLOAT NOT NULL, loss FLOAT NOT NULL,
                 loss_before FLOAT NOT NULL)""",
        ),
    ),
)

_POSTGRESQL_WORDS = {
    "BLOB": "BYTEA",
    "CREATE TABLE journal (id INTEGER PRIMARY KEY": "CREATE TABLE journal (id BIGSERIAL PRIMARY KEY",
    " row INTEGER": ' "row" INTEGER',
    "(row INTEGER": '("row" INTEGER',
    "BOOLEAN NOT NULL DEFAULT 0": "BOOLEAN NOT NULL DEFAULT false",
}
"""Where the two databases' words differ."""
_POSTGRESQL_LOCK = 0x7066_6D69
"""Two processes that open an empty database at once make it one after the other."""


def migrate(connection: Connection, name: str) -> None:
    """Bring the database to the newest shape; the caller's transaction holds all of it or nothing.

    Parameters
    ----------
    name : str
        How the database is called in a message.

    Raises
    ------
    NewerVersionError
        When a later release has been here; nothing is changed.
    """
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY)")
    applied = set(connection.exec_driver_sql("SELECT name FROM migrations").scalars())
    unknown = applied - {step for step, _ in MIGRATIONS}
    if unknown:
        raise NewerVersionError(
            f"{name} was written by a later release ({', '.join(sorted(unknown))}); "
            "upgrade pfedrec-edge, or use another directory; nothing was changed"
        )
    for step, statements in MIGRATIONS:
        if step in applied:
            continue
        for statement in statements:
            connection.exec_driver_sql(_for_postgresql(statement) if postgresql else statement)
        connection.execute(insert(APPLIED), {"name": step})


def _for_postgresql(statement: str) -> str:
    for ours, theirs in _POSTGRESQL_WORDS.items():
        statement = statement.replace(ours, theirs)
    return statement
