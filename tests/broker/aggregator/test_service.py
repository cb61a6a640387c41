"""The aggregator against real brokers: what it publishes, answers, and does not lose."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from broker.address import BrokerAddress
from broker.aggregator import service as service_module
from broker.aggregator.admission import Admission
from broker.aggregator.catalogue_changes import parse_change
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.directory import CONFIG_NAME, DATABASE_NAME, load_config, open_store
from broker.aggregator.pacing import MOST_SLOWED
from broker.aggregator.service import BATCH_EVENTS, AggregatorService
from broker.aggregator.store.interface import Batch, Ledger
from broker.aggregator.store.sqlite import SqliteStore
from broker.connection import WINDOW_EVENTS, Connected, EventSink, LinkEvent, Lost, Received
from broker.errors import DiskFullError, RefusedError
from broker.protocol.chunks import cut
from broker.protocol.encodings import SparseChange
from broker.protocol.messages import Chunk, Head, Quality, Receipt, Status, Update, decode, encode
from broker.protocol.topics import Filter, FleetTopics, Topic
from broker.protocol.versions import sha256
from tests.broker.aggregator.builders import a_change, an_update
from tests.broker.aggregator.fleet import Device, ledger_of, make_directory, serving
from tests.brokers import PATIENCE_S, RunningBroker, ScriptedBroker, kill_and_wait
from trainer.params import Floats

_numbers = count(1)


WORSE = Quality(
    instance=0, version=1, version_before=0, candidates=99, hits=0, hits_before=1,
    beaten=20, beaten_before=95, ndcg=0.0, ndcg_before=0.5, loss=2.0, loss_before=1.0,
)  # fmt: skip


@pytest.fixture
def fleet() -> str:
    """Give a fleet that no other test has."""
    return f"fleet-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def path(tmp_path: Path, fleet: str) -> Path:
    """Give a directory whose rounds close with two updates of a fleet of four."""
    config = AggregatorConfig(fleet=fleet, buffer=2, deadline_s=0.0, population=4, check_in_s=5.0)
    return make_directory(tmp_path / "aggregator", config)


def an_update_for(head: Head, seq: int, *, change: SparseChange | None = None) -> Update:
    """Give an update of the newest version."""
    return an_update(
        seq=seq,
        instance=head.instance,
        base_version=head.version,
        change=change or a_change(seq, n_items=head.rows, dim=head.dim),
    )


def table_after(table: Floats, changes: Sequence[SparseChange], population: int) -> Floats:
    """Give what a round of fresh updates makes of a table."""
    result = table.astype(np.float64)
    for each in changes:
        result[each.rows] += each.change / population
    return result.astype(np.float32)


# --- against real brokers ----------------------------------------------------------------------------


def test_head_table_and_catalogue_are_published_and_verify(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """Whoever joins finds all that it needs, retained, with hashes that fit."""
    store = open_store(path)
    state, start = store.load(), store.start()
    store.close()
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()

        # More than one where amqtt drops the connection, as it does when another client subscribes just then.
        assert head.session >= 1
        assert (head.version, head.instance) == (0, state.instance)
        assert (head.rows, head.dim, head.catalogue_rows) == (6, 3, 6)
        assert (head.plan.encoding, head.plan.check_in_s) == ("int8", 5.0)
        np.testing.assert_array_equal(device.table(head), state.table)
        np.testing.assert_array_equal(head.w, start.w)
        assert device.catalogue(head) == tuple(f"item {number}" for number in range(6))


def test_update_is_accepted_once_and_a_repeat_is_a_duplicate(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """The first verdict is final; the ledger counts the repeat apart."""
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        update = an_update_for(device.head(), 1)

        first, again = device.send(update), device.send(update)

        assert (first.verdict, first.seq, first.incarnation, first.check_in_s) == ("accepted", 1, 1, 5.0)
        assert (again.verdict, again.reason) == ("duplicate", "answered before: accepted")

    assert ledger_of(path) == Ledger(counted=0, pending=1, stale=0, rejected=0, duplicates=1, refused=0)


def test_full_buffer_publishes_the_next_version(broker: RunningBroker, fleet: str, path: Path) -> None:
    """The table that devices get is the one that the round made, in the other slot."""
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        table = device.table(head)
        changes = [a_change(seq) for seq in (1, 2)]
        for seq, change in enumerate(changes, 1):
            device.send(an_update_for(head, seq, change=change))

        newer = device.head(lambda each: each.version == 1)

        assert newer.slot != head.slot
        np.testing.assert_allclose(device.table(newer), table_after(table, changes, 4), rtol=1e-5)

    store = open_store(path)
    (record,) = store.rounds(9)
    assert (record.updates, record.sha256, record.by_deadline) == (2, newer.sha256, False)
    store.close()


def test_deadline_publishes_the_next_version(broker: RunningBroker, fleet: str, tmp_path: Path) -> None:
    """A round that does not fill up is closed by the clock."""
    config = AggregatorConfig(fleet=fleet, buffer=100, deadline_s=0.05)
    path = make_directory(tmp_path / "aggregator", config)
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        device.send(an_update_for(device.head(), 1))

        assert device.head(lambda each: each.version == 1).slot == 1

    store = open_store(path)
    assert store.rounds(1)[0].by_deadline
    store.close()


def test_what_is_no_update_is_answered_without_a_number(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """Bytes, other messages and wrong chunks get a receipt with the reason, and are counted."""
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        wrong = [
            b"\xff not CBOR",
            b"",
            encode(head),
            encode(Chunk(digest=bytes(8), index=0, count=1, size=10**9, data=b"x")),
            encode(Chunk(digest=bytes(8), index=0, count=1, size=1, data=b"x")),
        ]

        receipts = [device.send_bytes(payload) for payload in wrong]

        for receipt in receipts:
            assert (receipt.seq, receipt.incarnation, receipt.verdict) == (0, 0, "rejected")
            assert receipt.reason
        assert device.send(an_update_for(head, 1)).verdict == "accepted"

    ledger = ledger_of(path)
    assert (ledger.refused, ledger.rejected, ledger.pending) == (len(wrong), 0, 1)


def test_foreign_topics_and_statuses_are_refused_without_an_answer(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """What names no device, and a status that is none, disturbs nobody."""
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        device.publish(f"pfedrec/1/{fleet}/device/no device/update", b"x")
        device.publish(device.topics.status("other"), b"no status", retain=True)
        device.publish(device.topics.status("gone"), b"", retain=True)

        assert device.send(an_update_for(head, 1)).verdict == "accepted"

    assert ledger_of(path).refused == 2
    store = open_store(path)
    assert store.load().seen == {"pi"}
    store.close()


def test_device_that_shows_its_status_is_in_the_fleet(
    broker: RunningBroker, fleet: str, tmp_path: Path
) -> None:
    """Those seen are the population where none is set, also those that came before the aggregator."""
    path = make_directory(tmp_path / "aggregator", AggregatorConfig(fleet=fleet, buffer=1))
    change = a_change(1)
    with Device(broker.address, fleet, "early") as early, Device(broker.address, fleet) as device:
        early.show_status()
        with serving(path, broker.address):
            device.show_status(online=False)
            head = device.head()
            table = device.table(head)

            device.send(an_update_for(head, 1, change=change))

            newer = device.head(lambda each: each.version == 1)
            np.testing.assert_allclose(device.table(newer), table_after(table, [change], 2), rtol=1e-5)

    store = open_store(path)
    assert store.load().seen == {"early", "pi"}
    store.close()


def test_update_in_chunks_is_accepted(broker: RunningBroker, fleet: str, tmp_path: Path) -> None:
    """An update larger than one message is put together, also when chunks come twice or out of order."""
    config = AggregatorConfig(fleet=fleet, buffer=2, deadline_s=0.0, population=2, encoding="float32")
    path = make_directory(tmp_path / "aggregator", config, n_items=2000, dim=32)
    changes = [a_change(seq, n_items=2000, dim=32, n_rows=2000) for seq in (1, 2)]
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        table = device.table(head)
        assert head.chunks == 3
        first, second = (an_update_for(head, seq, change=change) for seq, change in enumerate(changes, 1))

        assert device.send(first).verdict == "accepted"
        payload = encode(second)
        chunks = [encode(chunk) for chunk in chunks_of(payload)]
        for index in (2, 0, 0):
            device.publish(device.topics.update("pi"), chunks[index])
        assert device.send_bytes(chunks[1]).verdict == "accepted"

        newer = device.head(lambda each: each.version == 1)
        np.testing.assert_allclose(device.table(newer), table_after(table, changes, 2), rtol=1e-4, atol=1e-6)


def test_version_that_devices_report_as_worse_is_rolled_back(
    broker: RunningBroker, fleet: str, tmp_path: Path
) -> None:
    """A new version has the table of the one before; the operator sees it in the rounds."""
    config = AggregatorConfig(fleet=fleet, buffer=1, deadline_s=0.0, population=40, guard_reports=12)
    path = make_directory(tmp_path / "aggregator", config)
    store = open_store(path)
    store.commit(Batch(commands=(), devices=[f"pi-{number}" for number in range(12)], closed_at=0.0))
    store.close()
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        assert head.plan.guard == 1.0
        device.send(an_update_for(head, 1))
        bad = device.head(lambda each: each.version == 1)
        for number in range(12):
            report = replace(WORSE, instance=head.instance, version=1, version_before=0)
            device.publish(device.topics.quality(f"pi-{number}"), encode(report))
        restored = device.head(lambda each: each.version == 2)
        assert restored.sha256 == head.sha256 != bad.sha256
        receipt = device.send(an_update_for(bad, 2))
        assert (receipt.verdict, receipt.reason) == ("rejected", "version 1 was given up")

    store = open_store(path)
    newest, older = store.rounds(2)
    assert (newest.source, older.quality and older.quality.finding) == (0, "bad")
    store.close()


def test_queued_changes_of_the_catalogue_are_versions_while_it_runs(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """Each closes the open round; an update on the smaller table still counts."""
    other = open_store(path)
    with serving(path, broker.address), Device(broker.address, fleet) as device:
        head = device.head()
        table = device.table(head)
        other.queue_change(parse_change("add", b"new\tlike:item 1\n", "f"), 1.0)
        grown = device.head(lambda each: each.version == 1)
        assert (grown.rows, grown.catalogue_rows) == (7, 7)
        np.testing.assert_array_equal(device.table(grown), np.concatenate((table, table[1:2])))
        assert device.catalogue(grown)[6:] == ("new",)

        assert device.send(an_update_for(head, 1)).verdict == "accepted"
        other.queue_change(parse_change("retire", b"item 0\n", "f"), 2.0)
        retired = device.head(lambda each: each.version == 2)
        assert retired.rows == 7
        device.catalogue(retired)
        device.table(retired)

    assert other.rounds(9)[0].updates == 1
    assert other.catalogue().retired == {0}
    other.close()


def test_change_of_the_catalogue_does_not_end_the_trial_of_the_one_before(tmp_path: Path) -> None:
    """It waits for that version's finding."""
    config = AggregatorConfig(fleet="changing", population=100)
    path = make_directory(tmp_path / "aggregator", config)
    store = open_store(path)
    store.queue_change(parse_change("add", b"one\n", "f"), 1.0)
    store.queue_change(parse_change("add", b"two\n", "f"), 2.0)
    service = AggregatorService(config, store, BrokerAddress.parse("mqtt://127.0.0.1:1"), lambda _: None)
    stop = Event()

    service.run(stop, each_turn=lambda: stop.set() if service.version else None)

    assert [(record.version, record.quality) for record in store.rounds(9)] == [(1, None)]
    assert [change.items for _, change in store.queued_changes()] == [(("two",),)]
    store.close()


def chunks_of(payload: bytes) -> list[Chunk]:
    """Cut as a device does."""
    return list(cut(payload, sha256(payload)))


def test_broker_restart_publishes_everything_again(
    mortal_broker: RunningBroker, fleet: str, path: Path
) -> None:
    """A broker that lost all it held gets it again, under a new session, with one sentence each way."""
    said: list[str] = []
    with serving(path, mortal_broker.address, said):
        with Device(mortal_broker.address, fleet) as device:
            before = device.head()
            device.send(an_update_for(before, 1))
        mortal_broker.kill()
        mortal_broker.start()
        with Device(mortal_broker.address, fleet, "newcomer") as device:
            head = device.head(lambda each: each.session > before.session)

            assert (head.version, head.sha256) == (0, before.sha256)
            device.table(head)
            device.catalogue(head)
            assert device.send(an_update_for(head, 1)).verdict == "accepted"
            assert device.head(lambda each: each.version == 1).session == head.session

    assert str(mortal_broker.address) in said[0]
    assert all(sentence.endswith("trying again until it is back") for sentence in said[::2])
    assert said[1::2] == ["the broker is back"] * (len(said) // 2)
    assert len(said) in (2, 4)  # amqtt may drop a connection that is made while another client subscribes


@pytest.mark.mqtt
def test_update_of_while_the_aggregator_was_away_is_answered_later(
    mosquitto: RunningBroker, fleet: str, path: Path
) -> None:
    """The broker keeps updates for an aggregator that it knows."""
    with Device(mosquitto.address, fleet) as device:
        with serving(path, mosquitto.address):
            head = device.head()
        device.publish(device.topics.update("pi"), encode(an_update_for(head, 1)))

        with serving(path, mosquitto.address):
            assert device.receipt().verdict == "accepted"


@pytest.mark.mqtt
def test_backlog_beyond_the_broker_s_window_is_taken_whole(
    mosquitto: RunningBroker, fleet: str, tmp_path: Path
) -> None:
    """What was sent while nobody took it is accepted and counted once, each, however much it is."""
    config = AggregatorConfig(fleet=fleet, buffer=64, max_staleness=100, population=4)
    path = make_directory(tmp_path / "aggregator", config)
    count = WINDOW_EVENTS + 200
    with Device(mosquitto.address, fleet) as device:
        with serving(path, mosquitto.address):
            head = device.head()
        for seq in range(1, count + 1):
            device.publish(device.topics.update("pi"), encode(an_update_for(head, seq)))

        with serving(path, mosquitto.address):
            receipts = [device.receipt() for _ in range(count)]

    assert {receipt.verdict for receipt in receipts} == {"accepted"}
    assert sorted(receipt.seq for receipt in receipts) == list(range(1, count + 1))
    ledger = ledger_of(path)
    assert ledger.counted + ledger.pending == count


def test_broker_that_refuses_ends_the_service_with_a_sentence(path: Path) -> None:
    """Wrong credentials are not tried again for ever."""
    said: list[str] = []
    store = open_store(path)
    try:
        with ScriptedBroker(5) as scripted:
            service = AggregatorService(load_config(path, {}), store, scripted.address, said.append)
            with pytest.raises(RefusedError, match="refuses the aggregator: not authorized; check the user"):
                service.run(Event())
    finally:
        store.close()


@contextmanager
def the_command(path: Path, broker: RunningBroker) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``edge-aggregator start`` in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "broker.aggregator.cli", "start", "--dir", str(path), "--broker", broker.url]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.process
def test_kill_9_loses_no_accepted_update_and_counts_none_twice(
    broker: RunningBroker, fleet: str, path: Path
) -> None:
    """What was answered before the kill waits after it, is a duplicate when sent again, and counts once."""
    changes = [a_change(seq) for seq in (1, 2)]
    with Device(broker.address, fleet) as device:
        with the_command(path, broker) as process:
            head = device.head()
            table = device.table(head)
            first, second = (an_update_for(head, seq, change=each) for seq, each in enumerate(changes, 1))
            assert device.send(first).verdict == "accepted"
            kill_and_wait(process.pid)
        assert ledger_of(path).pending == 1

        with the_command(path, broker) as process:
            restarted = device.head(lambda each: each.session > head.session)
            assert (restarted.version, restarted.sha256) == (0, head.sha256)
            assert device.send(first).verdict == "duplicate"
            assert device.send(second).verdict == "accepted"
            newer = device.head(lambda each: each.version == 1)
            np.testing.assert_allclose(device.table(newer), table_after(table, changes, 4), rtol=1e-5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0

    assert ledger_of(path) == Ledger(counted=2, pending=0, stale=0, rejected=0, duplicates=1, refused=0)


# --- against a recorded connection: the order in which things are done -------------------------------


class Recorder:
    """Takes the place of the MQTT connection: gives events in batches, and notes what is asked of it."""

    def __init__(self, *batches: Sequence[LinkEvent]) -> None:
        self.log: list[tuple[str, object]] = []
        self._batches = list(batches)
        self._sink: EventSink | None = None
        self.address = BrokerAddress(host="recorded")
        self.connected = True

    def __call__(
        self, _address: BrokerAddress, _client_id: str, sink: EventSink, **_options: object
    ) -> "Recorder":
        """Be made, as the service makes its connection."""
        self._sink = sink
        return self

    def next_batch(self) -> bool:
        """Put the next batch into the service's queue; tell whether there was one."""
        if not self._batches or self._sink is None:
            return False
        for each in self._batches.pop(0):
            self._sink.put_nowait(each)
        return True

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""
        self.log.append(("stop", None))

    def subscribe(self, filters: list[Filter]) -> None:
        """Note a subscription."""
        self.log.append(("subscribe", filters))

    def publish(self, topic: Topic, payload: bytes, *, retain: bool = False) -> None:
        """Note a message, unless it is for other aggregators."""
        address = FleetTopics("recorded").parse(topic)
        if address.kind == "presence":
            return
        assert retain == (address.kind != "receipt")
        self.log.append((address.kind, payload))

    def gathered(self) -> AbstractContextManager[None]:
        """Have nothing to gather."""
        return nullcontext()

    def acknowledge(self, message: Received) -> None:
        """Note an acknowledgement."""
        self.log.append(("acknowledge", message.mid))

    @property
    def order(self) -> list[str]:
        """What was asked, in order."""
        return [name for name, _ in self.log]

    def heads(self) -> list[Head]:
        """All heads, in order."""
        return [decode(p, Head) for name, p in self.log if name == "head" and isinstance(p, bytes)]

    def receipts(self) -> list[Receipt]:
        """All receipts, in order."""
        return [decode(p, Receipt) for name, p in self.log if name == "receipt" and isinstance(p, bytes)]


class AfterTheBatches(Event):
    """A stop request that comes when the recorder has no more batches."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def is_set(self) -> bool:
        """Feed the next batch."""
        return not self._recorder.next_batch()


class NotedStore(SqliteStore):
    """A store that notes its commits in the recorder's log."""

    def __init__(self, path: Path, recorder: Recorder, failure: Exception | None = None) -> None:
        super().__init__(path)
        self._recorder = recorder
        self._failure = failure

    def commit(self, batch: Batch) -> None:
        """Store the batch or fail."""
        self._recorder.log.append(("commit", None))
        if self._failure is not None:
            raise self._failure
        super().commit(batch)


Run = Callable[..., tuple[Recorder, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a way to run the service over recorded batches, on one directory."""
    config = AggregatorConfig(fleet="recorded", buffer=2, deadline_s=0.0, population=4)
    path = make_directory(tmp_path / "aggregator", config)

    def run(*batches: Sequence[LinkEvent], failure: Exception | None = None) -> tuple[Recorder, list[str]]:
        recorder = Recorder(*batches)
        said: list[str] = []
        monkeypatch.setattr(service_module, "Connection", recorder)
        store = NotedStore(path / DATABASE_NAME, recorder, failure)
        try:
            service = AggregatorService(load_config(path, {}), store, recorder.address, said.append)
            service.run(AfterTheBatches(recorder))
        except DiskFullError as error:
            said.append(str(error))
        finally:
            store.close()
        return recorder, said

    return run


def arrivals(path: Path, *seqs: int) -> list[LinkEvent]:
    """Give the arrival of updates for the directory's version 0."""
    store = open_store(path)
    instance = store.load().instance
    store.close()
    return [
        Received(
            FleetTopics("recorded").update("pi"),
            encode(replace(an_update(seq=seq), instance=instance)),
            mid,
            1,
            1,
        )
        for mid, seq in enumerate(seqs, 1)
    ]


def test_batch_is_stored_then_acknowledged_then_answered_then_published(run: Run, tmp_path: Path) -> None:
    """Dying between any two of these loses nothing; the head comes last, after what it announces."""
    recorder, _ = run([Connected(1)], arrivals(tmp_path / "aggregator", 1, 2))

    assert recorder.order == [
        *("subscribe", "catalogue", "snapshot", "head"),
        *("commit", "acknowledge", "acknowledge", "receipt", "receipt", "snapshot", "head"),
        "stop",
    ]
    assert [head.version for head in recorder.heads()] == [0, 1]


def a_status(*, online: bool, session: int, incarnation: int = 1) -> list[LinkEvent]:
    """Give the arrival of a device's status."""
    status = Status(
        online=online, session=session, incarnation=incarnation, version=None, scorer="none", software="test"
    )
    return [Received(FleetTopics("recorded").status("pi"), encode(status), 1, 1, 1)]


@pytest.mark.parametrize(
    ("batches", "online"),
    [
        ([a_status(online=True, session=8), a_status(online=False, session=7)], 1),  # an old last will
        ([a_status(online=True, session=8), a_status(online=False, session=8)], 0),
        ([a_status(online=True, session=8), a_status(online=False, session=9)], 0),
        ([a_status(online=True, session=8), a_status(online=False, session=1, incarnation=2)], 0),
        ([a_status(online=True, session=8), "cleared"], 0),
        ([a_status(online=True, session=8), "blocked", a_status(online=True, session=8)], 0),
        ([a_status(online=True, session=8), "blocked", a_status(online=False, session=8)], 0),
    ],
)
def test_device_is_online_as_its_newest_session_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[LinkEvent] | str], online: int
) -> None:
    """One that is refused is not counted."""
    config = AggregatorConfig(fleet="recorded")
    path = make_directory(tmp_path / "aggregator", config)
    cleared: list[LinkEvent] = [Received(FleetTopics("recorded").status("pi"), b"", 1, 1, 1)]
    recorder = Recorder(
        *((cleared if each == "cleared" else []) if isinstance(each, str) else each for each in batches)
    )
    monkeypatch.setattr(service_module, "Connection", recorder)
    admission, turns = Admission(), iter(batches)

    def block_when_due() -> None:
        if next(turns) == "blocked":
            admission.blocked = frozenset({"pi"})

    with closing(open_store(path)) as store:
        service = AggregatorService(config, store, recorder.address, print, admission=admission)
        service.run(AfterTheBatches(recorder), each_turn=block_when_due)

        assert service.devices_online == online


@pytest.mark.parametrize(
    ("buffer", "reloaded", "least", "updates", "closes"),
    [
        (8, 3, 6, 3, True),  # fewer than least_updates, which no more than closes a round
        (2, 200, 4, 3, False),  # as many as a fresh start would wait for
        (2, 200, 4, 4, True),
    ],
)
def test_reload_of_buffer_counts_as_a_start_with_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    buffer: int,
    reloaded: int,
    least: int,
    updates: int,
    closes: bool,  # noqa: FBT001 - from the list above
) -> None:
    """Whatever `least_updates` is beside it."""
    config = AggregatorConfig(
        fleet="recorded", buffer=buffer, least_updates=least, deadline_s=0.01, guard_reports=0
    )
    path = make_directory(tmp_path / "aggregator", config)
    recorder = Recorder(arrivals(path, *range(1, updates + 1)), [], [], [])
    monkeypatch.setattr(service_module, "Connection", recorder)
    with closing(open_store(path)) as store:
        service = AggregatorService(config, store, recorder.address, print)

        assert service.reconfigure(replace(config, buffer=reloaded)) == []
        service.run(AfterTheBatches(recorder))

        assert (service.version, service.buffered) == ((1, 0) if closes else (0, updates))
        assert service.config == replace(config, buffer=reloaded)


def test_batch_that_cannot_be_stored_is_neither_acknowledged_nor_answered(run: Run, tmp_path: Path) -> None:
    """A full disk ends the service; the broker and the devices still have the updates."""
    recorder, said = run(
        [Connected(1)], arrivals(tmp_path / "aggregator", 1, 2), failure=DiskFullError("no space")
    )

    assert recorder.order == ["subscribe", "catalogue", "snapshot", "head", "commit", "stop"]
    assert said == ["no space"]
    assert ledger_of(tmp_path / "aggregator").pending == 0


def test_sessions_in_heads_only_grow(run: Run, tmp_path: Path) -> None:
    """A round that closes in the batch of a new connection is published once, under the new session."""
    path = tmp_path / "aggregator"
    first, _ = run([Connected(1), *arrivals(path, 1, 2)])
    second, _ = run([Connected(1), *arrivals(path, 3, 4)], [Connected(2)])

    published = [(head.session, head.version) for head in (*first.heads(), *second.heads())]

    assert published == [(1, 1), (2, 2), (3, 2)]


def test_round_that_closes_before_there_is_a_connection_is_published_with_it(
    run: Run, tmp_path: Path
) -> None:
    """Until the session has a number no head is made."""
    recorder, _ = run(arrivals(tmp_path / "aggregator", 1, 2), [Connected(1)])

    assert [(head.session, head.version) for head in recorder.heads()] == [(1, 1)]


def test_connection_that_was_lost_again_is_not_called_back(run: Run) -> None:
    """Losing and regaining the broker is said once each, whatever happens in one batch."""
    lost = Lost("no broker answers")
    recorder, said = run([lost, lost], [Connected(1), lost], [lost, Connected(2)], [lost], [Connected(3)])

    gone = "no broker answers; trying again until it is back"
    assert said == [gone, "the broker is back", gone, "the broker is back"]
    assert [head.session for head in recorder.heads()] == [1, 2]


def test_flood_is_worked_off_in_batches_and_acknowledged_whole(run: Run, tmp_path: Path) -> None:
    """However many messages wait, each is acknowledged and answered once."""
    arrival = arrivals(tmp_path / "aggregator", 1)[0]
    assert isinstance(arrival, Received)
    flood = [replace(arrival, mid=mid) for mid in range(BATCH_EVENTS + 10)]

    recorder, _ = run(flood, [])

    acknowledged = [mid for name, mid in recorder.log if name == "acknowledge"]
    assert acknowledged == list(range(BATCH_EVENTS + 10))
    verdicts = [receipt.verdict for receipt in recorder.receipts()]
    assert verdicts == ["accepted"] + ["duplicate"] * (BATCH_EVENTS + 9)
    assert recorder.order.count("commit") == 2
    assert ledger_of(tmp_path / "aggregator").duplicates == BATCH_EVENTS + 9


def test_devices_are_slowed_while_a_broker_s_window_is_full_and_nothing_is_lost(
    run: Run, tmp_path: Path
) -> None:
    """Each update of a flood is accepted; it tells its device to come back up to 16 times as late."""
    settings = tmp_path / "aggregator" / CONFIG_NAME
    settings.write_text(settings.read_text().replace("buffer = 2", "buffer = 1000"))
    flood = arrivals(tmp_path / "aggregator", *range(1, 2 * BATCH_EVENTS + 400))
    afterwards = arrivals(tmp_path / "aggregator", 10_000)

    recorder, _ = run(flood, [], [], afterwards)

    receipts = recorder.receipts()
    assert [receipt.verdict for receipt in receipts] == ["accepted"] * (len(flood) + 1)
    told = [receipt.check_in_s for receipt in receipts]
    assert set(told[:BATCH_EVENTS]) == {30.0 * MOST_SLOWED}
    assert 30.0 < told[-2] < 30.0 * MOST_SLOWED
    assert told[-1] == 30.0
    ledger = ledger_of(tmp_path / "aggregator")
    assert (ledger.counted + ledger.pending, ledger.duplicates) == (len(flood) + 1, 0)


@pytest.mark.parametrize("fleet", ["recorded", "another"])
def test_message_that_nobody_asked_for_is_acknowledged_and_forgotten(
    run: Run, fleet: str, tmp_path: Path
) -> None:
    """Some brokers deliver retained messages of topics without a subscription, also those of other fleets."""
    topics = FleetTopics(fleet)
    unasked = [Received(topic, b"x", 7, 1, 1) for topic in (topics.catalogue(0), topics.snapshot(0, 1))]

    recorder, _ = run(unasked)

    assert recorder.order == ["acknowledge", "acknowledge", "stop"]
    assert ledger_of(tmp_path / "aggregator").refused == 0


def test_head_that_is_none_is_counted(run: Run, tmp_path: Path) -> None:
    """Nobody but an aggregator has anything to say there; an empty one clears it."""
    topic = FleetTopics("recorded").head
    run([Received(topic, b"x", 7, 1, 1), Received(topic, b"", 8, 1, 1)])
    assert ledger_of(tmp_path / "aggregator").refused == 1
