"""Our own mosquitto with certificates: who gets in, and what a device may say and hear."""

import os
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker.address import BrokerAddress
from broker.aggregator.security import Revocations, secure_listener
from broker.authority.authority import Authority
from broker.authority.bundle import write_bundle
from broker.connection import Connected, Connection, EventQueue, Lost, Received
from broker.embedded import OwnBroker, free_port, own_broker
from broker.errors import ConfigError, InputError
from broker.probe import probe
from broker.protocol.topics import Filter, FleetTopics, Topic
from broker.tls import TlsFiles, certificate_facts
from tests.brokers import HOST, PATIENCE_S, require, wait_for
from tests.edge.running import wait_until

pytestmark = [
    pytest.mark.mqtt,
    # paho leaves the socket of a handshake that fails to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NOW = datetime.now(UTC).replace(microsecond=0)
TOPICS = FleetTopics("shop")


class Fleet:
    """An authority, its broker, and the files of devices."""

    def __init__(self, path: Path, name: str = "shop") -> None:
        self._path = path
        self.authority = Authority.make(path / "authority", name, ["localhost", HOST], NOW)
        self.broker: OwnBroker | None = None

    def files(self, device: str, *, now: datetime = NOW, days: int = 10) -> TlsFiles:
        """Give a device's files, made now."""
        bundle = self._path / device
        issued = self.authority.issue_device(device, now, days)
        write_bundle(bundle, self.authority, device, "mqtts://localhost:1", issued)
        return TlsFiles(ca=bundle / "ca.pem", cert=bundle / "cert.pem", key=bundle / "key.pem")

    def address(self, files: TlsFiles) -> BrokerAddress:
        """Give where the broker is, for who has `files`."""
        assert self.broker is not None
        return self.broker.address.with_tls(files)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give a fleet whose broker runs; tests keep apart by their devices."""
    require("mosquitto")
    path = tmp_path_factory.mktemp("secure")
    made = Fleet(path)
    listener = secure_listener(made.authority)
    with own_broker("mosquitto", HOST, free_port(), path / "broker", listener) as broker:
        made.broker = broker
        yield made


class Client:
    """A connection as the project makes it."""

    def __init__(self, address: BrokerAddress, client_id: str, *filters: str) -> None:
        self.events = EventQueue()
        self.link = Connection(address, client_id, self.events)
        self._filters = filters

    @contextmanager
    def connected(self) -> Iterator["Client"]:
        """Be connected while the block runs."""
        self.link.start()
        try:
            wait_for(self.events, Connected)
            if self._filters:
                subscribed = threading.Event()
                self.link._client.on_subscribe = lambda *_: subscribed.set()
                self.link.subscribe([Filter(each) for each in self._filters])
                assert subscribed.wait(PATIENCE_S)
            yield self
        finally:
            self.link.stop()

    def heard(self, last: str) -> list[str]:
        """Give the topics that came, up to one whose coming proves that nothing before it is missing."""
        topics: list[str] = []
        while not topics or topics[-1] != last:
            event = wait_for(self.events, Received)
            self.link.acknowledge(event)
            topics.append(event.topic)
        return topics


def refusal(address: BrokerAddress, client_id: str = "pi-1") -> str:
    """Give why a broker does not take a client, as a running device is told it, and as doctor is."""
    answer = probe(address, client_id)
    assert answer.outcome == "distrusted", answer
    client = Client(address, client_id)
    client.link.start()
    try:
        return wait_for(client.events, Lost).reason
    finally:
        client.link.stop()
        assert client.events.empty() or not isinstance(client.events.get_nowait(), Connected)


def test_device_with_its_certificate_is_taken(fleet: Fleet) -> None:
    """By its name or by its address."""
    address = fleet.address(fleet.files("known"))
    assert probe(address, "known").outcome == "accepts"
    assert (
        probe(
            BrokerAddress(host="localhost", port=address.port, secure=True, tls=address.tls), "known"
        ).outcome
        == "accepts"
    )


def test_client_without_a_certificate_is_refused(fleet: Fleet) -> None:
    """Whatever id it gives itself."""
    ca = fleet.authority.path / "ca.pem"
    assert "our certificate" in refusal(fleet.address(TlsFiles(ca=ca)))


def test_client_without_tls_is_refused(fleet: Fleet) -> None:
    """There is no other port."""
    address = fleet.address(TlsFiles())
    assert probe(BrokerAddress(host=HOST, port=address.port), "pi-1").outcome == "foreign"


def test_certificate_of_another_fleet_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """An authority of the same name is another one."""
    strangers = Fleet(tmp_path)
    files = strangers.files("pi-1")
    mixed = TlsFiles(ca=fleet.authority.path / "ca.pem", cert=files.cert, key=files.key)
    assert "our certificate" in refusal(fleet.address(mixed))


def test_broker_of_another_fleet_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Before the device says who it is."""
    files = Fleet(tmp_path).files("pi-1")
    assert "the broker's certificate is not accepted" in refusal(fleet.address(files))


def test_broker_of_another_name_is_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate says which it has."""
    files = fleet.files("elsewhere")
    address = BrokerAddress(host="127.0.0.2", port=fleet.address(files).port, secure=True, tls=files)
    monkeypatch.setattr("socket.create_connection", _to_this_machine)
    assert "IP address mismatch" in probe(address, "elsewhere").reason


def _to_this_machine(address: tuple[str, int], timeout: float) -> object:
    link = socket.socket()
    link.settimeout(timeout)
    link.connect((HOST, address[1]))
    return link


def test_expired_certificate_is_refused(fleet: Fleet) -> None:
    """One that was good for a day, a month ago."""
    files = fleet.files("expired", now=NOW - timedelta(days=30), days=1)
    assert "our certificate" in refusal(fleet.address(files), "expired")


def test_revoked_certificate_is_refused_and_others_are_taken(fleet: Fleet) -> None:
    """Once the broker has read the list; a new certificate for the same device is another one."""
    files, others = fleet.files("thief"), fleet.files("honest")
    assert probe(fleet.address(files), "thief").outcome == "accepts"
    watch = Revocations(fleet.authority)
    assert not watch.changed()
    assert fleet.authority.revoke(["thief"], NOW) == 1
    assert watch.changed()
    assert not watch.changed()
    assert fleet.broker is not None
    fleet.broker.reload()
    wait_until(lambda: probe(fleet.address(files), "thief").outcome == "distrusted", "the refusal")
    assert "our certificate" in refusal(fleet.address(files), "thief")
    assert probe(fleet.address(others), "honest").outcome == "accepts"
    assert probe(fleet.address(fleet.files("thief")), "thief").outcome == "accepts"


@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.update("victim"),
        TOPICS.status("victim"),
        TOPICS.receipt("victim"),
        TOPICS.receipt("spy"),
        TOPICS.quality("victim"),
        TOPICS.head,
        TOPICS.snapshot(0, 0),
        TOPICS.release(0, 0),
        TOPICS.delta(1, 0),
        TOPICS.catalogue(0),
        Topic("pfedrec/1/other/device/spy/update"),
        Topic("anything"),
    ],
)
def test_what_a_device_publishes_elsewhere_nobody_gets(fleet: Fleet, topic: Topic) -> None:
    """What it publishes on its own topics afterwards, the aggregator does."""
    aggregator = Client(fleet.address(fleet.authority.aggregator_files), "any", "#")
    spy = Client(fleet.address(fleet.files("spy")), "spy")
    with aggregator.connected(), spy.connected():
        # By hand, as mosquitto ends the connection for it: paho then sends what has QoS 1 again.
        spy.link._client.publish(topic, b"not mine", qos=0, retain=True)
        spy.link._client.publish(TOPICS.update("spy"), b"mine", qos=1)
        assert aggregator.heard(TOPICS.update("spy")) == [TOPICS.update("spy")]


def test_device_hears_what_is_its_own_whatever_it_subscribes_to(fleet: Fleet) -> None:
    """The head is for all; receipts and updates of others are not."""
    aggregator = Client(fleet.address(fleet.authority.aggregator_files), "any")
    spy = Client(fleet.address(fleet.files("spy")), "spy", "#", "pfedrec/1/shop/device/+/receipt")
    with aggregator.connected(), spy.connected():
        for topic in (
            TOPICS.receipt("victim"),
            TOPICS.update("victim"),
            TOPICS.status("victim"),
            TOPICS.head,
        ):
            aggregator.link.publish(topic, b"not for spies, but for the head")
        aggregator.link.publish(TOPICS.receipt("spy"), b"for spy")
        assert spy.heard(TOPICS.receipt("spy")) == [TOPICS.head, TOPICS.receipt("spy")]


def test_device_cannot_take_anothers_place(fleet: Fleet) -> None:
    """Its client id is the name in its certificate, whatever it says."""
    victim = Client(fleet.address(fleet.files("victim")), "victim", TOPICS.receipt("victim"))
    thief = Client(fleet.address(fleet.files("robber")), "victim", TOPICS.receipt("victim"))
    aggregator = Client(fleet.address(fleet.authority.aggregator_files), "victim")
    with victim.connected(), thief.connected(), aggregator.connected():
        aggregator.link.publish(TOPICS.receipt("victim"), b"for the victim")
        assert victim.heard(TOPICS.receipt("victim")) == [TOPICS.receipt("victim")]
        with pytest.raises(queue.Empty):
            thief.events.get_nowait()


def test_old_tls_is_refused(fleet: Fleet) -> None:
    """1.1 and before are not spoken."""
    files = fleet.files("old")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((HOST, fleet.address(files).port)) as link,
        pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"),
    ):
        context.wrap_socket(link, server_hostname=HOST)


def test_broker_gets_another_name_and_keeps_those_that_it_had(tmp_path: Path) -> None:
    """On another machine; bundles that are made from then on have the new one."""
    authority = Authority.make(tmp_path / "authority", "shop", ["old.example"], NOW)

    authority.renew(NOW, ["new.example", "192.0.2.7"])

    certificate = x509.load_pem_x509_certificate((authority.path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["new.example", "192.0.2.7", "old.example"]
    assert Authority(authority.path).host == "new.example"
    before = everything_in(authority.path)
    with pytest.raises(InputError):
        authority.renew(NOW, ["büro.example"])
    assert everything_in(authority.path) == before
    assert authority.hosts == ["new.example", "192.0.2.7", "old.example"]


def everything_in(path: Path) -> dict[str, bytes]:
    """Give the contents of a directory's files."""
    return {each.name: each.read_bytes() for each in path.iterdir()}


def test_secret_files_are_their_owners_alone(fleet: Fleet) -> None:
    """Whatever the umask."""
    fleet.files("moded")
    before = os.umask(0)
    try:
        fleet.files("open")
        fleet.authority.renew(NOW)
        fleet.authority.rotate_head_key()
    finally:
        os.umask(before)
    root = fleet.authority.path.parent
    secret = [*root.rglob("*.key"), *root.rglob("key.pem"), root / "authority" / "register.json"]
    assert len(secret) >= 7
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}
    assert (root / "authority").stat().st_mode & 0o077 == 0


def test_certificate_facts_are_those_that_were_issued(fleet: Fleet) -> None:
    """Read without any library, for doctor."""
    files = fleet.files("facts", days=7)
    assert files.cert is not None
    facts = certificate_facts(files.cert)
    assert facts.common_name == "facts"
    assert facts.not_before == NOW - timedelta(days=1)
    assert facts.not_after == NOW + timedelta(days=7)
    # The authority ends beyond 2049, where certificates write years with four digits.
    late = fleet.files("late", now=datetime(2060, 1, 1, tzinfo=UTC)).cert
    assert late is not None
    assert certificate_facts(late).not_after == datetime(2060, 1, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_named(tmp_path: Path, content: bytes) -> None:
    """In one sentence with the file."""
    file = tmp_path / "cert.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        certificate_facts(file)
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        TlsFiles(ca=file).context()
