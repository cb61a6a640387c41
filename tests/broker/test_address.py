"""Broker addresses: what is one, and that no password is ever shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.address import DEFAULT_PORT, BrokerAddress
from trainer.errors import ParameterError


def with_password(password: str, *, username: str = "me", port: int = DEFAULT_PORT) -> BrokerAddress:
    """Give an address with a user's password."""
    return BrokerAddress(host="host", port=port, username=username, password=password)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://host", BrokerAddress(host="host")),
        ("mqtt://host/", BrokerAddress(host="host")),
        ("MQTT://Host.Example:8883", BrokerAddress(host="host.example", port=8883)),
        ("mqtt://192.168.1.10:1", BrokerAddress(host="192.168.1.10", port=1)),
        ("mqtt://[::1]:65535", BrokerAddress(host="::1", port=65535)),
        ("mqtt://[fe80::1]", BrokerAddress(host="fe80::1")),
        ("mqtts://host", BrokerAddress(host="host", port=8883, secure=True)),
        ("mqtts://host:1", BrokerAddress(host="host", port=1, secure=True)),
        ("mqtt://me@host", BrokerAddress(host="host", username="me")),
        ("mqtt://me:@host", with_password("")),
        ("mqtt://me:pw@host:2", with_password("pw", port=2)),
        ("mqtt://a%40b:p%2F%3A%23@host", with_password("p/:#", username="a@b")),
        ("mqtt://a@b:p@w@host", with_password("p@w", username="a@b")),
    ],
)
def test_address_is_read_in_all_its_parts(text: str, expected: BrokerAddress) -> None:
    """Host, port, user name and password, percent-encoded where they must be."""
    assert BrokerAddress.parse(text) == expected


def test_port_is_mqtts_own_unless_given() -> None:
    """IANA's port for MQTT without TLS."""
    assert BrokerAddress.parse("mqtt://host").port == DEFAULT_PORT == 1883


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:1883",
        "mqtt:host",
        "mqtt:///host",
        "mqtt://",
        "mqtt://:1883",
        "mqttss://host",
        "http://host",
        "mqtt://host:0",
        "mqtt://host:65536",
        "mqtt://host:-1",
        "mqtt://host:port",
        "mqtt://host/path",
        "mqtt://host?query",
        "mqtt://host#fragment",
        "mqtt://me:1#w@host",
        "mqtt://me:pw@",
        "mqtt://[::1",
        "mqtt://[no-address]",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    """The sentence shows what was given and how an address is written."""
    with pytest.raises(ParameterError, match=r"is no broker address; write mqtt://HOST:PORT"):
        BrokerAddress.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "mqtt://me:s3cret@",
        "mqtt://me:s3cret@host:0",
        "http://me:s3cret@host",
        "mqtt://me:1s3cret#@host",
        "me:s3cret@host",
        "mqtt://me:s3cret@else@host/path",
        "mqtt://me:s3cret" + "x" * 300 + "@host/path",
    ],
)
def test_refusal_hides_the_password(text: str) -> None:
    """What stands before the last @ is not shown."""
    with pytest.raises(ParameterError) as caught:
        BrokerAddress.parse(text)

    assert "s3cret" not in str(caught.value)
    assert "…@" in str(caught.value)


def test_address_is_printed_without_its_password() -> None:
    """Neither str nor repr gives a password away."""
    address = with_password("s3cret", port=1)

    assert str(address) == "mqtt://me@host:1"
    assert "s3cret" not in repr(address)


def test_ipv6_address_is_printed_in_brackets() -> None:
    """So that the port can be told apart."""
    assert str(BrokerAddress(host="::1")) == "mqtt://[::1]:1883"


_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(
    host=st.sampled_from(["host", "10.0.0.1", "::1", "a.b-c.example"]),
    port=st.integers(1, 65535),
    username=st.none() | _NAMES,
)
def test_printed_address_is_read_back(host: str, port: int, username: str | None) -> None:
    """What is printed can be used as an address."""
    address = BrokerAddress(host=host, port=port, username=username)

    assert BrokerAddress.parse(str(address)) == address


@given(text=st.text(max_size=60) | st.text(max_size=40).map(lambda tail: f"mqtt://{tail}"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text raises anything else, and an address has a host and a port."""
    try:
        address = BrokerAddress.parse(text)
    except ParameterError:
        return
    assert address.host
    assert 1 <= address.port <= 65535
