"""What a version looks like when it is published: its head, and its table, catalogue and steps in chunks.

A step from the version before is offered as long as a device that takes it fetches less than the table: on a
large catalogue a round touches few of the rows.
"""

from collections.abc import Iterator, Sequence

from broker.aggregator.core import AggregatorCore
from broker.protocol.catalogue import Catalogue
from broker.protocol.chunks import chunk_count, cut
from broker.protocol.deltas import delta_bytes
from broker.protocol.messages import DIGEST_PREFIX_BYTES, MAX_DELTAS, Chunk, Delta, Head, Plan
from broker.protocol.versions import catalogue_bytes, sha256, table_bytes
from trainer.params import Floats, ScoreFunction

_LARGEST_STEP = 0.5
"""Of the table's size; above it a step is not worth a second look."""


class Publication:
    """Makes heads and chunks of one fleet's versions."""

    def __init__(self, catalogue: Catalogue | Sequence[str], plan: Plan, start: ScoreFunction) -> None:
        self._start = start
        self.change_catalogue(catalogue, plan)
        self._newest: Floats | None = None
        self._steps: list[tuple[Delta, bytes]] = []

    def change_catalogue(self, catalogue: Catalogue | Sequence[str], plan: Plan) -> None:
        """Take another catalogue, and the plan for one of its size; the next head announces them."""
        catalogue = Catalogue.of(catalogue)
        self._plan = plan
        self._catalogue_rows = len(catalogue.keys)
        self._catalogue = catalogue_bytes(catalogue)
        self._catalogue_sha256 = sha256(self._catalogue)

    def begin(self, table: Floats) -> None:
        """Take the table that the first step will start from; shape (n_items, dim), read-only."""
        self._newest = table
        self._steps = []

    def add_step(self, version: int, table: Floats) -> None:
        """Take the table of the next version, and keep the step to it if it is worth offering."""
        before, self._newest = self._newest, table
        content = b"" if before is None else delta_bytes(before, table)
        if not content or len(content) > _LARGEST_STEP * table.nbytes:
            self._steps = []
            return
        delta = Delta(version=version, size=len(content), digest=sha256(content)[:DIGEST_PREFIX_BYTES])
        self._steps.append((delta, content))
        while len(self._steps) > MAX_DELTAS or sum(step.size for step, _ in self._steps) > table.nbytes:
            del self._steps[0]

    def step_chunks(self, after: int) -> Iterator[tuple[int, Chunk]]:
        """Give the steps on offer to versions above `after`, in chunks, each with its step's version."""
        for delta, content in self._steps:
            if delta.version > after:
                yield from ((delta.version, chunk) for chunk in cut(content, sha256(content)))

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
            deltas=tuple(delta for delta, _ in self._steps if delta.version <= core.version),
        )
        return head, cut(content, digest)
