"""What a provisioned batch holds, signed: made as its files are written, and checked where it arrives.

A batch is a folder, or a tar archive with that folder in it::

    NAME/manifest.json    fleet, batch, when, and of every file its size, mode and SHA-256
         manifest.sig     the manifest's Ed25519 signature, by the key of the fleet's heads
         devices/ID/...   each device's bundle

Everything is read with a bound, and nothing is unpacked: what is in an archive is judged before anything of
it is on the disk. Whoever checks needs the fleet's public keys and neither a secret nor a library.
"""

import hashlib
import json
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from broker.authority.batches import MOST_DEVICES
from broker.errors import BatchNotGenuineError, FileUnreadableError
from broker.protocol.ed25519 import verify
from broker.protocol.signatures import provisioned_bytes
from trainer.errors import ParameterError

FORMAT = "pfedrec-provision/1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
DEVICES = "devices"
MOST_FILE_BYTES = 256 * 1024
_MOST_MANIFEST_BYTES = 16 * 1024 * 1024
_MOST_FILES = 8 * MOST_DEVICES + 2
"""A bundle has five files."""
_SIGNATURE = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """A file: size in bytes, permission bits, SHA-256 in hexadecimal digits."""

    size: int
    mode: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What is in a batch.

    Attributes
    ----------
    files : dict of str to FileFacts
        By path below the batch's folder, but for the manifest and its signature.
    """

    fleet: str
    batch: str
    made_at: str
    files: dict[str, FileFacts]
    format: str = FORMAT

    @property
    def devices(self) -> list[str]:
        """The ids in it, in order."""
        return list(
            dict.fromkeys(name.split("/")[1] for name in self.files if name.startswith(f"{DEVICES}/"))
        )

    def encoded(self) -> bytes:
        """Give its file."""
        return f"{json.dumps(asdict(self))}\n".encode()


def facts_of(content: bytes, mode: int) -> FileFacts:
    """Describe a file."""
    return FileFacts(size=len(content), mode=mode, sha256=hashlib.sha256(content).hexdigest())


def signature_file(public: bytes, signature: bytes) -> bytes:
    """Give the file of a signature and of the key that made it."""
    return f"ed25519 {public.hex()} {signature.hex()}\n".encode()


def check(path: Path, keys: tuple[bytes, ...]) -> Manifest:
    """Give what is in a batch, a folder or an archive, after all of it was checked.

    Parameters
    ----------
    keys : tuple of bytes
        The fleet's public keys (32 bytes each); one of them must have signed it.

    Raises
    ------
    BatchNotGenuineError
        When it is none, not whole, was changed, has more in it, or is signed by somebody else.
    FileUnreadableError
    """
    found: dict[str, FileFacts] = {}
    heads: dict[str, bytes] = {}
    for name, mode, content in _members(path):
        if len(content) > _bound(name) or name in found or name in heads or len(found) > _MOST_FILES:
            raise BatchNotGenuineError(f"{path}: {name} is too large, is there twice, or is one too many")
        if name in (MANIFEST, SIGNATURE):
            heads[name] = content
        else:
            found[name] = facts_of(content, mode)
    manifest = _signed(path, heads, keys)
    for name, facts in manifest.files.items():
        if name not in found:
            raise BatchNotGenuineError(f"{path}: {name} is missing")
        if (found[name].size, found[name].sha256) != (facts.size, facts.sha256):
            raise BatchNotGenuineError(f"{path}: {name} is not what was signed")
        if found[name].mode & 0o7077 & ~facts.mode:
            raise BatchNotGenuineError(f"{path}: {name} is open to others; chmod {facts.mode:o} it")
    if extra := found.keys() - manifest.files.keys():
        raise BatchNotGenuineError(f"{path}: {min(extra)} was not in what was signed")
    return manifest


def _signed(path: Path, heads: dict[str, bytes], keys: tuple[bytes, ...]) -> Manifest:
    match = _SIGNATURE.fullmatch(heads.get(SIGNATURE, b""))
    content = heads.get(MANIFEST)
    if match is None or content is None:
        raise BatchNotGenuineError(
            f"{path} has no {MANIFEST} with its {SIGNATURE}: it is no batch, or half of one"
        )
    public, signature = (bytes.fromhex(part.decode()) for part in match.groups())
    manifest = _parsed(path, content)
    if public not in keys:
        raise BatchNotGenuineError(f"{path} is signed by somebody whose key is not among those given")
    try:
        signed = provisioned_bytes(content, manifest.fleet)
    except ParameterError as error:
        raise BatchNotGenuineError(f"{path}: {error}") from error
    if not verify(public, signed, signature):
        raise BatchNotGenuineError(f"{path}: {MANIFEST} is not what was signed")
    return manifest


def _parsed(path: Path, content: bytes) -> Manifest:
    try:
        parsed = json.loads(content)
        if parsed["format"] != FORMAT:
            raise BatchNotGenuineError(f"{path} is of a later release: {str(parsed['format'])[:40]!r}")
        files = {name: FileFacts(**facts) for name, facts in parsed.pop("files").items()}
        return Manifest(**parsed, files=files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BatchNotGenuineError(f"{path}: {MANIFEST} cannot be read") from error


def _bound(name: str) -> int:
    return _MOST_MANIFEST_BYTES if name == MANIFEST else MOST_FILE_BYTES


def _members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Give every file: its path below the batch's folder, its permission bits, and what is in it.

    Of one that is too large, a byte more than is allowed.
    """
    if not path.is_dir():
        yield from _archived(path)
        return
    for each in sorted(path.rglob("*")):
        mode = each.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise BatchNotGenuineError(f"{each} is neither a file nor a folder")
        name = each.relative_to(path).as_posix()
        try:
            with each.open("rb") as file:
                yield name, stat.S_IMODE(mode), file.read(_bound(name) + 1)
        except OSError as error:
            raise FileUnreadableError(f"{each} cannot be read: {error.strerror}") from error


def _archived(path: Path) -> Iterator[tuple[str, int, bytes]]:
    root = None
    try:
        with path.open("rb") as source, tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                first, *rest = member.name.split("/")
                root = root or first
                # Nothing may lie outside of the one folder, wherever it is unpacked.
                if first != root or not {"", ".", ".."}.isdisjoint((first, *rest)):
                    raise BatchNotGenuineError(f"{path}: {member.name[:80]!r} does not belong there")
                if member.isdir():
                    continue
                file = archive.extractfile(member) if member.isreg() and rest else None
                if file is None:
                    raise BatchNotGenuineError(f"{path}: {member.name[:80]!r} does not belong there")
                name = "/".join(rest)
                yield name, member.mode, file.read(_bound(name) + 1)
    except (tarfile.TarError, EOFError) as error:
        raise BatchNotGenuineError(f"{path} is no archive, or half of one") from error
    except OSError as error:
        raise FileUnreadableError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error
