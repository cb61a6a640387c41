"""Our own broker: it starts or says why, and it never outlives the process that started it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from broker import embedded
from broker.address import BrokerAddress
from broker.embedded import (
    BrokerKind,
    SecureListener,
    choose_broker,
    free_port,
    mosquitto_path,
    own_broker,
)
from broker.errors import BrokerStartError, MissingExtraError, NotWritableError
from tests.brokers import HOST, KINDS, PATIENCE_S, Peer, children_of, command_of, require, wait_for_end

every_kind = pytest.mark.parametrize("kind", KINDS)


def is_alive(address: BrokerAddress) -> bool:
    """Tell whether a client can connect and publish."""
    with Peer(address, "probe", "probe") as peer:
        peer.publish("probe", b"x")
        return bool(peer.receive("probe").payload == b"x")


# --- one that runs -----------------------------------------------------------------------------------


@pytest.mark.mqtt
@every_kind
def test_own_broker_serves_and_frees_its_port(kind: BrokerKind, tmp_path: Path) -> None:
    """It answers inside the block, and the next one can have the port at once."""
    require(kind)
    port = free_port()
    for _ in range(2):
        with own_broker(kind, HOST, port, tmp_path / "broker") as running:
            address = running.address
            assert address == BrokerAddress(host=HOST, port=port)
            assert is_alive(address)

    assert (tmp_path / "broker" / f"{kind}.log").exists()


@pytest.mark.mqtt
@every_kind
def test_broker_for_all_interfaces_is_reached_on_this_machine(kind: BrokerKind, tmp_path: Path) -> None:
    """0.0.0.0 is no address to connect to."""
    require(kind)

    with own_broker(kind, "0.0.0.0", free_port(), tmp_path) as running:  # noqa: S104 - what is tested
        address = running.address
        assert address.host == "127.0.0.1"
        assert is_alive(address)


@pytest.mark.mqtt
def test_mosquitto_works_in_a_folder_with_a_space(tmp_path: Path) -> None:
    """Its configuration file has no quotes."""
    require("mosquitto")

    with own_broker("mosquitto", HOST, free_port(), tmp_path / "my broker") as running:
        address = running.address
        assert is_alive(address)


RUNNER = """
import encodings.idna, os, sys
from pathlib import Path
from broker.embedded import own_broker
if sys.argv[4]:
    os.setuid(int(sys.argv[4]))  # after the imports, which it may not be able to read
with own_broker(sys.argv[1], "127.0.0.1", int(sys.argv[2]), Path(sys.argv[3])):
    print("listens", flush=True)
    sys.stdin.read()
"""


@contextmanager
def a_process_with_a_broker(
    kind: BrokerKind, port: int, directory: Path, *, user: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that runs a broker."""
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, kind, str(port), str(directory), user],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            yield process
        finally:
            process.kill()


@pytest.mark.mqtt
@pytest.mark.process
@every_kind
def test_broker_ends_with_a_parent_that_is_killed(kind: BrokerKind, tmp_path: Path) -> None:
    """After a kill -9 no broker is left over, and a restart finds the port free."""
    require(kind)
    port = free_port()
    with a_process_with_a_broker(kind, port, tmp_path) as parent:
        (broker,) = children_of(parent.pid)
        handle = os.pidfd_open(broker)
        parent.send_signal(signal.SIGKILL)
        wait_for_end(handle)
        os.close(handle)

    with own_broker(kind, HOST, port, tmp_path) as running:
        address = running.address
        assert is_alive(address)


@pytest.mark.mqtt
@pytest.mark.process
@every_kind
def test_broker_does_not_see_the_terminals_ctrl_c(kind: BrokerKind, tmp_path: Path) -> None:
    """Ctrl-C goes to the foreground process group: the broker is in another, and ends after its parent."""
    require(kind)
    with a_process_with_a_broker(kind, free_port(), tmp_path) as parent:
        (broker,) = children_of(parent.pid)
        assert os.getpgid(broker) != os.getpgid(parent.pid)
        assert parent.stdin is not None
        parent.stdin.close()

        assert parent.wait(PATIENCE_S) == 0


@pytest.mark.mqtt
@pytest.mark.process
@pytest.mark.root
def test_mosquitto_works_for_a_user_without_a_name() -> None:
    """Containers run as numbers that no passwd file knows."""
    require("mosquitto")
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    nameless = 54_321
    port = free_port()
    # Not pytest's folder, which no other user may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, nameless, nameless)
        with a_process_with_a_broker("mosquitto", port, Path(folder), user=str(nameless)):
            assert is_alive(BrokerAddress(host=HOST, port=port))


# --- one that does not -------------------------------------------------------------------------------


@every_kind
def test_port_that_is_taken_is_named_with_two_ways_out(kind: BrokerKind, tmp_path: Path) -> None:
    """Another port, or the broker that is there."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(BrokerStartError) as caught,
            own_broker(kind, HOST, port, tmp_path / "broker"),
        ):
            pytest.fail("the port was taken")

    assert str(caught.value) == (
        f"a broker cannot listen on 127.0.0.1:{port}: address already in use; "
        f"set another port, or join the broker that runs there with --broker mqtt://127.0.0.1:{port}"
    )
    assert not (tmp_path / "broker").exists()


def test_secure_port_that_is_taken_is_named_as_it_is_joined(tmp_path: Path) -> None:
    """With TLS."""
    files = SecureListener(ca=tmp_path, certificate=tmp_path, key=tmp_path, revoked=tmp_path, access="")
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(BrokerStartError, match=f"--broker mqtts://127.0.0.1:{port}"),
            own_broker("mosquitto", HOST, port, tmp_path, files),
        ):
            pytest.fail("the port was taken")


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_address_of_another_machine_cannot_be_listened_on(host: str, tmp_path: Path) -> None:
    """What `listen` says must be an address of this machine."""
    with (
        pytest.raises(BrokerStartError, match=f"cannot listen on {host}"),
        own_broker("amqtt", host, 1883, tmp_path),
    ):
        pytest.fail("nobody can listen there")


def test_directory_below_a_file_cannot_be_used(tmp_path: Path) -> None:
    """A broker needs a place for its log."""
    (tmp_path / "file").write_bytes(b"")

    with (
        pytest.raises(NotWritableError, match="not a directory"),
        own_broker("amqtt", HOST, free_port(), tmp_path / "file" / "broker"),
    ):
        pytest.fail("there is no such directory")


@pytest.fixture
def fake_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a path whose program is found before the real mosquitto."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "mosquitto"


def make_script(path: Path, *lines: str) -> None:
    """Write a shell script."""
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)


def test_broker_that_ends_at_once_names_its_log(fake_mosquitto: Path, tmp_path: Path) -> None:
    """What it said before it ended is in its log."""
    make_script(fake_mosquitto, "echo cannot go on >&2", "exit 3")
    log = tmp_path / "broker" / "mosquitto.log"

    with (
        pytest.raises(BrokerStartError, match=f"ended with status 3; its log is {log}"),
        own_broker("mosquitto", HOST, free_port(), tmp_path / "broker"),
    ):
        pytest.fail("it had ended")

    assert log.read_text() == "cannot go on\n"


@pytest.mark.parametrize("reaction", ["", "trap '' TERM"], ids=["goes", "stays"])
def test_broker_that_never_answers_is_ended(
    fake_mosquitto: Path, tmp_path: Path, reaction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting is bounded, also for the end of one that ignores SIGTERM."""
    make_script(fake_mosquitto, reaction, "while :; do sleep 0.1; done")
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.3)
    monkeypatch.setattr(embedded, "_STOP_TIMEOUT_S", 0.3)

    with (
        pytest.raises(BrokerStartError, match=r"did not listen at .* within"),
        own_broker("mosquitto", HOST, free_port(), tmp_path / "broker"),
    ):
        pytest.fail("it did not answer")

    assert not [pid for pid in children_of(os.getpid()) if str(fake_mosquitto) in command_of(pid)]


# --- which one ---------------------------------------------------------------------------------------

Wanted = Literal["auto", "mosquitto", "embedded"]


def install(monkeypatch: pytest.MonkeyPatch, *, mosquitto: bool, amqtt: bool) -> None:
    """Make it look as if the brokers were installed here or not."""
    found = "/usr/sbin/mosquitto" if mosquitto else None
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: found)
    if not amqtt:
        monkeypatch.setitem(sys.modules, "amqtt", None)


@pytest.mark.parametrize(
    ("wanted", "mosquitto", "chosen"),
    [
        ("auto", True, "mosquitto"),
        ("auto", False, "amqtt"),
        ("mosquitto", True, "mosquitto"),
        ("embedded", True, "amqtt"),
        ("embedded", False, "amqtt"),
    ],
)
def test_broker_is_chosen_by_wish_and_by_what_is_installed(
    wanted: Wanted, chosen: BrokerKind, monkeypatch: pytest.MonkeyPatch, *, mosquitto: bool
) -> None:
    """Mosquitto where it is there, unless the embedded one is asked for."""
    install(monkeypatch, mosquitto=mosquitto, amqtt=True)

    assert choose_broker(wanted) == chosen


def test_mosquitto_that_is_wanted_and_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets another broker than the one that was asked for."""
    install(monkeypatch, mosquitto=False, amqtt=True)

    with pytest.raises(BrokerStartError, match="apt-get install mosquitto"):
        choose_broker("mosquitto")


def test_no_broker_at_all_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither is installed, pip brings one."""
    install(monkeypatch, mosquitto=False, amqtt=False)

    with pytest.raises(MissingExtraError, match=r"pfedrec-edge\[aggregator\]"):
        choose_broker("auto")


def test_mosquitto_is_found_where_an_ordinary_path_does_not_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian installs it for root."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("mosquitto is not installed in /usr/sbin; to run this test: apt-get install mosquitto")

    assert mosquitto_path() == "/usr/sbin/mosquitto"


def test_free_ports_can_be_bound() -> None:
    """A port that was found can be listened on."""
    with socket.create_server((HOST, free_port())):
        pass
