"""The two slots in a device's directory: a release's files written, checked, and pointed at.

::

    DIR/slots/state      what is where (`edge.slotstate`)
              a/ b/      manifest, model.tflite, settings.toml, app/...
    DIR/current          a link to the slot in use; none where none is

Whoever changes the state holds a lock on ``slots`` for a moment; whoever writes a slot holds the file
``slots/writing`` as long as that takes. ``state`` alone decides; the link follows it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from broker.errors import (
    BundleDamagedError,
    CorruptError,
    DiskFullError,
    FileUnreadableError,
    InUseError,
    PFedRecError,
)
from broker.protocol.releases import (
    MODEL,
    SETTINGS,
    Manifest,
    ReleaseFile,
    SignedManifest,
    file_blocks,
    read_head,
)
from broker.storage import (
    hold,
    lock_file,
    make_directory,
    named_failures,
    open_file,
    read_file,
    sync_directory,
    write_atomically,
)
from edge.slotstate import Slot, SlotState, from_text, to_text

SLOTS_NAME, CURRENT_NAME = "slots", "current"
_MANIFEST, _STATE, _WRITING = "manifest", "state", "writing"
_WAIT_S = 30.0
_SPARE_BYTES = 256 * 1024
"""What is left free beside a release."""


class Slots:
    """The slots of a device's directory, which may have none yet.

    Parameters
    ----------
    directory : Path
        The device's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / SLOTS_NAME

    def state(self) -> SlotState:
        """Give what is where; beginning anew where that cannot be read any more.

        Nothing is lost then but what the slots had: the package's own always works. The highest release is
        what the manifests tell, so that nothing older gets in.
        """
        try:
            return from_text(read_file(self.path / _STATE).decode(), str(self.path / _STATE))
        except FileUnreadableError:
            if not self.path.exists():
                return SlotState()
        except (CorruptError, UnicodeDecodeError):
            pass
        return SlotState(highest=max((self._number(slot) for slot in ("a", "b")), default=0))

    def mark(self) -> tuple[int, int]:
        """Give what is another one as soon as the state is."""
        try:
            found = (self.path / _STATE).stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def change(self, step: Callable[[SlotState], SlotState]) -> SlotState:
        """Store the state after a step; give it. What is as before is not written.

        Raises
        ------
        InUseError, DiskFullError, NotWritableError
            And whatever `step` raises; nothing is stored then.
        """
        if not self.path.exists():
            make_directory(self.path)
        held = hold(self.path, wait_s=_WAIT_S)
        try:
            before = self.state()
            after = step(before)
            if after != before or not (self.path / _STATE).exists():
                write_atomically(self.path / _STATE, to_text(after).encode())
        finally:
            os.close(held)
        return after

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep others from writing a slot.

        Raises
        ------
        InUseError, DiskFullError, NotWritableError
        """
        make_directory(self.path)
        with lock_file(
            self.path / _WRITING, f"another update of {self._directory} is under way; wait for it"
        ):
            yield

    def write(self, slot: Slot, signed: SignedManifest, stream: BinaryIO) -> None:
        """Write a release to a slot that is empty by the state, its files as the stream has them.

        Raises
        ------
        BundleDamagedError, BundleCutOffError
            When a file is not what was signed; the slot has nothing of use then.
        DiskFullError, NotWritableError
        """
        folder = self.path / slot
        with named_failures(folder):
            self._clear(folder)
            free = shutil.disk_usage(self.path).free
            if free < signed.size + _SPARE_BYTES:
                raise DiskFullError(
                    f"the release takes {signed.size} bytes, and {free} are free for {folder}; free some"
                )
            folder.mkdir()
            made = {folder}
            for file in signed.manifest.files:
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                made.update(parent for parent in target.parents if parent.is_relative_to(folder))
                _write_file(target, file, file_blocks(stream, file))
        for each in made:
            sync_directory(each)
        sync_directory(self.path)
        write_atomically(folder / _MANIFEST, signed.head)

    def _clear(self, folder: Path) -> None:
        if folder.exists():
            # The manifest first: what is half removed is no release.
            (folder / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
            sync_directory(self.path)

    def manifest(self, slot: Slot) -> Manifest:
        """Give the manifest of a slot.

        Raises
        ------
        BundleError, FileUnreadableError
            When there is none, or it is damaged.
        """
        return self.signed(slot).manifest

    def signed(self, slot: Slot) -> SignedManifest:
        """Give the manifest of a slot with its signature; see `manifest`."""
        return read_head(read_file(self.path / slot / _MANIFEST))

    def _number(self, slot: Slot) -> int:
        with suppress(PFedRecError):
            return self.manifest(slot).release
        return 0

    def check(self, slot: Slot) -> Manifest:
        """Read all of a slot's files; give its manifest.

        Raises
        ------
        BundleError, FileUnreadableError
            When one is missing or damaged.
        """
        manifest = self.manifest(slot)
        for file in manifest.files:
            path = self.path / slot / file.path
            with open_file(path) as stream:
                for _ in file_blocks(stream, file):
                    pass
                if stream.read(1):
                    raise BundleDamagedError(f"{path} is longer than it was")
        return manifest

    def point(self, slot: Slot | None) -> None:
        """Let ``current`` lead to a slot, or away.

        Raises
        ------
        NotWritableError, DiskFullError
        """
        link = self._directory / CURRENT_NAME
        wanted = None if slot is None else f"{SLOTS_NAME}/{slot}"
        found = str(link.readlink()) if link.is_symlink() else None
        if found == wanted:
            return
        with named_failures(link):
            if wanted is None:
                link.unlink()
            else:
                temporary = self._directory / f".{CURRENT_NAME}.{os.getpid()}"
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(wanted)
                temporary.replace(link)
        sync_directory(self._directory)

    def model(self) -> bytes | None:
        """Give the scorer of the release in use, None if it has none.

        Raises
        ------
        CorruptError
            When it is damaged: a damaged one must not be loaded.
        """
        return self._content(MODEL)

    def settings(self) -> bytes | None:
        """Give the settings of the release in use, None if it has none; see `model`."""
        return self._content(SETTINGS)

    def _content(self, path: str) -> bytes | None:
        slot = self.state().in_use if self.path.exists() else None
        if slot is None:
            return None
        try:
            file = self.manifest(slot).file(path)
            if file is None:
                return None
            with open_file(self.path / slot / path) as stream:
                return b"".join(file_blocks(stream, file))
        except PFedRecError as error:
            raise CorruptError(
                f"{self.path / slot / path} is damaged; the next edge-client start goes back to another one"
            ) from error


def require_no_trial_in_use(state: SlotState, *, running: bool) -> None:
    """Refuse to write over a release that is being tried.

    Raises
    ------
    InUseError
    """
    if running and state.on_trial:
        raise InUseError(
            f"release {state.spare_release} is being tried; install another one when that is confirmed or "
            "rolled back (edge-client status), or stop edge-client start first"
        )


def _write_file(path: Path, file: ReleaseFile, blocks: Iterator[bytes]) -> None:
    mode = 0o755 if file.executable else 0o644
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as target:
        target.writelines(blocks)
        target.flush()
        os.fsync(target.fileno())
