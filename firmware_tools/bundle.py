"""Making a bundle: a release's files read, listed, signed, and written one after the other.

The release key is not the aggregator's `head.key`: who may publish tables need not be able to give devices
programs. It is best kept where no network reaches.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from broker.authority.certificates import load_head_key, make_head_key
from broker.errors import BundleDamagedError, BundleForbiddenError, InputError, SchemaError
from broker.protocol.releases import (
    APPLICATION,
    BLOCK_BYTES,
    MODEL,
    SETTINGS,
    Manifest,
    ReleaseFile,
    SignedManifest,
    bundle_head,
    file_blocks,
    manifest_bytes,
    read_head,
    signed_bytes,
)
from broker.protocol.signatures import keys_to_text
from broker.storage import (
    make_directory,
    open_file,
    read_file,
    replacing,
    write_atomically,
)
from edge.config import checked_settings

SECRET_NAME, PUBLIC_NAME = "release.key", "release_key.pub"
_TFLITE = b"TFL3"
"""Of a flatbuffer's bytes 4 to 8 (the schema's file identifier)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where a release's files are.

    Attributes
    ----------
    model, settings : Path or None
    application : Path or None
        A folder; all that is in it becomes the application's.
    """

    model: Path | None = None
    settings: Path | None = None
    application: Path | None = None

    def paths(self) -> dict[str, Path]:
        """Give the files by their paths in the release, in order.

        Raises
        ------
        BundleForbiddenError
            When something is neither a file nor a folder, links included.
        FileUnreadableError
        """
        found: dict[str, Path] = {}
        if self.model is not None:
            if read_file(self.model)[4:8] != _TFLITE:
                raise BundleForbiddenError(f"{self.model} is no TFLite model")
            found[MODEL] = self.model
        if self.settings is not None:
            checked_settings(read_file(self.settings), str(self.settings))
            found[SETTINGS] = self.settings
        if self.application is not None:
            for path in _files_below(self.application):
                found[APPLICATION + path.relative_to(self.application).as_posix()] = path
        return dict(sorted(found.items()))


def _files_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind):
            yield path
        elif not stat.S_ISDIR(kind):
            raise BundleForbiddenError(f"{path} is a link or a device; a release has plain files only")


def make_key(folder: Path) -> bytes:
    """Make a release key in a folder; give its public half.

    Raises
    ------
    InputError
        When one is there.
    NotWritableError, DiskFullError
    """
    if (folder / SECRET_NAME).exists():
        raise InputError(f"{folder / SECRET_NAME} exists and was left as it was")
    make_directory(folder)
    secret, public = make_head_key()
    write_atomically(folder / SECRET_NAME, secret, mode=0o600)
    write_atomically(folder / PUBLIC_NAME, keys_to_text((public,), "releases").encode())
    return public


def create(out: Path, manifest: Manifest, paths: dict[str, Path], secret: Path) -> SignedManifest:
    """Sign a release and write its bundle; the same files, manifest and key give the same bytes.

    Parameters
    ----------
    manifest : Manifest
        With the files of `listed`.
    paths : dict of str to Path
        Where they are, in order (`Sources.paths`).
    secret : Path
        The release key.

    Raises
    ------
    InputError
        When the key is none.
    BundleForbiddenError
        When all together is too large.
    BundleDamagedError
        When a file has changed meanwhile.
    FileUnreadableError, NotWritableError, DiskFullError
    """
    try:
        key = load_head_key(read_file(secret))
    except (ValueError, TypeError) as error:
        raise InputError(f"{secret} is no release key; firmware-tools bundle key makes one") from error
    public = key.public_key().public_bytes_raw()
    try:
        head = bundle_head(manifest, public, key.sign(signed_bytes(manifest_bytes(manifest))))
    except SchemaError as error:
        raise BundleForbiddenError(str(error)) from error
    with replacing(out) as target:
        target.write(head)
        for file in manifest.files:
            _copy(paths[file.path], file, target)
    return read_head(head)


def listed(paths: dict[str, Path]) -> tuple[ReleaseFile, ...]:
    """Give a manifest's files, by reading them.

    Raises
    ------
    BundleForbiddenError
        When a path cannot stand in a release.
    FileUnreadableError
    """
    files = []
    for path, source in paths.items():
        digest, size = hashlib.sha256(), 0
        with open_file(source) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
            executable = path.startswith(APPLICATION) and bool(
                os.fstat(stream.fileno()).st_mode & stat.S_IXUSR
            )
        try:
            files.append(ReleaseFile(path=path, size=size, sha256=digest.digest(), executable=executable))
        except SchemaError as error:
            raise BundleForbiddenError(f"{source} cannot be in a release: {error}") from error
    return tuple(files)


def _copy(source: Path, file: ReleaseFile, target: BinaryIO) -> None:
    with open_file(source) as stream:
        try:
            target.writelines(file_blocks(stream, file))
        except BundleDamagedError as error:
            raise BundleDamagedError(f"{source} has changed while the bundle was made; call again") from error
