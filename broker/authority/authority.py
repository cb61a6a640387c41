"""A fleet's authority in a directory: who has a certificate, who has lost it, and the keys of heads.

::

    DIR/ca.pem  ca.key  crl.pem       the authority; its revocation list, which brokers read
        server.pem  server.key        the broker's
        aggregator.pem  .key          the aggregator's, as a client
        head.key  next-head.key       what heads are signed with, now and next
        head_key.pub                  the public halves: what devices pin
        register.json                 every certificate that was issued
        batches/                      ids that were given many at once (`broker.authority.batches`)

Secret files have mode 0600 from the moment they are made, the directory 0700. The register is written before
a certificate leaves this module, so that one that exists can always be revoked. Everything is done under the
directory's lock: the commands of two operators come one after the other.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.authority.batches import Batch, read_batches, require_free, reserve, write_batch
from broker.authority.certificates import Issued, Signer, load_head_key, make_ca, make_head_key
from broker.errors import AlreadyInitialisedError, CorruptError, InputError
from broker.protocol.messages import Head
from broker.protocol.signatures import MAX_KEYS, keys_from_text, keys_to_text, signed_bytes
from broker.protocol.topics import checked_id
from broker.storage import hold, make_directory, read_file, require_initialised, write_atomically
from broker.tls import TlsFiles

REGISTER = "register.json"
CRL = "crl.pem"
BATCHES = "batches"
SERVER_DAYS = 1825
_LOCK_WAIT_S = 30.0
_SECRET = 0o600


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A certificate that was issued.

    Attributes
    ----------
    kind : str
        ``device``, ``aggregator`` or ``server``.
    name : str
        The device's id, or the name within its kind.
    serial : str
        In hexadecimal digits.
    not_after, revoked_at : str
        ISO 8601, UTC; not revoked: None.
    revoke_after : str or None
        When it is to be revoked, as a newer one has taken its place.
    """

    kind: str
    name: str
    serial: str
    not_after: str
    revoked_at: str | None = None
    revoke_after: str | None = None

    @property
    def ends(self) -> datetime:
        """From when on it counts no more; revoked: for ever."""
        if self.revoked_at is not None:
            return datetime.min.replace(tzinfo=UTC)
        return min(map(datetime.fromisoformat, filter(None, (self.not_after, self.revoke_after))))


class Authority:
    """An authority that was made.

    Raises
    ------
    NotInitialisedError, CorruptError
        When it was not, or one of its files is damaged.
    """

    def __init__(self, path: Path) -> None:
        require_initialised(path, REGISTER, "edge-aggregator init --secure")
        self.path = path
        try:
            content = json.loads(read_file(path / REGISTER))
            self.fleet: str = content["fleet"]
            self._hosts: list[str] = content["hosts"]
            self._entries = [Entry(**entry) for entry in content["issued"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{path / REGISTER} cannot be read; restore it from a backup") from error

    @classmethod
    def make(cls, path: Path, fleet: str, hosts: list[str], now: datetime) -> "Authority":
        """Make an authority with its broker's and aggregator's certificates and two keys for heads.

        Parameters
        ----------
        hosts : list of str
            Host names and addresses under which devices reach the broker.

        Raises
        ------
        AlreadyInitialisedError
            When one is there.
        InputError
            When a host name cannot stand in a certificate.
        NotWritableError, DiskFullError
        """
        if (path / REGISTER).exists():
            raise AlreadyInitialisedError(f"{path} holds an authority already; it is left as it is")
        make_directory(path)
        path.chmod(0o700)
        ca = make_ca(fleet, now)
        _write(path / "ca.key", ca.key)
        _write(path / "ca.pem", ca.certificate)
        publics = []
        for name in ("head.key", "next-head.key"):
            secret, public = make_head_key()
            _write(path / name, secret)
            publics.append(public)
        write_atomically(path / "head_key.pub", keys_to_text(tuple(publics)).encode())
        _save(path, fleet, hosts, [])
        made = cls(path)
        with made._changing():
            made._renew(now)
            made._write_revocations(made._signer(), now)
        return made

    @property
    def aggregator_files(self) -> TlsFiles:
        """What the aggregator connects with."""
        return TlsFiles(
            ca=self.path / "ca.pem", cert=self.path / "aggregator.pem", key=self.path / "aggregator.key"
        )

    @property
    def hosts(self) -> list[str]:
        """The names of the broker."""
        return list(self._hosts)

    @property
    def host(self) -> str:
        """The first name of the broker: what devices are told to connect to."""
        return self._hosts[0]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every certificate that was issued, in order."""
        return tuple(self._entries)

    def device_names(self) -> set[str]:
        """Give the devices that ever had a certificate."""
        return {entry.name for entry in self._entries if entry.kind == "device"}

    def head_keys(self) -> tuple[bytes, ...]:
        """Give the public keys of heads, oldest first.

        Raises
        ------
        CorruptError
        """
        source = self.path / "head_key.pub"
        return keys_from_text(read_file(source).decode("utf-8", "replace"), str(source))

    def head_signer(self) -> "HeadSigner":
        """Give what signs heads.

        Raises
        ------
        CorruptError
            When the key's file is damaged.
        """
        try:
            return HeadSigner(read_file(self.path / "head.key"), self.fleet)
        except ValueError as error:
            raise CorruptError(f"{self.path / 'head.key'} is no Ed25519 key") from error

    def sign(self, content: bytes) -> tuple[bytes, bytes]:
        """Sign with the key of heads; give its public half and the signature.

        What is signed must say what it is for (`broker.protocol.signatures`): the key has several.

        Raises
        ------
        CorruptError
            When the key's file is damaged.
        """
        return self.head_signer().sign_bytes(content)

    def issue_device(self, device: str, now: datetime, days: int, overlap: timedelta | None = None) -> Issued:
        """Issue a device's certificate.

        Parameters
        ----------
        overlap : timedelta, optional
            After this those that it has are revoked (`revoke_due`); never unless given.

        Raises
        ------
        ParameterError
            When the id is not allowed.
        InputError
            When it is reserved for a batch that is not finished.
        """
        checked_id(device, "the device id")
        with self._changing():
            require_free(self.path / BATCHES, [device])
            return self._issue("device", [device], now, days, overlap)[0]

    def reserve(
        self, request: dict[str, object], devices: Sequence[str] | None, now: datetime
    ) -> tuple[Batch, bool]:
        """Reserve ids for a batch; tell whether an earlier run had done so, and was cut off.

        `broker.authority.batches.reserve` has the parameters and errors.
        """
        with self._changing():
            return reserve(self.path / BATCHES, request, devices, self.device_names(), now)

    def begun(self, request: dict[str, object]) -> Batch | None:
        """Give the batch that was reserved for a request and is not finished."""
        found = (each for each in read_batches(self.path / BATCHES) if not each.finished)
        return next((each for each in found if each.request == request), None)

    def issue_reserved(
        self, devices: Sequence[str], now: datetime, days: int, overlap: timedelta | None = None
    ) -> list[Issued]:
        """Issue a certificate to each of some devices of a batch; the register is written once."""
        with self._changing():
            return self._issue("device", devices, now, days, overlap)

    def finish(self, batch: Batch) -> None:
        """Note that all of a batch is where it was asked for."""
        with self._changing():
            write_batch(self.path / BATCHES, replace(batch, finished=True))

    def renew(self, now: datetime) -> None:
        """Issue the broker's and the aggregator's certificates anew, in place."""
        with self._changing():
            self._renew(now)

    def revoke(self, devices: Sequence[str], now: datetime, *, but_newest: bool = False) -> int:
        """Revoke all certificates of devices; give how many, and write the list that brokers read.

        Parameters
        ----------
        but_newest : bool
            Leave each device the certificate that was issued last.

        Raises
        ------
        InputError
            When one of them never had any; nothing was revoked.
        """
        with self._changing():
            names = frozenset(devices)
            if unknown := sorted(names - self.device_names()):
                raise InputError(
                    f"no certificate was ever issued to a device {unknown[0]}; nothing was revoked"
                )
            newest = {entry.name: entry.serial for entry in self._entries if entry.kind == "device"}
            return self._revoke(
                lambda entry: (
                    entry.kind == "device"
                    and entry.name in names
                    and not (but_newest and entry.serial == newest[entry.name])
                ),
                now,
            )

    def revoke_due(self, now: datetime) -> int:
        """Revoke the certificates whose overlap with newer ones is over; give how many."""
        with self._changing():
            return self._revoke(lambda entry: entry.revoke_after is not None and entry.ends <= now, now)

    def _revoke(self, which: Callable[[Entry], bool], now: datetime) -> int:
        signer = self._signer()  # before anything is written: its key may be elsewhere
        count = 0
        for place, entry in enumerate(self._entries):
            if entry.revoked_at is None and which(entry):
                self._entries[place] = replace(entry, revoked_at=_moment(now))
                count += 1
        self._save()
        self._write_revocations(signer, now)
        return count

    def rotate_head_key(self) -> bytes:
        """Sign with the next key from now on, and make one more; give that one's public half."""
        with self._changing():
            keys = self.head_keys()
            secret, public = make_head_key()
            # In this order a crash leaves a key that signs and that devices know.
            write_atomically(self.path / "head_key.pub", keys_to_text((*keys, public)[-MAX_KEYS:]).encode())
            _write(self.path / "head.key", read_file(self.path / "next-head.key"))
            _write(self.path / "next-head.key", secret)
            return public

    @contextmanager
    def _changing(self) -> Iterator[None]:
        held = hold(self.path, wait_s=_LOCK_WAIT_S)
        try:
            self._entries = list(Authority(self.path).entries)
            yield
        finally:
            os.close(held)

    def _signer(self) -> Signer:
        try:
            return Signer(read_file(self.path / "ca.pem"), read_file(self.path / "ca.key"))
        except ValueError as error:
            raise CorruptError(f"{self.path / 'ca.key'} or ca.pem is damaged") from error

    def _issue(
        self, kind: str, names: Sequence[str], now: datetime, days: int, overlap: timedelta | None = None
    ) -> list[Issued]:
        signer, made = self._signer(), []
        if overlap is not None:
            self._replace(frozenset(names), now + overlap)
        for name in names:
            try:
                if kind == "server":
                    issued = signer.server(self._hosts, now, days)
                else:
                    issued = signer.client(name if kind == "device" else f"aggregator:{name}", now, days)
            except (ValueError, OverflowError) as error:
                raise InputError(f"no certificate can be made for {name}: {error}") from error
            made.append(issued)
            self._entries.append(
                Entry(kind=kind, name=name, serial=f"{issued.serial:x}", not_after=_moment(issued.not_after))
            )
        self._save()
        return made

    def _replace(self, devices: frozenset[str], at: datetime) -> None:
        """Have the certificates of devices revoked at a time, those that end earlier apart."""
        for place, entry in enumerate(self._entries):
            if entry.kind == "device" and entry.name in devices and entry.ends > at:
                self._entries[place] = replace(entry, revoke_after=_moment(at))

    def _renew(self, now: datetime) -> None:
        for kind, name in (("server", "server"), ("aggregator", "aggregator")):
            (issued,) = self._issue(kind, ["main"], now, SERVER_DAYS)
            _write(self.path / f"{name}.key", issued.key)
            _write(self.path / f"{name}.pem", issued.certificate)

    def _write_revocations(self, signer: Signer, now: datetime) -> None:
        revoked = {
            int(entry.serial, 16): datetime.fromisoformat(entry.revoked_at)
            for entry in self._entries
            if entry.revoked_at is not None
        }
        write_atomically(self.path / CRL, signer.revocations(revoked, now))

    def _save(self) -> None:
        _save(self.path, self.fleet, self._hosts, self._entries)


class HeadSigner:
    """Signs heads with the authority's current key.

    Raises
    ------
    ValueError
        When the key is none.
    """

    def __init__(self, secret: bytes, fleet: str) -> None:
        self._key = load_head_key(secret)
        self._fleet = fleet

    def sign(self, head: Head) -> Head:
        """Give the head with its signature."""
        return replace(head, signature=self._key.sign(signed_bytes(head, self._fleet)))

    def sign_bytes(self, content: bytes) -> tuple[bytes, bytes]:
        """Give the public half of the key (32 bytes) and its signature of `content` (64)."""
        return self._key.public_key().public_bytes_raw(), self._key.sign(content)


def _save(path: Path, fleet: str, hosts: list[str], entries: list[Entry]) -> None:
    # A certificate a line: for people, and as the json module writes 10,000 entries much faster so.
    issued = ",\n".join(json.dumps(_written(entry)) for entry in entries)
    text = f'{{"fleet": {json.dumps(fleet)}, "hosts": {json.dumps(hosts)}, "issued": [\n{issued}\n]}}\n'
    write_atomically(path / REGISTER, text.encode(), mode=_SECRET)


def _written(entry: Entry) -> dict[str, str | None]:
    fields = asdict(entry)
    if entry.revoke_after is None:
        del fields["revoke_after"]  # earlier releases know none
    return fields


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content, mode=_SECRET if path.suffix == ".key" else 0o644)


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
