"""The newest table, which is held in memory; and when it is stored.

A table of 100,000 items is 12.8 MB, and a fleet makes many versions a day: written each time, they would wear
out a flash card. So a newer version of a table that is stored already is stored when an allowance that grows
with time pays for it. What a restart then finds is older than what was held; the newest is fetched again, as
after any time away. The store remembers which head was held (`DeviceStore.hold`), so that this does not look
like news: nothing is contributed to a version twice, and no older head is believed.

Always stored at once is a table that others depend on: the first, one with another catalogue or number of
rows, one of another aggregator's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol.catalogue import Catalogue
from broker.protocol.messages import Head
from edge.store import DeviceStore, Model
from trainer.params import Floats

_DAY_S = 86_400.0
_WRITES = 2
"""A table is written twice: into SQLite's log, and from there into the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What may be written for newer tables: a bucket that a day fills twice.

    Attributes
    ----------
    per_day : float
        Bytes that flow into it in a day; 0: there is no limit.
    left : float
        Bytes in it; below 0 after a table that is greater than the bucket.
    at : float
        When that was so, in seconds since the epoch.
    """

    per_day: float
    left: float = 0.0
    at: float = 0.0

    @property
    def capacity(self) -> float:
        """Most bytes in it."""
        return self.per_day / 2.0

    def by(self, now: float) -> "Allowance":
        """Give what it is at `now`; a clock that went back gives nothing, one that leapt at most a bucket."""
        gained = max(0.0, now - self.at) / _DAY_S * self.per_day
        return Allowance(per_day=self.per_day, left=min(self.capacity, self.left + gained), at=now)

    def pays(self, cost: float) -> bool:
        """Tell whether a table of `cost` bytes written may be stored; a large one when the bucket is full."""
        return not self.per_day or self.left >= min(cost, self.capacity)

    def without(self, cost: float) -> "Allowance":
        """Give what is left of it after a table of `cost` bytes written."""
        return Allowance(per_day=self.per_day, left=self.left - cost, at=self.at)


class Holding:
    """The newest table on a device.

    Parameters
    ----------
    per_day : float
        Bytes a day that may be written for newer tables; 0: each is stored.

    Attributes
    ----------
    model : Model or None
        The table and its head.

    Raises
    ------
    CorruptError, DiskFullError, InUseError, NotWritableError
        From the store, by every method.
    """

    def __init__(self, store: DeviceStore, per_day: float) -> None:
        self._store = store
        self._allowance = Allowance(per_day=per_day)
        facts = store.table_allowance()
        if facts is not None:
            self._allowance = Allowance(per_day=per_day, left=facts[0], at=facts[1])
        self.model: Model | None = store.model()
        self._stored = None if self.model is None else self.model.head

    @property
    def is_stored(self) -> bool:
        """Whether a restart would find the newest table."""
        return self.model is None or self.model.head is self._stored

    def limit(self, per_day: float) -> None:
        """Take another limit, in bytes a day."""
        self._allowance = Allowance(per_day=per_day, left=self._allowance.left, at=self._allowance.at)

    def hold(
        self, head: Head, table: Floats, catalogue: Catalogue | Sequence[str] | None, now: float
    ) -> None:
        """Take a checked table, and its catalogue if that has changed; store both, or remember the head.

        Parameters
        ----------
        table : ndarray, shape (head.rows, head.dim), float32
        now : float
            Seconds since the epoch.
        """
        stored = self._stored
        depended_on = (
            catalogue is not None or stored is None or not head.follows(stored) or head.rows != stored.rows
        )
        self._allowance = self._allowance.by(now)
        model = Model(head=head, table=table)
        if depended_on or self._allowance.pays(_cost(model)):
            self._store_table(model, catalogue, now)
        else:
            self._store.hold(head)
        self.model = model

    def look(self, now: float) -> None:
        """Store the newest table if that has become possible."""
        self._allowance = self._allowance.by(now)
        if not self.is_stored and self.model is not None and self._allowance.pays(_cost(self.model)):
            self._store_table(self.model, None, now)

    def end(self, now: float) -> None:
        """Store a small table before the device stops; a large one would keep it from stopping soon."""
        if self.model is not None and _cost(self.model) <= self._allowance.capacity:
            self.look(now)

    def _store_table(self, model: Model, catalogue: Catalogue | Sequence[str] | None, now: float) -> None:
        allowance = self._allowance.by(now).without(_cost(model))
        self._store.replace_model(
            model.head, model.table, catalogue, allowance=(allowance.left, allowance.at)
        )
        self._allowance, self._stored = allowance, model.head


def _cost(model: Model) -> float:
    return float(_WRITES * model.table.nbytes)
