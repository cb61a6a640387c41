"""A device that enrols itself: its key is its own, its fleet alone hears the code, it may be cut off."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.aggregator.enrolment import Enrolment, enrolling
from broker.aggregator.security import secure_listener
from broker.authority.authority import Authority
from broker.claim import Claim
from broker.embedded import free_port, own_broker
from broker.errors import (
    AlreadyInitialisedError,
    ClaimRefusedError,
    FleetMismatchError,
    InputError,
    UnreachableError,
)
from broker.exit_codes import ExitCode
from broker.probe import probe
from edge.config import load_config
from edge.enrolment import enrol
from tests.brokers import HOST, require
from tests.edge.commands import Call, assert_refused

NOW = datetime.now(UTC)


class Fleet:
    """An authority, and an enrolment server that runs while a block does."""

    def __init__(self, path: Path, broker_port: int = 8883) -> None:
        self.authority = Authority.make(path, "shop", ["localhost"], NOW)
        broker = f"mqtts://localhost:{broker_port}"
        self.now, self.said = NOW, list[str]()
        self.server = Enrolment(self.authority, broker, lambda: self.now, self.said.append)

    def claim(self, port: int, device: str = "pi-1") -> Claim:
        """Give a claim."""
        given = self.authority.give_claims([device], NOW + timedelta(days=1), 30)[0]
        return Claim(host="localhost", port=port, device=device, code=given.code, authority=given.authority)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Give a fleet."""
    return Fleet(tmp_path / "authority")


def left_over(me: Path) -> list[str]:
    """Give what a device's directory has that is not a device's."""
    return [path.name for path in me.glob(".*")]


@pytest.mark.mqtt
def test_enrolled_device_is_taken_by_its_broker_until_it_is_revoked(tmp_path: Path) -> None:
    """With a key that was made on the device and is its alone."""
    require("mosquitto")
    port = free_port()
    fleet = Fleet(tmp_path / "authority", port)
    with enrolling(fleet.server, fleet.authority, HOST, 0) as there:
        enrol(tmp_path / "me", fleet.claim(there))
    config = load_config(tmp_path / "me", {})
    assert (config.device_id, config.fleet) == ("pi-1", "shop")
    assert (tmp_path / "me" / "key.pem").stat().st_mode & 0o777 == 0o600
    secret = (tmp_path / "me" / "key.pem").read_bytes()
    kept = [path for path in fleet.authority.path.rglob("*") if path.is_file()]
    assert not [path for path in kept if secret[40:80] in path.read_bytes()]
    assert left_over(tmp_path / "me") == []
    with own_broker("mosquitto", HOST, port, tmp_path / "broker", secure_listener(fleet.authority)):
        assert probe(config.address, "pi-1").outcome == "accepts"
    fleet.authority.revoke(["pi-1"], NOW)
    with own_broker("mosquitto", HOST, port, tmp_path / "broker", secure_listener(fleet.authority)):
        assert probe(config.address, "pi-1").outcome == "distrusted"


def test_enrolment_that_was_cut_off_goes_on_with_its_key(fleet: Fleet, tmp_path: Path) -> None:
    """After the server has answered, and nobody was there to hear it, there is one certificate."""
    me = tmp_path / "me"
    with enrolling(fleet.server, fleet.authority, HOST, 0) as port:
        claim = fleet.claim(port)
        enrol(tmp_path / "copy", claim)
        (me / ".enrolment").mkdir(parents=True)
        shutil.copy(tmp_path / "copy" / "key.pem", me / ".enrolment" / "key.pem")
        (me / ".enrolment" / "device").write_text("pi-1")
        enrol(me, claim)
    for name in ("cert.pem", "key.pem", "ca.pem", "head_key.pub"):
        assert (me / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
    assert sum(entry.kind == "device" for entry in Authority(fleet.authority.path).entries) == 1
    with pytest.raises(AlreadyInitialisedError):
        enrol(me, claim)


def test_code_is_not_told_to_who_is_not_the_fleet(fleet: Fleet, tmp_path: Path) -> None:
    """Somebody with another authority at the same place hears nothing but a question for it."""
    strangers = Fleet(tmp_path / "strangers")
    with enrolling(strangers.server, strangers.authority, HOST, 0) as port:
        with pytest.raises(FleetMismatchError, match="nothing was told to it"):
            enrol(tmp_path / "me", fleet.claim(port))
        # Who shows the right authority but cannot prove to be it is not told either.
        strangers.server.ca = fleet.server.ca
        with pytest.raises(FleetMismatchError, match="is not believed"):
            enrol(tmp_path / "me", fleet.claim(port))
    assert not (tmp_path / "me" / "config.toml").exists()
    assert strangers.said == []


def test_nobody_there_and_a_spent_claim_are_told_apart(fleet: Fleet, tmp_path: Path) -> None:
    """One passes, the other does not."""
    with pytest.raises(UnreachableError, match="no enrolment server answers"):
        enrol(tmp_path / "me", fleet.claim(free_port()))
    with enrolling(fleet.server, fleet.authority, HOST, 0) as port:
        claim = fleet.claim(port)
        enrol(tmp_path / "me", claim)
        with pytest.raises(ClaimRefusedError, match="used before"):
            enrol(tmp_path / "thief", claim)


def test_machine_without_openssl_is_told_what_to_do(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything was asked."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install openssl"):
        enrol(tmp_path / "me", fleet.claim(1))


def test_command_reads_the_claim_from_a_file_only(fleet: Fleet, tmp_path: Path, call: Call) -> None:
    """An argument is no place for it."""
    with enrolling(fleet.server, fleet.authority, HOST, 0) as port:
        file = tmp_path / "claim.txt"
        file.write_text(fleet.claim(port).text() + "\n")
        me = str(tmp_path / "me")
        assert_refused(call("enrol", "--dir", me, file.read_text()), ExitCode.USAGE)
        done = call("enrol", "--dir", me, "--claim", str(file))
        assert done.code == 0
        assert "is set up for device pi-1" in done.err
        refused = call("enrol", "--dir", str(tmp_path / "other"), "--claim", str(file))
        assert_refused(refused, ExitCode.CLAIM_REFUSED, "used before")
        file.write_text("claim://nothing\n")
        refused = call("enrol", "--dir", str(tmp_path / "other"), "--claim", str(file))
        assert_refused(refused, ExitCode.USAGE, "that is no claim")
