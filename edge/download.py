"""A download: the chunks of a table, or of the steps to it, and of the catalogue, put together.

A download that was cut off is gone on with: chunks that are there are not asked for again.
"""

from collections.abc import Sequence

from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import Assembly
from broker.protocol.deltas import with_delta
from broker.protocol.messages import Chunk, Delta, Head
from broker.protocol.topics import DELTA_SLOTS, Address, Filter, FleetTopics
from broker.protocol.versions import catalogue_from_bytes, table_bytes, table_from_bytes
from trainer.params import Floats

_FEW_CHUNKS = 32
"""Up to so many missing chunks are asked for one by one; a broker may not like longer lists."""


def all_filters(topics: FleetTopics) -> list[Filter]:
    """Give everything but single chunks that a download can have subscribed to."""
    return [
        topics.snapshot_filter(0),
        topics.snapshot_filter(1),
        *(topics.delta_filter(version) for version in range(DELTA_SLOTS)),
        topics.catalogue_filter,
    ]


class Download:
    """Collects what a head announces. Memory is bounded by the sizes in the head.

    Parameters
    ----------
    catalogue : bool
        Whether the item keys are needed, too.
    steps : tuple of Delta
        What leads from `base` to the table of `head`, in order; nothing: the table is fetched as a whole.
    base : ndarray, shape (n, dim), float32, optional
        The table on the device.
    """

    def __init__(
        self, head: Head, *, catalogue: bool, steps: tuple[Delta, ...] = (), base: Floats | None = None
    ) -> None:
        self.head = head
        self.bytes_received = 0
        self.steps = steps if base is not None and base.shape[1] == head.dim else ()
        self._base = base
        self._table = [Assembly(step.size, step.digest) for step in self.steps] or [
            Assembly(head.table_bytes, head.sha256)
        ]
        self._catalogue = Assembly(head.catalogue_bytes, head.catalogue_sha256) if catalogue else None

    def goes_on_with(self, head: Head, *, catalogue: bool, steps: tuple[Delta, ...]) -> bool:
        """Tell whether what is collected here is what such a download needs."""
        return (
            (head.instance, head.version, head.sha256)
            == (self.head.instance, self.head.version, self.head.sha256)
            and steps == self.steps
            and catalogue == (self._catalogue is not None)
            and head.catalogue_sha256 == self.head.catalogue_sha256
        )

    def filters(self, topics: FleetTopics) -> list[Filter]:
        """Give what to subscribe to for what is missing."""
        wanted: list[Filter] = []
        if self.steps:
            for step, assembly in zip(self.steps, self._table, strict=True):
                wanted += _missing(
                    assembly,
                    topics.delta_filter(step.version),
                    [topics.delta(step.version, index) for index in assembly.missing],
                )
        else:
            (assembly,) = self._table
            slot = self.head.slot
            wanted += _missing(
                assembly,
                topics.snapshot_filter(slot),
                [topics.snapshot(slot, index) for index in assembly.missing],
            )
        if self._catalogue is not None:
            chunks = [topics.catalogue(index) for index in self._catalogue.missing]
            wanted += _missing(self._catalogue, topics.catalogue_filter, chunks)
        return wanted

    def add(self, address: Address, chunk: Chunk, size: int) -> bool:
        """Take a chunk of `size` bytes on the wire; tell whether everything is there.

        Chunks of another version are left alone: slots are written in turn, so a slot can hold an older
        or newer table for a moment.

        Raises
        ------
        TransferError
            When a chunk contradicts the head.
        """
        kind = "delta" if self.steps else "snapshot"
        parts = self._table if address.kind == kind else []
        if address.kind == "catalogue" and self._catalogue is not None:
            parts = [self._catalogue]
        for assembly in parts:
            if assembly.fits(chunk):
                assembly.add(chunk)
                self.bytes_received += size
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return all(assembly.complete for assembly in self._table) and (
            self._catalogue is None or self._catalogue.complete
        )

    def result(self) -> tuple[Floats, Catalogue | None]:
        """Check the hashes; give the table (rows, dim) and the catalogue, None if it was not needed.

        Raises
        ------
        HashMismatchError, SchemaError, TransferError
            When the bytes are not what the head announced, or steps began at another table.
        """
        contents = [assembly.whole() for assembly in self._table]
        if self.steps and self._base is not None:
            table = self._base
            for content in contents:
                table = with_delta(table, content, self.head.rows)
            contents = [table_bytes(table)]
        (content,) = contents
        table = table_from_bytes(content, self.head)
        if self._catalogue is None:
            return table, None
        return table, catalogue_from_bytes(self._catalogue.whole(), self.head)


def _missing(assembly: Assembly, all_chunks: Filter, single: Sequence[str]) -> list[Filter]:
    if assembly.complete:
        return []
    begun = len(single) < assembly.count
    return [Filter(topic) for topic in single] if begun and len(single) <= _FEW_CHUNKS else [all_chunks]
