"""Many devices at once: their bundles made into a folder or an archive, whole or not at all.

Everything is written into ``.NAME.unfinished`` beside where it goes, and renamed when it is complete and on
the disk. A run that is cut off, by whatever, leaves at most that folder (mode 0700) and reserved ids; the
same call, given again, makes everything anew for the same ids, and revokes what the first had been issued.
"""

import csv
import io
import os
import shutil
import tarfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

from broker import configfile
from broker.authority.authority import Authority
from broker.authority.batches import MOST_DEVICES, Batch
from broker.authority.bundle import MODES, Bundles
from broker.errors import BatchNotGenuineError, ConfigError, InputError, InUseError, NotWritableError
from broker.protocol.signatures import provisioned_bytes
from broker.storage import hold, make_directory, named_failures, read_file, sync_directory, sync_file
from edge.config import FILES, DeviceConfig
from firmware_tools.batch import (
    DEVICES,
    MANIFEST,
    SIGNATURE,
    FileFacts,
    Manifest,
    check,
    facts_of,
    signature_file,
)
from trainer.errors import DataFormatError, ParameterError

_AT_ONCE = 1_000
"""Certificates that the register is written for together."""
_CLAIMS_HEADER = ("device", "claim", "until")
Form = Literal["folder", "archive", "claims"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes
    ----------
    out : Path
        Where it goes; nothing may be there.
    form : str
        ``folder``, ``archive``, or ``claims``: a list of lines that devices enrol with.
    broker : str
        The broker's address as devices reach it; for claims, the enrolment server's: ``HOST:PORT``.
    days : int
        Validity of certificates.
    devices : tuple of str, optional
        Ids of the caller's choice; without them `count` are drawn that begin with `prefix`.
    renew : bool
        New certificates for devices that there are.
    overlap : timedelta, optional
        With `renew`: after this the certificates that they have are revoked.
    settings : str
        Lines of TOML that each device's configuration begins with.
    claim_days : float
        How long a claim may be spent.

    Raises
    ------
    ParameterError
        When a number is out of range.
    """

    out: Path
    form: Form
    broker: str
    days: int
    devices: tuple[str, ...] | None = None
    prefix: str = "device"
    count: int = 0
    renew: bool = False
    overlap: timedelta | None = None
    settings: str = ""
    claim_days: float = 7.0

    def __post_init__(self) -> None:
        count = self.count if self.devices is None else len(self.devices)
        if not 1 <= count <= MOST_DEVICES:
            raise ParameterError(f"{count} devices are asked for; a batch is of 1 to {MOST_DEVICES}")

    @property
    def request(self) -> dict[str, object]:
        """What makes two calls the same."""
        return {
            "out": str(self.out.absolute()),
            "form": self.form,
            "renew": self.renew,
            "prefix": self.prefix,
            "count": self.count,
        }


def parse_ids(content: bytes, source: str) -> tuple[str, ...]:
    """Read ids, one a line; empty lines and those that begin with # do not count.

    Raises
    ------
    DataFormatError
        When it is no text, or an id is there twice.
    """
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataFormatError(source, None, "is no text") from error
    places: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in places:
            raise DataFormatError(source, number, f"{name[:80]!r} was in line {places[name]} already")
        places[name] = number
    return tuple(places)


def read_settings(path: Path) -> str:
    """Read settings that all devices get: entries of a device's ``config.toml``.

    Raises
    ------
    ConfigError
        When it is no TOML, has what is each device's own, or a device would not take an entry.
    FileUnreadableError
    """
    try:
        text = read_file(path).decode()
        entries = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    own = {"device_id": "any", "fleet": "any", "broker": "mqtts://localhost"}
    if given := {*own, *FILES} & entries.keys():
        raise ConfigError(f"{path}: {min(given)} is each device's own; take it out")
    configfile.require_valid(DeviceConfig, own | entries, str(path))
    return text


def provision(authority: Authority, order: Order, now: datetime, say: Callable[[str], None]) -> Batch:
    """Make a batch, or finish one that was cut off.

    Raises
    ------
    InputError
        When something is there already, or an id was given before.
    InUseError
        When another process makes the same batch.
    NotWritableError, DiskFullError, CorruptError, ParameterError
    """
    out = order.out
    make_directory(out.absolute().parent)
    with _staging(out) as staging:
        if os.path.lexists(out):
            raise InputError(f"{out} exists and was left as it was; name another place")
        batch = _ready(authority, order, staging)
        if batch is None:
            try:
                with named_failures(out):
                    batch = _made(authority, order, staging, now, say)
            except BaseException:
                _clear(staging)
                raise
        with named_failures(out):
            _place(order, staging).rename(out)
        sync_directory(out.absolute().parent)
        return batch


def _made(
    authority: Authority, order: Order, staging: Path, now: datetime, say: Callable[[str], None]
) -> Batch:
    """Make all of a batch in `staging`; when this ends, its ids are given for good."""
    _clear(staging)
    batch, cut_off = authority.reserve(order.request, order.devices, now)
    if cut_off:
        say(f"{order.out} was begun and not finished; it is made anew for the same {len(batch.devices)} ids")
        earlier = authority.device_names()
        # For new devices these are certificates whose keys were with the run that was cut off.
        if not order.renew and (issued := [each for each in batch.devices if each in earlier]):
            authority.revoke(issued, now)
    place = _place(order, staging)
    if order.form == "folder":
        _sign(authority, order, batch, _Folder(place), now)
        os.sync()  # 50,000 files: one by one would take minutes
    elif order.form == "archive":
        _sign(authority, order, batch, _Archive(place, batch.name, now), now)
        sync_file(place)
    else:
        _write_claims(authority, order, batch, place, now)
        sync_file(place)
    # Before it is moved to where it may be taken from: what somebody may have taken is never made anew.
    return authority.finish(batch)


def _place(order: Order, staging: Path) -> Path:
    """Give what is moved to its place in the end."""
    return staging if order.form == "folder" else staging / order.form


def _ready(authority: Authority, order: Order, staging: Path) -> Batch | None:
    """Give the batch that a run has finished and not come to move to its place; None if there is none."""
    place = _place(order, staging)
    if not (place / SIGNATURE if order.form == "folder" else place).exists():
        return None
    finished = [batch for batch in authority.batches() if batch.finished and batch.request == order.request]
    if order.form == "claims":
        with place.open(encoding="ascii", newline="") as file:
            devices = tuple(row[0] for row in csv.reader(file) if row)[1:]
        return next((batch for batch in finished if batch.devices == devices), None)
    try:
        name = check(place, authority.head_keys()).batch
    except BatchNotGenuineError:
        return None
    return next((batch for batch in finished if batch.name == name), None)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Give a folder beside `out`, of this process alone; if it is empty in the end it is taken away."""
    staging = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    with named_failures(staging):
        staging.mkdir(mode=0o700, exist_ok=True)
        staging.chmod(0o700)
    held = hold(staging)
    try:
        if not staging.exists() or not os.path.samestat(os.fstat(held), staging.stat()):
            raise InUseError(f"{out} was being made by another process; look whether it is there now")
        yield staging
    finally:
        with suppress(OSError):
            staging.rmdir()
        os.close(held)


def _clear(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


class _Place(Protocol):
    def put(self, name: str, content: bytes, mode: int) -> None:
        """Write a file; `name` is its path below the batch's folder."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, content: bytes, mode: int) -> None:
        path = self._path / name
        for parent in reversed(path.relative_to(self._path).parents[:-1]):
            (self._path / parent).mkdir(mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if os.fstat(handle).st_mode & 0o077 & ~mode:
                raise NotWritableError(
                    f"{self._path.parent} is on a file system where files are open to all; name another place"
                )

    def close(self) -> None:
        """Nothing is left to do."""


class _Archive:
    def __init__(self, path: Path, root: str, now: datetime) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(handle, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in close
        self._root = root
        self._seconds = int(now.timestamp())
        self._folders: set[str] = set()

    def put(self, name: str, content: bytes, mode: int) -> None:
        full = f"{self._root}/{name}"
        parts = full.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in self._folders:
                self._folders.add(folder)
                self._add(folder, b"", 0o700, tarfile.DIRTYPE)
        self._add(full, content, mode, tarfile.REGTYPE)

    def _add(self, name: str, content: bytes, mode: int, kind: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.type, member.mtime = len(content), mode, kind, self._seconds
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        with self._file:
            self._tar.close()


def _sign(authority: Authority, order: Order, batch: Batch, place: _Place, now: datetime) -> None:
    """Write all bundles of a batch, and what says that they are all."""
    try:
        files = _written(authority, order, batch.devices, place, now)
        manifest = Manifest(fleet=authority.fleet, batch=batch.name, made_at=batch.made_at, files=files)
        content = manifest.encoded()
        place.put(MANIFEST, content, 0o644)
        signature = authority.sign(provisioned_bytes(content, authority.fleet))
        place.put(SIGNATURE, signature_file(*signature), 0o644)
    finally:
        place.close()


def _write_claims(authority: Authority, order: Order, batch: Batch, path: Path, now: datetime) -> None:
    """Write a line for each device; what can be spent is in the authority before it is in the file."""
    host, _, port = order.broker.rpartition(":")
    until = now + timedelta(days=order.claim_days)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_CLAIMS_HEADER)
        for names in _in_parts(batch.devices):
            for claim in authority.give_claims(names, until, order.days):
                there = replace(claim, host=host, port=int(port))
                lines.writerow((claim.device, there.text(), until.isoformat(timespec="seconds")))


def _in_parts(devices: Sequence[str]) -> Iterator[Sequence[str]]:
    return (devices[start : start + _AT_ONCE] for start in range(0, len(devices), _AT_ONCE))


def _written(
    authority: Authority, order: Order, devices: Sequence[str], place: _Place, now: datetime
) -> dict[str, FileFacts]:
    files, bundles = {}, Bundles(authority, order.broker, order.settings)
    for names in _in_parts(devices):
        made = authority.issue_reserved(names, now, order.days, order.overlap)
        for device, issued in zip(names, made, strict=True):
            for name, content in bundles.files(device, issued).items():
                path, mode = f"{DEVICES}/{device}/{name}", MODES.get(name, 0o644)
                place.put(path, content, mode)
                files[path] = facts_of(content, mode)
    return files
