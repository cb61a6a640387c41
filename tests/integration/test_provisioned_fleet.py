"""A provisioned device, by the commands alone: it takes part, is renewed, and loses its certificates."""

import json
import subprocess
from pathlib import Path

import pytest

from broker.embedded import free_port
from tests.brokers import PATIENCE_S, require
from tests.edge.builders import ITEM_KEYS
from tests.edge.running import RunningCommand, an_aggregator, looking_at, run_command, told, wait_until
from tests.firmware_tools.provisioned import COMMAND

pytestmark = [pytest.mark.process, pytest.mark.mqtt]


def provisioned(shop: Path, *arguments: str) -> None:
    """Run ``firmware-tools provision devices`` to its end; it must succeed."""
    call = [*COMMAND, "devices", "--dir", str(shop), *arguments]
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
    provisioned(shop, "--ids", str(ids), "--out", str(tmp_path / "first"), "--settings", str(settings))
    run_command("edge-client", "init", "--dir", str(me), "--bundle", str(tmp_path / "first/devices/pi-1"))
    run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[0], ITEM_KEYS[1])
    with RunningCommand("edge-aggregator", "start", "--dir", str(shop)) as aggregator:
        aggregator.hear("mosquitto listens")
        with RunningCommand("edge-client", "start", "--dir", str(me)) as device:
            wait_until(lambda: accepted(me) >= 1, "an accepted update")
            assert device.end() == 0

        # Without an overlap, so that nobody has to wait: the first certificate ends at once.
        renewal = ("--renew", "--overlap", "0s", "--ids", str(ids), "--out", str(tmp_path / "second"))
        provisioned(shop, *renewal)
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
