"""What runs beside the agent in ``edge-client start``: as processes, with players' own library as client."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import liblistenbrainz
import pytest
from liblistenbrainz.errors import InvalidAuthTokenException, ListenBrainzAPIException

from broker.embedded import free_port
from broker.exit_codes import ExitCode
from edge.config import SOCKET_NAME, TOKEN_NAME
from tests.brokers import HOST, RunningBroker
from tests.edge.builders import ITEM_KEYS, a_head, a_plan, a_table
from tests.edge.calling import SocketFileConnection, a_device, stored
from tests.edge.running import PlayedAggregator, RunningCommand, a_directory, looking_at, wait_until

pytestmark = pytest.mark.process

CHECKOUT = Path(__file__).parents[2]


class Device:
    """A device whose ``start`` runs, with its API on a port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port(HOST)

    def start(self) -> RunningCommand:
        """Start it and wait until its API is there."""
        arguments = ["start", "--dir", str(self.directory)]
        command = RunningCommand("edge-client", *arguments, PFEDREC_API_PORT=str(self.port))
        command.hear("local API on http://127.0.0.1:")
        wait_until((self.directory / TOKEN_NAME).exists, "the token")
        return command

    def client(self) -> Any:
        """Give liblistenbrainz as it comes, told the device's address."""
        client = liblistenbrainz.ListenBrainz(api_base_url=f"http://{HOST}:{self.port}")
        client.set_auth_token((self.directory / TOKEN_NAME).read_text().strip())
        return client


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """Give a device that runs."""
    device = Device(a_device(tmp_path / "me"))
    with device.start():
        yield device


@pytest.mark.mqtt
def test_recommendations_come_from_the_table_in_use(tmp_path: Path, mosquitto: RunningBroker) -> None:
    """By the API, and by the command, which asks it; from the stored one once nobody has a newer one."""
    directory = a_directory(tmp_path / "me", "shop", mosquitto.url)
    quick = a_plan(check_in_s=0.2)
    call = ["recommend", "--dir", str(directory), "--json", "--include-seen", "--filter"]
    every = tmp_path / "all"
    every.write_text("\n".join(ITEM_KEYS))

    def version() -> int:
        found: dict[str, Any] = json.loads(run_to_end(*call, str(every)))
        assert len(found["items"]) == len(ITEM_KEYS)
        return int(found["version"])

    with PlayedAggregator(mosquitto, "shop") as aggregator:
        aggregator.publish(a_head(3, plan=quick), a_table())
        with RunningCommand("edge-client", "start", "--dir", str(directory), PFEDREC_TABLE_WRITES_MB="1e-9"):
            wait_until(lambda: stored_version(directory) == 3, "the first table")
            newer = a_table(seed=4)
            aggregator.publish(a_head(4, table=newer, plan=quick), newer)
            wait_until(lambda: version() == 4, "the newer one")
            assert stored_version(directory) == 3
    assert version() == 3


def stored_version(directory: Path) -> int | None:
    """Give the version of the table in the database."""
    with looking_at(directory) as store:
        return store.remembered().version


def run_to_end(*arguments: str) -> str:
    """Run a command that must succeed; give what it prints."""
    script = "from edge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def listens(count: int, begin: int = 1_500_000_000) -> list[Any]:
    """Give listens as a player keeps them."""
    return [
        liblistenbrainz.Listen(
            track_name=f"Track {number}",
            artist_name=f"Artist {number % 97}",
            listened_at=begin + number,
            tags=["rock"],
            additional_info={"media_player": "player"},
        )
        for number in range(count)
    ]


def test_listens_that_were_answered_survive_kill_9(tmp_path: Path) -> None:
    """Sent again afterwards, together or singly, they count no second time."""
    device, everything = Device(a_device(tmp_path / "me")), listens(1000)
    for _ in range(2):
        with device.start():
            client = device.client()
            assert client.submit_multiple_listens(everything) == {"status": "ok"}
            for listen in everything[:5]:
                client.submit_single_listen(listen)
        # Leaving the block has killed it.
        assert stored(device.directory) == 1000


def test_liblistenbrainz_is_told_what_is_wrong(device: Device) -> None:
    """As ListenBrainz tells it."""
    client = device.client()
    with pytest.raises(InvalidAuthTokenException):
        client.set_auth_token("wrong")
    client.set_auth_token("wrong", check_validity=False)
    with pytest.raises(ListenBrainzAPIException) as refused:
        client.submit_multiple_listens(listens(1))
    assert (refused.value.status_code, refused.value.message) == (401, "Invalid authorization token.")
    with pytest.raises(ListenBrainzAPIException) as too_many:
        device.client().submit_multiple_listens(listens(1001))
    assert too_many.value.status_code == 400
    assert "not submit more than 1000 listens" in too_many.value.message
    with pytest.raises(ListenBrainzAPIException) as too_early:
        device.client().submit_multiple_listens(listens(2, begin=7))
    assert (too_early.value.status_code, "too low" in too_early.value.message) == (400, True)
    assert stored(device.directory) == 0


def test_port_that_is_taken_is_a_sentence_and_a_code(tmp_path: Path) -> None:
    """Nothing is left behind, and the other one goes on."""
    device, other = Device(a_device(tmp_path / "me")), a_device(tmp_path / "other")
    port = str(device.port)
    with (
        device.start(),
        RunningCommand("edge-client", "start", "--dir", str(other), PFEDREC_API_PORT=port) as second,
    ):
        second.hear(f"cannot listen on 127.0.0.1:{port}: address already in use; set another api_port")
        assert second.wait() == ExitCode.ADDRESS_IN_USE
        assert not (other / SOCKET_NAME).exists()
        assert device.client() is not None


def test_start_ends_although_somebody_is_connected(tmp_path: Path) -> None:
    """And takes the socket file away."""
    device = Device(a_device(tmp_path / "me"))
    with ExitStack() as stack, device.start() as command:
        for _ in range(3):
            connection = SocketFileConnection(device.directory / SOCKET_NAME)
            connection.connect()
            stack.callback(connection.close)
        assert command.end() == ExitCode.OK
    assert not (device.directory / SOCKET_NAME).exists()


BLOCKS = re.findall(r"```sh\n(.*?)```", (CHECKOUT / "docs" / "api.md").read_text(), flags=re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_examples_of_the_documentation_work(device: Device) -> None:
    """Each block of docs/api.md, as it stands but for the port."""
    keys = [*ITEM_KEYS[:-1], "item-9"]  # the one that they name
    with looking_at(device.directory) as store:
        store.replace_model(a_head(item_keys=keys), a_table(), keys)
    answers = []
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-e", "-c", block.replace("curl ", "curl --fail ").replace(":8123", f":{device.port}")],
            cwd=device.directory.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert '"recorded": 2' in answers[0]
    assert answers[0].count('"item": "item-9"') == 2
    assert '"valid": true' in answers[1]
    assert stored(device.directory) == 3


IMPORTS = """
import json, sys
from pathlib import Path
from edge import memory
from edge.api.endpoints import Endpoints
from edge.api.server import ApiServer, socket_file
from edge.config import load_config, open_store
from tests.edge.builders import ITEM_KEYS, a_head, a_table
from tests.edge.calling import SocketFileConnection, a_listen, a_submission

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

memory.share_one_arena()
directory = Path(sys.argv[1])
path, body = directory / "api.sock", directory / "body"
listens = [a_listen(number, additional_info={"notes": chr(0x1F3B5) * 2400}) for number in range(1000)]
body.write_text(json.dumps(a_submission(*listens), ensure_ascii=False))
del listens
with socket_file(path) as listener:
    server = ApiServer([listener], Endpoints(load_config(directory, {}), open_store(directory), "x"))
    server.start()
    sizes = []
    for _ in range(4):
        connection = SocketFileConnection(path)
        with body.open("rb") as file:
            headers = {"Content-Length": str(body.stat().st_size)}
            connection.request("POST", "/1/submit-listens", file, headers)
        assert connection.getresponse().read() == b'{"status": "ok"}'
        connection.close()
        sizes.append(resident())
    server.stop()
print(json.dumps(sizes))
"""
"""Four times ten megabytes, of characters that Python keeps in four bytes each."""


def test_largest_imports_leave_no_memory_taken(tmp_path: Path) -> None:
    """What an import takes for a moment goes back to the system."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(a_device(tmp_path / "me"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    first, *_, last = json.loads(found.stdout)
    assert last - first < 4_000
    assert stored(tmp_path / "me") == 1000
