"""What a version looks like when it is published: its head, and its table and catalogue in chunks."""

from collections.abc import Iterator, Sequence

from broker.aggregator.core import AggregatorCore
from broker.protocol.chunks import chunk_count, cut
from broker.protocol.messages import Chunk, Head, Plan
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes
from trainer.params import ScoreFunction


class Publication:
    """Makes heads and chunks of one fleet's versions."""

    def __init__(self, item_keys: Sequence[str], plan: Plan, start: ScoreFunction) -> None:
        self._plan = plan
        self._start = start
        self._catalogue_rows = len(item_keys)
        self._catalogue = catalogue_bytes(item_keys)
        self._catalogue_sha256 = sha256(self._catalogue)

    def catalogue_chunks(self) -> Iterator[Chunk]:
        """Give the item keys in chunks."""
        return cut(self._catalogue, self._catalogue_sha256)

    def of(self, core: AggregatorCore, session: int) -> tuple[Head, Iterator[Chunk]]:
        """Give the newest version's head, and its table in chunks.

        The two slots take turns, so that who reads one version is not disturbed by the next.
        """
        content = table_bytes(core.table)
        digest = sha256(content)
        rows, dim = core.table.shape
        head = Head(
            instance=core.instance,
            session=session,
            version=core.version,
            rows=rows,
            dim=dim,
            sha256=digest,
            slot=core.version % 2,
            chunks=chunk_count(len(content)),
            catalogue_rows=self._catalogue_rows,
            catalogue_chunks=chunk_count(len(self._catalogue)),
            catalogue_bytes=len(self._catalogue),
            catalogue_sha256=self._catalogue_sha256,
            plan=self._plan,
            w=self._start.w,
            b=self._start.b,
        )
        return head, cut(content, digest)
