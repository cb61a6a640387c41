"""A gateway on pseudo-terminals, with a real broker; the board and the aggregator are played by the test."""

import os
import select
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from click.testing import CliRunner

from broker.errors import InputError
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head, Update, decode, encode
from broker.protocol.modelfile import Model, model_bytes
from broker.protocol.topics import FleetTopics
from edge.cli import cli
from edge.erasure import Selection
from edge.gateway import carrier
from edge.gateway.frames import FrameReader, encode_frame
from edge.gateway.messages import (
    Answered,
    Contribute,
    FromBoard,
    FromGateway,
    Idle,
    Offer,
    Part,
    Passed,
    Piece,
    Refused,
    Renumber,
    Send,
    State,
    Want,
)
from edge.gateway.messages import decode as decode_serial
from edge.gateway.messages import encode as encode_serial
from edge.gateway.port import Port
from edge.gateway.service import Gateway
from tests.brokers import HOST, PATIENCE_S, Peer, RunningBroker
from tests.edge.builders import ITEM_KEYS, a_head, a_plan, a_table
from tests.edge.gateway.builders import a_state
from tests.edge.running import (
    DEVICE,
    InThread,
    PlayedAggregator,
    a_directory,
    looking_at,
    status_of,
    wait_until,
)
from trainer.errors import ParameterError
from trainer.integers import quantise_table

pytestmark = pytest.mark.mqtt

FLEET = "shop"
QUICK = a_plan(check_in_s=0.2)
_M = TypeVar("_M", bound=FromGateway)


class PlayedBoard:
    """A board that does what the test says, on a pseudo-terminal."""

    def __init__(self) -> None:
        self._handle, self._other = os.openpty()
        self.path = os.ttyname(self._other)
        self._reader = FrameReader(2000)
        self._heard: list[FromGateway] = []
        self.state = a_state(device=DEVICE)

    def close(self) -> None:
        """Pull the plug."""
        os.close(self._handle)
        os.close(self._other)

    def ask(self, message: FromBoard, *kinds: type[_M]) -> _M:
        """Say something until there is an answer of one of these kinds."""
        until = time.monotonic() + PATIENCE_S
        heard: list[FromGateway] = []
        while time.monotonic() < until:
            os.write(self._handle, encode_frame(encode_serial(message)))
            answer = self._answer()
            if isinstance(answer, kinds):
                return answer
            heard += [] if answer is None else [answer]
        raise AssertionError(f"no {kinds}, only {heard[-3:]}")

    def _answer(self) -> FromGateway | None:
        while select.select([self._handle], [], [], 0.2)[0]:
            for content in self._reader.feed(os.read(self._handle, 4096)):
                message = decode_serial(content)
                if not isinstance(message, FromBoard):  # a terminal may echo before it is set up
                    return message
        return None

    def tell(self, *kinds: type[_M]) -> _M:
        """Tell the state until there is such an answer."""
        return self.ask(self.state, *kinds)

    def fetch(self) -> tuple[Offer, bytes]:
        """Take what the gateway offers, and hold it."""
        offer = self.tell(Offer)
        size, content = offer.model + offer.mask + offer.head, b""
        while len(content) < size:
            content += self.ask(Want(crc=offer.crc, offset=len(content), size=50), Piece).data
        assert zlib.crc32(content) == offer.crc
        held = {"instance": offer.instance, "version": offer.version, "crc": offer.crc, "size": size}
        self.state = replace(self.state, **held, known=2, revision=2)  # type: ignore[arg-type]
        return offer, content

    def make(self, order: Contribute) -> bytes:
        """Make the update that was asked for."""
        self.state = replace(self.state, seq=order.seq, pending=order.seq)
        return an_update(self.state)

    def hand_over(self, content: bytes) -> FromGateway:
        """Give the update in small parts, as the gateway asks for them; give what is said at the end."""
        answer: FromGateway = self.tell(Send)
        while isinstance(answer, Send):
            part = Part(
                incarnation=self.state.incarnation,
                seq=self.state.seq,
                size=len(content),
                crc=zlib.crc32(content),
                offset=answer.offset,
                data=content[answer.offset : answer.offset + 40],
            )
            answer = self.ask(part, Send, Idle, Answered)
        return answer


def an_update(state: State) -> bytes:
    """Give an update that moves one row."""
    body = {"rows": np.array([1], dtype="<u4"), "values": np.ones(2, dtype="<f4")}
    made = Update(
        instance=state.instance,
        incarnation=state.incarnation,
        seq=state.seq,
        base_version=state.version,
        encoding="float32",
        body=body,
    )
    return encode(made)


class RunningGateway(InThread):
    """A gateway in a thread."""

    def __init__(self, directory: Path, *ports: str) -> None:
        super().__init__("gateway")
        self._gateway = Gateway([Port(port) for port in ports], directory, self.sentences.append, {})

    @property
    def state(self) -> str:
        """What it says of itself."""
        return self._gateway.state

    def hear(self, *words: str) -> None:
        """Wait for a sentence with these words."""
        wait_until(
            lambda: any(all(word in each for word in words) for each in self.sentences),
            f"a sentence with {words} in {self.sentences}",
        )

    def _work(self) -> None:
        self._gateway.run(self._stop)


@pytest.fixture
def boards(tmp_path: Path, mosquitto: RunningBroker) -> Path:
    """Give a gateway's directory that knows one board."""
    a_directory(tmp_path / "boards" / DEVICE, FLEET, mosquitto.url)
    return tmp_path / "boards"


@pytest.fixture
def aggregator(mosquitto: RunningBroker) -> Iterator[PlayedAggregator]:
    """Give an aggregator that has published a version."""
    with PlayedAggregator(mosquitto, FLEET) as played:
        played.publish(a_head(plan=QUICK), a_table())
        yield played


@pytest.fixture
def watcher(mosquitto: RunningBroker) -> Iterator[Peer]:
    """Give who looks at the board's status."""
    with Peer(mosquitto.address, "watcher", FleetTopics(FLEET).status(DEVICE)) as peer:
        yield peer


@pytest.fixture
def board() -> Iterator[PlayedBoard]:
    """Give a board."""
    played = PlayedBoard()
    yield played
    played.close()


def test_board_takes_part_as_a_device_of_its_own(
    boards: Path, aggregator: PlayedAggregator, watcher: Peer, board: PlayedBoard
) -> None:
    """It gets a version, gives an update, is told the verdict, and gets the next version."""
    status = aggregator.topics.status(DEVICE)
    with RunningGateway(boards, board.path) as gateway:
        offer, content = board.fetch()
        table = quantise_table(a_table())
        mean = table.dequantised().mean(axis=0, dtype=np.float32)
        head = decode(content[offer.model + offer.mask :], Head)
        assert encode(head) == encode(a_head(plan=QUICK))
        assert content[: offer.model] == model_bytes(Model(table=table, w=head.w, b=head.b, mean=mean))
        assert status_of(watcher.receive(status)).online

        order = board.tell(Contribute)
        assert (order.instance, order.version, order.seq) == (offer.instance, 0, 1)
        update = board.make(order)
        assert isinstance(board.hand_over(update), Idle)
        assert aggregator.next_payload() == update
        assert isinstance(board.tell(Idle), Idle)  # it keeps the update, and waits
        aggregator.answer(decode(update, Update))
        said = board.tell(Answered)
        assert (said.incarnation, said.seq, said.verdict) == (4711, 1, 0)
        board.state = replace(board.state, pending=0)

        aggregator.publish(a_head(1, plan=QUICK, table=a_table(seed=1)), a_table(seed=1))
        assert board.fetch()[0].version == 1
        assert board.tell(Contribute).seq == 2
        assert DEVICE in gateway.state
    wait_until(lambda: not status_of(watcher.receive(status)).online, "it is offline")
    with looking_at(boards / DEVICE) as store:
        assert store.interactions() == []
        assert store.personal() is None
        assert (store.remembered().incarnation, store.receipts()) == (4711, {"accepted": 1})


def test_retired_rows_reach_the_board(boards: Path, aggregator: PlayedAggregator, board: PlayedBoard) -> None:
    """As the bits of a mask; floats for a board that scores from them."""
    keys = Catalogue(ITEM_KEYS, retired=frozenset({1, 5}))
    aggregator.publish(a_head(1, plan=QUICK, item_keys=keys), a_table(), keys)
    board.state = replace(board.state, table_format=0)
    with RunningGateway(boards, board.path):
        until = time.monotonic() + PATIENCE_S
        offer, content = board.fetch()
        while offer.version < 1 and time.monotonic() < until:
            offer, content = board.fetch()
    assert content[offer.model : offer.model + offer.mask] == bytes([0b100010])
    assert a_table().tobytes() == content[offer.model - a_table().nbytes : offer.model]


def test_update_made_before_the_gateway_came_is_sent_once(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """Its store knows nothing; the next gateway's knows that it was answered, and how."""
    board.state = replace(board.state, instance=77, seq=3, pending=3)
    update = an_update(board.state)
    with RunningGateway(boards, board.path):
        board.hand_over(update)
        assert aggregator.next_payload() == update
        aggregator.answer(decode(update, Update), "stale")
        assert board.tell(Answered).verdict == 2
    with RunningGateway(boards, board.path):
        assert board.tell(Answered).verdict == 2
        board.state = replace(board.state, pending=0)
        board.fetch()
        assert board.tell(Contribute).seq == 4
    with looking_at(boards / DEVICE) as store:
        assert store.receipts() == {"stale": 1}


def test_outbox_is_sent_without_the_board_saying_it_again(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """A gateway that ended before the receipt, which is for a board that was erased meanwhile."""
    with RunningGateway(boards, board.path):
        board.fetch()
        first = board.make(board.tell(Contribute))
        board.hand_over(first)
        assert aggregator.next_payload() == first
    board.state = a_state(device=DEVICE, incarnation=815)
    with RunningGateway(boards, board.path):
        assert isinstance(board.tell(Idle), Idle)
        assert aggregator.next_payload() == first
        aggregator.answer(decode(first, Update))
        board.fetch()
        order = board.tell(Contribute)
        assert order.seq == 1
        second = board.make(order)
        board.hand_over(second)
        assert aggregator.next_payload() == second
        assert decode(second, Update).incarnation == 815


def test_number_that_was_used_elsewhere_is_left(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """The first answer is `duplicate`: the board draws another incarnation."""
    with RunningGateway(boards, board.path) as gateway:
        board.fetch()
        update = board.make(board.tell(Contribute))
        board.hand_over(update)
        aggregator.next_payload()
        aggregator.answer(decode(update, Update), "duplicate")
        assert board.tell(Answered).verdict == 1
        board.state = replace(board.state, pending=0)
        assert board.tell(Renumber).incarnation == 4711
        gateway.hear("count anew")
        board.state = replace(board.state, incarnation=815, seq=0)
        assert board.tell(Contribute).seq == 1


def test_update_that_nobody_can_read_is_given_up(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """Bytes that are none, one with another name; nothing is published of them."""
    with RunningGateway(boards, board.path):
        board.fetch()
        order = board.tell(Contribute)
        board.make(order)
        said = board.hand_over(b"no update at all, but with the right checksum")
        assert isinstance(said, Answered)
        assert said.verdict == 3
        board.state = replace(board.state, pending=0)
        order = board.tell(Contribute)
        assert order.seq == 2
        board.make(order)
        other = an_update(replace(board.state, seq=9))
        assert isinstance(board.hand_over(other), Answered)
        board.state = replace(board.state, pending=0)
        right = board.make(board.tell(Contribute))
        board.hand_over(right)
        assert aggregator.next_payload() == right


def test_pass_without_an_update_is_done_with(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """The board goes on with the next version."""
    with RunningGateway(boards, board.path):
        board.fetch()
        order = board.tell(Contribute)
        board.ask(Passed(seq=order.seq, status=7), Idle)
        aggregator.publish(a_head(1, plan=QUICK, table=a_table(seed=1)), a_table(seed=1))
        board.fetch()
        assert board.tell(Contribute).version == 1


def test_silent_board_goes_offline_and_comes_back(
    boards: Path,
    aggregator: PlayedAggregator,
    watcher: Peer,
    board: PlayedBoard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last will, said by the gateway in its place."""
    monkeypatch.setattr(carrier, "SILENCE_S", 0.5)
    status = aggregator.topics.status(DEVICE)
    with RunningGateway(boards, board.path) as gateway:
        board.tell(Offer)
        gateway.hear(DEVICE, "silent")
        wait_until(lambda: not status_of(watcher.receive(status)).online, "it is offline")
        board.tell(Offer)
        wait_until(lambda: status_of(watcher.receive(status)).online, "it is online")


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"device": "stranger"}, Refused.UNKNOWN_DEVICE, "'stranger' at"),
        ({"device": "../pi-1"}, Refused.UNKNOWN_DEVICE, "'../pi-1' at"),
        ({"serial_version": 9}, Refused.OTHER_PROTOCOL, "version 9 of the serial protocol"),
        ({"package_room": 50}, Refused.TOO_LARGE, "does not fit the board"),
    ],
    ids=str,
)
def test_board_that_cannot_take_part_is_told_and_named(
    boards: Path,
    aggregator: PlayedAggregator,
    board: PlayedBoard,
    changes: dict[str, object],
    reason: int,
    words: str,
) -> None:
    """One sentence, however often it asks."""
    board.state = replace(board.state, **changes)  # type: ignore[arg-type]
    with RunningGateway(boards, board.path) as gateway:
        while board.tell(Refused).reason != reason:
            pass
        gateway.hear(words)
        assert board.tell(Refused)
        assert sum(words in sentence for sentence in gateway.sentences) == 1


def test_board_whose_directory_is_in_use_is_refused(boards: Path, board: PlayedBoard) -> None:
    """Two boards of one id: the second waits."""
    second = PlayedBoard()
    try:
        with RunningGateway(boards, board.path, second.path) as gateway:
            board.tell(Idle)
            second.tell(Refused)
            gateway.hear(DEVICE, "in use")
    finally:
        second.close()


def test_what_the_operator_forgets_is_not_waited_for(
    boards: Path, aggregator: PlayedAggregator, board: PlayedBoard
) -> None:
    """``forget`` beside a running gateway takes the outbox's update back; the board goes on."""
    with RunningGateway(boards, board.path):
        board.fetch()
        update = board.make(board.tell(Contribute))
        board.hand_over(update)
        assert aggregator.next_payload() == update
        with looking_at(boards / DEVICE) as store:
            store.forget(Selection())
        assert board.tell(Answered).seq == 1
        board.state = replace(board.state, pending=0)
        assert board.tell(Contribute).seq == 2


def test_port_that_is_away_is_waited_for(tmp_path: Path, board: PlayedBoard) -> None:
    """It says so once, and again when it is there."""
    port = tmp_path / "ttyBoard"
    (tmp_path / "boards").mkdir()
    with RunningGateway(tmp_path / "boards", str(port)) as gateway:
        gateway.hear("cannot be opened", "no such file")
        port.symlink_to(board.path)
        gateway.hear("is back")
        board.tell(Refused)
    assert len(gateway.sentences) == 3


def test_port_may_be_a_serial_server(tmp_path: Path) -> None:
    """As ``tcp:HOST:PORT``; when it ends the connection, another one is made."""
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(PATIENCE_S)
        with RunningGateway(tmp_path, f"tcp:{HOST}:{server.getsockname()[1]}") as gateway:
            for _ in range(2):
                line, _ = server.accept()
                with line:
                    line.settimeout(PATIENCE_S)
                    line.sendall(encode_frame(encode_serial(a_state())))
                    (message,) = FrameReader(100).feed(line.recv(100))
                    assert isinstance(decode_serial(message), Refused)
            gateway.hear("is lost", "trying again")


def test_file_is_no_port(tmp_path: Path) -> None:
    """What is there cannot be a line."""
    (tmp_path / "file").write_text("")
    with RunningGateway(tmp_path, str(tmp_path / "file")) as gateway:
        gateway.hear("cannot be opened", "ioctl")


@pytest.mark.parametrize("text", ["", "unix:", "tcp:", "tcp:host", "tcp:host:0", "tcp::7", "tcp:host:x"])
def test_what_is_no_port_is_refused(text: str) -> None:
    """By name."""
    with pytest.raises(ParameterError, match="no serial port"):
        Port(text)


def test_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    """A speed that no port has; a directory that is not there."""
    call = ["gateway", "--dir", str(tmp_path / "none"), "--serial", "/dev/null"]
    assert isinstance(CliRunner().invoke(cli, [*call, "--baud", "7"]).exception, ParameterError)
    refused = CliRunner().invoke(cli, call)
    assert isinstance(refused.exception, InputError)
    assert "edge-client init" in str(refused.exception)
