"""The aggregator's store in a PostgreSQL database of its own (psycopg 3).

The server's durability settings are trusted: with ``synchronous_commit = off`` or ``fsync = off`` an
acknowledged update may be lost with the server.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import StaticPool

from broker.aggregator.store.address import StoreAddress
from broker.aggregator.store.interface import KEEP_VERSIONS
from broker.aggregator.store.sql import SqlStore
from broker.errors import (
    DiskFullError,
    InUseError,
    MissingExtraError,
    NotWritableError,
    PFedRecError,
    StoreLostError,
    StoreRefusedError,
)

if TYPE_CHECKING:
    import psycopg

_CONNECT_TIMEOUT_S = 10
_SERVICE_LOCK = 0x7066_6665
"""The advisory lock of who serves the fleet, as the directory's file is for SQLite."""
_REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied for database",
    "is not permitted to log in",
)
"""What a server says to who tries to connect and will not succeed by trying again; libpq gives no code for
it."""


class PostgresStore(SqlStore):
    """See `SqlStore`.

    Parameters
    ----------
    address : StoreAddress
        Passwords may also come from PGPASSWORD or a password file, as libpq reads them.

    Raises
    ------
    StoreLostError
        When no server answers.
    StoreRefusedError
        When it refuses the user, or has no such database.
    MissingExtraError
        Without psycopg.
    """

    def __init__(self, address: StoreAddress, keep_versions: int = KEEP_VERSIONS) -> None:
        driver = _driver()
        self._driver = driver
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: driver.connect(
                address.url, connect_timeout=_CONNECT_TIMEOUT_S, application_name="pfedrec-aggregator"
            ),
            poolclass=StaticPool,
        )
        event.listen(engine, "begin", _begin)
        super().__init__(engine, str(address), keep_versions)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the only one who serves the fleet, as long as the connection lasts.

        Raises
        ------
        InUseError
            When another process, on this machine or another, does.
        """
        with self.transaction() as connection:
            held = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_SERVICE_LOCK})").scalar_one()
        if not held:
            raise InUseError(f"{self._name} is served by another process; end that one first")
        try:
            yield
        finally:
            with contextlib.suppress(PFedRecError), self.transaction() as connection:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_SERVICE_LOCK})")

    def is_served(self) -> bool:
        """Tell whether a process serves the fleet: a look, which may be out of date at once."""
        try:
            with self.serving():
                return False
        except InUseError:
            return True

    def _failures(self) -> AbstractContextManager[None]:
        return _named(self._driver, self._name)

    def _new_ids(self, connection: Connection, count: int) -> Sequence[int]:
        query = "SELECT nextval('journal_id_seq') FROM generate_series(1, %(count)s)"
        return connection.exec_driver_sql(query, {"count": count}).scalars().all()


def _driver() -> ModuleType:
    try:
        import psycopg  # noqa: PLC0415 - only those who use PostgreSQL have it
    except ImportError as error:
        raise MissingExtraError("postgres", "psycopg") from error
    return psycopg


@contextmanager
def _named(driver: Any, name: str) -> Iterator[None]:
    try:
        yield
    except driver.Error as error:
        raise postgres_failure(error, name) from error


def postgres_failure(error: "psycopg.Error", name: str) -> PFedRecError:
    """Give the named error for what psycopg raised about the database `name`."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    code = error.sqlstate or ""
    match code[:2]:
        case "28" | "3D":
            return StoreRefusedError(f"{name} refuses: {said}; check the user, the password and the database")
        case "53" if code == "53100":
            return DiskFullError(f"no space is left for {name}; free some and start again, nothing was lost")
        case "55" | "40":
            return InUseError(f"{name} is locked by another process; end it or wait, then call again")
    if not code and type(error).__name__ in ("OperationalError", "ConnectionTimeout", "InterfaceError"):
        if any(refusal in str(error) for refusal in _REFUSALS):
            reason = next(line for line in str(error).splitlines() if any(r in line for r in _REFUSALS))
            return StoreRefusedError(
                f"{name} refuses: {reason.strip()}; check the user, the database, and the password in "
                "PGPASSWORD, a password file or PFEDREC_STORE"
            )
        return StoreLostError(f"the store {name} does not answer: {said}")
    if code[:2] in ("08", "57", "53"):  # lost, shut down or starting up, short of connections
        return StoreLostError(f"the store {name} does not answer: {said}")
    return NotWritableError(f"{name} cannot be used: {said}; check the database and the user's rights in it")


def _begin(connection: Connection) -> None:
    # What one call reads belongs together: one snapshot for all of its queries.
    if connection.get_execution_options().get("reading"):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
