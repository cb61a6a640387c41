"""The contract of the aggregator's store, and the values that go in and out.

A version can be made anew as long as it is in the store's window: the newest `keep_versions` versions with
the updates that they counted, and the table that the first of them began with.

Everything that a crash may not cost goes through `commit`. Nothing may be acknowledged or published
before the `commit` that holds it has returned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from broker.aggregator.catalogue_changes import CatalogueChange
from broker.aggregator.decisions import CloseRound, CoreState, Journal, JournalEntry, KeepQuality, what_closed
from broker.aggregator.guard import VersionQuality
from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Update
from trainer.params import Floats, ScoreFunction

VersionKind = Literal["round", "rollback", "import", "restore"]
"""How a version came to be; every other than a round is an operator's, and counts no updates."""
KEEP_VERSIONS = 16
"""Versions that can be made anew unless configured: by default 512 updates and 17 tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """The figures of one version; `closed_at` in seconds since the epoch.

    `source` is the version whose table a rollback took; `population` and `strategy` (the configuration's
    settings of it, JSON) are what a round was closed with, None where an earlier release closed it.
    """

    version: int
    updates: int
    staleness_mean: float
    bytes_up: int
    by_deadline: bool
    closed_at: float
    sha256: bytes
    catalogue_changed: bool = False
    kind: VersionKind = "round"
    source: int | None = None
    population: int | None = None
    strategy: str | None = None
    dropped: int = 0
    quality: VersionQuality | None = None

    @property
    def closed_by(self) -> str:
        """What made it: for a round `what_closed` it, else its kind."""
        if self.kind != "round":
            return self.kind
        return what_closed(catalogue_changed=self.catalogue_changed, by_deadline=self.by_deadline)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptTable:
    """A version's table, shape (n_items, dim), float32, and what belongs to it.

    Attributes
    ----------
    strategy_state : mapping of str to ndarray
        What the strategy remembered then.
    retired : frozenset of int
        The rows that were retired then, and so left alone by the next round.
    """

    table: Floats
    strategy_state: Mapping[str, Floats]
    retired: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decree:
    """A version that an operator makes, not a round.

    Attributes
    ----------
    version : int
        Above the newest one.
    sessions : int
        To add to the number of connections, where some of them may have been forgotten.
    """

    version: int
    kind: VersionKind
    kept: KeptTable
    decreed_at: float
    source: int | None = None
    sessions: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """What became of all updates.

    ``counted + pending + stale + rejected + dropped`` is how many different ones arrived. Those `dropped`
    were accepted, but the version that they were to make was given up for an older one. `duplicates` are
    repeats of those, and `refused` messages that were no updates at all.
    """

    counted: int
    pending: int
    stale: int
    rejected: int
    duplicates: int
    refused: int
    dropped: int = 0


class PlacedEntry(NamedTuple):
    """A journal entry, the version that counts it already, if one does, and whether its body is kept."""

    entry: JournalEntry
    version: int | None
    kept: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one transaction stores.

    Attributes
    ----------
    commands : sequence of Journal, CloseRound or KeepQuality
        In the order in which the core gave them.
    devices : sequence of str
        Devices seen for the first time.
    duplicates, refused : int
        To add to the ledger.
    closed_at : float
        Seconds since the epoch.
    strategy : str or None
        The settings, as JSON, of the strategy that closed this batch's rounds.
    """

    commands: Sequence[Journal | CloseRound | KeepQuality]
    devices: Sequence[str] = ()
    duplicates: int = 0
    refused: int = 0
    closed_at: float
    strategy: str | None = None

    def entries(self, keep_versions: int) -> list[PlacedEntry]:
        """Give the batch's entries in order, each with what became of it within the batch.

        The updates of versions before the newest `keep_versions` are not needed any more: of a batch with
        more rounds than that only the last ones' are.
        """
        rounds = [command.round.version for command in self.commands if isinstance(command, CloseRound)]
        left = iter((*rounds, None))
        version, closed = next(left), 0
        placed: list[PlacedEntry] = []
        for command in self.commands:
            if isinstance(command, CloseRound):
                version, closed = next(left), closed + 1
            elif isinstance(command, Journal):
                entry = command.entry
                counted = None if entry.body is None else version
                needed = entry.body is not None and closed >= len(rounds) - keep_versions
                placed.append(PlacedEntry(entry, counted, needed))
        return placed


@dataclass(frozen=True, kw_only=True, slots=True)
class Genesis:
    """What a fleet begins with.

    Attributes
    ----------
    instance : int
        Below 2**53.
    item_keys : sequence of str
        In row order.
    table : ndarray, shape (n_items, dim), float32
    start : ScoreFunction
        Every new device's first score function.
    created_at : float
        Seconds since the epoch.
    """

    instance: int
    item_keys: Sequence[str]
    table: Floats
    start: ScoreFunction
    created_at: float


class AggregatorStore(Protocol):
    """What the aggregator remembers.

    Every method raises CorruptError, DiskFullError, InUseError or NotWritableError for what it says, and
    StoreLostError when a database server goes; a failed call MUST change nothing. Only after StoreLostError
    may all or nothing of a `commit` have been stored: whoever sees it loads the state anew before going on.
    """

    def initialise(self, genesis: Genesis) -> None:
        """Store a fleet's beginning; called once, by ``init``."""
        ...

    def commit(self, batch: Batch) -> None:
        """Store a batch, durably and in one transaction; called by the service.

        A `CloseRound` spends all accepted entries before it, of this batch and of earlier ones, or those that
        it names. Its `catalogue_step`, if it has one, is applied to the catalogue and leaves the queue.
        """
        ...

    def load(self, *, answers: bool = True) -> CoreState:
        """Give the core's state after the last `commit`; without what was answered for who does not judge."""
        ...

    def pending(self) -> list[tuple[Update, int, int]]:
        """Give the accepted, unspent updates in journal order: update, staleness, size in bytes."""
        ...

    def start(self) -> ScoreFunction:
        """Give every new device's first score function."""
        ...

    def item_keys(self) -> tuple[str, ...]:
        """Give the catalogue in row order."""
        ...

    def catalogue(self) -> Catalogue:
        """Give the catalogue with its retired rows and former keys, as `load` does."""
        ...

    def queue_change(self, change: CatalogueChange, queued_at: float) -> int:
        """Check a change of the catalogue against it and the changes that wait, and queue it, durably.

        Called by any process, while the service runs or not; `queued_at` is in seconds since the epoch. Gives
        its number.

        Raises
        ------
        DataError, UnknownItemError, ParameterError
            From `apply_change`; nothing is queued.
        """
        ...

    def queued_changes(self) -> list[tuple[int, CatalogueChange]]:
        """Give the changes that wait, in order; called by the service, often."""
        ...

    def refuse_change(self, number: int, reason: str) -> None:
        """Take a change from the queue that contradicts the catalogue by now."""
        ...

    def change_outcome(self, number: int) -> int | str | None:
        """Give the version that made a change, or why it was refused; None while it waits."""
        ...

    def next_session(self, least: int = 1) -> int:
        """Count a connection of the aggregator, durably; give its number, from 1 and `least` at least."""
        ...

    def ledger(self, prefix: str = "") -> Ledger:
        """Add up what became of the updates of all devices whose id begins with `prefix`.

        `duplicates` and `refused` are always those of all devices.
        """
        ...

    def updates_counted(self) -> int:
        """Add up the updates that all versions count."""
        ...

    def rounds(self, limit: int) -> list[RoundRecord]:
        """Give the newest versions, newest first; version 0 is none."""
        ...

    def kept_table(self, version: int) -> KeptTable | None:
        """Give a version's table, proved by its hash; None if it is no longer kept, or never was."""
        ...

    def counted(self, version: int) -> list[tuple[Update, int, int]]:
        """Give the updates that a version counted, in counting order, as `pending`: those still kept."""
        ...

    def decree(self, decree: Decree) -> None:
        """Store a version that is no round, durably.

        What is pending stays so, but for a rollback: that drops it, as it was learnt from what is given up.
        """
        ...

    def close(self) -> None:
        """Release the file or connection; nothing may be called afterwards."""
        ...
