"""What the aggregator's service tells to whoever watches it; by default nobody does.

The service calls a `Watch` once a batch, never once a message, so that watching costs little. A figure that a
batch does not carry is a property of `Watched`, looked at when somebody asks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.aggregator.decisions import ClosedRound
from broker.aggregator.guard import VersionQuality
from broker.errors import ProtocolError
from broker.protocol.messages import Receipt


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkedBatch:
    """One turn of the loop that had something to do.

    Attributes
    ----------
    messages : int
    bytes_up : int
        Of their payloads.
    receipts : sequence of Receipt
        The answers to updates.
    refusals : sequence of str
        Names of why messages were no updates (`refusal_name`).
    rounds : sequence of ClosedRound
    commit_seconds : float or None
        What storing it took; None: there was nothing to be stored.
    """

    messages: int
    bytes_up: int
    receipts: Sequence[Receipt] = ()
    refusals: Sequence[str] = ()
    rounds: Sequence[ClosedRound] = ()
    commit_seconds: float | None = None


class Watched(Protocol):
    """What can be asked of a running service, from any thread."""

    @property
    def version(self) -> int:
        """The newest version."""
        ...

    @property
    def buffered(self) -> int:
        """Updates in the open round."""
        ...

    @property
    def queued(self) -> int:
        """Events that wait to be worked on."""
        ...

    @property
    def overflows(self) -> int:
        """Events that the full queue left at the broker."""
        ...

    @property
    def devices_seen(self) -> int:
        """Devices that ever came."""
        ...

    @property
    def devices_online(self) -> int:
        """Devices whose newest status is online."""
        ...

    @property
    def broker_connected(self) -> bool:
        """Whether there is a connection."""
        ...

    @property
    def head_published(self) -> bool:
        """Whether a head was published on this connection."""
        ...

    @property
    def turned_at(self) -> float:
        """When the loop last went round, on the monotonic clock, in seconds."""
        ...


class Watch:
    """Whoever watches; this one does not look."""

    def began(self, watched: Watched) -> None:
        """Take what can be asked of the service."""

    def worked(self, batch: WorkedBatch) -> None:
        """Take a turn of the loop."""

    def connected(self) -> None:
        """Take that a connection to the broker was made."""

    def sent(self, kind: str, n_bytes: int) -> None:
        """Take that bytes of a kind of message (the topic's level that names it) were published."""

    def judged(self, quality: VersionQuality) -> None:
        """Take what the guard has found of a version: good, bad or unjudged."""

    def foreign_head(self) -> None:
        """Take that somebody else published a head of this fleet."""


def refusal_name(error: ProtocolError) -> str:
    """Name the reason of a refusal: the error's class in small letters; there are as many as classes."""
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error"))
    return words.lower()
