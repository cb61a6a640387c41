"""What ``init --secure`` makes, and makes of what an earlier one has left."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.security import AUTHORITY_NAME, add_device, make_authority
from broker.authority.authority import CRL
from broker.errors import AlreadyInitialisedError

NOW = datetime.now(UTC)


def broker_in(bundle: Path) -> BrokerAddress:
    """Give the address that a device is told."""
    return BrokerAddress.parse(tomllib.loads((bundle / "device.toml").read_text())["broker"])


def test_same_init_goes_on_with_its_authority(tmp_path: Path) -> None:
    """One that was cut off before the configuration was written."""
    first = make_authority(tmp_path, "shop", ("broker.example",), NOW)
    again = make_authority(tmp_path, "shop", ("broker.example",), NOW)
    assert again.entries == first.entries


@pytest.mark.parametrize(
    ("fleet", "hosts"), [("other", ("broker.example",)), ("shop", ("10.0.0.7",))], ids=["fleet", "host"]
)
def test_another_init_makes_an_authority_of_its_own(
    tmp_path: Path, fleet: str, hosts: tuple[str, ...]
) -> None:
    """Nothing would fit: certificates, access rules, signatures."""
    first = make_authority(tmp_path, "shop", ("broker.example",), NOW)
    other = make_authority(tmp_path, fleet, hosts, NOW)
    assert (other.fleet, other.host) == (fleet, hosts[0])
    assert not {each.serial for each in first.entries} & {each.serial for each in other.entries}


def test_authority_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """The list of revoked certificates comes last."""
    make_authority(tmp_path, "shop", (), NOW)
    (tmp_path / AUTHORITY_NAME / CRL).unlink()
    make_authority(tmp_path, "shop", (), NOW)
    assert (tmp_path / AUTHORITY_NAME / CRL).exists()


def test_authority_that_devices_know_is_left_alone(tmp_path: Path) -> None:
    """Theirs would be worth nothing."""
    config = AggregatorConfig(fleet="shop", secure=True)
    make_authority(tmp_path, "shop", (), NOW)
    add_device(tmp_path, config, "pi-1", NOW, days=30)
    with pytest.raises(AlreadyInitialisedError, match="authority of fleet shop"):
        make_authority(tmp_path, "other", (), NOW)


def test_bundle_has_the_brokers_address_but_not_the_aggregators_password(tmp_path: Path) -> None:
    """And the host that was asked for, which may be a number of IPv6."""
    make_authority(tmp_path, "shop", ("broker.example",), NOW)
    config = AggregatorConfig(fleet="shop", secure=True, broker="mqtts://agg:secret@mq.example:8884")
    bundle = add_device(tmp_path, config, "pi-1", NOW, days=30)
    assert b"secret" not in b"".join(path.read_bytes() for path in bundle.iterdir())
    assert str(broker_in(bundle)) == "mqtts://mq.example:8884"
    bundle = add_device(tmp_path, config, "pi-2", NOW, days=30, host="fd00::5")
    assert (broker_in(bundle).host, broker_in(bundle).port) == ("fd00::5", 8884)
    own = AggregatorConfig(fleet="shop", secure=True, port=8885)
    assert str(broker_in(add_device(tmp_path, own, "pi-3", NOW, days=30))) == "mqtts://broker.example:8885"
