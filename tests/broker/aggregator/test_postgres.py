"""What only PostgreSQL can do to the aggregator: be away, refuse, come back, be served by two."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from broker.aggregator.config import AggregatorConfig
from broker.aggregator.decisions import CloseRound, Journal
from broker.aggregator.directory import CONFIG_NAME
from broker.aggregator.recovery import serve_with
from broker.aggregator.store.address import StoreAddress
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.migrations import MIGRATIONS
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.sql import SqlStore
from broker.errors import (
    CorruptError,
    EarlierVersionError,
    InUseError,
    NewerVersionError,
    StoreLostError,
    StoreRefusedError,
)
from tests.broker.aggregator.builders import a_genesis, a_round, an_entry, an_update
from tests.broker.aggregator.fleet import Device, make_directory
from tests.brokers import PATIENCE_S, RunningBroker
from tests.postgres import PASSWORD, Cluster, programs, running_cluster
from trainer.errors import ParameterError

pytestmark = pytest.mark.postgres


@pytest.fixture
def mortal_cluster() -> Iterator[Cluster]:
    """Give a PostgreSQL of the test's own, which it may kill."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with running_cluster() as running:
        yield running


def test_server_that_is_killed_is_waited_for_and_nothing_acknowledged_is_lost(
    mortal_cluster: Cluster,
) -> None:
    """A commit that fails says so; what was committed before is there when the server is back."""
    address = StoreAddress(mortal_cluster.new_store())
    said: list[str] = []
    seqs: list[int] = []

    def serve(store: SqlStore) -> None:
        if not seqs:
            store.initialise(a_genesis())
        first = store.load().answered
        seqs.append(max((each.seq for each in first.values()), default=0) + 1)
        store.commit(Batch(commands=[Journal(an_entry(seq=seqs[-1]))], closed_at=0.0))
        if len(seqs) == 1:
            mortal_cluster.kill()
            store.commit(Batch(commands=[Journal(an_entry(seq=2))], closed_at=0.0))

    def say(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 1:
            mortal_cluster.start()

    serve_with(lambda: PostgresStore(address), serve, threading.Event(), say)

    assert seqs == [1, 2]
    assert len(said) == 2
    assert "does not answer" in said[0]
    assert said[1] == "the store is back"
    assert PASSWORD not in "".join(said)
    with closing(PostgresStore(address)) as store:
        assert [update.seq for update, _, _ in store.pending()] == [1, 2]


@pytest.mark.process
def test_settings_that_were_read_again_outlive_a_store_that_was_away(
    cluster: Cluster, tmp_path: Path, mosquitto: RunningBroker
) -> None:
    """The service that is made anew has those of the one before, not those of the start."""
    url = cluster.new_store()
    config = AggregatorConfig(fleet="shop", store=url, broker=mosquitto.url, deadline_s=0.0)
    path = make_directory(tmp_path / "shop", config)
    with subprocess.Popen(
        [sys.executable, "-m", "broker.aggregator.cli", "start", "--dir", str(path)],
        stderr=subprocess.PIPE,
        env=os.environ | {"PFEDREC_STORE": url},
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            with Device(mosquitto.address, "shop") as device:
                first = device.head()
                settings = path / CONFIG_NAME
                settings.write_text(settings.read_text().replace("buffer = 32", "buffer = 1"))
                process.send_signal(signal.SIGHUP)
                assert any("the settings were read again" in line for line in process.stderr)
                with closing(psycopg.connect(cluster.url("postgres"), autocommit=True)) as operator:
                    operator.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                        ["pfedrec-aggregator"],
                    )
                assert any("the store is back" in line for line in process.stderr)
                head = device.head(lambda each: each.session > first.session)
                device.send(an_update(instance=head.instance))
                assert device.head(lambda each: each.version == 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_nobody_at_the_address_is_a_lost_store(cluster: Cluster) -> None:
    """Where no server listens, it may yet come."""
    with pytest.raises(StoreLostError, match="does not answer"):
        PostgresStore(StoreAddress("postgresql://pfedrec@127.0.0.1:1/postgres"))


@pytest.mark.parametrize("what", ["password", "database"])
def test_server_that_refuses_is_not_tried_again(cluster: Cluster, what: str) -> None:
    """A wrong password or database is one sentence, without the password."""
    secret = "not-the-password"  # noqa: S105 - a wrong one
    url = cluster.url("postgres", secret) if what == "password" else cluster.url("no_such_database")

    with pytest.raises(StoreRefusedError, match="refuses") as caught:
        PostgresStore(StoreAddress(url))

    assert secret not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_of_another_encoding_is_used_or_refused_by_name(cluster: Cluster, encoding: str) -> None:
    """As initdb and createdb make one without a locale: what is stored is UTF-8 all the same."""
    genesis = a_genesis()  # its keys are not in Latin letters alone

    with closing(PostgresStore(StoreAddress(cluster.new_database(encoding)))) as store:
        if encoding == "SQL_ASCII":
            store.initialise(genesis)
            assert list(store.catalogue().keys) == list(genesis.item_keys)
        else:
            with pytest.raises(StoreRefusedError, match="createdb -E UTF8 -T template0"):
                store.initialise(genesis)


def test_newer_database_is_refused_and_left_alone(cluster: Cluster) -> None:
    """What a later release wrote, this one does not touch."""
    address = StoreAddress(cluster.new_store())
    with closing(PostgresStore(address)) as store, store.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO migrations (name) VALUES ('0999 from the future')")

    with pytest.raises(NewerVersionError, match=r"later release \(0999 from the future\)"):
        PostgresStore(address)


def test_earlier_database_is_changed_by_who_serves_it_alone(cluster: Cluster) -> None:
    """Not by who looks, and not while a process of the earlier release serves from it."""
    address = StoreAddress(cluster.new_store())
    with closing(PostgresStore(address)) as old:
        with old.transaction() as connection:
            newest = MIGRATIONS[-1][0]
            connection.exec_driver_sql("DELETE FROM migrations WHERE name = %(newest)s", {"newest": newest})
            for name in ("differences", "squares"):
                connection.exec_driver_sql(f"ALTER TABLE quality DROP COLUMN {name}")
            for name in ("candidates", "beaten"):
                connection.exec_driver_sql(f"ALTER TABLE quality ALTER COLUMN {name} TYPE INTEGER")

        with pytest.raises(EarlierVersionError, match=f"earlier release .it lacks {newest}"):
            PostgresStore(address, looking=True)
        with old.serving(), pytest.raises(InUseError, match="served by an earlier release"):
            PostgresStore(address)
        with old.working("a"), pytest.raises(InUseError, match="served by an earlier release"):
            PostgresStore(address)
    with closing(PostgresStore(address)):
        PostgresStore(address, looking=True).close()


def test_who_looks_makes_nothing_in_an_empty_database(cluster: Cluster) -> None:
    """A wrong name in the address does not leave tables there."""
    address = StoreAddress(cluster.new_store())

    for _ in range(2):
        with pytest.raises(CorruptError, match="lacks what init stored"):
            PostgresStore(address, looking=True)


def test_one_process_serves_at_a_time(cluster: Cluster) -> None:
    """The second is told; when the first has ended, however it did, there is room."""
    address = StoreAddress(cluster.new_store())
    with closing(PostgresStore(address)) as first, closing(PostgresStore(address)) as second:
        with first.serving():
            assert second.is_served()
            with pytest.raises(InUseError, match="served by another process"), second.serving():
                pass
        with second.serving():
            assert first.is_served()


def test_rounds_closed_on_postgresql_leave_no_bodies_behind_the_window(cluster: Cluster) -> None:
    """The window moves with the versions."""
    with closing(PostgresStore(StoreAddress(cluster.new_store()), keep_versions=3)) as store:
        store.initialise(a_genesis())
        for version in range(1, 8):
            store.commit(
                Batch(commands=[Journal(an_entry(seq=version)), CloseRound(a_round(version))], closed_at=0.0)
            )

        assert [version for version in range(8) if store.counted(version)] == [5, 6, 7]
        assert [version for version in range(8) if store.kept_table(version) is not None] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://a:geheim@db:5433/shop", "postgresql://a@db:5433/shop"),
        ("postgresql://a@db/shop?password=geheim&sslmode=require", "postgresql://a@db/shop?sslmode=require"),
        ("postgresql:///shop?host=/run/postgresql", "postgresql:///shop?host=/run/postgresql"),
    ],
)
def test_address_shows_no_password(url: str, shown: str) -> None:
    """Neither in a message nor in what is written to a file."""
    address = StoreAddress(url)

    assert str(address) == address.without_secrets == shown
    assert "geheim" not in repr(address)
    assert address.has_secret == ("geheim" in url)


@pytest.mark.parametrize("url", ["mysql://a@b/c", "postgresql://host", "postgresql://host:x/shop", "x"])
def test_what_is_no_address_is_refused_without_being_repeated(url: str, tmp_path: Path) -> None:
    """It may hold a password all the same."""
    with pytest.raises(ParameterError, match="the store is no address") as caught:
        StoreAddress(url)

    assert url not in str(caught.value) or url == "x"
