"""Topics: built, parsed, matched and refused."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker.errors import SchemaError
from broker.protocol.topics import ROOT, Address, Filter, FleetTopics, Topic, checked_id
from tests.broker.protocol.strategies import ID_PATTERN, identifiers
from trainer.errors import ParameterError

MAX_LEVELS = 7
ILLEGAL_IDS = [
    "",
    "/",
    "a/b",
    "+",
    "a+",
    "#",
    "a#",
    "$SYS",
    " ",
    "a b",
    " a",
    "a ",
    "a\n",
    "\na",
    "a\x00b",
    "a\tb",
    ".",
    "..",
    ".hidden",
    "-a",
    "_a",
    "é",
    "\uff11",
    "映画",
    "a:b",
    "a\\b",
    "a%2Fb",
    "a" * 65,
]
chunk_numbers = st.integers(0, 65_535)


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    """Everything that a topic can mean."""
    kind = draw(st.sampled_from(["head", "snapshot", "catalogue", "status", "update", "receipt", "quality"]))
    if kind == "snapshot":
        return Address(kind, slot=draw(st.integers(0, 1)), chunk=draw(chunk_numbers))
    if kind == "catalogue":
        return Address(kind, chunk=draw(chunk_numbers))
    return Address(kind) if kind == "head" else Address(kind, device=draw(identifiers))


def topic_of(topics: FleetTopics, address: Address) -> Topic:
    """Build the topic that means `address`."""
    match address.kind:
        case "head":
            return topics.head
        case "snapshot":
            return topics.snapshot(address.slot, address.chunk)
        case "catalogue":
            return topics.catalogue(address.chunk)
        case "status":
            return topics.status(address.device)
        case "update":
            return topics.update(address.device)
        case "quality":
            return topics.quality(address.device)
        case _:
            return topics.receipt(address.device)


def matches(pattern: Filter, topic: str) -> bool:
    """Match as a broker does (MQTT 3.1.1, section 4.7), for filters with ``+`` only."""
    wanted, found = pattern.split("/"), topic.split("/")
    return len(wanted) == len(found) and all(w in ("+", f) for w, f in zip(wanted, found, strict=True))


@given(identifiers, addresses())
def test_parse_undoes_build(fleet: str, address: Address) -> None:
    """A topic means what it was built of, and stays within the levels and bytes of MQTT."""
    topics = FleetTopics(fleet)

    topic = topic_of(topics, address)

    assert topics.parse(topic) == address
    assert topic.startswith(f"{ROOT}/{fleet}/")
    assert len(topic.split("/")) <= MAX_LEVELS
    assert len(topic.encode()) < 256
    assert not set(topic) & set("+#\x00")


@given(identifiers, identifiers, addresses())
def test_topic_of_another_fleet_is_refused(fleet: str, other: str, address: Address) -> None:
    """Fleets on one broker do not hear each other."""
    assume(fleet != other)

    with pytest.raises(SchemaError, match="is not one of fleet"):
        FleetTopics(fleet).parse(topic_of(FleetTopics(other), address))


@given(identifiers, addresses())
def test_filter_matches_the_topics_of_its_kind_only(fleet: str, address: Address) -> None:
    """A subscription gets what it asks for."""
    topics = FleetTopics(fleet)
    topic = topic_of(topics, address)

    assert matches(topics.status_filter, topic) == (address.kind == "status")
    assert matches(topics.update_filter, topic) == (address.kind == "update")
    assert matches(topics.catalogue_filter, topic) == (address.kind == "catalogue")
    for slot in (0, 1):
        of_slot = address.kind == "snapshot" and address.slot == slot
        assert matches(topics.snapshot_filter(slot), topic) == of_slot


@given(identifiers)
def test_device_id_is_a_level_of_its_own(device: str) -> None:
    """A broker's access rules can name it as %c or %u."""
    topics = FleetTopics("home")

    for topic in (topics.status(device), topics.update(device), topics.receipt(device)):
        assert topic.split("/")[4] == device


def test_topics_are_those_of_the_documentation() -> None:
    """The topics of version 1 never change."""
    topics = FleetTopics("home")

    assert [
        topics.head,
        topics.snapshot(1, 17),
        topics.snapshot_filter(1),
        topics.catalogue(0),
        topics.catalogue_filter,
        topics.status("pi-7"),
        topics.status_filter,
        topics.update("pi-7"),
        topics.update_filter,
        topics.receipt("pi-7"),
    ] == [
        "pfedrec/1/home/head",
        "pfedrec/1/home/snapshot/1/17",
        "pfedrec/1/home/snapshot/1/+",
        "pfedrec/1/home/catalogue/0",
        "pfedrec/1/home/catalogue/+",
        "pfedrec/1/home/device/pi-7/status",
        "pfedrec/1/home/device/+/status",
        "pfedrec/1/home/device/pi-7/update",
        "pfedrec/1/home/device/+/update",
        "pfedrec/1/home/device/pi-7/receipt",
    ]


@pytest.mark.parametrize("text", ILLEGAL_IDS)
def test_illegal_id_is_refused_everywhere(text: str) -> None:
    """No topic is built with an id that MQTT, a file system or a URL would misread."""
    with pytest.raises(ParameterError, match=r"the thing .* is not allowed; use 1 to 64 of"):
        checked_id(text, "the thing")
    with pytest.raises(ParameterError, match="the fleet name"):
        FleetTopics(text)
    topics = FleetTopics("home")
    for build in (topics.status, topics.update, topics.receipt):
        with pytest.raises(ParameterError, match="the device id"):
            build(text)


@pytest.mark.parametrize("text", ILLEGAL_IDS)
def test_topic_with_an_illegal_device_id_is_refused(text: str) -> None:
    """What could not be built is not parsed either."""
    with pytest.raises(SchemaError, match="is not one of fleet home"):
        FleetTopics("home").parse(f"pfedrec/1/home/device/{text}/update")


@given(st.text(max_size=70))
def test_id_is_allowed_exactly_when_the_schema_says_so(text: str) -> None:
    """The pattern of docs/protocol.cddl decides."""
    if re.fullmatch(ID_PATTERN, text, re.ASCII):
        assert checked_id(text, "the thing") == text
    else:
        with pytest.raises(ParameterError):
            checked_id(text, "the thing")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "pfedrec",
        "pfedrec/1/home",
        "pfedrec/1/home/",
        "pfedrec/2/home/head",
        "pfedrec/1/homes/head",
        "pfedrec/1/home/head/",
        "/pfedrec/1/home/head",
        "pfedrec/1/home/heads",
        "pfedrec/1/home/+",
        "pfedrec/1/home/#",
        "pfedrec/1/home/snapshot",
        "pfedrec/1/home/snapshot/0",
        "pfedrec/1/home/snapshot/0/",
        "pfedrec/1/home/snapshot/0/1/2",
        "pfedrec/1/home/snapshot/a/0",
        "pfedrec/1/home/snapshot/-1/0",
        "pfedrec/1/home/snapshot/0/01",
        "pfedrec/1/home/snapshot/0/1\n",
        "pfedrec/1/home/snapshot/0/\u0661",
        "pfedrec/1/home/snapshot/0/100000",
        "pfedrec/1/home/catalogue",
        "pfedrec/1/home/catalogue/",
        "pfedrec/1/home/catalogue/x",
        "pfedrec/1/home/catalogue/0/0",
        "pfedrec/1/home/device",
        "pfedrec/1/home/device/pi-7",
        "pfedrec/1/home/device/pi-7/",
        "pfedrec/1/home/device/pi-7/update/0",
        "pfedrec/1/home/device/pi-7/updates",
        "pfedrec/1/home/device//update",
        "$SYS/broker/uptime",
        "\U0001f600" * 500,
    ],
)
def test_foreign_topic_is_refused(topic: str) -> None:
    """Anything else is no topic of the fleet; the refusal is short ASCII."""
    with pytest.raises(SchemaError, match="is not one of fleet home") as caught:
        FleetTopics("home").parse(topic)

    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 400


@given(st.text(max_size=100))
def test_any_text_is_an_address_or_a_schema_error(text: str) -> None:
    """Noise never raises anything else."""
    topics = FleetTopics("home")
    for topic in (text, f"pfedrec/1/home/{text}"):
        try:
            address = topics.parse(topic)
        except SchemaError:
            continue
        assert topic_of(topics, address) == topic
