"""A provisioned device, by the commands alone: it takes part, is renewed, and loses its certificates."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest

from broker.claim import Claim
from broker.embedded import free_port
from tests.brokers import HOST, PATIENCE_S, children_of, command_of, require
from tests.edge.builders import ITEM_KEYS
from tests.edge.running import RunningCommand, an_aggregator, looking_at, run_command, told, wait_until
from tests.firmware_tools.provisioned import COMMAND
from tests.integration.keyforms import secrets_of

pytestmark = [pytest.mark.process, pytest.mark.mqtt]


def provisioned(kind: str, shop: Path, *arguments: str) -> None:
    """Run ``firmware-tools provision`` to its end; it must succeed."""
    call = [*COMMAND, kind, "--dir", str(shop), *arguments]
    subprocess.run(call, check=True, timeout=PATIENCE_S, capture_output=True)


def accepted(directory: Path) -> int:
    """Give how many updates of a device were counted."""
    with looking_at(directory) as store:
        return store.receipts().get("accepted", 0)


def test_provisioned_device_takes_part_is_renewed_and_is_refused(tmp_path: Path) -> None:
    """Refused by the aggregator while it is connected, by the broker once it comes again."""
    require("mosquitto")
    options = ("--secure", "--host", "localhost", "--port", str(free_port()), "--buffer", "1")
    shop = an_aggregator(tmp_path / "shop", "shop", ITEM_KEYS, *options, "--check-in", "200ms")
    ids, me = tmp_path / "ids.txt", tmp_path / "me"
    ids.write_text("pi-1\n")
    settings = tmp_path / "settings.toml"
    settings.write_text('scorer = "numpy"\n[training]\nmax_load_per_core = 0.0\n')
    first = ("--ids", str(ids), "--out", str(tmp_path / "first"), "--settings", str(settings))
    provisioned("devices", shop, *first)
    run_command("edge-client", "init", "--dir", str(me), "--bundle", str(tmp_path / "first/devices/pi-1"))
    run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[0], ITEM_KEYS[1])
    with RunningCommand("edge-aggregator", "start", "--dir", str(shop)) as aggregator:
        aggregator.hear("mosquitto listens")
        with RunningCommand("edge-client", "start", "--dir", str(me)) as device:
            wait_until(lambda: accepted(me) >= 1, "an accepted update")
            assert device.end() == 0

        # Without an overlap, so that nobody has to wait: the first certificate ends at once.
        renewal = ("--renew", "--overlap", "0s", "--ids", str(ids), "--out", str(tmp_path / "second"))
        provisioned("devices", shop, *renewal)
        aggregator.hear("1 certificate revoked, as newer ones have taken their place")
        aggregator.hear("the list of revoked certificates was read again")
        with RunningCommand("edge-client", "start", "--dir", str(me)) as revoked:
            revoked.hear("perhaps it does not accept our certificate")
            assert revoked.end() == 0
        run_command(
            "edge-client", "renew", "--dir", str(me), "--bundle", str(tmp_path / "second/devices/pi-1")
        )
        run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[2])
        before = accepted(me)
        with RunningCommand("edge-client", "start", "--dir", str(me)) as device:
            wait_until(lambda: accepted(me) > before, "an update that is accepted with the new certificate")

            run_command("edge-aggregator", "device", "revoke", "--dir", str(shop), "pi-1")
            aggregator.hear("the list of revoked certificates was read again")
            run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[3])
            aggregator.hear("this device's certificate was revoked, or has expired")
            assert told(me, "head_complaint") == ""
            assert device.end() == 0
        assert aggregator.end() == 0
    register = json.loads((shop / "authority" / "register.json").read_text())
    assert [bool(each["revoked_at"]) for each in register["issued"] if each["name"] == "pi-1"] == [True, True]


def test_enrolled_device_takes_part_and_no_secret_gets_out(tmp_path: Path) -> None:
    """From a claim to a counted update; then files, logs and the list of processes are searched."""
    require("mosquitto")
    options = ("--secure", "--host", "localhost", "--port", str(free_port()), "--buffer", "1")
    shop = an_aggregator(tmp_path / "shop", "shop", ITEM_KEYS, *options, "--check-in", "200ms")
    port, me = str(free_port()), tmp_path / "me"
    file = tmp_path / "claims.csv"
    provisioned("claims", shop, "--count", "2", "--port", port, "--out", str(file))
    with file.open(newline="") as lines:
        claims = [Claim.parse(row["claim"]) for row in csv.DictReader(lines)]
    (tmp_path / "claim.txt").write_text(claims[0].text())
    logs = [
        (tmp_path / f"{name}.log").open("wb") for name in ("aggregator", "enrolment", "device", "enrolled")
    ]
    server = ("enrol", "--dir", str(shop), "--listen", HOST, "--port", port)
    with (
        RunningCommand("edge-aggregator", "start", "--dir", str(shop), stderr=logs[0]) as aggregator,
        RunningCommand("edge-aggregator", *server, stderr=logs[1]) as enrolment,
    ):
        wait_until(lambda: "claims are answered" in _text(logs[1].name), "the enrolment server")
        claim = ("--claim", str(tmp_path / "claim.txt"))
        with RunningCommand("edge-client", "enrol", "--dir", str(me), *claim, stderr=logs[3]) as enrolling:
            arguments = command_of(enrolling.pid)
            assert enrolling.wait() == 0
        run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[0], ITEM_KEYS[1])
        environment = {"PFEDREC_TRAINING_MAX_LOAD_PER_CORE": "0"}
        with RunningCommand(
            "edge-client", "start", "--dir", str(me), stderr=logs[2], **environment
        ) as device:
            wait_until(lambda: accepted(me) >= 1, "an accepted update")
            family = [aggregator.pid, enrolment.pid, device.pid, *children_of(aggregator.pid)]
            arguments += [each for pid in family for each in command_of(pid)]
            environments = b"".join(
                Path(f"/proc/{pid}/environ").read_bytes() for pid in [os.getpid(), *family]
            )
            assert device.end() == 0
        assert enrolment.end() == 0
        assert aggregator.end() == 0
    for log in logs:
        log.close()
    keys = [path for path in tmp_path.rglob("*") if path.suffix == ".key" or path.name == "key.pem"]
    assert {path.stat().st_mode & 0o777 for path in [*keys, file]} == {0o600}
    secrets = secrets_of(keys) | {claim.code for claim in claims}
    given_out = [*keys, file, tmp_path / "claim.txt"]
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path not in given_out]
    texts = {"processes": " ".join(arguments) + environments.decode("latin-1")}
    texts |= {str(path): _text(path) for path in others}
    for name, text in texts.items():
        assert not [secret for secret in secrets if secret in text], name


def _text(path: str | Path) -> str:
    return Path(path).read_bytes().decode("latin-1")
