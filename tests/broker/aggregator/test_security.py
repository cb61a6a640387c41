"""What ``init --secure`` makes, and makes of what an earlier one has left."""

import json
import ssl
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.x509 import load_pem_x509_crl

from broker.address import BrokerAddress
from broker.aggregator.admission import Admission
from broker.aggregator.cli import cli
from broker.aggregator.config import AggregatorConfig
from broker.aggregator.security import AUTHORITY_NAME, Standing, add_device, make_authority
from broker.authority import authority as authority_module
from broker.authority.authority import CRL, REGISTER, Authority
from broker.errors import AlreadyInitialisedError, CorruptError, FileUnreadableError, LapsedDeviceError

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


def lapsed(authority: Authority, at: datetime) -> frozenset[str]:
    """Give the devices that are refused at a time, by someone who has just begun to look."""
    admission = Admission()
    Standing(authority).follow(admission, at)
    return admission.lapsed


def test_device_counts_as_long_as_one_of_its_certificates(tmp_path: Path) -> None:
    """Not after it has expired, nor after it was revoked; a new one lets the device in again."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    authority.issue_device("short", NOW, 10)
    authority.issue_device("long", NOW, 100)
    admission, standing = Admission(), Standing(authority)
    for days, expected in ((0, set()), (9, set()), (11, {"short"}), (101, {"short", "long"})):
        standing.follow(admission, NOW + timedelta(days=days))
        assert admission.lapsed == expected == lapsed(authority, NOW + timedelta(days=days))
    authority.revoke(["long"], NOW)
    standing.follow(admission, NOW)
    assert admission.lapsed == {"long"}
    with pytest.raises(LapsedDeviceError):
        admission.require_listed("long")
    admission.require_listed("short")
    admission.require_listed("never-seen")
    authority.issue_device("long", NOW, 10)
    standing.follow(admission, NOW)
    assert admission.lapsed == set()


def test_overlap_ends_with_the_earlier_certificate_revoked(tmp_path: Path) -> None:
    """By whoever follows the register, on the day; both count until then."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    first = authority.issue_device("pi-1", NOW, 100)
    authority.issue_device("other", NOW, 100)
    second = authority.issue_device("pi-1", NOW, 100, overlap=timedelta(days=30))
    admission, standing = Admission(), Standing(authority)
    assert standing.follow(admission, NOW + timedelta(days=29)) == 0
    assert not revoked_serials(authority)
    assert standing.follow(admission, NOW + timedelta(days=31)) == 1
    assert standing.follow(admission, NOW + timedelta(days=31)) == 0
    assert revoked_serials(authority) == {first.serial}
    assert admission.lapsed == set()
    # A third, whose overlap is longer than what the second has left, changes nothing about that one.
    authority.issue_device("pi-1", NOW, 300, overlap=timedelta(days=200))
    assert authority.revoke_due(NOW + timedelta(days=150)) == 0
    assert authority.revoke(["pi-1"], NOW, but_newest=True) == 1
    assert revoked_serials(authority) == {first.serial, second.serial}


def revoked_serials(authority: Authority) -> set[int]:
    """Give what brokers read."""
    return {each.serial_number for each in load_pem_x509_crl((authority.path / CRL).read_bytes())}


def test_key_that_is_elsewhere_is_named_once_and_the_device_refused_all_the_same(tmp_path: Path) -> None:
    """What the aggregator can do without it, it does."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    authority.issue_device("gone", NOW, 100)
    authority.issue_device("pi-1", NOW, 100)
    authority.issue_device("pi-1", NOW, 100, overlap=timedelta(days=1))
    authority.revoke(["gone"], NOW)
    (authority.path / "ca.key").rename(tmp_path / "ca.key")
    admission, standing = Admission(), Standing(authority)
    later = NOW + timedelta(days=2)
    with pytest.raises(FileUnreadableError, match="device revoke --old"):
        standing.follow(admission, later)
    assert standing.follow(admission, later) == 0
    assert admission.lapsed == {"gone"}
    assert authority.entries[-1].revoked_at is None


def test_list_that_a_killed_command_left_behind_is_written_by_whoever_follows(tmp_path: Path) -> None:
    """At the start, and while it runs: the broker would go on taking what was revoked."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    first = authority.issue_device("pi-1", NOW, 100)
    authority.issue_device("pi-1", NOW, 100, overlap=timedelta(days=1))
    running = Standing(authority)
    running.follow(Admission(), NOW)
    before = (authority.path / CRL).read_bytes()
    assert authority.revoke_due(NOW + timedelta(days=2)) == 1

    for standing in (running, Standing(authority)):
        (authority.path / CRL).write_bytes(before)  # as if it had been killed after the register
        assert standing.follow(Admission(), NOW + timedelta(days=2)) == 0
        assert revoked_serials(authority) == {first.serial}
    (authority.path / CRL).write_bytes(before)
    (authority.path / "ca.key").rename(tmp_path / "ca.key")
    with pytest.raises(FileUnreadableError, match="device revoke --old"):
        Standing(authority).follow(Admission(), NOW + timedelta(days=2))


def test_clock_that_was_ahead_for_a_moment_keeps_nobody_out(tmp_path: Path) -> None:
    """Once it is right again."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    authority.issue_device("pi-1", NOW, 100)
    admission, standing = Admission(), Standing(authority)
    for days, expected in ((0, set()), (4000, {"pi-1"}), (0, set()), (1, set()), (101, {"pi-1"})):
        standing.follow(admission, NOW + timedelta(days=days))
        assert admission.lapsed == expected


@pytest.mark.parametrize("name", ["server.key", "server.pem", "aggregator.key", "aggregator.pem"])
@pytest.mark.parametrize("then", ["a start", "another change"])
def test_renewal_that_was_killed_half_way_is_finished(
    tmp_path: Path, name: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate with the key of another one would let no broker start."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    write = authority_module._write

    def die(path: Path, content: bytes) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(authority_module, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            authority.renew(NOW)
    if then == "a start":
        Authority(authority.path).finish_renewal()
    else:
        Authority(authority.path).rotate_head_key()

    for each in ("server", "aggregator"):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            authority.path / f"{each}.pem", authority.path / f"{each}.key"
        )
    assert not list(authority.path.glob("*renewed*"))


@pytest.mark.parametrize("wrong", ["some day", "2026-01-01", None, 7])
@pytest.mark.parametrize("field", ["not_after", "revoked_at", "serial"])
def test_register_with_what_is_no_date_or_number_is_damaged(
    tmp_path: Path, field: str, wrong: object
) -> None:
    """It is named, with its remedy."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    written = json.loads((authority.path / REGISTER).read_text())
    written["issued"][0][field] = wrong
    (authority.path / REGISTER).write_text(json.dumps(written))
    if field == "revoked_at" and wrong is None:
        assert Authority(authority.path).entries
        return

    with pytest.raises(CorruptError, match=r"register\.json cannot be read; restore it"):
        Authority(authority.path)


def test_register_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    """And what needs nothing new is written as it was."""
    authority = make_authority(tmp_path, "shop", (), NOW)
    authority.issue_device("pi-1", NOW, 100)
    written = json.loads((authority.path / REGISTER).read_text())
    assert set(written["issued"][-1]) == {"kind", "name", "serial", "not_after", "revoked_at"}
    (authority.path / REGISTER).write_text(json.dumps(written, indent=1))
    assert [entry.name for entry in Authority(authority.path).entries] == ["main", "main", "pi-1"]


def test_commands_renew_with_an_overlap_and_revoke_what_is_old(tmp_path: Path) -> None:
    """And the list tells which certificate is which."""
    items = tmp_path / "items.txt"
    items.write_text("bread\n")
    shop = str(tmp_path / "shop")

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(cli, list(arguments))
        assert result.exit_code == 0, result.output
        return result.stdout

    def states() -> list[str]:
        listed = json.loads(call("device", "list", "--dir", shop, "--json"))
        return [each["state"] for each in listed if each["kind"] == "device"]

    call("init", "--dir", shop, "--fleet", "shop", "--items", str(items), "--secure", "--device", "pi-1")
    call("device", "add", "--dir", shop, "pi-2")
    call("device", "add", "--dir", shop, "--overlap", "30d", "pi-1")
    assert states() == ["replaced", "valid", "valid"]
    call("device", "revoke", "--dir", shop, "--old", "pi-1", "pi-2")
    assert states() == ["revoked", "valid", "valid"]
    assert "replaced" not in call("device", "list", "--dir", shop)
    call("device", "revoke", "--dir", shop, "pi-1", "pi-2")
    assert states() == ["revoked"] * 3


def test_authority_with_another_ones_key_issues_nothing(tmp_path: Path) -> None:
    """Brokers and devices would refuse what it makes; nothing is changed."""
    authority = make_authority(tmp_path / "a", "shop", (), NOW)
    other = make_authority(tmp_path / "b", "shop", (), NOW)
    (authority.path / "ca.key").write_bytes((other.path / "ca.key").read_bytes())
    before = {path.name: path.read_bytes() for path in authority.path.iterdir()}
    with pytest.raises(CorruptError, match=r"ca\.key and ca\.pem are no certificate with its key"):
        authority.issue_device("pi-1", NOW, 30)
    with pytest.raises(CorruptError, match=r"ca\.key"):
        authority.renew(NOW)
    assert {path.name: path.read_bytes() for path in authority.path.iterdir()} == before


def test_second_rotation_is_asked_for(tmp_path: Path) -> None:
    """Devices that have not been given the file of keys since the first would believe nothing any more."""
    path = str(tmp_path / "shop")
    (tmp_path / "items.txt").write_text("a\nb\n")
    init = ["init", "--dir", path, "--fleet", "shop", "--items", str(tmp_path / "items.txt"), "--secure"]
    assert CliRunner().invoke(cli, init).exit_code == 0
    rotate = ["keys", "rotate", "--dir", path]
    assert CliRunner().invoke(cli, rotate).exit_code == 0
    before = (tmp_path / "shop" / AUTHORITY_NAME / "head.key").read_bytes()
    refused = CliRunner().invoke(cli, rotate)
    assert refused.exit_code == 2
    assert "--yes" in refused.output
    assert (tmp_path / "shop" / AUTHORITY_NAME / "head.key").read_bytes() == before
    assert CliRunner().invoke(cli, [*rotate, "--yes"]).exit_code == 0


@pytest.mark.parametrize("host", ["bad host", "mqtt://h", "h:8883", "", "-h", "a..b", "999.1.1.1"])
def test_host_that_is_no_name_is_refused_before_anything_is_made(tmp_path: Path, host: str) -> None:
    """By every command that takes one."""
    path = str(tmp_path / "shop")
    (tmp_path / "items.txt").write_text("a\nb\n")
    init = ["init", "--dir", path, "--fleet", "shop", "--items", str(tmp_path / "items.txt"), "--secure"]
    for option in ("--host", "--listen"):
        refused = CliRunner().invoke(cli, [*init, option, host])
        assert (refused.exit_code, (tmp_path / "shop").exists()) == (2, False)
    assert CliRunner().invoke(cli, [*init, "--host", "broker.example", "--host", "fd00::5"]).exit_code == 0
    for command in (["device", "add", "pi-1"], ["keys", "renew"]):
        assert CliRunner().invoke(cli, [*command, "--dir", path, "--host", host]).exit_code == 2
    assert not (tmp_path / "shop" / "devices").exists()
