"""The agent with real brokers: in a thread or as a process, against a played aggregator or a real one."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.aggregator.directory import open_store as open_aggregator_store
from broker.embedded import free_port
from broker.errors import RefusedError
from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import Assembly
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import Chunk, Quality, Update, decode, encode
from broker.protocol.topics import FleetTopics
from broker.protocol.versions import sha256, table_bytes
from edge.config import load_config
from edge.facts import device_facts
from tests.brokers import HOST, PATIENCE_S, Peer, RunningBroker
from tests.edge.builders import (
    DIM,
    INSTANCE,
    ITEM_KEYS,
    a_head,
    a_plan,
    a_table,
    catalogue_chunks,
    table_chunks,
)
from tests.edge.running import (
    DEVICE,
    PlayedAggregator,
    RunningAgent,
    RunningCommand,
    a_directory,
    an_aggregator,
    looking_at,
    record,
    status_of,
    told,
    wait_until,
)

pytestmark = pytest.mark.mqtt

FLEET = "shop"
QUICK = a_plan(check_in_s=0.2)


@pytest.fixture
def directory(tmp_path: Path, mosquitto: RunningBroker) -> Path:
    """Give the directory of a device that belongs to the played aggregator's fleet."""
    return a_directory(tmp_path / "device", FLEET, mosquitto.url)


@pytest.fixture
def aggregator(mosquitto: RunningBroker) -> Iterator[PlayedAggregator]:
    """Give an aggregator that the test plays."""
    with PlayedAggregator(mosquitto, FLEET) as played:
        yield played


def version_of(directory: Path) -> int | None:
    """Give the version of the table on a device."""
    with looking_at(directory) as store:
        return store.remembered().version


def held_and_stored(directory: Path, *, running: bool) -> tuple[int | None, int | None]:
    """Give the versions that `status` names: of the table in use, and of the one in the database."""
    with looking_at(directory) as store:
        facts = device_facts(load_config(directory, {}), store, running=running)
    return facts["version"], facts["stored_version"]


# -- against a played aggregator -------------------------------------------------------------------


def test_agent_reports_how_a_new_version_does_where_the_plan_asks(
    directory: Path, aggregator: PlayedAggregator, mosquitto: RunningBroker
) -> None:
    """Before it trains on it; of the first table there is nothing to compare."""
    record(directory, "bread", "egg", "fig")
    plan = a_plan(check_in_s=0.2, guard=1.0)
    topic = FleetTopics(FLEET).quality(DEVICE)
    with Peer(mosquitto.address, "listener", topic) as listener:
        aggregator.publish(a_head(3, plan=plan), a_table())
        with RunningAgent(directory):
            aggregator.answer(aggregator.next_update())
            table = a_table(seed=4)
            aggregator.publish(a_head(4, table=table, plan=plan), table)
            aggregator.next_update()
            report = decode(bytes(listener.messages.get(timeout=PATIENCE_S).payload), Quality)
    assert (report.instance, report.version, report.version_before) == (INSTANCE, 4, 3)
    assert report.candidates == 99


def test_agent_follows_a_catalogue_that_grows_retires_and_renames(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """What it could not train on yet it trains on; what is retired it does not draw; its own rows stay."""
    record(directory, "bread", "later")
    aggregator.publish(a_head(3, plan=QUICK), a_table())
    keys = list(ITEM_KEYS)
    row = keys.index("bread")
    # Of the rows that are not the user's only one is left to be drawn.
    others = [number for number in range(len(keys)) if number != row]
    catalogue = Catalogue(
        (*keys[:row], "brioche", *keys[row + 1 :], "later"), frozenset(others[1:]), {"bread": row}
    )
    table = a_table(n_items=len(keys) + 1)
    with RunningAgent(directory):
        first = aggregator.next_update()
        assert row in ENCODINGS["float32"].decode(first.body, len(keys), DIM).rows
        aggregator.answer(first)
        aggregator.publish(a_head(4, table=table, plan=QUICK, item_keys=catalogue), table, catalogue)
        second = aggregator.next_update()
        change = ENCODINGS["float32"].decode(second.body, len(table), DIM)
    assert second.base_version == 4
    assert change.rows.tolist() == sorted({row, others[0], len(keys)})
    with looking_at(directory) as store:
        assert store.marked_catalogue() == catalogue
        assert store.interactions()[0][0] == "bread", "what was recorded stays as it was recorded"


def test_agent_fetches_trains_and_sends_what_it_learnt(directory: Path, aggregator: PlayedAggregator) -> None:
    """The whole way of an update, and what the device keeps of it."""
    record(directory, "bread", "egg")
    table = a_table()
    aggregator.publish(a_head(3, plan=QUICK), table)
    with RunningAgent(directory):
        update = aggregator.next_update()
        assert (update.instance, update.seq, update.base_version) == (INSTANCE, 1, 3)
        change = ENCODINGS["float32"].decode(update.body, len(ITEM_KEYS), DIM)
        with looking_at(directory) as store:
            personal = store.personal()
            assert personal is not None
            assert personal.own_rows.tolist() == change.rows.tolist()
            np.testing.assert_allclose(
                personal.own_values, table[change.rows] + change.change, rtol=0, atol=1e-6
            )
            assert store.remembered().outbox_seq == 1
        aggregator.answer(update)
        wait_until(lambda: told(directory, "reason") == "waiting for a new version", "the receipt")
    with looking_at(directory) as store:
        assert store.receipts() == {"accepted": 1}
        assert store.outbox_size() == 0
        assert store.fact("activity") == "stopped"


def test_agent_notices_what_another_process_records(directory: Path, aggregator: PlayedAggregator) -> None:
    """While an update waits for its receipt, the personal model learns all the same."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        first = aggregator.next_update()
        record(directory, "egg", "fig")

        def trained() -> bool:
            with looking_at(directory) as store:
                return store.remembered().progress.trained_revision == 3

        wait_until(trained, "a local pass")
        assert told(directory, "reason") == "an update waits for its receipt"
        aggregator.answer(first)
        second = aggregator.next_update()
        assert (second.seq, second.base_version) == (2, 0)


def test_agent_that_was_stopped_sends_the_same_update_again(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """To the last byte, and once for each start."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        payload = aggregator.next_payload()
    for _ in range(2):
        with RunningAgent(directory):
            assert aggregator.next_payload() == payload


def test_agent_of_new_aggregator_session_sends_again(directory: Path, aggregator: PlayedAggregator) -> None:
    """The aggregator may have lost what it had not journalled."""
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        payload = aggregator.next_payload()
        aggregator.publish_head(a_head(session=2, plan=QUICK))
        assert aggregator.next_payload() == payload


def test_agent_does_not_use_a_table_with_a_wrong_hash(
    directory: Path,
    aggregator: PlayedAggregator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says so, keeps what it has, and takes the right one when that comes."""
    monkeypatch.setattr("edge.session.FETCH_RETRY_S", 0.2)
    record(directory, "bread")
    head, table = a_head(5, plan=QUICK), a_table()
    aggregator.publish_table(head, table)
    [chunk] = table_chunks(table)
    wrong = Chunk(digest=chunk.digest, index=0, count=1, size=chunk.size, data=bytes([1]) + chunk.data[1:])
    topic = aggregator.topics.snapshot(head.slot, 0)
    aggregator.peer.publish(topic, encode(wrong), retain=True)
    aggregator.publish_head(head)
    with RunningAgent(directory):
        wait_until(lambda: "version 5 is not used" in caplog.text, "the refusal")
        assert version_of(directory) is None
        aggregator.peer.publish(topic, encode(chunk), retain=True)
        assert aggregator.next_update().base_version == 5


def test_agent_forgets_a_download_that_was_given_up(
    directory: Path,
    aggregator: PlayedAggregator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Chunks that come too late are fetched once more, not stored behind the session's back."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("edge.session.FETCH_TIMEOUT_S", 2.0)
    monkeypatch.setattr("edge.session.FETCH_RETRY_S", 3.0)
    record(directory, "bread")
    head = a_head(plan=QUICK)
    aggregator.publish_head(head)
    with RunningAgent(directory):
        wait_until(lambda: told(directory, "activity") == "fetching", "the download")
        wait_until(lambda: told(directory, "activity") == "idle", "the end of patience")
        monkeypatch.setattr("edge.session.FETCH_TIMEOUT_S", PATIENCE_S)
        aggregator.publish_table(head, a_table())
        aggregator.next_update()
    assert caplog.text.count("table version 0 is here") == 1


def test_agent_ends_subscriptions_of_a_download_that_was_cut_off(
    directory: Path, aggregator: PlayedAggregator, mosquitto: RunningBroker
) -> None:
    """Otherwise the broker would send every second version's table to this device for ever."""
    record(directory, "bread")
    aggregator.publish_head(a_head(0, plan=QUICK))
    with RunningAgent(directory):
        wait_until(lambda: told(directory, "activity") == "fetching", "the download")
    head = a_head(1, plan=QUICK)
    aggregator.publish(head, a_table())
    with RunningAgent(directory):
        update = aggregator.next_update()
    first: list[str] = []
    received = threading.Event()
    heir = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=DEVICE, clean_session=False, protocol=paho.MQTTv311
    )

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        first.append(message.topic)
        received.set()

    heir.on_message = on_message
    for slot in (0, 1):
        aggregator.peer.publish(aggregator.topics.snapshot(slot, 0), b"a chunk")
    aggregator.peer.publish(aggregator.topics.catalogue(0), b"a chunk")
    aggregator.answer(update)
    heir.connect(HOST, mosquitto.port)
    heir.loop_start()
    assert received.wait(PATIENCE_S)
    heir.disconnect()
    heir.loop_stop()
    assert first[0] == aggregator.topics.receipt(DEVICE)


def test_agent_goes_on_with_a_download_that_was_cut_off(
    directory: Path, aggregator: PlayedAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for what is missing alone; the broker need not have the rest any more."""
    monkeypatch.setattr("edge.session.FETCH_TIMEOUT_S", 0.3)
    monkeypatch.setattr("edge.session.FETCH_RETRY_S", 0.2)
    table = a_table(1000, 70)
    keys = ["bread", *(f"item-{row}" for row in range(999))]
    head = a_head(5, table=table, item_keys=keys, plan=QUICK)
    first, second, third = table_chunks(table)
    record(directory, "bread")

    def publish(chunk: Chunk, payload: bytes) -> None:
        aggregator.peer.publish(aggregator.topics.snapshot(head.slot, chunk.index), payload, retain=True)

    for chunk in catalogue_chunks(keys):
        aggregator.peer.publish(aggregator.topics.catalogue(chunk.index), encode(chunk), retain=True)
    publish(second, encode(second))
    aggregator.publish_head(head)
    single = "\n".join(aggregator.topics.snapshot(head.slot, index) for index in (0, 2))
    with RunningAgent(directory):
        wait_until(lambda: told(directory, "asked_for") == single, "the second attempt")
        publish(second, b"")
    with RunningAgent(directory):
        # A new process begins anew; the subscriptions of the one before are told and gone.
        wait_until(lambda: told(directory, "asked_for") == "", "the end of old subscriptions")
        monkeypatch.setattr("edge.session.FETCH_TIMEOUT_S", PATIENCE_S)
        for chunk in (first, second, third):
            publish(chunk, encode(chunk))
        assert aggregator.next_update().base_version == 5


def test_agent_uses_items_once_the_table_has_their_rows(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """The catalogue may be a step ahead of the table."""
    record(directory, "fig")
    short = a_table(4)
    aggregator.publish(a_head(0, table=short, plan=QUICK), short)
    with RunningAgent(directory):
        wait_until(lambda: version_of(directory) == 0, "the first table")
        wait_until(
            lambda: told(directory, "reason") == "no interactions with items of the catalogue yet",
            "the look at the interactions",
        )
        table = a_table(6)
        aggregator.publish(a_head(1, table=table, plan=QUICK), table)
        assert aggregator.next_update().base_version == 1


def test_agent_of_user_who_knows_everything_has_nothing_to_learn(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """No item is left that could be a negative."""
    record(directory, *ITEM_KEYS)
    aggregator.publish(a_head(plan=QUICK), a_table())
    with RunningAgent(directory):
        wait_until(lambda: version_of(directory) == 0, "the first table")
        wait_until(lambda: bool(told(directory, "reason")), "a decision")
    with looking_at(directory) as store:
        assert store.personal() is None


def test_agent_begins_anew_with_another_aggregator(directory: Path, aggregator: PlayedAggregator) -> None:
    """Its directory was made again: new items, new rows, the same interactions."""
    record(directory, "bread", "egg")
    aggregator.publish(a_head(9, plan=QUICK), a_table())
    with RunningAgent(directory):
        aggregator.answer(aggregator.next_update())
        keys = ("egg", "bread", "grape", "honey")
        table = a_table(4, dim=3)
        aggregator.publish(a_head(0, instance=5, table=table, item_keys=keys, plan=QUICK), table, keys)
        update = aggregator.next_update()
        assert (update.instance, update.seq, update.base_version) == (5, 2, 0)
        with looking_at(directory) as store:
            assert store.interacted().rows.tolist() == [1, 0]
            personal = store.personal()
            assert personal is not None
            assert personal.score_function.w.size == 3


def test_agent_drops_messages_that_are_none(
    directory: Path, aggregator: PlayedAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    """And goes on: a head of rubbish, a cleared head, a receipt of rubbish, a chunk that contradicts."""
    record(directory, "bread")
    head, table = a_head(plan=QUICK), a_table()
    topics = aggregator.topics
    aggregator.peer.publish(topics.head, b"rubbish", retain=True)
    [chunk] = table_chunks(table)
    larger = Chunk(digest=chunk.digest, index=0, count=1, size=chunk.size + 4, data=chunk.data + b"\0" * 4)
    aggregator.publish_table(head, table)
    aggregator.peer.publish(topics.snapshot(head.slot, 0), encode(larger), retain=True)
    with RunningAgent(directory):
        wait_until(lambda: f"dropped a message on {topics.head}" in caplog.text, "the rubbish")
        aggregator.peer.publish(topics.head, b"")
        aggregator.peer.publish(topics.receipt(DEVICE), b"\xff" * 10)
        aggregator.publish_head(head)
        wait_until(lambda: f"{topics.snapshot(0, 0)}: a chunk that belongs" in caplog.text, "the chunk")
        aggregator.peer.publish(topics.snapshot(head.slot, 0), encode(chunk), retain=True)
        assert aggregator.next_update().seq == 1
    assert f"dropped a message on {topics.receipt(DEVICE)}" in caplog.text


def test_agent_sends_a_large_update_in_chunks(directory: Path, aggregator: PlayedAggregator) -> None:
    """One message holds 120 KB; together they are the update in the outbox."""
    table = a_table(2400, dim=32)
    keys = [f"item-{row}" for row in range(2400)]
    record(directory, *keys[:600])
    aggregator.publish(a_head(table=table, item_keys=keys, plan=QUICK), table, keys)
    with RunningAgent(directory):
        chunk = decode(aggregator.next_payload(), Chunk)
        assembly = Assembly(chunk.size, chunk.digest)
        while not assembly.add(chunk):
            chunk = decode(aggregator.next_payload(), Chunk)
        assert assembly.count > 1
        with looking_at(directory) as store:
            assert assembly.whole() == store.outbox(1)
    update = decode(assembly.whole(), Update, max_bytes=1_000_000)
    assert ENCODINGS["float32"].decode(update.body, 2400, 32).rows.size > 1000


def test_agent_offline_learns_what_is_recorded_even_if_it_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan with absurd learning rates: the personal state stays finite, and the agent alive."""
    monkeypatch.setattr("edge.agent._LOOK_S", 0.01)
    directory = a_directory(tmp_path / "device", FLEET, f"mqtt://{HOST}:{free_port()}")
    with looking_at(directory) as store:
        table = a_table() * np.float32(1e25)
        store.replace_model(a_head(table=table, plan=a_plan(lr=1e9, item_lr=1e9)), table, ITEM_KEYS)
    with RunningAgent(directory) as agent:
        for revision in range(1, 8):
            record(directory, "bread")

            def trained(revision: int = revision) -> bool:
                with looking_at(directory) as store:
                    return store.remembered().progress.trained_revision == revision

            wait_until(trained, "a local pass")
            with looking_at(directory) as store:
                personal = store.personal()
            assert personal is not None
            assert np.isfinite(personal.score_function.w).all()
            assert np.isfinite(personal.score_function.b)
            assert np.isfinite(personal.own_values).all()
        assert len(agent.sentences) == 1
        agent.hear("no broker answers at mqtt://127.0.0.1:", "trying again until it is back")


def test_agent_that_diverges_sends_nothing_and_begins_anew(
    directory: Path, aggregator: PlayedAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    """Its update would be refused; the fleet's first score function is a new start."""
    record(directory, "bread", "egg")
    table = a_table() * np.float32(1e25)
    plan = a_plan(check_in_s=0.2, lr=1e9, item_lr=1e9)
    aggregator.publish(a_head(0, table=table, plan=plan), table)
    with RunningAgent(directory):
        wait_until(lambda: "diverged" in caplog.text, "the divergence")
        aggregator.publish(a_head(1, plan=QUICK), a_table())
        update = aggregator.next_update()
        assert (update.seq, update.base_version) == (1, 1)


def test_agent_in_a_fleet_without_aggregator_says_so_once(
    directory: Path, mosquitto: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet's name is probably wrong."""
    monkeypatch.setattr("edge.agent._NO_HEAD_S", 0.2)
    with RunningAgent(directory) as agent:
        agent.hear("no model of a fleet named shop", "check the fleet name, or start its aggregator")
        with Peer(mosquitto.address, "peer", FleetTopics(FLEET).status(DEVICE)) as peer:
            assert status_of(peer.receive(FleetTopics(FLEET).status(DEVICE))).online
    assert len(agent.sentences) == 1


def test_agent_that_the_broker_refuses_ends_with_a_sentence(tmp_path: Path) -> None:
    """Trying again would not help."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        directory = a_directory(tmp_path / "device", FLEET, f"mqtt://ann:secret@{HOST}:{port}")
        with RunningAgent(directory) as agent:
            link, _ = server.accept()
            with link:
                link.recv(1000)
                link.sendall(bytes([0x20, 2, 0, 5]))
                failure = agent.end()
    assert isinstance(failure, RefusedError)
    assert str(failure).startswith(
        f"the broker mqtt://ann@{HOST}:{port} refuses the device pi-1: not authorized"
    )
    assert "secret" not in str(failure)


def test_agent_tells_its_status_with_a_number_that_grows(
    directory: Path, mosquitto: RunningBroker, aggregator: PlayedAggregator
) -> None:
    """Retained; each start is another session of the same incarnation."""
    topic = FleetTopics(FLEET).status(DEVICE)
    aggregator.publish(a_head(4, plan=QUICK), a_table())
    seen = []
    with Peer(mosquitto.address, "peer", topic) as peer:
        for _ in range(2):
            with RunningAgent(directory):
                seen.append(status_of(peer.receive(topic)))
                wait_until(lambda: version_of(directory) == 4, "the table")
            seen.append(status_of(peer.receive(topic)))
    assert [status.online for status in seen] == [True, False, True, False]
    assert [status.session for status in seen] == [1, 1, 2, 2]
    assert len({status.incarnation for status in seen}) == 1
    assert [status.version for status in seen] == [None, 4, 4, 4]
    assert {status.scorer for status in seen} == {"numpy"}


# -- guards ----------------------------------------------------------------------------------------


def a_machine(root: Path, **files: str) -> Path:
    """Give a machine that has a battery."""
    supply = root / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True, exist_ok=True)
    for name, content in ({"type": "Battery", "status": "Charging", "capacity": "50"} | files).items():
        (supply / name).write_text(content)
    return root


def test_agent_on_battery_does_not_train_until_it_is_plugged_in(
    directory: Path, aggregator: PlayedAggregator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches all the same, says why it does not train, when it looks next, and what it cannot see."""
    monkeypatch.setattr("edge.guards.LOOK_S", 0.1)
    record(directory, "bread")
    aggregator.publish(a_head(plan=QUICK), a_table())
    root = a_machine(tmp_path / "machine", status="Discharging")
    with RunningAgent(directory, root=root) as running:
        wait_until(lambda: version_of(directory) == 0, "the first table")
        wait_until(lambda: told(directory, "reason") == "on battery, below 80 %", "the reason")
        assert 0.0 < told(directory, "look_at") - time.monotonic() <= 60.0
        assert told(directory, "unknown_facts") == "temperature, free memory, metered network"
        with looking_at(directory) as store:
            assert store.personal() is None
        a_machine(root)
        assert running.agent is not None
        running.agent.reconfigure(load_config(directory, {}))
        assert aggregator.next_update().seq == 1
        wait_until(lambda: told(directory, "look_at") is None, "that nothing objects any more")


def test_agent_on_a_metered_network_learns_without_sending(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """Once its owner says that it costs nothing, tables and updates travel."""
    with looking_at(directory) as store:
        store.replace_model(a_head(plan=QUICK), a_table(), ITEM_KEYS)
        store.record([("bread", 1.0)])
    aggregator.publish(a_head(1, plan=QUICK), a_table())
    with RunningAgent(directory, PFEDREC_TRAINING_METERED="yes") as running:
        wait_until(lambda: "the network is metered" in str(told(directory, "reason")), "the reason")

        def has_learnt() -> bool:
            with looking_at(directory) as store:
                assert (store.remembered().version, store.outbox_size()) == (0, 0)
                return store.personal() is not None

        wait_until(has_learnt, "a local pass")
        changed = load_config(directory, {"PFEDREC_TRAINING_METERED": "no", "PFEDREC_FLEET": "b"})
        assert running.agent is not None
        assert running.agent.reconfigure(changed) == ["fleet"]
        assert aggregator.next_update().base_version == 1


def test_agent_that_stores_few_tables_contributes_once_to_each_version(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """After a restart the newest table is fetched again; only what is newer than that one is news."""
    record(directory, "bread", "egg")
    aggregator.publish(a_head(3, plan=QUICK), a_table())
    with RunningAgent(directory, PFEDREC_TABLE_WRITES_MB="1e-9"):
        aggregator.answer(aggregator.next_update())
        newer = a_table(seed=4)
        aggregator.publish(a_head(4, table=newer, plan=QUICK), newer)
        second = aggregator.next_update()
        assert (second.seq, second.base_version) == (2, 4)
        aggregator.answer(second)
        wait_until(lambda: told(directory, "reason") == "waiting for a new version", "the receipt")
        assert held_and_stored(directory, running=True) == (4, 3)
    assert held_and_stored(directory, running=False) == (3, 3)
    with RunningAgent(directory, PFEDREC_TABLE_WRITES_MB="1e-9"):
        wait_until(lambda: told(directory, "reason") == "waiting for a new version", "the table of version 4")
        latest = a_table(seed=5)
        aggregator.publish(a_head(5, table=latest, plan=QUICK), latest)
        third = aggregator.next_update()
    assert (third.seq, third.base_version) == (3, 5)


def test_agent_whose_aggregator_was_set_back_takes_its_table(
    directory: Path, aggregator: PlayedAggregator
) -> None:
    """Though the guard asks this device how the version before did: there is none."""
    record(directory, "bread", "egg", "fig", "date")
    asking = a_plan(check_in_s=0.2, guard=1.0)
    aggregator.publish(a_head(9, plan=asking), a_table())
    with RunningAgent(directory):
        aggregator.answer(aggregator.next_update())
        older = a_table(seed=4)
        aggregator.publish(a_head(7, table=older, plan=asking), older)
        update = aggregator.next_update()
    assert (update.seq, update.base_version) == (2, 7)


# -- against a real aggregator ---------------------------------------------------------------------


class Fleet:
    """A real aggregator's process and one device's directory."""

    def __init__(
        self, path: Path, broker: RunningBroker, name: str, *options: str, n_items: int = 40
    ) -> None:
        self.broker = broker
        self.topics = FleetTopics(name)
        self.keys = [f"item-{row}" for row in range(n_items)]
        self.aggregator = an_aggregator(
            path / "aggregator", name, self.keys, "--check-in", "200ms", "--buffer", "1", *options
        )
        self.device = a_directory(path / "device", name, broker.url)

    @contextmanager
    def serve(self) -> Iterator[RunningCommand]:
        """Run the aggregator; a device that starts afterwards need not wait for it."""
        arguments = ("--dir", str(self.aggregator), "--broker", self.broker.url)
        with RunningCommand("edge-aggregator", "start", *arguments) as aggregator:
            aggregator.hear("serving fleet")
            yield aggregator

    def start(self, *options: str) -> RunningCommand:
        """Start the device's process."""
        return RunningCommand("edge-client", "start", "--dir", str(self.device), *options)

    def at_rest(self, passes: int) -> bool:
        """Tell whether so many updates were made and counted, and both ends hold the same table."""
        with (
            closing(open_aggregator_store(self.aggregator)) as theirs,
            looking_at(self.device) as ours,
        ):
            ledger, state, model = theirs.ledger(), theirs.load(), ours.model()
            return (
                ledger.counted == ours.remembered().last_seq == passes
                and ledger.pending == ours.outbox_size() == 0
                and sum(ours.receipts().values()) == passes
                and model is not None
                and model.head.version == state.version == passes
                and model.head.sha256 == sha256(table_bytes(state.table))
            )


def test_device_and_aggregator_come_to_the_same_table(tmp_path: Path, broker: RunningBroker) -> None:
    """With either broker: two passes, then rest; two more after an interaction while both run."""
    fleet = Fleet(tmp_path, broker, "same-table", "--max-idle-passes", "2")
    record(fleet.device, *fleet.keys[:3])
    with fleet.serve() as aggregator, RunningAgent(fleet.device) as agent:
        wait_until(lambda: fleet.at_rest(2), "rest")
        record(fleet.device, fleet.keys[7])
        wait_until(lambda: fleet.at_rest(4), "rest after an interaction")
        wait_until(
            lambda: told(fleet.device, "reason") == "resting: no new interactions for many versions", "rest"
        )
        assert agent.sentences == []
        assert aggregator.end() == 0


def test_device_takes_steps_where_they_are_smaller(
    tmp_path: Path, mosquitto: RunningBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a large catalogue a pass touches few rows; both ends still hold the same bytes."""
    caplog.set_level(logging.INFO)
    fleet = Fleet(tmp_path, mosquitto, "steps", "--max-idle-passes", "3", n_items=5000)
    record(fleet.device, *fleet.keys[:3])
    with fleet.serve(), RunningAgent(fleet.device):
        wait_until(lambda: fleet.at_rest(3), "rest")
    ways = [line.partition("is here, ")[2] for line in caplog.messages if "is here" in line]
    assert ways[0].startswith("as a whole")
    assert [way.partition(":")[0] for way in ways[1:]] == ["by 1 steps"] * 3


def test_device_and_aggregator_outlive_a_broker_that_is_killed(
    tmp_path: Path, mortal_broker: RunningBroker
) -> None:
    """One sentence when it goes, one when it is back, and everything goes on."""
    fleet = Fleet(tmp_path, mortal_broker, "mortal", "--max-idle-passes", "1")
    record(fleet.device, *fleet.keys[:3])
    with fleet.serve() as aggregator, RunningAgent(fleet.device) as agent:
        wait_until(lambda: fleet.at_rest(1), "rest")
        mortal_broker.kill()
        agent.hear(f"the connection to {mortal_broker.url} was lost", "trying again until it is back")
        record(fleet.device, fleet.keys[7])
        mortal_broker.start()
        agent.hear("the broker is back")
        wait_until(lambda: fleet.at_rest(2), "rest after the broker's end")
        assert len(agent.sentences) == 2
        assert aggregator.end() == 0


def test_device_outlives_an_aggregator_that_is_killed(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """What it sends meanwhile is counted, once, when the aggregator is there again."""
    fleet = Fleet(tmp_path, mosquitto, "killed", "--max-idle-passes", "1")
    record(fleet.device, *fleet.keys[:3])
    with fleet.serve() as aggregator, RunningAgent(fleet.device) as agent:
        wait_until(lambda: fleet.at_rest(1), "rest")
        assert aggregator.end(signal.SIGKILL) == -signal.SIGKILL
        record(fleet.device, fleet.keys[7])
        with Peer(mosquitto.address, "peer", fleet.topics.update(DEVICE)) as peer:
            update = decode(bytes(peer.receive(fleet.topics.update(DEVICE)).payload), Update)
        assert update.seq == 2
        with fleet.serve() as another:
            wait_until(lambda: fleet.at_rest(2), "rest")
            assert another.end() == 0
        assert agent.sentences == []


def test_large_update_reaches_a_real_aggregator(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """2,400 items of 32 numbers, exactly: several messages."""
    options = ("--max-idle-passes", "1", "--encoding", "float32", "--dim", "32")
    fleet = Fleet(tmp_path, mosquitto, "large", *options, n_items=2400)
    record(fleet.device, *fleet.keys[:600])
    with fleet.serve(), RunningAgent(fleet.device):
        wait_until(lambda: fleet.at_rest(1), "rest")
    with closing(open_aggregator_store(fleet.aggregator)) as store:
        [newest] = store.rounds(1)
    assert newest.bytes_up > 240_000


# -- as a process ----------------------------------------------------------------------------------


@pytest.mark.process
def test_start_ends_cleanly_when_it_is_told_to(directory: Path, mosquitto: RunningBroker) -> None:
    """SIGTERM and Ctrl-C: code 0 within two seconds, and a retained status that says so."""
    topic = FleetTopics(FLEET).status(DEVICE)
    for number in (signal.SIGTERM, signal.SIGINT):
        with (
            Peer(mosquitto.address, "peer", topic) as peer,
            RunningCommand("edge-client", "start", "--dir", str(directory)) as command,
        ):
            command.hear(f"device pi-1 of fleet shop, broker {mosquitto.url}")
            while not status_of(peer.receive(topic)).online:
                pass
            assert command.end(number, within_s=2.0) == 0
            assert command.lines == ["stopped"]
            assert not status_of(peer.receive(topic)).online
        with Peer(mosquitto.address, "late", topic) as late:
            message = late.receive(topic)
            assert message.retain
            assert not status_of(message).online
        assert told(directory, "activity") == "stopped"


@pytest.mark.process
def test_start_that_is_killed_is_told_offline_by_its_last_will(
    directory: Path, mosquitto: RunningBroker
) -> None:
    """With the number of the session that ended; the next start is another one."""
    topic = FleetTopics(FLEET).status(DEVICE)
    with Peer(mosquitto.address, "peer", topic) as peer:
        for session in (1, 2):
            with RunningCommand("edge-client", "start", "--dir", str(directory)) as command:
                status = status_of(peer.receive(topic))
                assert (status.online, status.session) == (True, session)
                assert command.end(signal.SIGKILL) == -signal.SIGKILL
            status = status_of(peer.receive(topic))
            assert (status.online, status.session) == (False, session)


@pytest.mark.process
def test_start_without_a_broker_waits_and_ends_cleanly(tmp_path: Path) -> None:
    """One sentence, however often it tries; SIGTERM is heard meanwhile."""
    directory = a_directory(tmp_path / "device", FLEET, f"mqtt://{HOST}:{free_port()}")
    with RunningCommand("edge-client", "start", "--dir", str(directory), "--seed", "3") as command:
        command.hear("device pi-1")
        command.hear("no broker answers at")
        assert command.end(within_s=2.0) == 0
        assert command.lines == ["stopped"]


@pytest.mark.process
def test_start_twice_is_refused(directory: Path, mosquitto: RunningBroker) -> None:
    """The second says that the directory is in use; the first goes on."""
    with RunningCommand("edge-client", "start", "--dir", str(directory)) as first:
        first.hear("device pi-1")
        with RunningCommand("edge-client", "start", "--dir", str(directory)) as second:
            assert second.wait() == 23
            assert second.lines == [
                f"edge-client: {directory} is in use by another process; end that one first"
            ]
        assert first.end() == 0
