"""Several workers of one fleet: what they share in PostgreSQL, and behind a real broker."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import pytest
from click.testing import CliRunner

from broker.address import BrokerAddress
from broker.aggregator import worker
from broker.aggregator.cli import cli
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.decisions import CloseRound, Journal
from broker.aggregator.directory import load_config
from broker.aggregator.examination import examine
from broker.aggregator.store.address import StoreAddress
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.postgres import PostgresStore
from broker.aggregator.store.sharing import ContestedError, SharedJournal
from broker.aggregator.worker import WorkerService
from broker.embedded import free_port
from broker.errors import InUseError
from broker.protocol.encodings import SparseChange
from broker.protocol.messages import Head, Quality, Status, Update, encode
from tests.broker.aggregator.builders import a_change, a_genesis, a_round, an_entry, an_update
from tests.broker.aggregator.fleet import Device, make_directory
from tests.brokers import HOST, PATIENCE_S, RunningBroker
from tests.integration.processes import wait_until
from tests.postgres import Cluster

pytestmark = pytest.mark.postgres
_numbers = count(1)


# --- the shared journal ------------------------------------------------------------------------------


@pytest.fixture
def address(cluster: Cluster) -> StoreAddress:
    """Give a store with a fleet's beginning in it."""
    result = StoreAddress(cluster.new_store())
    with closing(PostgresStore(result)) as store:
        store.initialise(a_genesis())
    return result


def test_update_that_another_worker_has_answered_is_contested_and_stores_nothing(
    address: StoreAddress,
) -> None:
    """The second worker judges again, and finds the first one's verdict."""
    with closing(PostgresStore(address)) as one, closing(PostgresStore(address)) as two:
        SharedJournal(one).record([an_entry(device="pi", seq=1)], {"pi"})
        journal = SharedJournal(two)

        with pytest.raises(ContestedError):
            journal.record([an_entry(device="other", seq=1), an_entry(device="pi", seq=1)], {"other", "pi"})

        state = journal.state_for({"pi", "other"})
        assert {key: each.seq for key, each in state.answered.items()} == {("pi", 1): 1}
        assert state.seen == {"pi"}
        assert [each.device for each in journal.waiting([], 10)] == ["pi"]


def test_number_that_was_passed_over_is_contested(address: StoreAddress) -> None:
    """A worker that had two of a device's numbers in its batch loses to one that had the first."""
    with closing(PostgresStore(address)) as one, closing(PostgresStore(address)) as two:
        SharedJournal(one).record([an_entry(seq=1)], ())

        with pytest.raises(ContestedError):
            SharedJournal(two).record([an_entry(seq=1), an_entry(seq=2)], ())

        assert SharedJournal(two).state_for({"pi"}).answered["pi", 1].seq == 1


def test_workers_that_are_sent_the_same_updates_journal_each_once(address: StoreAddress) -> None:
    """Four workers get all updates of 20 devices, in batches and orders of their own."""

    def work(seed: int) -> int:
        rng, journalled = Random(seed), 0
        with closing(PostgresStore(address)) as store:
            journal = SharedJournal(store)
            for seq in range(1, 6):
                devices = [f"pi-{number}" for number in range(20)]
                rng.shuffle(devices)
                while devices:
                    batch, devices = devices[:7], devices[7:]
                    while True:
                        answered = journal.state_for(set(batch)).answered
                        done = {device for (device, _), each in answered.items() if each.seq >= seq}
                        new = [device for device in batch if device not in done]
                        try:
                            journal.record([an_entry(device=each, seq=seq) for each in new], set(new))
                        except ContestedError:
                            continue
                        journalled += len(new)
                        break
        return journalled

    with ThreadPoolExecutor(4) as pool:
        journalled = list(pool.map(work, range(4)))

    with closing(PostgresStore(address)) as store:
        found = [(each.device, each.update.seq) for each in SharedJournal(store).waiting([], 1000)]
    assert sum(journalled) == len(found) == len(set(found)) == 100


def test_round_spends_what_its_leader_counted_in_that_order(address: StoreAddress) -> None:
    """Not what others have journalled meanwhile; the order is not that of the journal's numbers."""
    with closing(PostgresStore(address)) as store:
        journal = SharedJournal(store)
        journal.record([an_entry(device=f"pi-{number}", seq=number) for number in range(1, 5)], ())
        first, second, third, _ = journal.waiting([], 10)

        closed = CloseRound(a_round(1, updates=2), spends=(third.id, first.id))
        store.commit(Batch(commands=[closed], closed_at=0.0))

        assert [update.seq for update, _, _ in store.counted(1)] == [3, 1]
        assert [each.update.seq for each in journal.waiting([second.id], 10)] == [4]
        assert journal.backlog(1000) == 2


def test_update_accepted_while_its_version_was_given_up_is_dropped_with_it(address: StoreAddress) -> None:
    """The ledger adds up."""
    with closing(PostgresStore(address)) as store:
        journal = SharedJournal(store)
        store.commit(Batch(commands=[Journal(an_entry(seq=1)), CloseRound(a_round(1))], closed_at=0.0))
        store.commit(
            Batch(commands=[CloseRound(a_round(2, updates=0, restored=0), spends=())], closed_at=0.0)
        )
        journal.record([an_entry(seq=2, base_version=1)], ())
        (late,) = journal.waiting([], 10)

        journal.drop(late.id, 2)

        assert (store.ledger().dropped, store.ledger().pending) == (1, 0)
        assert store.rounds(1)[0].dropped == 1
        assert journal.state_for(()).rolled_back == [(0, 2)]


def test_workers_serve_together_but_with_nobody_else(address: StoreAddress) -> None:
    """Names differ, one leads, and whoever wants the store alone is kept out."""
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(closing(PostgresStore(address))) for _ in range(3))
        with one.working("one"):
            with pytest.raises(InUseError, match=r"a worker one .* runs already"), two.working("one"):
                pass
            with pytest.raises(InUseError, match="served by another process"), three.serving():
                pass
            with two.working("two"):
                assert one.try_to_lead()
                assert not two.try_to_lead()
                assert three.is_served()
                one.close()
                wait_until(two.try_to_lead, "the server has noticed that the leader is gone")
        with (
            three.serving(),
            pytest.raises(InUseError, match="that is no worker"),
            one.working("1"),
        ):
            pass


def test_fleets_in_schemas_of_one_database_have_locks_of_their_own(cluster: Cluster) -> None:
    """Advisory locks are the database's."""
    with (
        closing(PostgresStore(StoreAddress(cluster.new_store()))) as one,
        closing(PostgresStore(StoreAddress(cluster.new_store()))) as two,
        one.serving(),
        two.serving(),
    ):
        pass


@pytest.mark.parametrize(
    ("store", "broker", "said"),
    [
        ("", "mqtt://127.0.0.1:1", "workers share a PostgreSQL store"),
        ("postgresql://a@127.0.0.1/b", "auto", "workers share a broker that runs by itself"),
    ],
)
def test_worker_of_what_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, broker: str, said: str
) -> None:
    """A file, or a broker of the process's own."""
    path = make_directory(tmp_path / "shop", AggregatorConfig(fleet="shop"))
    monkeypatch.setenv("PFEDREC_STORE", store)

    result = CliRunner().invoke(cli, ["start", "--dir", str(path), "--worker", "a", "--broker", broker])

    assert said in str(result.exception)


# --- behind a broker ---------------------------------------------------------------------------------


class Workers:
    """A fleet's workers, each on a thread of its own."""

    def __init__(self, path: Path, url: str, address: BrokerAddress) -> None:
        self.config = load_config(path, {"PFEDREC_STORE": url})
        self.said: list[str] = []
        self._address = address

    @contextmanager
    def working(
        self,
        name: str,
        each_turn: Callable[[], None] = lambda: None,
        *,
        at: BrokerAddress | None = None,
        connects: bool = True,
    ) -> Iterator[WorkerService]:
        """Run one, as its command would; it ends without a word to the store, as by a kill."""
        store = PostgresStore(self.config.store_address, self.config.keep_versions)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool, closing(store), store.working(name):
            service = WorkerService(self.config, store, at or self._address, self.said.append, name=name)
            running = pool.submit(service.run, stop, each_turn=each_turn)
            try:
                wait_until(
                    lambda: running.done() or service.broker_connected or not connects,
                    f"worker {name} is connected",
                )
                yield service
            finally:
                stop.set()
                running.result(PATIENCE_S)

    def store(self) -> PostgresStore:
        """Open the store that they share."""
        return PostgresStore(self.config.store_address)


def guarded(cluster: Cluster, broker: RunningBroker, path: Path, reports: int) -> Workers:
    """Give workers of a fleet whose versions are on trial, and whose rounds close with two updates."""
    config = AggregatorConfig(
        fleet=f"guarded-{os.getpid()}-{next(_numbers)}",
        buffer=2,
        deadline_s=0.0,
        population=2 * reports,
        guard_reports=reports,
        store=cluster.new_store(),
        broker=broker.url,
    )
    make_directory(path, config, n_items=3000, dim=32)
    workers = Workers(path, config.store, broker.address)
    with closing(workers.store()) as store:
        devices = ["one", "other", *(f"pi-{number}" for number in range(8))]
        store.commit(Batch(commands=(), devices=devices, closed_at=0.0))
    return workers


@pytest.fixture
def workers(cluster: Cluster, shared_mosquitto: RunningBroker, tmp_path: Path) -> Workers:
    """Give those of a fleet whose rounds close with two updates."""
    url = cluster.new_store()
    fleet = f"workers-{os.getpid()}-{next(_numbers)}"
    config = AggregatorConfig(
        fleet=fleet, buffer=2, deadline_s=0.0, population=4, store=url, broker=shared_mosquitto.url
    )
    path = make_directory(tmp_path / "aggregator", config, n_items=3000, dim=32)
    return Workers(path, url, shared_mosquitto.address)


def an_update_for(head: Head, seq: int, change: SparseChange | None = None) -> Update:
    """Give an update of the newest version."""
    return an_update(
        seq=seq,
        instance=head.instance,
        base_version=head.version,
        change=change or a_change(seq, n_items=head.rows, dim=head.dim, n_rows=5),
    )


def of_version(version: int) -> Callable[[Head], bool]:
    """Give what tells whether a head is of that version."""
    return lambda head: head.version == version


def a_report(head: Head, beaten: int = 5) -> Quality:
    """Give a report of a version; the one before it beats 5 of 9."""
    return Quality(
        instance=head.instance,
        version=head.version,
        version_before=head.version - 1,
        candidates=9,
        hits=0,
        hits_before=0,
        beaten=beaten,
        beaten_before=5,
        ndcg=0.0,
        ndcg_before=0.0,
        loss=0.5,
        loss_before=0.5,
    )


@pytest.mark.mqtt
def test_workers_share_updates_and_one_goes_on_when_the_leader_ends(
    workers: Workers, shared_mosquitto: RunningBroker
) -> None:
    """Each update counts once, whoever it is sent to; versions go on; every one of them can be made anew."""
    fleet = workers.config.fleet
    with workers.working("b") as later, Device(shared_mosquitto.address, fleet) as device:
        wait_until(lambda: later.leads, "b leads")
        with workers.working("a") as other:
            head = device.head()
            receipts = []
            for seq in range(1, 9):
                update = an_update_for(head, seq)
                # By turns: one for each worker.
                receipts.append((device.send(update).verdict, device.send(update).verdict))
            assert set(receipts) == {("accepted", "duplicate")}
            assert not other.leads
            before = device.head(lambda head: head.version == 4)
    with workers.working("a") as other, Device(shared_mosquitto.address, fleet) as device:
        # Not only leads: b may have left a head with a newer session than the one that the device has seen.
        wait_until(lambda: other.leads and other.head_published, "a leads")
        head = device.head(lambda head: head.session > before.session)
        assert head.version == 4
        assert device.send(an_update_for(head, 8)).verdict == "duplicate"
        assert [device.send(an_update_for(head, seq)).verdict for seq in (9, 10)] == ["accepted"] * 2
        newest = device.head(lambda head: head.version == 5)
        table = device.table(newest)
    with closing(workers.store()) as store:
        np.testing.assert_array_equal(store.load().table, table)
        assert [each.judgement for each in examine(store)] == ["proved"] * 5
        assert (store.ledger().counted, store.ledger().duplicates) == (10, 9)


@pytest.mark.mqtt
def test_round_that_a_report_closes_counts_its_updates_once(
    cluster: Cluster, shared_mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """The guard holds a round back until a version is good; what it has is not taken for the next, too."""
    workers = guarded(cluster, shared_mosquitto, tmp_path / "aggregator", 2)
    with workers.working("a"), Device(shared_mosquitto.address, workers.config.fleet) as device:
        head = device.head()
        for version in range(1, 6):
            for seq in (2 * version - 1, 2 * version):
                assert device.send(an_update_for(head, seq)).verdict == "accepted"
            if version == 1:
                head = device.head(of_version(1))
                continue
            for name in ("one", "other"):
                report = encode(a_report(head))
                device.publish(device.topics.quality(name), report)
            head = device.head(of_version(version))
    with closing(workers.store()) as store:
        assert [each.judgement for each in examine(store)] == ["proved"] * 5
        assert (store.ledger().counted, store.ledger().pending) == (10, 0)


@pytest.mark.mqtt
def test_new_leader_hears_the_devices_that_its_head_asks(
    cluster: Cluster, shared_mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """Another buffer, read again before it led, changes when its rounds close, and not the share."""
    workers = guarded(cluster, shared_mosquitto, tmp_path / "aggregator", 8)
    first = ExitStack()
    leader = first.enter_context(workers.working("a"))
    with first, Device(shared_mosquitto.address, workers.config.fleet) as device:
        for seq in (1, 2):
            assert device.send(an_update_for(device.head(), seq)).verdict == "accepted"
        made = device.head(of_version(1))
        assert leader.leads
        with workers.working("b") as second:
            second.reconfigure(replace(workers.config, buffer=8000))
            first.close()
            wait_until(lambda: second.leads and second.head_published, "b leads")
            head = device.head(lambda each: each.session > made.session)
            assert (head.version, head.plan.guard) == (1, 1.0)
            for number in range(8):
                device.publish(device.topics.quality(f"pi-{number}"), encode(a_report(head, beaten=0)))
            assert device.head(of_version(2)).plan.guard == 1.0
    with closing(workers.store()) as store:
        assert store.rounds(1)[0].source == 0


@pytest.mark.mqtt
def test_update_that_is_accepted_while_its_version_is_given_up_is_dropped_by_the_rollback(
    cluster: Cluster, shared_mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """It comes in the same batch as the reports: the rollback that drops it is not stored yet."""
    workers = guarded(cluster, shared_mosquitto, tmp_path / "aggregator", 8)
    going, waits = threading.Event(), threading.Event()
    going.set()

    def wait_if_told() -> None:
        if not going.is_set():
            waits.set()
        going.wait(PATIENCE_S)

    with (
        workers.working("a", wait_if_told) as leader,
        Device(shared_mosquitto.address, workers.config.fleet) as device,
    ):
        for seq in (1, 2):
            assert device.send(an_update_for(device.head(), seq)).verdict == "accepted"
        head = device.head(of_version(1))
        going.clear()
        assert waits.wait(PATIENCE_S)
        before = leader.queued
        for number in range(8):
            device.publish(device.topics.quality(f"pi-{number}"), encode(a_report(head, beaten=0)))
        device.publish(device.topics.update(device.name), encode(an_update_for(head, 3)))
        wait_until(lambda: leader.queued >= before + 9, "the messages wait")
        going.set()
        assert device.receipt().verdict == "accepted"
        device.head(of_version(2))
        with closing(workers.store()) as store:
            wait_until(lambda: store.ledger().pending == 0, "no update waits")
    with closing(workers.store()) as store:
        assert (store.ledger().counted, store.ledger().dropped) == (2, 1)
        assert [(each.updates, each.dropped) for each in store.rounds(10)] == [(0, 1), (2, 0)]
        assert [each.judgement for each in examine(store)] == ["proved"] * 2


@pytest.mark.mqtt
def test_worker_without_a_broker_does_not_lead(
    workers: Workers,
    shared_mosquitto: RunningBroker,
    mosquitto: RunningBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody would hear of its versions; one that has lost its broker gives the lead away."""
    monkeypatch.setattr(worker, "_LEADS_WITHOUT_BROKER_S", 0.2)
    nowhere = BrokerAddress(host=HOST, port=free_port(HOST))
    with (
        workers.working("a", at=nowhere, connects=False) as idle,
        workers.working("b", at=mosquitto.address) as first,
    ):
        wait_until(lambda: first.leads, "b leads")
        assert not idle.leads
        with workers.working("c") as second:
            mosquitto.kill()
            wait_until(lambda: second.leads and second.head_published, "c leads")
            with Device(shared_mosquitto.address, workers.config.fleet) as device:
                head = device.head()
                assert [device.send(an_update_for(head, seq)).verdict for seq in (1, 2)] == ["accepted"] * 2
                assert device.head(of_version(1))
            mosquitto.start()
            wait_until(lambda: first.broker_connected, "b is back")
            assert not first.leads


@pytest.mark.mqtt
def test_update_in_parts_is_put_together_by_the_leader(
    workers: Workers, shared_mosquitto: RunningBroker
) -> None:
    """Its parts come to different workers."""
    with (
        workers.working("b") as leader,
        workers.working("a"),
        Device(shared_mosquitto.address, workers.config.fleet) as device,
    ):
        wait_until(lambda: leader.leads, "b leads")
        head = device.head()
        change = a_change(1, n_items=head.rows, dim=head.dim, n_rows=head.rows)
        assert change.change.nbytes > 3 * 100_000

        assert device.send(an_update_for(head, 1, change)).verdict == "accepted"


@pytest.mark.mqtt
def test_updates_that_a_killed_worker_was_handed_are_asked_for_again(
    workers: Workers, shared_mosquitto: RunningBroker
) -> None:
    """Its last will makes the leader publish its head with a new session."""
    fleet = workers.config.fleet
    will = encode(
        Status(online=False, session=1, incarnation=1, version=0, scorer="none", software="edge-aggregator")
    )
    with workers.working("b") as leader, Device(shared_mosquitto.address, fleet) as device:
        wait_until(lambda: leader.leads, "b leads")
        before = device.head()

        device.publish(device.topics.presence("a"), will, retain=True)

        assert device.head(lambda head: head.session > before.session).version == before.version
