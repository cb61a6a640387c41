"""The aggregator's store in a PostgreSQL database of its own (psycopg 3).

The server's durability settings are trusted: with ``synchronous_commit = off`` or ``fsync = off`` an
acknowledged update may be lost with the server.
"""

import contextlib
import time
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
"""The advisory lock of who serves the fleet, as the directory's file is for SQLite; workers share it."""
_LEADER_LOCK = 0x7066_6C65
"""That of the one worker that closes rounds."""
_NAME_LOCK = 0x7066_6E61
"""Of each worker's name."""
_LOCK_KEY = "%(number)s, hashtext(current_schema() || '/' || %(name)s)"
"""Of this schema: another fleet in the same database has locks of its own."""
_LOCK_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8)
_KEEPALIVE = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
"""So that the server lets the locks go half a minute after their holder's machine has."""
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

    def __init__(
        self, address: StoreAddress, keep_versions: int = KEEP_VERSIONS, *, looking: bool = False
    ) -> None:
        driver = _driver()
        self._driver = driver
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: driver.connect(
                address.url,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pfedrec-aggregator",
                # A database without an encoding (SQL_ASCII) would give bytes for text.
                client_encoding="utf8",
            ),
            poolclass=StaticPool,
        )
        event.listen(engine, "begin", _begin)
        super().__init__(engine, str(address), keep_versions, looking=looking)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the only one who serves the fleet, as long as the connection lasts.

        Raises
        ------
        InUseError
            When another process, on this machine or another, does.
        """
        if not self._lock(_SERVICE_LOCK):
            raise InUseError(f"{self._name} is served by another process; end that one first")
        try:
            yield
        finally:
            self._unlock_all()

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Be one of several workers who serve the fleet, as long as the connection lasts.

        Parameters
        ----------
        name : str
            The worker's own.

        Raises
        ------
        InUseError
            When a process that is no worker serves, or changes, the store, or a worker of this name does.
        """
        if not self._lock(_SERVICE_LOCK, shared=True):
            raise InUseError(
                f"{self._name} is served by a process that is no worker; end that one, "
                "and start it again with --worker NAME"
            )
        try:
            if not self._lock(_NAME_LOCK, name):
                raise InUseError(f"a worker {name} of {self._name} runs already; give this one another name")
            yield
        finally:
            self._unlock_all()

    def try_to_lead(self) -> bool:
        """Become the one worker that closes rounds, as long as the connection lasts, if no other is.

        What this store commits is committed over the same connection: who has lost the lock without knowing
        cannot close a round.
        """
        return self._try_lock(_LEADER_LOCK)

    def lead_no_more(self) -> None:
        """Let another worker close rounds."""
        with self.transaction() as connection:
            query = f"SELECT pg_advisory_unlock({_LOCK_KEY})"
            connection.exec_driver_sql(query, {"number": _LEADER_LOCK, "name": ""})

    def _lock(self, number: int, name: str = "", *, shared: bool = False) -> bool:
        # The server may not have noticed yet that its last holder has ended, and `is_served` holds it, too.
        with self.transaction() as connection:
            connection.exec_driver_sql(_KEEPALIVE)
        for wait_s in (*_LOCK_WAITS_S, 0.0):
            if self._try_lock(number, name, shared=shared):
                return True
            time.sleep(wait_s)
        return False

    def _try_lock(self, number: int, name: str = "", *, shared: bool = False) -> bool:
        kind = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
        query = f"SELECT {kind}({_LOCK_KEY})"
        with self.transaction() as connection:
            return bool(connection.exec_driver_sql(query, {"number": number, "name": name}).scalar_one())

    def _unlock_all(self) -> None:
        with contextlib.suppress(PFedRecError), self.transaction() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")

    def is_served(self) -> bool:
        """Tell whether a process serves the fleet: a look, which may be out of date at once."""
        if not self._try_lock(_SERVICE_LOCK):
            return True
        self._unlock_all()
        return False

    def _failures(self) -> AbstractContextManager[None]:
        return _named(self._driver, self._name)

    def _require_alone(self, connection: Connection) -> None:
        # Releases without workers took a lock of the whole database.
        for key in (_LOCK_KEY, "%(number)s"):
            query = f"SELECT pg_try_advisory_xact_lock({key})"
            if not connection.exec_driver_sql(query, {"number": _SERVICE_LOCK, "name": ""}).scalar_one():
                raise InUseError(
                    f"{self._name} is served by an earlier release; back it up, and end that one first"
                )

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
        case "22" if code == "22P05":
            return StoreRefusedError(
                f"{name} refuses: {said}; it needs a database for all text, made by "
                "createdb -E UTF8 -T template0"
            )
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
