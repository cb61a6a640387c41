"""A fleet as an operator secures it, with the commands alone: it works, and nothing lets a secret out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import free_port
from tests.brokers import HOST, children_of, command_of, require
from tests.edge.builders import ITEM_KEYS
from tests.edge.running import RunningCommand, an_aggregator, looking_at, run_command, told, wait_until
from tests.integration.keyforms import secrets_of

pytestmark = [pytest.mark.process, pytest.mark.mqtt]


def test_secure_fleet_learns_and_lets_no_secret_out(tmp_path: Path) -> None:
    """From init to a counted update; then files, logs and the list of processes are searched."""
    require("mosquitto")
    port = str(free_port())
    options = ("--secure", "--host", "localhost", "--device", "pi-1", "--port", port, "--buffer", "1")
    shop = an_aggregator(tmp_path / "shop", "shop", ITEM_KEYS, *options, "--check-in", "200ms")
    me = tmp_path / "me"
    run_command("edge-client", "init", "--dir", str(me), "--bundle", str(shop / "devices" / "pi-1"))
    run_command("edge-client", "record", "--dir", str(me), ITEM_KEYS[0], ITEM_KEYS[1])
    logs = tmp_path / "aggregator.log", tmp_path / "device.log"
    with (
        logs[0].open("wb") as first,
        logs[1].open("wb") as second,
        RunningCommand(
            "edge-aggregator", "start", "--dir", str(shop), "--verbose", stderr=first
        ) as aggregator,
        RunningCommand("edge-client", "start", "--dir", str(me), "--verbose", stderr=second) as device,
    ):
        wait_until(lambda: _accepted(me) >= 1, "an accepted update")
        assert told(me, "head_complaint") == ""
        assert _doctor(me)["certificates"]["level"] == "ok"
        (me / "key.pem").chmod(0o644)
        assert _doctor(me)["certificates"]["remedy"] == f"chmod 600 {me / 'key.pem'}"
        (me / "key.pem").chmod(0o600)
        family = [os.getpid(), aggregator.pid, device.pid, *children_of(aggregator.pid)]
        assert len(family) == 4  # mosquitto is there, too
        arguments = " ".join(" ".join(command_of(pid)) for pid in family)
        environments = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in family[1:])

        run_command("edge-aggregator", "device", "revoke", "--dir", str(shop), "pi-1")
        wait_until(lambda: "was read again" in logs[0].read_text(), "the broker's reload")
        assert device.end() == 0
        with RunningCommand("edge-client", "start", "--dir", str(me)) as revoked:
            revoked.hear("perhaps it does not accept our certificate")
            assert _doctor(me)["broker"]["level"] == "problem"
            assert revoked.end() == 0
        assert aggregator.end() == 0

    keys = [path for path in tmp_path.rglob("*") if path.suffix == ".key" or path.name == "key.pem"]
    assert len(keys) == 7  # CA, broker, aggregator, two of heads, the bundle's and the device's
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    secrets = secrets_of(keys)
    assert len(secrets) >= 3 * 6
    texts = arguments + environments.decode("latin-1")
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path not in keys]
    assert shop / "broker" / "mosquitto.log" in others
    for name, text in [("processes", texts)] + [(str(p), p.read_bytes().decode("latin-1")) for p in others]:
        assert "PRIVATE" not in text, name
        assert not [secret for secret in secrets if secret in text], name


def _accepted(directory: Path) -> int:
    with looking_at(directory) as store:
        return store.receipts().get("accepted", 0)


def _doctor(directory: Path) -> dict[str, dict[str, str]]:
    ended = subprocess.run(
        [sys.executable, "-m", "edge.cli", "doctor", "--dir", str(directory), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return {each["check"]: each for each in json.loads(ended.stdout)["findings"]}


def test_secure_needs_what_it_says(tmp_path: Path) -> None:
    """--host without --secure, and a second init, change nothing."""
    items = tmp_path / "items.txt"
    items.write_text("bread\n")
    arguments = ["--dir", str(tmp_path / "shop"), "--fleet", "shop", "--items", str(items)]
    with RunningCommand("edge-aggregator", "init", *arguments, "--host", HOST) as command:
        assert command.wait() == 2
        assert "--secure" in command.lines[0]
    assert not (tmp_path / "shop").exists()
    run_command("edge-aggregator", "init", *arguments, "--secure")
    before = (tmp_path / "shop" / "authority" / "ca.pem").read_bytes()
    with RunningCommand("edge-aggregator", "init", *arguments, "--secure") as command:
        assert command.wait() == 21
    assert (tmp_path / "shop" / "authority" / "ca.pem").read_bytes() == before
