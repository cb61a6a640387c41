"""What goes into the aggregator's core and what comes out of it: settings, state, commands. Values alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from broker.aggregator.catalogue_changes import CatalogueStep
from broker.aggregator.guard import GuardSettings, Restorable, VersionQuality
from broker.aggregator.pacing import Pacing
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Receipt, Verdict
from trainer.errors import ParameterError
from trainer.params import Floats

MOST_CLIENTS = 1_000_000_000_000
"""Of a fleet: more than anybody has, and what stores and float32 can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSettings:
    """When rounds close and what they take.

    Attributes
    ----------
    buffer : int
        Accepted updates that close a round.
    deadline_s : float or None
        Seconds after a round's first accepted update that close it too; None waits for ever.
    max_staleness : int
        Versions that an update may be behind.
    population : int or None
        Clients of the fleet; None counts those seen.
    check_in_s : float
        Seconds that receipts tell devices to wait, where the pace does not say longer.
    updates_per_s : float or None
        The pace: updates of the whole fleet a second, at most; see `broker.aggregator.pacing`.
    least_updates : int
        Fewer do not close a round at its deadline: it goes on until so many are in.
    guard : GuardSettings
        What makes a version bad; see `broker.aggregator.guard`.
    """

    buffer: int = 32
    deadline_s: float | None = 30.0
    max_staleness: int = 10
    population: int | None = None
    check_in_s: float = 30.0
    updates_per_s: float | None = None
    least_updates: int = 1
    guard: GuardSettings = field(default_factory=lambda: GuardSettings(reports=0))

    def __post_init__(self) -> None:
        if not 1 <= self.buffer <= 1_000_000:
            raise ParameterError(f"buffer is {self.buffer}; it must lie between 1 and 1000000")
        if self.deadline_s is not None and not 0.01 <= self.deadline_s <= 604_800:
            raise ParameterError(
                f"the deadline is {self.deadline_s} s; it must lie between 0.01 s and 7 days"
            )
        if not 0 <= self.max_staleness <= 100_000:
            raise ParameterError(f"max_staleness is {self.max_staleness}; it must lie between 0 and 100000")
        if self.population is not None and not 1 <= self.population <= MOST_CLIENTS:
            raise ParameterError(
                f"population is {self.population}; a fleet has between 1 and {MOST_CLIENTS} clients"
            )
        if not 1 <= self.least_updates <= self.buffer:
            raise ParameterError(
                f"least_updates is {self.least_updates}; it must lie between 1 and the buffer, {self.buffer}"
            )
        _ = self.pacing

    @property
    def pacing(self) -> Pacing:
        """What receipts tell devices."""
        return Pacing(check_in_s=self.check_in_s, updates_per_s=self.updates_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The newest sequence number of one incarnation of a device, and its first verdict."""

    seq: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JournalEntry:
    """One update with its first verdict, as it must be remembered.

    Attributes
    ----------
    body : bytes or None
        The encoded update if it was accepted: needed until its round is closed, and to make that anew.
    """

    device: str
    incarnation: int
    seq: int
    verdict: Verdict
    staleness: int
    base_version: int
    body: bytes | None


def what_closed(*, catalogue_changed: bool, by_deadline: bool) -> str:
    """Give ``catalogue``, ``deadline`` or ``buffer``: what closed a round."""
    if catalogue_changed:
        return "catalogue"
    return "deadline" if by_deadline else "buffer"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClosedRound:
    """A server round's outcome.

    Attributes
    ----------
    version : int
        The version that it made.
    table : ndarray, shape (n_items, dim), float32
    updates : int
        How many it counted.
    staleness_sum : int
    bytes_up : int
        Of the encoded updates.
    by_deadline : bool
        Whether the deadline closed it, not the number of updates.
    strategy_state : mapping of str to ndarray, float32, two-dimensional
        What the strategy remembers between rounds, as it is after this one; see `CoreState`. It is stored in
        the same transaction as the version.
    catalogue_step : CatalogueStep or None
        The change of the catalogue that closed it, which is applied with it.
    population : int or None
        Clients that the strategy was told of; with the journal, all that is needed to make the version anew.
    restored : int or None
        The older version whose table it has again: nothing of its round is counted then. The one just before
        it, where what the round came to was not finite.
    dropped : int
        Updates that were accepted and are not counted for that reason.
    """

    version: int
    table: Floats
    updates: int
    staleness_sum: int
    bytes_up: int
    by_deadline: bool
    strategy_state: Mapping[str, Floats] = field(default_factory=dict)
    catalogue_step: CatalogueStep | None = None
    population: int | None = None
    restored: int | None = None
    dropped: int = 0

    @property
    def closed_by(self) -> str:
        """``rollback``, or see `what_closed`."""
        if self.restored is not None:
            return "rollback"
        return what_closed(catalogue_changed=self.catalogue_step is not None, by_deadline=self.by_deadline)


@dataclass(frozen=True, slots=True, eq=False)
class Journal:
    """Store the entry, durably, before anything after it in this batch is published."""

    entry: JournalEntry


@dataclass(frozen=True, slots=True, eq=False)
class CloseRound:
    """Store the new version and mark the journal entries that it spends as its own.

    Attributes
    ----------
    spends : sequence of int or None
        The entries' numbers in the journal, in counting order; None: all that are accepted and unspent. Where
        several processes journal, some may be there that the round has not counted.
    """

    round: ClosedRound
    spends: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class KeepQuality:
    """Store what is known of a version's quality, in the place of what was known of it before."""

    quality: VersionQuality


@dataclass(frozen=True, slots=True, eq=False)
class ReplyReceipt:
    """Send a receipt to a device."""

    device: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class PublishVersion:
    """Publish the newest version; of several in a batch the last is enough."""

    version: int


Command: TypeAlias = Journal | CloseRound | KeepQuality | ReplyReceipt | PublishVersion


@dataclass(kw_only=True, slots=True)
class CoreState:
    """What the store gives back after a restart.

    Attributes
    ----------
    instance : int
        Identifies the directory; updates for another are rejected.
    table : ndarray, shape (n_items, dim), float32
        Of `version`.
    answered : dict
        From (device, incarnation).
    seen : set of str
        Devices that ever showed a status or sent an update.
    strategy_state : mapping of str to ndarray, float32, two-dimensional
        What the strategy remembered when `version` was made, such as a server optimiser's moments, by name;
        empty before the first round, and for strategies without memory.
    catalogue : Catalogue
        Of the table's rows.
    before : Restorable or None
        The version before, if the newest one has no finding, or is unjudged.
    quality : VersionQuality or None
        What is known of the newest one then.
    rolled_back : list of (int, int)
        Versions that were returned to by a rollback or a restore, each with the version that did it: those
        between are not built upon.
    """

    instance: int
    version: int
    table: Floats
    answered: dict[tuple[str, int], Answered] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    strategy_state: Mapping[str, Floats] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(()))
    before: Restorable | None = None
    quality: VersionQuality | None = None
    rolled_back: list[tuple[int, int]] = field(default_factory=list)
