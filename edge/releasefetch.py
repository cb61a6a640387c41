"""A release that comes over the air: wanted or not, fetched chunk by chunk into a file, installed.

Four chunks are asked for at a time, by their single topics, and written in order: so memory is bounded, and
the file's length tells where to go on after a restart. What the file has in the end is believed only if its
SHA-256 is what the head has announced, and installed only if its own signature says so (`edge.releases`).

It does no networking: it tells what to subscribe to, and is told what has come.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from broker.errand import Errand
from broker.errors import BundleError, ConfigError, DiskFullError, HashMismatchError, PFedRecError
from broker.protocol.chunks import CHUNK_BYTES, chunk_count
from broker.protocol.messages import DIGEST_PREFIX_BYTES, Chunk, Offer
from broker.protocol.releases import BLOCK_BYTES
from broker.protocol.topics import Address, Filter, FleetTopics
from broker.storage import make_directory, named_failures, open_file
from edge.config import DeviceConfig
from edge.releases import install
from edge.slots import Slots

_LOG = logging.getLogger(__name__)

_AT_ONCE = 4
_PATIENCE_S = 30.0
"""Without a chunk for this long, those that are missing are asked for again."""
_CHECK_S = 1.0
"""Between two looks whether what is on offer is wanted."""
_AGAIN_S = 600.0
"""After a failure that may pass, such as a full disk."""


class ReleaseFetch:
    """Fetches what a device is offered and has not had.

    Parameters
    ----------
    directory : Path
        The device's.
    topics : FleetTopics
    """

    def __init__(self, directory: Path, config: DeviceConfig, topics: FleetTopics) -> None:
        self._directory = directory
        self._config = config
        self._topics = topics
        self._slots = Slots(directory)
        self._offer: Offer | None = None
        self._wanted: Offer | None = None
        self._asked: list[Filter] = []
        self._waiting: dict[int, bytes] = {}
        self._done = 0  # chunks that are in the file
        self._until = 0  # the first chunk that is not asked for
        self._ask_at = 0.0
        self._not_before = 0.0
        self._installing: Errand[str] | None = None
        self._check_at = 0.0
        self._may_be_wanted = False
        self._is_clear = False

    def offered(self, offer: Offer | None) -> None:
        """Take what the newest head says."""
        self._offer, self._check_at = offer, 0.0

    def lost(self) -> None:
        """The connection is gone: what was asked for must be asked for again."""
        self._asked, self._ask_at = [], 0.0
        self._waiting.clear()

    def look(self, now: float, *, may_transfer: bool) -> tuple[list[Filter], list[Filter]]:
        """Give what to unsubscribe from, and what to subscribe to.

        Parameters
        ----------
        may_transfer : bool
            Whether this is a moment to use the network much.
        """
        if self._installing is not None:
            self._look_at_installation(self._installing, now)
            return [], []
        try:
            wanted = self._choose(now) if may_transfer else None
            if wanted != self._wanted:
                self._begin(wanted)
                self._ask_at = now
        except PFedRecError as error:
            self._fail(error, now)
            return self._forget()
        if wanted is None or now < self._ask_at:
            return self._forget() if wanted is None else ([], [])
        if self._done == chunk_count(wanted.size):
            self._installing = Errand(lambda: self._install(wanted))
            return self._forget()
        self._ask_at = now + _PATIENCE_S
        before, _ = self._forget()
        self._until = min(self._done + _AT_ONCE, chunk_count(wanted.size))
        self._asked = [
            Filter(self._topics.release(wanted.slot, index))
            for index in range(self._done, self._until)
            if index not in self._waiting
        ]
        return before, self._asked

    def _forget(self) -> tuple[list[Filter], list[Filter]]:
        before, self._asked = self._asked, []
        return before, []

    def _choose(self, now: float) -> Offer | None:
        if now < self._not_before:
            return None
        if now >= self._check_at:
            self._check_at = now + _CHECK_S
            self._may_be_wanted = self._is_wanted()
        return self._offer if self._may_be_wanted else None

    def _fail(self, error: PFedRecError, now: float) -> None:
        """Leave it for a while: nothing that a device does for its user ends with a release."""
        self._not_before, self._wanted = now + _AGAIN_S, None
        _LOG.error("the release on offer is not here yet: %s", error)

    def _is_wanted(self) -> bool:
        offer = self._offer
        if offer is None or not self._config.release_keys:
            return False
        if offer.size > self._config.update_max_mb * 1e6:
            return False
        state = self._slots.state()
        if not (state.asked or offer.reaches(self._config.device_id, self._config.groups)):
            return False
        if offer.release in (state.failed, state.active_release, state.spare_release):
            self._clear(None)
            return False
        return offer.release >= state.highest and state.holding != "trial"

    def _begin(self, wanted: Offer | None) -> None:
        self._wanted = wanted
        self._waiting.clear()
        self._done = self._until = 0
        if wanted is None:
            return
        make_directory(self._slots.path)
        self._is_clear = False
        self._clear(wanted)
        path = self._file(wanted)
        here = path.stat().st_size if path.exists() else 0
        self._done = chunk_count(wanted.size) if here == wanted.size else here // CHUNK_BYTES
        self._done = min(self._done, chunk_count(wanted.size))
        free = shutil.disk_usage(self._slots.path).free
        if free < 2 * wanted.size - here:  # once as it comes, once in its slot
            raise DiskFullError(f"release {wanted.release} needs twice {wanted.size} bytes; {free} are free")

    def _clear(self, wanted: Offer | None) -> None:
        """Remove what has come of others."""
        if self._is_clear:
            return
        with named_failures(self._slots.path):
            for path in self._slots.path.glob("incoming-*"):
                if wanted is None or path != self._file(wanted):
                    path.unlink(missing_ok=True)
        self._is_clear = wanted is None

    def _file(self, offer: Offer) -> Path:
        return self._slots.path / f"incoming-{offer.sha256[:16].hex()}"

    def add(self, address: Address, chunk: Chunk, now: float) -> None:
        """Take a chunk; those of other bundles, and those that are there, are left alone."""
        wanted = self._wanted
        if wanted is None or address.slot != wanted.slot or self._installing is not None:
            return
        expected = (wanted.sha256[:DIGEST_PREFIX_BYTES], wanted.size, chunk_count(wanted.size))
        if (chunk.digest, chunk.size, chunk.count) != expected or address.chunk != chunk.index:
            return
        if not self._done <= chunk.index < self._until:
            return
        if len(chunk.data) != min(CHUNK_BYTES, wanted.size - chunk.index * CHUNK_BYTES):
            return
        self._waiting[chunk.index] = chunk.data
        if self._done in self._waiting:
            try:
                self._write(wanted)
            except PFedRecError as error:
                self._fail(error, now)
                return
            if self._done == self._until:
                self._ask_at = now

    def _write(self, wanted: Offer) -> None:
        path = self._file(wanted)
        with named_failures(path), path.open("r+b" if path.exists() else "wb") as file:
            file.seek(self._done * CHUNK_BYTES)
            file.truncate()  # a chunk that was written in part
            while self._done in self._waiting:
                file.write(self._waiting.pop(self._done))
                self._done += 1

    def _install(self, wanted: Offer) -> str:
        """Install what is there; give why it was refused for good, or nothing."""
        path = self._file(wanted)
        try:
            with open_file(path) as stream:
                _require_digest(stream, wanted)
                install(self._directory, self._config, stream, wanted.size)
        except (BundleError, ConfigError) as error:
            return str(error)
        finally:
            path.unlink(missing_ok=True)
        return ""

    def _look_at_installation(self, installing: Errand[str], now: float) -> None:
        if not installing.done:
            return
        self._installing, wanted, self._wanted = None, self._wanted, None
        self._check_at = 0.0  # what is on offer is here now, or has failed
        try:
            reason = installing.finished()
        except PFedRecError as error:
            self._fail(error, now)
            return
        if wanted is None or not reason:
            return
        _LOG.error("release %d is not taken: %s", wanted.release, reason)
        try:
            self._slots.change(lambda state: state.refused(wanted.release, reason))
        except PFedRecError as error:
            self._fail(error, now)


def _require_digest(stream: BinaryIO, offer: Offer) -> None:
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    if digest.digest() != offer.sha256 or os.fstat(stream.fileno()).st_size != offer.size:
        raise HashMismatchError("what has come is not what the head has announced; it is fetched again")
    stream.seek(0)
