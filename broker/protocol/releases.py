"""A release in a bundle: what a device runs besides what the fleet learns, one file, signed once.

::

    offset  bytes
       0       8   PFEDREL1
       8       8   size of the whole file, big endian
      16       4   size of the manifest, big endian
      20      32   the public key that it is signed with
      52      64   Ed25519 of "pfedrec/release/1", a line feed, and the manifest
     116       8   the first bytes of the SHA-256 of all before
     124     ...   the manifest: CBOR, with the SHA-256 of each file
             ...   the files, one after the other, in the manifest's order

Nothing is compressed and nothing but plain files can be said: no links, no devices, no directories, no
owners. So a bundle takes exactly the room that it says, and the same release gives the same bytes.

A reader looks at the sizes, then at the signature, then at what the manifest says, and last at the files,
block by block. The key in the header is only a claim: whom to believe is the reader's to say (`signer_of`).
The fleet's name is in the manifest, so a bundle of one fleet is none of another, whoever uses a key for two.
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from broker.errors import (
    BundleCutOffError,
    BundleDamagedError,
    BundleForbiddenError,
    BundleForeignError,
    BundleTooLargeError,
    BundleUntrustedError,
    MalformedError,
    SchemaError,
)
from broker.protocol import wire
from broker.protocol.checks import require_bytes, require_identifier, require_integer, require_text
from broker.protocol.ed25519 import KEY_BYTES, SIGNATURE_BYTES, verify
from broker.protocol.messages import MAX_SEQ, MAX_TRANSFER_BYTES

MODEL = "model.tflite"
"""The scorer; instead of the one that ships with the package."""
SETTINGS = "settings.toml"
"""Settings of a device that the release changes."""
APPLICATION = "app/"
"""What is below is the application's, and nobody else looks at it."""

MAX_FILES = 1000
MAX_MANIFEST_BYTES = 512 * 1024
MAX_SETTINGS_BYTES = 64 * 1024
MAX_HEALTH_S = 600
MAX_BUNDLE_BYTES = MAX_TRANSFER_BYTES
BLOCK_BYTES = 64 * 1024

_MAGIC = b"PFEDREL1"
_FORMAT = 1
_DOMAIN = b"pfedrec/release/1\n"
_HEADER = struct.Struct(f">8sQI{KEY_BYTES}s{SIGNATURE_BYTES}s")
_CHECK_BYTES = 8
HEADER_BYTES = _HEADER.size + _CHECK_BYTES
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
_MAX_PATH = 200
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")
_ITEMS_OF_A_FILE = 5
_OTHER_ITEMS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseFile:
    """One file of a release.

    Attributes
    ----------
    path : str
        Relative, with ``/``: `MODEL`, `SETTINGS`, or something below `APPLICATION`.
    size : int
        In bytes.
    sha256 : bytes
    executable : bool

    Raises
    ------
    SchemaError
    """

    path: str
    size: int
    sha256: bytes
    executable: bool = False

    def __post_init__(self) -> None:
        require_text(self, "path", _MAX_PATH)
        parts = self.path.split("/")
        if not all(_NAME.fullmatch(part) for part in parts):
            raise SchemaError(
                f"the path {ascii(self.path)[:80]}: it must be relative, its names of A-Z a-z 0-9 . _ + - "
                "and none may begin with . or -"
            )
        if self.path not in (MODEL, SETTINGS) and not self.path.startswith(APPLICATION):
            raise SchemaError(
                f"the file {self.path}: a release has {MODEL}, {SETTINGS} and files below {APPLICATION}"
            )
        require_integer(self, "size", 0, MAX_SETTINGS_BYTES if self.path == SETTINGS else MAX_BUNDLE_BYTES)
        require_bytes(self, "sha256", 32, 32)
        if type(self.executable) is not bool:
            raise SchemaError("executable must be true or false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a release is, and whom it is for.

    Attributes
    ----------
    fleet : str
    release : int
        Its number; the next one's is higher.
    note : str
        For people.
    runtime : str
        The earliest release of pfedrec-edge that it works with, for example ``0.1.0``.
    machines : tuple of str
        Processors as ``uname -m`` has them; none: any.
    files : tuple of ReleaseFile
        In the order of their paths.
    health : str
        The file below `APPLICATION` that tells with 0 that the application works; empty: none.
    health_timeout_s : int
        How long it may take, in seconds.

    Raises
    ------
    SchemaError
    """

    fleet: str
    release: int
    note: str = ""
    runtime: str = "0"
    machines: tuple[str, ...] = ()
    files: tuple[ReleaseFile, ...]
    health: str = ""
    health_timeout_s: int = 30

    def __post_init__(self) -> None:
        require_identifier(self, "fleet")
        require_integer(self, "release", 1, MAX_SEQ)
        require_text(self, "note", 400)
        require_text(self, "runtime", 32)
        if not _VERSION.fullmatch(self.runtime):
            raise SchemaError(f"runtime must be a version such as 0.1.0, not {self.runtime!a}")
        if len(self.machines) > 16 or not all(
            type(name) is str and _NAME.fullmatch(name) for name in self.machines
        ):
            raise SchemaError("machines must be at most 16 names of processors, as uname -m has them")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise SchemaError(f"a release has 1 to {MAX_FILES} files, not {len(self.files)}")
        _require_places(tuple(file.path for file in self.files))
        require_text(self, "health", _MAX_PATH)
        require_integer(self, "health_timeout_s", 1, MAX_HEALTH_S)
        if self.health and not any(
            file.path == self.health and file.executable and file.path.startswith(APPLICATION)
            for file in self.files
        ):
            raise SchemaError(f"health names {self.health}, which is no executable file below {APPLICATION}")

    @property
    def content_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> ReleaseFile | None:
        """Give the file at a path, None if there is none."""
        return next((file for file in self.files if file.path == path), None)


def _require_places(paths: tuple[str, ...]) -> None:
    if list(paths) != sorted(paths):
        raise SchemaError("files must be in the order of their paths")
    # Not all file systems tell upper from lower case; a memory card's may not.
    folded = [path.casefold() for path in paths]
    if len(set(folded)) < len(folded):
        raise SchemaError("two files have the same path, but for upper and lower case")
    places = set(folded)
    for path in folded:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in places for depth in range(1, len(parts))):
            raise SchemaError(f"{path} lies below a path that is a file")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedManifest:
    """A manifest with its signature, which holds; whose it is must still be asked.

    Attributes
    ----------
    key : bytes
        The public key that it is signed with.
    head : bytes
        The bundle's bytes before the files.
    """

    manifest: Manifest
    key: bytes
    head: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole bundle."""
        return len(self.head) + self.manifest.content_bytes


def manifest_bytes(manifest: Manifest) -> bytes:
    """Encode a manifest; the same one gives the same bytes."""
    return wire.dumps(
        {
            "v": _FORMAT,
            "fleet": manifest.fleet,
            "release": manifest.release,
            "note": manifest.note,
            "runtime": manifest.runtime,
            "machines": list(manifest.machines),
            "files": [[file.path, file.size, file.sha256, file.executable] for file in manifest.files],
            "health": manifest.health,
            "health_timeout_s": manifest.health_timeout_s,
        }
    )


def signed_bytes(manifest: bytes) -> bytes:
    """Give what the signature is made over, from an encoded manifest."""
    return _DOMAIN + manifest


def bundle_head(manifest: Manifest, key: bytes, signature: bytes) -> bytes:
    """Give the bundle's bytes before the files; `signature` is of `signed_bytes`, by `key`'s secret half.

    Raises
    ------
    SchemaError
        When the manifest, or all together, is larger than may be.
    """
    encoded = manifest_bytes(manifest)
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise SchemaError(f"a manifest of {len(encoded)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
    size = HEADER_BYTES + len(encoded) + manifest.content_bytes
    if size > MAX_BUNDLE_BYTES:
        raise SchemaError(f"a bundle of {size} bytes; at most {MAX_BUNDLE_BYTES} are allowed")
    fixed = _HEADER.pack(_MAGIC, size, len(encoded), key, signature)
    return fixed + hashlib.sha256(fixed).digest()[:_CHECK_BYTES] + encoded


def read_bundle(stream: BinaryIO, size: int, most_bytes: int = MAX_BUNDLE_BYTES) -> SignedManifest:
    """Read a bundle's beginning; the files follow in the stream.

    Parameters
    ----------
    size : int
        Bytes that there are, from the stream's place on.
    most_bytes : int
        The largest bundle that is looked at.

    Raises
    ------
    BundleDamagedError
        When it is no bundle, or was changed after it was signed.
    BundleCutOffError
        When its end is missing.
    BundleTooLargeError, BundleForbiddenError
    """
    header = stream.read(HEADER_BYTES)
    if not header.startswith(_MAGIC[: len(header)]):
        raise BundleDamagedError("this is no bundle, or its first bytes were changed")
    if len(header) < HEADER_BYTES:
        raise BundleCutOffError(f"a bundle begins with {HEADER_BYTES} bytes; here are {len(header)}")
    fixed, check = header[: _HEADER.size], header[_HEADER.size :]
    if hashlib.sha256(fixed).digest()[:_CHECK_BYTES] != check:
        raise BundleDamagedError("the bundle's header was changed")
    _, announced, manifest_size, key, signature = _HEADER.unpack(fixed)
    for found in (announced, size):
        if found > most_bytes:
            raise BundleTooLargeError(f"the bundle has {found} bytes; at most {most_bytes} are taken")
    if size < announced:
        raise BundleCutOffError(f"the bundle has {announced} bytes; here are the first {size}")
    if size > announced:
        raise BundleDamagedError(f"{size - announced} bytes follow the bundle's end")
    if manifest_size > min(MAX_MANIFEST_BYTES, announced - HEADER_BYTES):
        raise BundleDamagedError(f"a manifest of {manifest_size} bytes does not fit")
    encoded = stream.read(manifest_size)
    if len(encoded) < manifest_size:
        raise BundleCutOffError("the bundle ends within its manifest")
    if not verify(key, signed_bytes(encoded), signature):
        raise BundleDamagedError("the bundle's signature does not hold: its manifest was changed")
    manifest = _manifest_of(encoded)
    signed = SignedManifest(manifest=manifest, key=key, head=header + encoded)
    if signed.size != announced:
        raise BundleForbiddenError(f"the files and the rest have {signed.size} bytes, not {announced}")
    return signed


def read_head(head: bytes) -> SignedManifest:
    """Read a bundle's beginning that was kept without the files.

    Raises
    ------
    BundleDamagedError, BundleCutOffError, BundleForbiddenError
    """
    if len(head) < HEADER_BYTES:
        raise BundleCutOffError("the bundle's head is cut off")
    announced = int.from_bytes(head[8:16], "big")
    return read_bundle(io.BytesIO(head), announced)


def _manifest_of(encoded: bytes) -> Manifest:
    try:
        content = wire.loads(encoded, MAX_MANIFEST_BYTES, _OTHER_ITEMS + _ITEMS_OF_A_FILE * MAX_FILES)
        return _parsed(content)
    except (MalformedError, SchemaError) as error:
        raise BundleForbiddenError(f"the bundle's manifest is not allowed: {error}") from error


def _parsed(content: Any) -> Manifest:
    names = ("v", *(name for name in Manifest.__dataclass_fields__))
    if not isinstance(content, dict) or set(content) != set(names) or _is_other_format(content["v"]):
        raise SchemaError(f"it must be a map of format {_FORMAT} with {', '.join(names)}")
    machines, files = content["machines"], content["files"]
    if not isinstance(machines, list) or not isinstance(files, list):
        raise SchemaError("machines and files must be lists")
    rows = [row if isinstance(row, list) and len(row) == 4 else None for row in files]
    if None in rows:
        raise SchemaError("a file must be its path, size, SHA-256 and whether it is executable")
    made = tuple(
        ReleaseFile(path=row[0], size=row[1], sha256=row[2], executable=row[3]) for row in rows if row
    )
    rest = {name: content[name] for name in names if name not in ("v", "machines", "files")}
    return Manifest(**rest, machines=tuple(machines), files=made)


def _is_other_format(value: object) -> bool:
    return type(value) is not int or value != _FORMAT


def signer_of(signed: SignedManifest, keys: tuple[bytes, ...]) -> int:
    """Tell which of the keys, oldest first, has signed a bundle.

    Raises
    ------
    BundleUntrustedError
        When none has.
    """
    if signed.key not in keys:
        raise BundleUntrustedError(
            f"the bundle is signed with the key {signed.key.hex()[:16]}..., which is none of the fleet's"
        )
    return keys.index(signed.key)


def require_fleet(manifest: Manifest, fleet: str) -> None:
    """Refuse another fleet's bundle.

    Raises
    ------
    BundleForeignError
    """
    if manifest.fleet != fleet:
        raise BundleForeignError(f"the bundle is for the fleet {manifest.fleet}; this is {fleet}")


def file_blocks(stream: BinaryIO, file: ReleaseFile) -> Iterator[bytes]:
    """Give a file's bytes as the stream has them next, block by block.

    Raises
    ------
    BundleDamagedError
        After the last block, when they are not what was signed.
    BundleCutOffError
    """
    digest, left = hashlib.sha256(), file.size
    while left:
        block = stream.read(min(left, BLOCK_BYTES))
        if not block:
            raise BundleCutOffError(f"the bundle ends within {file.path}")
        digest.update(block)
        left -= len(block)
        yield block
    if digest.digest() != file.sha256:
        raise BundleDamagedError(f"{file.path} was changed: its SHA-256 is not what was signed")


def check_files(stream: BinaryIO, manifest: Manifest) -> None:
    """Read all files, and keep nothing.

    Raises
    ------
    BundleDamagedError, BundleCutOffError
    """
    for file in manifest.files:
        for _ in file_blocks(stream, file):
            pass
