"""A disk whose power can be cut: it has what was synced, and of the rest whatever it likes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tests.integration.filelog import Cut, Made, Operation, Removed, Renamed, Said, Synced, Wrote

SECTOR_BYTES = 512
"""Written whole or not at all."""
Fate: TypeAlias = Literal["all", "lost", "nameless", "torn", "some"]
FATES: tuple[Fate, ...] = get_args(Fate)
_FOR_PROCESSES_ONLY = "-shm"
"""SQLite's index of its log, which it makes anew when it finds nobody else: memory more than a file."""


@dataclass(eq=False)
class _File:
    """A file's content as it is on the disk for sure, and what was done to it since."""

    synced: bytes = b""
    pending: list[Wrote | Cut] = field(default_factory=list)
    is_directory: bool = False

    def content(self, fate: Fate, rng: random.Random) -> bytes:
        match fate:
            case "all":
                return _changed(self.synced, self.pending)
            case "lost" | "nameless":
                return self.synced
            case "torn":
                *whole, last = self.pending or [Cut(Path(), len(self.synced))]
                return _changed(self.synced, [*whole, *_torn(last, rng)])
            case "some":
                kept = [part for each in self.pending if rng.random() < 0.6 for part in _torn(each, rng)]
                return _changed(self.synced, kept)


def _torn(change: Wrote | Cut, rng: random.Random) -> list[Wrote | Cut]:
    """Give the part of a change that reached the disk: some first sectors, rarely all of them."""
    if isinstance(change, Cut):
        return [change]
    sectors = -(-len(change.content) // SECTOR_BYTES)
    length = rng.randint(0, sectors) * SECTOR_BYTES
    return [Wrote(change.path, change.offset, change.content[:length])] if length else []


def _changed(content: bytes, changes: Sequence[Wrote | Cut]) -> bytes:
    new = bytearray(content)
    for change in changes:
        if isinstance(change, Cut):
            del new[change.length :]
            new += bytes(change.length - len(new))
        else:
            new += bytes(max(0, change.offset - len(new)))
            new[change.offset : change.offset + len(change.content)] = change.content
    return bytes(new)


_NameChange: TypeAlias = Made | Removed | Renamed


class Disk:
    """The files below a folder, as operations make them."""

    def __init__(self) -> None:
        self._names: dict[Path, _File] = {}
        self._synced_names: dict[Path, _File] = {}
        self._pending_names: list[tuple[_NameChange, _File]] = []

    @classmethod
    def holding(cls, folder: Path) -> "Disk":
        """Give a disk with everything that is in a folder now."""
        disk = cls()
        for path in sorted(folder.rglob("*")):
            is_directory = path.is_dir()
            content = b"" if is_directory else path.read_bytes()
            disk._names[path] = _File(content, is_directory=is_directory)
        disk._synced_names = dict(disk._names)
        return disk

    def apply(self, operation: Operation) -> None:
        """Do what a process did."""
        match operation:
            case Said():
                pass
            case Synced(path):
                self._sync(path)
            case Wrote(path) | Cut(path):
                if path in self._names:  # not one that has no name any more
                    self._names[path].pending.append(operation)
            case Made(path, directory):
                self._rename(operation, _File(is_directory=directory))
            case Removed(path) | Renamed(path):
                if path in self._names:
                    self._rename(operation, self._names[path])

    def _rename(self, operation: _NameChange, file: _File) -> None:
        _set_name(self._names, operation, file)
        self._pending_names.append((operation, file))

    def _sync(self, path: Path) -> None:
        file = self._names.get(path)
        if file is not None and not file.is_directory:
            file.synced, file.pending = _changed(file.synced, file.pending), []
            return
        for operation, named in self._pending_names:
            if operation.path.parent == path:
                _set_name(self._synced_names, operation, named)
        self._pending_names = [each for each in self._pending_names if each[0].path.parent != path]

    def remains(self, fate: Fate, rng: random.Random) -> dict[Path, bytes]:
        """Give the files that are there after a power cut now.

        Parameters
        ----------
        fate
            Of what was not synced. ``all``: the disk has it. ``lost``: it has the names, not the contents.
            ``nameless``: neither. ``torn``: the last write to each file has reached it in part. ``some``: any
            of the writes have, each whole or in part, and the first few changes of names.
        """
        names = self._names
        if fate == "nameless":
            names = self._synced_names
        elif fate == "some":
            names = dict(self._synced_names)
            for operation, file in self._pending_names[: rng.randint(0, len(self._pending_names))]:
                _set_name(names, operation, file)
        return {
            path: file.content(fate, rng)
            for path, file in names.items()
            if not file.is_directory and not path.name.endswith(_FOR_PROCESSES_ONLY)
        }


def _set_name(names: dict[Path, _File], operation: _NameChange, file: _File) -> None:
    match operation:
        case Made(path):
            names[path] = file
        case Removed(path):
            names.pop(path, None)
        case Renamed(path, new):
            names.pop(path, None)
            names[new] = file
