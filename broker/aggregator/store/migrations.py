"""How the database came to its present shape: ordered steps, each recorded with its effect.

A step runs in the same transaction as its entry in ``migrations``. A database with an entry that is not
listed here was made by a later release and is left untouched. The statements are SQLite's; PostgreSQL is told
the same in its own words.
"""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, insert, inspect

from broker.aggregator.store.schema import APPLIED
from broker.errors import CorruptError, EarlierVersionError, NewerVersionError

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
    (
        "0006 what the guard judges by",
        (
            "ALTER TABLE quality ADD COLUMN differences FLOAT DEFAULT 0 NOT NULL",
            "ALTER TABLE quality ADD COLUMN squares FLOAT DEFAULT 0 NOT NULL",
            # Nobody knows any more how they scatter: as those of a young fleet, 0.2.
            """UPDATE quality SET differences = 1.0 * reports * (beaten - beaten_before) / candidates
                 WHERE candidates > 0""",
            """UPDATE quality SET squares = differences * differences / reports + 0.04 * reports
                 WHERE reports > 0""",
            "UPDATE versions SET retired = NULL WHERE item_table IS NULL",
        ),
    ),
)

_POSTGRESQL_ALSO: Mapping[str, Sequence[str]] = {
    "0006 what the guard judges by": (
        "ALTER TABLE versions ALTER COLUMN staleness_sum TYPE BIGINT",
        "ALTER TABLE quality "
        + ", ".join(
            f"ALTER COLUMN {name} TYPE BIGINT"
            for name in ("reports", "candidates", "hits", "hits_before", "beaten", "beaten_before")
        ),
    ),
}
"""What a step does there besides, before all else: an INTEGER of SQLite's has eight bytes anyway."""

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


def migrate(connection: Connection, name: str, require_alone: Callable[[Connection], None]) -> None:
    """Bring the database to the newest shape; the caller's transaction holds all of it or nothing.

    Parameters
    ----------
    name : str
        How the database is called in a message.
    require_alone : callable
        Called before a database that holds something is changed; raises when somebody serves it.

    Raises
    ------
    NewerVersionError
        When a later release has been here; nothing is changed.
    """
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY)")
    applied = _applied(connection, name)
    missing = [each for each in MIGRATIONS if each[0] not in applied]
    if applied and missing:
        require_alone(connection)
    for step, statements in missing:
        for statement in _POSTGRESQL_ALSO.get(step, ()) if postgresql else ():
            connection.exec_driver_sql(statement)
        for statement in statements:
            connection.exec_driver_sql(_for_postgresql(statement) if postgresql else statement)
        connection.execute(insert(APPLIED), {"name": step})


def require_newest(connection: Connection, name: str) -> None:
    """Check that the database has the newest shape, for who only looks.

    To look must not bring it there: a process of an earlier release may serve from it, and a return to that
    release would be barred.

    Raises
    ------
    EarlierVersionError, NewerVersionError
    CorruptError
        When it was never made.
    """
    if not inspect(connection).has_table(APPLIED.name):
        raise CorruptError(f"{name} lacks what init stored; restore it from a backup or init a new directory")
    missing = {step for step, _ in MIGRATIONS} - _applied(connection, name)
    if missing:
        raise EarlierVersionError(
            f"{name} was written by an earlier release (it lacks {', '.join(sorted(missing))}); nothing was "
            "changed: back it up with that release, then edge-aggregator start brings it up to date"
        )


def _applied(connection: Connection, name: str) -> set[str]:
    applied = set(connection.exec_driver_sql("SELECT name FROM migrations").scalars())
    unknown = applied - {step for step, _ in MIGRATIONS}
    if unknown:
        raise NewerVersionError(
            f"{name} was written by a later release ({', '.join(sorted(unknown))}); "
            "upgrade pfedrec-edge, or use another directory; nothing was changed"
        )
    return applied


def _for_postgresql(statement: str) -> str:
    for ours, theirs in _POSTGRESQL_WORDS.items():
        statement = statement.replace(ours, theirs)
    return statement
