"""A release that comes over the air: whom it is for, chunk by chunk, over restarts, and what is believed."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.chunks import CHUNK_BYTES, cut
from broker.protocol.messages import Chunk, Offer
from broker.protocol.topics import FleetTopics
from broker.protocol.versions import sha256
from edge.config import load_config
from edge.releasefetch import ReleaseFetch
from edge.slots import Slots
from tests.bundles import FLEET, OTHER_SECRET, a_bundle
from tests.edge.releasing import a_device
from tests.edge.running import wait_until

TOPICS = FleetTopics(FLEET)
FILES = {"app/big": bytes(5 * CHUNK_BYTES)}


class Air:
    """A device and the broker that holds a bundle's chunks, with a clock of their own."""

    def __init__(self, directory: Path, bundle: bytes, **offer: Any) -> None:
        self.directory = directory
        self.bundle = bundle
        fields: dict[str, Any] = {"release": 1, "size": len(bundle), "sha256": sha256(bundle), "percent": 100}
        self.offer = Offer(**fields | offer)
        self.chunks = list(cut(bundle, sha256(bundle)))
        self.asked: list[int] = []
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a process anew that hears of the offer."""
        config = load_config(self.directory, {})
        self.fetch = ReleaseFetch(self.directory, config, TOPICS)
        self.fetch.offered(self.offer)

    def look(self, *, may_transfer: bool = True) -> list[int]:
        """Go a turn of the agent's loop; give the chunks that are asked for."""
        self.now += 2.0
        _, wanted = self.fetch.look(self.now, may_transfer=may_transfer)
        found = [int(each.rsplit("/", 1)[1]) for each in wanted]
        self.asked += found
        return found

    def deliver(self, index: int, chunk: Chunk | None = None) -> None:
        """Let one chunk arrive."""
        address = TOPICS.parse(TOPICS.release(self.offer.slot, index))
        self.fetch.add(address, chunk or self.chunks[index], self.now)

    def run(self, order: Callable[[list[int]], list[int]] = list) -> None:
        """Deliver what is asked for until nothing is under way any more."""

        def is_over() -> bool:
            for index in order(self.look()):
                self.deliver(index)
            state = Slots(self.directory).state()
            ended = state.holding == "trial" or bool(state.failed)
            return ended and not list(Slots(self.directory).path.glob("incoming-*"))

        wait_until(is_over, "the end of the fetch")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Give the directory of a device that takes releases."""
    return a_device(tmp_path / "me", update_groups="lab, beta")


@pytest.mark.parametrize("order", [list, lambda asked: asked[::-1], lambda asked: asked * 2])
def test_bundle_is_fetched_in_few_chunks_at_a_time(
    device: Path, order: Callable[[list[int]], list[int]]
) -> None:
    """In whatever order they come, and how often; then it is there to be tried."""
    air = Air(device, a_bundle(FILES))
    assert len(air.chunks) == 6
    air.run(order)
    assert air.asked == [0, 1, 2, 3, 4, 5]
    assert Slots(device).state().spare_release == 1


def test_bundle_is_not_fetched_again_once_it_is_installed(device: Path) -> None:
    """Not even within the second for which an offer counts as wanted without another look."""
    air = Air(device, a_bundle(FILES))
    while len(air.asked) < len(air.chunks):
        for index in air.look():
            air.deliver(index)

    def is_installed() -> bool:
        air.asked += [int(each.rsplit("/", 1)[1]) for each in air.fetch.look(air.now, may_transfer=True)[1]]
        return Slots(device).state().holding == "trial" and not list((device / "slots").glob("incoming-*"))

    wait_until(is_installed, "the installation")
    for _ in range(100):  # the errand's thread may end a moment after its work
        is_installed()
        time.sleep(0.001)
    assert air.asked == [0, 1, 2, 3, 4, 5]


def test_restart_goes_on_where_it_was(device: Path) -> None:
    """Whole chunks are kept; one that was written in part is fetched again."""
    air = Air(device, a_bundle(FILES))
    for index in air.look():
        air.deliver(index)
    (partly,) = (device / "slots").glob("incoming-*")
    with partly.open("ab") as file:
        file.write(b"a part of the next")
    air.asked.clear()
    air.restart()
    air.run()
    assert air.asked == [4, 5]


def test_connection_that_was_lost_is_asked_again(device: Path) -> None:
    """And what does not come is asked for again after a while."""
    air = Air(device, a_bundle(FILES))
    assert air.look() == [0, 1, 2, 3]
    air.deliver(0)
    assert air.look() == []
    air.fetch.lost()
    assert air.look() == [1, 2, 3, 4]
    assert air.look() == []
    air.now += 100.0
    assert air.look() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": bytes(8)},
        {"size": 7},
        {"count": 7},
        {"index": 1},
        {"data": b"short"},
    ],
    ids=str,
)
def test_chunk_of_something_else_is_left_alone(device: Path, changes: dict[str, Any]) -> None:
    """It changes nothing."""
    air = Air(device, a_bundle(FILES))
    air.look()
    air.deliver(0, replace(air.chunks[0], **changes))
    assert not list((device / "slots").glob("incoming-*"))
    air.run()


@pytest.mark.parametrize(
    ("offer", "settings", "wanted"),
    [
        ({"percent": 0}, {}, False),
        ({"percent": 0, "groups": ("beta",)}, {}, True),
        ({"percent": 0, "groups": ("attic",)}, {}, False),
        ({"percent": 100}, {"update_max_mb": 0.3}, False),
        ({"percent": 100}, {}, True),
    ],
)
def test_only_those_it_is_for_fetch_it(
    tmp_path: Path,
    offer: dict[str, Any],
    settings: dict[str, Any],
    wanted: bool,  # noqa: FBT001
) -> None:
    """And those whose settings allow its size."""
    device = a_device(tmp_path / "me", update_groups="lab, beta", **settings)
    assert bool(Air(device, a_bundle(FILES), **offer).look()) is wanted


def test_device_without_keys_fetches_nothing(tmp_path: Path) -> None:
    """As it would install nothing."""
    device = a_device(tmp_path / "me")
    settings = (device / "config.toml").read_text().replace('"release_key.pub"', '""')
    (device / "config.toml").write_text(settings)
    assert Air(device, a_bundle(FILES)).look() == []


def test_metered_network_is_not_used(device: Path) -> None:
    """Until it may be."""
    air = Air(device, a_bundle(FILES))
    assert air.look(may_transfer=False) == []
    assert air.look() == [0, 1, 2, 3]
    assert air.look(may_transfer=False) == []
    assert air.look() == [0, 1, 2, 3]


def test_offer_that_is_withdrawn_is_not_fetched_on(device: Path) -> None:
    """Offered again, it goes on."""
    air = Air(device, a_bundle(FILES))
    for index in air.look():
        air.deliver(index)
    air.fetch.offered(None)
    assert air.look() == []
    air.fetch.offered(air.offer)
    air.asked.clear()
    air.run()
    assert air.asked == [4, 5]


@pytest.mark.parametrize(
    "changes", [{"secret": OTHER_SECRET}, {"fleet": "attic"}, {"runtime": "99"}], ids=str
)
def test_bundle_that_is_refused_is_not_fetched_again(device: Path, changes: dict[str, Any]) -> None:
    """Neither by this process nor the next; unless its owner asks for it."""
    air = Air(device, a_bundle(FILES, **changes))
    air.run()
    state = Slots(device).state()
    assert (state.failed, state.holding) == (1, "empty")
    air.asked.clear()
    air.restart()
    assert [air.look(), air.look()] == [[], []]
    Slots(device).change(lambda state: state.wished())
    assert air.look() == [0, 1, 2, 3]


def test_chunks_that_are_not_what_was_announced_are_not_believed(device: Path) -> None:
    """The SHA-256 of the whole is; after a while it is fetched again."""
    air = Air(device, a_bundle(FILES))
    forged = replace(air.chunks[5], data=b"x" * len(air.chunks[5].data))

    def given_up() -> bool:
        for index in air.look():
            air.deliver(index, forged if index == 5 else None)
        return air.asked == [0, 1, 2, 3, 4, 5] and not list((device / "slots").glob("incoming-*"))

    wait_until(given_up, "the end of the fetch")
    wait_until(lambda: air.fetch._installing is None or bool(air.look()), "the answer")
    assert Slots(device).state().holding == "empty"
    assert air.look() == []
    air.now += 1000.0
    air.run()
    assert Slots(device).state().holding == "trial"


def test_release_that_is_here_is_not_fetched(device: Path) -> None:
    """Nor an older one, nor another while one is tried."""
    air = Air(device, a_bundle(FILES, release=2), release=2)
    air.run()
    air.restart()
    assert air.look() == []
    Slots(device).change(lambda state: state.booted().confirmed("00" * 32))
    air.restart()
    assert air.look() == []
    older = Air(device, a_bundle(FILES, release=1), release=1)
    assert older.look() == []
