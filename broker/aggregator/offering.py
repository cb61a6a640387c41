"""The release that a fleet is offered: what the operator has chosen, in the aggregator's directory.

::

    DIR/release/bundle       the newest release's bundle
                offer.json   its number, size and SHA-256, and whom it is for
    DIR/release_key.pub      the keys that releases must be signed with

The commands write, ``start`` reads: it looks every half second, publishes the bundle in chunks, a few a turn
so that nothing else waits, and names the release in heads from then on.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from broker.errors import (
    BundleDamagedError,
    BundleOlderError,
    CorruptError,
    InputError,
    PFedRecError,
    SchemaError,
)
from broker.protocol.chunks import CHUNK_BYTES, chunk_count
from broker.protocol.messages import DIGEST_PREFIX_BYTES, Chunk, Offer
from broker.protocol.releases import check_files, read_bundle, require_fleet, signer_of
from broker.protocol.signatures import keys_from_text
from broker.protocol.versions import sha256
from broker.storage import (
    make_directory,
    named_failures,
    open_file,
    read_file,
    sync_directory,
    write_atomically,
)

FOLDER, KEY_NAME = "release", "release_key.pub"
_BUNDLE, _OFFER = "bundle", "offer.json"
_LOOK_S = 0.5
_CHUNKS_A_TURN = 8


def read_offer(directory: Path) -> Offer | None:
    """Give what is on offer, None if nothing is.

    Raises
    ------
    CorruptError
        When the file is damaged.
    """
    path = directory / FOLDER / _OFFER
    if not path.exists():
        return None
    try:
        content = json.loads(read_file(path))
        digest, groups = bytes.fromhex(content.pop("sha256")), tuple(content.pop("groups"))
        return Offer(**content, sha256=digest, groups=groups)
    except (ValueError, TypeError, KeyError, AttributeError, SchemaError) as error:
        raise CorruptError(f"{path} is damaged; publish the release again") from error


def write_offer(directory: Path, offer: Offer) -> None:
    """Store what is on offer; ``start`` notices.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    content = asdict(offer) | {"sha256": offer.sha256.hex()}
    write_atomically(directory / FOLDER / _OFFER, (json.dumps(content, indent=1) + "\n").encode())


def publish(
    directory: Path, fleet: str, bundle: Path, keys: Path | None, percent: int, groups: tuple[str, ...]
) -> Offer:
    """Check a bundle as a device does, keep a copy, and offer it.

    Parameters
    ----------
    keys : Path or None
        The public keys of releases; they are kept for the next time. None: those kept.

    Raises
    ------
    BundleError
        When a device would refuse it, or it is not newer than what is on offer.
    InputError
        When there are no keys.
    FileUnreadableError, ParameterError, CorruptError, DiskFullError, NotWritableError
    """
    kept = directory / KEY_NAME
    source = keys or kept
    if not source.exists():
        raise InputError(f"give the keys that releases are signed with: --keys {KEY_NAME}")
    text = read_file(source)
    believed = keys_from_text(text.decode("utf-8", "replace"), str(source))
    with open_file(bundle) as stream:
        content = stream.read()
        stream.seek(0)
        signed = read_bundle(stream, len(content))
        signer_of(signed, believed)
        require_fleet(signed.manifest, fleet)
        check_files(stream, signed.manifest)
    release, before = signed.manifest.release, read_offer(directory)
    offer = Offer(release=release, size=len(content), sha256=sha256(content), percent=percent, groups=groups)
    if before is not None and release <= before.release and before.sha256 != offer.sha256:
        raise BundleOlderError(
            f"release {before.release} is on offer, and {release} is not newer; devices would not take it"
        )
    make_directory(directory / FOLDER)
    if keys is not None:
        write_atomically(kept, text)
    write_atomically(directory / FOLDER / _BUNDLE, content)
    write_offer(directory, offer)
    return offer


def change(directory: Path, percent: int | None, groups: tuple[str, ...] | None) -> Offer:
    """Offer the same release to others; give the offer.

    Raises
    ------
    InputError
        When nothing is on offer.
    CorruptError, DiskFullError, NotWritableError
    """
    before = _present(directory)
    offer = replace(
        before,
        percent=before.percent if percent is None else percent,
        groups=before.groups if groups is None else groups,
    )
    write_offer(directory, offer)
    return offer


def withdraw(directory: Path) -> Offer:
    """Offer nothing any more, so that heads name no release; give what was on offer.

    Raises
    ------
    InputError
        When nothing is on offer.
    CorruptError, NotWritableError
    """
    before = _present(directory)
    with named_failures(directory / FOLDER / _OFFER):
        (directory / FOLDER / _OFFER).unlink(missing_ok=True)
    sync_directory(directory / FOLDER)
    return before


def _present(directory: Path) -> Offer:
    offer = read_offer(directory)
    if offer is None:
        raise InputError(f"{directory} offers no release; edge-aggregator release publish begins")
    return offer


class Offering:
    """What ``start`` makes of it: chunks to publish, and the offer that heads may name.

    Attributes
    ----------
    named : Offer or None
        The offer all of whose chunks were handed out since `begin`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.named: Offer | None = None
        self._offer: Offer | None = None
        self._mark: tuple[int, int] | None = None
        self._look_at = 0.0
        self._next = 0

    def begin(self) -> None:
        """The broker may hold nothing any more: hand everything out again."""
        self.named, self._next = None, 0

    def look(self, now: float) -> bool:
        """Notice what the operator has changed; tell whether heads must name something else.

        Raises
        ------
        CorruptError
            When the offer is damaged; what was named before stays, and the next change is looked at.
        """
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        mark = self._look()
        if mark == self._mark:
            return False
        self._mark = mark
        before, self._offer = self._offer, read_offer(self._directory)
        named = self.named
        if before is None or self._offer is None or before.sha256 != self._offer.sha256:
            self.named, self._next = None, 0
        elif named is not None:  # the same bundle, for others
            self.named = self._offer
        return self.named != named

    def _look(self) -> tuple[int, int]:
        try:
            found = (self._directory / FOLDER / _OFFER).stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Give the next few chunks, each with its slot; after the last of them `named` is the offer.

        Raises
        ------
        BundleDamagedError, FileUnreadableError
            When the copy is not what is on offer; nothing is handed out any more until that changes.
        """
        offer = self._offer
        if offer is None or self.named == offer:
            return
        count = chunk_count(offer.size)
        try:
            with open_file(self._directory / FOLDER / _BUNDLE) as stream:
                stream.seek(self._next * CHUNK_BYTES)
                for index in range(self._next, min(self._next + _CHUNKS_A_TURN, count)):
                    data = stream.read(CHUNK_BYTES)
                    if len(data) != min(CHUNK_BYTES, offer.size - index * CHUNK_BYTES):
                        raise BundleDamagedError(
                            "the copy of the bundle on offer is cut off; publish it again"
                        )
                    yield (
                        offer.slot,
                        Chunk(
                            digest=offer.sha256[:DIGEST_PREFIX_BYTES],
                            index=index,
                            count=count,
                            size=offer.size,
                            data=data,
                        ),
                    )
                    self._next = index + 1
        except PFedRecError:
            self._offer = None
            raise
        if self._next == count:
            self.named = offer
