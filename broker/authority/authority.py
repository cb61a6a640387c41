"""A fleet's authority in a directory: who has a certificate, who has lost it, and the keys of heads.

::

    DIR/ca.pem  ca.key  crl.pem       the authority; its revocation list, which brokers read
        server.pem  server.key        the broker's
        aggregator.pem  .key          the aggregator's, as a client
        NAME-renewed.key              one of these two pairs while it is being replaced
        head.key  next-head.key       what heads are signed with, now and next
        head_key.pub                  the public halves: what devices pin
        register.json                 every certificate that was issued
        batches/                      ids that were given many at once (`broker.authority.batches`)
        claims/                       claims that devices enrol with (`broker.authority.claims`)

Secret files have mode 0600 from the moment they are made, the directory 0700. The register is written before
a certificate leaves this module, so that one that exists can always be revoked. Everything is done under the
directory's lock: the commands of two operators come one after the other.
"""

import hashlib
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from broker.authority.batches import Batch, read_batches, require_free, reserve, write_batch
from broker.authority.certificates import (
    Issued,
    Request,
    Signer,
    load_head_key,
    make_ca,
    make_head_key,
    revoked_serials,
)
from broker.authority.claims import (
    Given,
    draw_code,
    hashed,
    read_claim,
    require_good,
    void,
    write_claim,
    write_claims,
)
from broker.authority.register import Entry, Register, moment, read_register, write_register
from broker.claim import Claim
from broker.errors import AlreadyInitialisedError, CorruptError, FileUnreadableError, InputError
from broker.protocol.messages import Head
from broker.protocol.signatures import MAX_KEYS, keys_from_text, keys_to_text, signed_bytes
from broker.protocol.topics import checked_id
from broker.storage import (
    hold,
    make_directory,
    named_failures,
    read_file,
    require_initialised,
    write_atomically,
)
from broker.tls import TlsFiles

REGISTER = "register.json"
CRL = "crl.pem"
BATCHES, CLAIMS = "batches", "claims"
SERVER_DAYS = 1825
_FIRST_KEYS = 2
_LOCK_WAIT_S = 30.0
_SECRET = 0o600
_OWN = ("server", "aggregator")
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"


class Authority:
    """An authority that was made.

    Raises
    ------
    NotInitialisedError, CorruptError
        When it was not, or one of its files is damaged.
    """

    def __init__(self, path: Path) -> None:
        require_initialised(path, REGISTER, "edge-aggregator init --secure, or restore it from its copy")
        self.path = path
        register = read_register(path / REGISTER)
        self.fleet, self._hosts, self._entries = register.fleet, list(register.hosts), list(register.issued)

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
        write_register(path / REGISTER, Register(fleet, tuple(hosts)))
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

    def fingerprint(self) -> str:
        """Give the SHA-256 of the authority's certificate (DER), in hexadecimal digits."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(read_file(self.path / "ca.pem").decode())).hexdigest()

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
            void(self.path / CLAIMS, device, now)
            return self._issue("device", [device], now, days, overlap)[0]

    def reserve(
        self, request: dict[str, object], devices: Sequence[str] | None, now: datetime
    ) -> tuple[Batch, bool]:
        """Reserve ids for a batch; tell whether an earlier run had done so, and was cut off.

        `broker.authority.batches.reserve` has the parameters and errors.
        """
        with self._changing():
            return reserve(self.path / BATCHES, request, devices, self.device_names(), now)

    def batches(self) -> list[Batch]:
        """Give all batches."""
        return read_batches(self.path / BATCHES)

    def issue_reserved(
        self, devices: Sequence[str], now: datetime, days: int, overlap: timedelta | None = None
    ) -> list[Issued]:
        """Issue a certificate to each of some devices of a batch; the register is written once."""
        with self._changing():
            for device in devices:
                void(self.path / CLAIMS, device, now)
            return self._issue("device", devices, now, days, overlap)

    def give_claims(self, devices: Sequence[str], expires_at: datetime, days: int) -> list[Claim]:
        """Give each of some devices of a batch a claim, instead of one that it had.

        Parameters
        ----------
        days : int
            Validity of the certificate that it is good for.

        Returns
        -------
        list of Claim
            Without a place to ask at: ``localhost``, port 1.
        """
        folder = self.path / CLAIMS
        with self._changing():
            make_directory(folder)
            folder.chmod(0o700)
            authority, expires = self.fingerprint(), moment(expires_at)
            codes = {device: draw_code() for device in devices}
            write_claims(
                folder,
                [
                    Given(device=device, sha256=hashed(code), expires_at=expires, days=days)
                    for device, code in codes.items()
                ],
            )
        return [
            Claim(host="localhost", port=1, device=device, code=code, authority=authority)
            for device, code in codes.items()
        ]

    def enrol(self, device: str, code: str, request: Request, now: datetime) -> bytes:
        """Give a device that brings a claim its certificate (PEM); the same one if it asks again.

        Raises
        ------
        ClaimRefusedError
        """
        folder = self.path / CLAIMS
        with self._changing():
            given = require_good(read_claim(folder, device), code, request.fingerprint, now)
            if given.certificate is not None:
                return given.certificate.encode()
            issued = self._signer().certify(request, device, now, given.days)
            self._register("device", device, issued)
            self._save()
            certificate = issued.certificate.decode()
            write_claim(folder, replace(given, key=request.fingerprint, certificate=certificate))
            return issued.certificate

    def finish(self, batch: Batch) -> Batch:
        """Note that all of a batch is where it was asked for; give it as it is then."""
        finished = replace(batch, finished=True)
        with self._changing():
            write_batch(self.path / BATCHES, finished)
        return finished

    def renew(self, now: datetime, more_hosts: Sequence[str] = ()) -> None:
        """Issue the broker's and the aggregator's certificates anew, in place.

        Parameters
        ----------
        more_hosts : sequence of str
            Names and addresses under which devices reach the broker besides those of before; the first is for
            new devices.

        Raises
        ------
        InputError
            When one cannot stand in a certificate; nothing is changed.
        """
        with self._changing():
            before = self._hosts
            self._hosts = list(dict.fromkeys([*more_hosts, *before]))
            try:
                self._renew(now)
            except InputError:
                self._hosts = before
                raise

    def finish_renewal(self) -> None:
        """Finish a renewal that was killed half way: a certificate fits no key but its own."""
        if any(self._renewed(name).exists() for name in _OWN):
            with self._changing():
                pass  # it finishes them

    def revoke(self, devices: Sequence[str], now: datetime, *, but_newest: bool = False) -> int:
        """Revoke all certificates of devices; give how many, and write the list that brokers read.

        Claims that they have not spent end as well, and count.

        Parameters
        ----------
        but_newest : bool
            Leave each device the certificate that was issued last.

        Raises
        ------
        InputError
            When one of them never had any; nothing was revoked.
        """
        folder = self.path / CLAIMS
        with self._changing():
            names = frozenset(devices)
            strangers = sorted(names - self.device_names())
            if unknown := [each for each in strangers if read_claim(folder, each) is None]:
                raise InputError(
                    f"no certificate was ever issued to a device {unknown[0]}; nothing was revoked"
                )
            voided = sum(void(folder, each, now) for each in names)
            newest = {entry.name: entry.serial for entry in self._entries if entry.kind == "device"}
            return voided + self._revoke(
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

    def mend_revocations(self, now: datetime) -> bool:
        """Write the list that brokers read if it is not what the register says; tell whether it was not.

        A command that was killed between the two leaves them so.
        """
        if self._list_is_right():
            return False
        with self._changing():
            if self._list_is_right():  # somebody was just about to
                return False
            self._write_revocations(self._signer(), now)
            return True

    def _list_is_right(self) -> bool:
        wanted = {int(entry.serial, 16) for entry in self._entries if entry.revoked_at is not None}
        try:
            return revoked_serials(read_file(self.path / CRL)) == wanted
        except (FileUnreadableError, ValueError):
            return False

    def _revoke(self, which: Callable[[Entry], bool], now: datetime) -> int:
        signer = self._signer()  # before anything is written: its key may be elsewhere
        count = 0
        for place, entry in enumerate(self._entries):
            if entry.revoked_at is None and which(entry):
                self._entries[place] = replace(entry, revoked_at=moment(now))
                count += 1
        self._save()
        self._write_revocations(signer, now)
        return count

    @property
    def was_rotated(self) -> bool:
        """Whether a key came after the two that all devices get: those of before must be given the file."""
        return len(self.head_keys()) > _FIRST_KEYS

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
            self._take_renewed()
            now = Authority(self.path)
            self._entries, self._hosts = list(now.entries), now.hosts
            yield
        finally:
            os.close(held)

    def _signer(self) -> Signer:
        try:
            return Signer(read_file(self.path / "ca.pem"), read_file(self.path / "ca.key"))
        except ValueError as error:
            raise CorruptError(
                f"{self.path / 'ca.key'} and ca.pem are no certificate with its key ({error}); "
                "bring back both from one copy"
            ) from error

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
            self._register(kind, name, issued)
        self._save()
        return made

    def _register(self, kind: str, name: str, issued: Issued) -> None:
        serial, until = f"{issued.serial:x}", moment(issued.not_after)
        self._entries.append(Entry(kind=kind, name=name, serial=serial, not_after=until))

    def _replace(self, devices: frozenset[str], at: datetime) -> None:
        """Have the certificates of devices revoked at a time, those that end earlier apart."""
        for place, entry in enumerate(self._entries):
            if entry.kind == "device" and entry.name in devices and entry.ends > at:
                self._entries[place] = replace(entry, revoke_after=moment(at))

    def _renew(self, now: datetime) -> None:
        for name in _OWN:
            (issued,) = self._issue(name, ["main"], now, SERVER_DAYS)
            # Both in one file first: who is killed between the two leaves what can be finished.
            _write(self._renewed(name), issued.key + issued.certificate)
            self._take_renewed()

    def _renewed(self, name: str) -> Path:
        return self.path / f"{name}-renewed.key"

    def _take_renewed(self) -> None:
        """Put renewed certificates and their keys in their places."""
        for name in _OWN:
            renewed = self._renewed(name)
            if renewed.exists():
                key, begin, certificate = read_file(renewed).partition(_PEM_BEGIN)
                _write(self.path / f"{name}.key", key)
                _write(self.path / f"{name}.pem", begin + certificate)
                with named_failures(renewed):
                    renewed.unlink()

    def _write_revocations(self, signer: Signer, now: datetime) -> None:
        revoked = {
            int(entry.serial, 16): datetime.fromisoformat(entry.revoked_at)
            for entry in self._entries
            if entry.revoked_at is not None
        }
        write_atomically(self.path / CRL, signer.revocations(revoked, now))

    def _save(self) -> None:
        register = Register(self.fleet, tuple(self._hosts), tuple(self._entries))
        write_register(self.path / REGISTER, register)


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


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content, mode=_SECRET if path.suffix == ".key" else 0o644)
