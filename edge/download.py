"""A download: the chunks of a table, and of the catalogue where that is another one, put together."""

from broker.protocol.chunks import Assembly
from broker.protocol.messages import Chunk, Head
from broker.protocol.topics import Address, Filter, FleetTopics
from broker.protocol.versions import catalogue_from_bytes, table_from_bytes
from trainer.params import Floats


def all_filters(topics: FleetTopics) -> list[Filter]:
    """Give everything that a download can have subscribed to."""
    return [topics.snapshot_filter(0), topics.snapshot_filter(1), topics.catalogue_filter]


class Download:
    """Collects what a head announces. Memory is bounded by the sizes in the head.

    Parameters
    ----------
    catalogue : bool
        Whether the item keys are needed, too.
    """

    def __init__(self, head: Head, *, catalogue: bool) -> None:
        self.head = head
        self.bytes_received = 0
        self._table = Assembly(head.table_bytes, head.sha256)
        self._catalogue = Assembly(head.catalogue_bytes, head.catalogue_sha256) if catalogue else None

    def filters(self, topics: FleetTopics) -> list[Filter]:
        """Give what to subscribe to while the download runs."""
        wanted = [topics.snapshot_filter(self.head.slot)]
        return wanted if self._catalogue is None else [*wanted, topics.catalogue_filter]

    def add(self, address: Address, chunk: Chunk, size: int) -> bool:
        """Take a chunk of `size` bytes on the wire; tell whether everything is there.

        Chunks of another version are left alone: two slots are written in turn, so a slot can hold
        an older or newer table for a moment.

        Raises
        ------
        TransferError
            When a chunk contradicts the head.
        """
        assembly = self._table if address.kind == "snapshot" else self._catalogue
        if assembly is not None and assembly.fits(chunk):
            assembly.add(chunk)
            self.bytes_received += size
        return self._table.complete and (self._catalogue is None or self._catalogue.complete)

    def result(self) -> tuple[Floats, tuple[str, ...] | None]:
        """Check the hashes; give the table (rows, dim) and the item keys, None if they were not needed.

        Raises
        ------
        HashMismatchError, SchemaError, TransferError
            When the bytes are not what the head announced.
        """
        table = table_from_bytes(self._table.whole(), self.head)
        if self._catalogue is None:
            return table, None
        return table, catalogue_from_bytes(self._catalogue.whole(), self.head)
