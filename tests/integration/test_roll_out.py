"""A release rolled out over the air in a secured fleet: to a group, to all, and taken back by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import free_port
from broker.protocol.signatures import keys_to_text
from edge.slots import Slots
from edge.slotstate import SlotState
from tests.brokers import require
from tests.bundles import KEY, a_bundle
from tests.edge.builders import ITEM_KEYS
from tests.edge.releasing import PROGRAM
from tests.edge.running import RunningCommand, an_aggregator, run_command, wait_until

pytestmark = [pytest.mark.process, pytest.mark.mqtt]

BIG = bytes(range(256)) * 1500  # four chunks


def release(shop: Path, *arguments: str) -> None:
    """Run ``edge-aggregator release``."""
    command, *rest = arguments
    run_command("edge-aggregator", "release", command, "--dir", str(shop), *rest)


def a_member(path: Path, shop: Path, *, group: str = "") -> Path:
    """Make a device of the fleet from its bundle, with a release key in it."""
    bundle = shop / "devices" / path.name
    (bundle / "release_key.pub").write_text(keys_to_text((KEY,), "releases"))
    run_command("edge-client", "init", "--dir", str(path), "--bundle", str(bundle))
    settings = (path / "config.toml").read_text()
    for before, after in (
        ("update_commands = false", "update_commands = true"),
        ("update_trial_s = 60.0", "update_trial_s = 0.1"),
        ('update_groups = ""', f'update_groups = "{group}"'),
        ("api_socket = true", "api_socket = false"),
    ):
        assert before in settings
        settings = settings.replace(before, after)
    (path / "config.toml").write_text(settings)
    return path


def state_of(directory: Path) -> SlotState:
    """Give what is where on a device."""
    return Slots(directory).state()


def in_use(directory: Path) -> bytes:
    """Give what an application finds at the stable path."""
    return (directory / "current" / "app" / "n").read_bytes()


def wait_for(directory: Path, number: int) -> None:
    """Wait until a device keeps a release."""
    wait_until(lambda: state_of(directory).active_release == number, f"release {number} on {directory.name}")


def test_release_is_rolled_out_step_by_step(tmp_path: Path) -> None:
    """To a group first; to all when it is widened; nobody takes one that fails, nor asks for it again."""
    require("mosquitto")
    options = ("--secure", "--host", "localhost", "--device", "pi-1", "--device", "pi-2")
    shop = an_aggregator(
        tmp_path / "shop", "shop", ITEM_KEYS, *options, "--port", str(free_port()), "--check-in", "200ms"
    )
    first = a_member(tmp_path / "pi-1", shop, group="lab, beta")
    second = a_member(tmp_path / "pi-2", shop)
    (tmp_path / "keys").write_text(keys_to_text((KEY,), "releases"))
    for number in (1, 2, 3):
        files = {"app/big": BIG, "app/n": b"%d" % number, "app/check.sh": PROGRAM % (number == 2)}
        (tmp_path / str(number)).write_bytes(a_bundle(files, release=number, health="app/check.sh"))
    with (
        RunningCommand("edge-aggregator", "start", "--dir", str(shop)) as aggregator,
        RunningCommand("edge-client", "start", "--dir", str(first)) as one,
        RunningCommand("edge-client", "start", "--dir", str(second)) as two,
    ):
        release(shop, "publish", str(tmp_path / "1"), "--keys", str(tmp_path / "keys"), "--group", "beta")
        wait_for(first, 1)
        assert (first / "current" / "app" / "big").read_bytes() == BIG
        assert state_of(second) == SlotState()
        release(shop, "widen", "--percent", "100")
        wait_for(second, 1)

        release(shop, "publish", str(tmp_path / "2"), "--percent", "100")
        for directory in (first, second):
            wait_until(lambda directory=directory: state_of(directory).failed == 2, "the release's end")  # type: ignore[misc]
            assert state_of(directory).release == 1
            # The link follows what the state says.
            wait_until(lambda directory=directory: in_use(directory) == b"1", "the release of before")  # type: ignore[misc]

        # Another offer is heard of, and the one that failed is not fetched again in between.
        release(shop, "publish", str(tmp_path / "3"))
        run_command("edge-client", "update", "--dir", str(second))
        wait_for(second, 3)
        assert (state_of(first).release, state_of(first).failed) == (1, 2)
        release(shop, "widen", "--percent", "100")
        wait_for(first, 3)
        for command in (one, two, aggregator):
            assert command.end() == 0
    assert list((first / "slots").glob("incoming-*")) == []
    facts = json.loads(
        subprocess.run(
            [sys.executable, "-m", "edge.cli", "status", "--dir", str(first), "--json"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
    )
    assert (facts["release"], facts["release_on_trial"]) == (3, False)
    assert facts["release_failed"].startswith("release 2: app/check.sh says")
