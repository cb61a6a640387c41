"""What home automation is told, and what it may command: topics, discovery and commands without a broker."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.homeassistant import MAX_COMMAND_BYTES, HomeTopics, read_command, state_payload
from edge.session import Activity
from trainer.datasets import checked_key
from trainer.errors import ParameterError

TOPICS = HomeTopics(prefix="homeassistant", fleet="shop", device="pi-1")
SENSORS = {"version", "interactions", "online", "activity", "last_training"}
NOW = 1_700_000_000.0


def announced(topics: HomeTopics = TOPICS) -> dict[str, Any]:
    """Give what is announced, by topic."""
    return {topic: json.loads(payload) for topic, payload in topics.announcements("1.2").items()}


def test_sensors_are_announced_where_home_assistant_looks() -> None:
    """PREFIX/sensor/NODE/SENSOR/config, of characters that it allows."""
    found = {
        re.fullmatch(r"homeassistant/sensor/([A-Za-z0-9_-]+)/([a-z_]+)/config", each) for each in announced()
    }
    assert {match[2] for match in found if match} == SENSORS
    assert None not in found


def test_announcements_have_what_home_assistant_needs() -> None:
    """Each an id of its own, all of one device; values and availability where they are published."""
    values = list(announced().values())
    assert len({value["unique_id"] for value in values}) == len(SENSORS)
    assert len({json.dumps(value["device"]) for value in values}) == 1
    for value in values:
        assert value["state_topic"] == TOPICS.state
        assert value["availability_topic"] == TOPICS.availability
        assert value["origin"] == {"name": "pfedrec-edge", "sw_version": "1.2"}
    [activity] = [value for value in values if value["name"] == "Activity"]
    assert set(activity["options"]) == {"stopped"} | {each.value for each in Activity}


def test_templates_find_their_values_in_the_state() -> None:
    """Each names one key of it."""
    facts = dict.fromkeys(SENSORS) | {"device_id": "pi-1", "broker": "mqtt://somewhere"}
    state = json.loads(state_payload(facts))
    assert set(state) == SENSORS
    for value in announced().values():
        [key] = re.findall(r"value_json\.([a-z_]+)", value["value_template"])
        assert key in state


def test_devices_never_share_a_topic() -> None:
    """Though a fleet's name and a device's id may hold what joins them."""
    pairs = [("a", "b_c"), ("a_b", "c"), ("a.b", "c"), ("a", "b.c"), ("a", "b-c")]
    all_topics = [
        topic
        for fleet, device in pairs
        for topic in HomeTopics(prefix="homeassistant", fleet=fleet, device=device).retained()
    ]
    assert len(set(all_topics)) == len(all_topics)


@pytest.mark.parametrize(
    "prefix", ["", "/", "a/", "/a", "a//b", "a/#", "+", "a b", "a/b/c/d/e", "x" * 41, "ü"]
)
def test_prefix_that_is_no_topic_is_refused(prefix: str) -> None:
    """With what is allowed."""
    with pytest.raises(ParameterError, match=r"home_prefix .* is not allowed"):
        HomeTopics(prefix=prefix, fleet="shop", device="pi-1")


def test_command_is_an_item_or_an_object() -> None:
    """Now, unless it says when."""
    plain = read_command(b" item-3\n", NOW)
    assert (plain.item, plain.at, plain.identity) == ("item-3", NOW, None)
    whole = read_command(b'{"item": "{x", "at": "1970-01-01T00:00:05", "id": "a"}', NOW)
    assert (whole.item, whole.at) == ("{x", 5.0)
    assert whole.identity == read_command(b'{"item": "y", "id": "a"}', NOW).identity


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"  ",
        b"\xff",
        b"a\0b",
        b"a\nb",
        b"x" * 257,
        b"x" * (MAX_COMMAND_BYTES + 1),
        b"{",
        b"{}",
        b'{"item": 3}',
        b'{"item": ""}',
        b'{"item": "x", "more": 1}',
        b'{"item": "x", "at": true}',
        b'{"item": "x", "at": "tomorrow"}',
        b'{"item": "x", "id": 3}',
        b'{"item": "x", "id": ""}',
        b'{"a":' * 400,
    ],
    ids=lambda value: repr(value[:20]),
)
def test_command_that_is_wrong_is_one_sentence(payload: bytes) -> None:
    """That does not repeat what was sent: it goes to a log."""
    with pytest.raises(ParameterError) as found:
        read_command(payload, NOW)
    assert "tomorrow" not in str(found.value)


@given(
    st.binary(max_size=80)
    | st.text(max_size=60).map(str.encode)
    | st.text(max_size=30).map(lambda t: f'{{"item": "{t}"}}'.encode())
)
def test_any_command_is_an_item_or_a_sentence(payload: bytes) -> None:
    """And every item can be in a catalogue."""
    try:
        command = read_command(payload, NOW)
    except ParameterError:
        return
    assert checked_key(command.item, "item", "", None)
