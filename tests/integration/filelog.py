"""What a process does to its files, in order, as strace saw it.

Knows the system calls and their notation, not what the files mean. Everything that the process prints is in
the same order, so that it can be told what was said before which write.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.brokers import PATIENCE_S
from tests.integration.processes import CHECKOUT, HarnessError, environment

_CALLS = (
    "openat,pwrite64,write,fsync,fdatasync,ftruncate,truncate,unlink,unlinkat,rename,renameat,renameat2,"
    "mkdir,mkdirat,rmdir"
)
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)")
_LONGEST = 1 << 26
_HANDLE = re.compile(r"^(\d+)<([^>]*)>")
_HEX = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Said:
    """The process printed a line."""

    line: str


@dataclass(frozen=True, slots=True)
class Made:
    """A file, or a directory, has a name for the first time."""

    path: Path
    directory: bool = False


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes of a file are others than before."""

    path: Path
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A file has another length."""

    path: Path
    length: int


@dataclass(frozen=True, slots=True)
class Synced:
    """What was done to a file, or to the names in a directory, is to be on the disk now."""

    path: Path


@dataclass(frozen=True, slots=True)
class Removed:
    """A name is gone."""

    path: Path


@dataclass(frozen=True, slots=True)
class Renamed:
    """A file has another name, and who had that has none."""

    path: Path
    new: Path


Operation: TypeAlias = Said | Made | Wrote | Cut | Synced | Removed | Renamed


def why_not() -> str | None:
    """Give the reason why processes cannot be watched here, None if they can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed (apt-get install strace)"
    tried = subprocess.run([strace, "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        return f"strace may not watch processes here: {tried.stderr.strip().splitlines()[0]}"
    return None


def watch(command: Sequence[str], folder: Path, log: Path) -> list[Operation]:
    """Run a command to its end; give what it did within `folder`, and what it printed.

    Raises
    ------
    HarnessError
        When it fails.
    """
    reader = _Reader({folder.resolve(), *folder.resolve().rglob("*")})
    strace = ["strace", "-f", "-y", "-xx", "-s", str(_LONGEST), "-e", f"trace={_CALLS}", "-o", str(log)]
    done = subprocess.run(
        [*strace, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env=environment(),
        timeout=4.0 * PATIENCE_S,
    )
    if done.returncode:
        raise HarnessError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    with log.open(encoding="ascii") as lines:
        return [each for each in reader.read(lines) if _within(each, folder.resolve())]


def _within(operation: Operation, folder: Path) -> bool:
    return isinstance(operation, Said) or operation.path.is_relative_to(folder)


class _Reader:
    """Makes operations of lines; keeps where `write` goes on in each open file, and which files there are.

    Parameters
    ----------
    known : set of Path
        Those that are there at the beginning.
    """

    def __init__(self, known: set[Path]) -> None:
        self._offsets: dict[int, int] = {}
        self._known = known

    def read(self, lines: Iterator[str]) -> Iterator[Operation]:
        for line in lines:
            found = _LINE.match(line)
            if found is None:  # a signal, an exit
                continue
            call, arguments, returned = found.groups()
            if returned != "?" and int(returned.split()[0]) >= 0:
                yield from self._operations(call, _split(arguments), int(returned))

    def _operations(self, call: str, arguments: list[str], returned: int) -> Iterator[Operation]:
        match call:
            case "openat":
                yield from self._opened(_place(*arguments[:2]), arguments[2], returned)
            case "pwrite64":
                yield Wrote(_path(arguments[0]), int(arguments[3]), _bytes(arguments[1])[:returned])
            case "write":
                yield from self._wrote(arguments, returned)
            case "fsync" | "fdatasync":
                yield Synced(_path(arguments[0]))
            case "ftruncate":
                yield Cut(_path(arguments[0]), int(arguments[1]))
            case "truncate":
                yield Cut(Path(_text(arguments[0])), int(arguments[1]))
            case "mkdir" | "mkdirat":
                place = Path(_text(arguments[0])) if call == "mkdir" else _place(*arguments[:2])
                yield from self._made(place, directory=True)
            case "unlink" | "rmdir" | "unlinkat":
                place = _place(*arguments[:2]) if call == "unlinkat" else Path(_text(arguments[0]))
                yield from self._gone(place)
            case "rename":
                yield from self._renamed(Path(_text(arguments[0])), Path(_text(arguments[1])))
            case "renameat" | "renameat2":
                yield from self._renamed(_place(*arguments[:2]), _place(*arguments[2:4]))

    def _opened(self, path: Path, flags: str, handle: int) -> Iterator[Operation]:
        self._offsets[handle] = 0
        if "O_CREAT" in flags:
            yield from self._made(path)
        if "O_TRUNC" in flags:
            yield Cut(path, 0)

    def _made(self, path: Path, *, directory: bool = False) -> Iterator[Operation]:
        if path not in self._known:
            self._known.add(path)
            yield Made(path, directory)

    def _gone(self, path: Path) -> Iterator[Operation]:
        self._known.discard(path)
        yield Removed(path)

    def _renamed(self, path: Path, new: Path) -> Iterator[Operation]:
        self._known.discard(path)
        self._known.add(new)
        yield Renamed(path, new)

    def _wrote(self, arguments: list[str], returned: int) -> Iterator[Operation]:
        handle, content = _handle(arguments[0]), _bytes(arguments[1])[:returned]
        if handle == 1:
            for line in content.decode().splitlines():
                yield Said(line)
            return
        offset = self._offsets.get(handle, 0)
        self._offsets[handle] = offset + returned
        yield Wrote(_path(arguments[0]), offset, content)


def _split(arguments: str) -> list[str]:
    # With -xx there is no comma within a text.
    return [each.strip() for each in arguments.split(", ")]


def _handle(argument: str) -> int:
    found = _HANDLE.match(argument)
    if found is None:
        raise HarnessError(f"strace names no handle in {argument[:80]!r}")
    return int(found[1])


def _path(argument: str) -> Path:
    found = _HANDLE.match(argument)
    if found is None:
        raise HarnessError(f"strace names no file in {argument[:80]!r}")
    return Path(bytes.fromhex("".join(_HEX.findall(found[2]))).decode())


def _place(folder: str, name: str) -> Path:
    """Give where a name leads that is relative to an open folder, or to none (``AT_FDCWD``)."""
    path = Path(_text(name))
    return _path(folder) / path if _HANDLE.match(folder) and not path.is_absolute() else path


def _bytes(argument: str) -> bytes:
    if not (argument.startswith('"') and argument.endswith('"')):
        raise HarnessError(f"strace has shortened {argument[-80:]!r}")
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


def _text(argument: str) -> str:
    return _bytes(argument).decode()
