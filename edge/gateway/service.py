"""A gateway: its ports, and on each the board that is there."""

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from broker.errors import NotInitialisedError, PFedRecError, SchemaError
from broker.protocol.topics import checked_id
from broker.storage import exclusive
from edge.config import load_config
from edge.gateway.carrier import BoardAgent, adopt
from edge.gateway.messages import Refused, State, decode_from_board, encode
from edge.gateway.port import Port, Wire
from edge.rebuild import open_sound_store
from trainer.errors import ParameterError

_LOG = logging.getLogger(__name__)

_LOOK_S = 0.25
_TRY_AGAIN_S = 30.0
"""After something that needs the operator: a directory that is missing, a broker that refuses the board."""
_MOST_WAITING = 64
"""Messages of one board; it sends the next one when it has an answer or is tired of waiting."""


class Carrier:
    """One port and its board, whichever that is.

    Parameters
    ----------
    directory : Path
        Holds a device's directory for each board, named after its id.
    say : callable
        Told one sentence when something needs attention and one when that has passed.
    """

    def __init__(
        self, port: Port, directory: Path, environment: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.state = f"{port.text}: no board"
        self._directory = directory
        self._environment = environment
        self._say = say
        self._inbox: queue.Queue[bytes] = queue.Queue(_MOST_WAITING)
        self._wire = Wire(port, self._receive, say)
        self._refused: dict[str, tuple[float, str]] = {}
        """By board, or by port for what is no board: until when it is, and why."""

    def run(self, stop: threading.Event) -> None:
        """Carry boards until `stop` is set."""
        reader = threading.Thread(target=self._wire.run, args=(stop,), name=f"wire {self._wire.port.text}")
        reader.start()
        try:
            while not stop.is_set():
                try:
                    message = decode_from_board(self._inbox.get(timeout=_LOOK_S))
                except queue.Empty:
                    continue
                except SchemaError as error:
                    self._complain(self._wire.port.text, f"{self._wire.port.text}: {error}")
                    self._refuse(Refused.OTHER_PROTOCOL)
                    continue
                if isinstance(message, State):  # others go on with what this process never began
                    self._meet(message, stop)
        finally:
            stop.set()  # for the reader, too, if this thread fails
            reader.join()

    def _receive(self, message: bytes) -> None:
        try:
            self._inbox.put_nowait(message)
        except queue.Full:
            _LOG.warning("%s: a message is left to be sent again", self._wire.port.text)

    def _meet(self, state: State, stop: threading.Event) -> None:
        if state.device in self._refused and self._refused[state.device][0] > time.monotonic():
            self._refuse(Refused.NOT_NOW)
            return
        try:
            goes_on: State | None = state
            while goes_on is not None and not stop.is_set():
                state = goes_on
                goes_on = self._carry(state, stop)
                self._refused.pop(state.device, None)
        except (NotInitialisedError, ParameterError):
            self._complain(
                state.device,
                f"the board {state.device!r} at {self._wire.port.text} is not known here; if it is to be: "
                f"edge-client init --dir {self._directory / 'ID'} --device-id ID --fleet NAME "
                "--broker mqtt://HOST:PORT",
            )
            self._refuse(Refused.UNKNOWN_DEVICE)
        except PFedRecError as error:
            self._complain(state.device, f"board {state.device}: {error}")
            self._refuse(Refused.NOT_NOW)
        finally:
            self.state = f"{self._wire.port.text}: no board"
            self._wire.sink = self._receive

    def _carry(self, state: State, stop: threading.Event) -> State | None:
        directory = self._directory / checked_id(state.device, "a device's id")
        config = load_config(directory, self._environment)
        if config.device_id != state.device:
            raise ParameterError(f"{directory} is the directory of {config.device_id}")

        def say(sentence: str) -> None:
            self._say(f"board {state.device}: {sentence}")

        with exclusive(directory):
            store = open_sound_store(directory, say)
            try:
                adopt(store, state)
                rng = np.random.default_rng(secrets.randbits(128))
                agent = BoardAgent(config, store, say, rng, self._wire.write, state)
                self.state = f"{self._wire.port.text}: {state.device}"
                self._wire.sink = agent.hear
                return agent.carry(stop)
            finally:
                store.close()

    def _refuse(self, reason: int) -> None:
        self._wire.write(encode(Refused(reason=reason)))

    def _complain(self, device: str, sentence: str) -> None:
        """Refuse a board for a while; say why, but the same only once."""
        if self._refused.get(device, (0.0, ""))[1] != sentence:
            self._say(sentence)
        if len(self._refused) >= _MOST_WAITING:
            self._refused.clear()
        self._refused[device] = (time.monotonic() + _TRY_AGAIN_S, sentence)


class Gateway:
    """All ports of a gateway, each in threads of its own."""

    def __init__(
        self,
        ports: Sequence[Port],
        directory: Path,
        say: Callable[[str], None],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._carriers = [Carrier(port, directory, environment, say) for port in ports]
        self._failure: BaseException | None = None

    @property
    def state(self) -> str:
        """What it does, in a line."""
        return "; ".join(carrier.state for carrier in self._carriers)

    def reconfigure(self, _: None) -> list[str]:
        """Tell what a running gateway does not read again."""
        return ["the configuration of each board that is here"]

    def run(self, stop: threading.Event, each_round: Callable[[], None] = lambda: None) -> None:
        """Carry boards until `stop` is set.

        Parameters
        ----------
        each_round : callable
            Called about four times a second.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(carrier, stop), name=f"board {number}")
            for number, carrier in enumerate(self._carriers)
        ]
        for thread in threads:
            thread.start()
        try:
            while not stop.wait(_LOOK_S):
                each_round()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, carrier: Carrier, stop: threading.Event) -> None:
        try:
            carrier.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._failure = error
            stop.set()
