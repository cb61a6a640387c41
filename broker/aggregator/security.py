"""What ``init --secure`` adds to an aggregator's directory, and how ``start`` uses it.

``DIR/authority`` is the fleet's authority (`broker.authority`), ``DIR/devices/ID`` a device's bundle. Our own
broker, mosquitto, then takes nobody without a certificate of it; a client's id is its certificate's name,
whatever it says itself; and its access rules keep a device to its own topics.
"""

import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.address import BrokerAddress
from broker.aggregator.admission import Admission
from broker.aggregator.config import AggregatorConfig
from broker.authority.authority import CRL, REGISTER, Authority
from broker.authority.bundle import write_bundle
from broker.embedded import SecureListener
from broker.errors import AlreadyInitialisedError, FileUnreadableError
from broker.protocol.topics import ROOT, FleetTopics
from broker.storage import named_failures

AUTHORITY_NAME = "authority"
DEVICES_NAME = "devices"


def make_authority(directory: Path, fleet: str, hosts: tuple[str, ...], now: datetime) -> Authority:
    """Make an authority for a directory that is being set up; one of the same ``init``, cut off, is used.

    Raises
    ------
    InputError, NotWritableError, DiskFullError, CorruptError
    """
    path = directory / AUTHORITY_NAME
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", socket.gethostname()]))
    if (path / REGISTER).exists():
        found = Authority(path)
        # The list of revoked certificates is written last.
        if (found.fleet, found.hosts) == (fleet, names) and (path / CRL).exists():
            return found
        if any(entry.kind == "device" for entry in found.entries):
            raise AlreadyInitialisedError(
                f"{path} is the authority of fleet {found.fleet} at {found.host}, and devices have its "
                "certificates; init with the same --fleet and --host, or remove it"
            )
        with named_failures(path):
            shutil.rmtree(path)
    return Authority.make(path, fleet, names, now)


def add_device(
    directory: Path,
    config: AggregatorConfig,
    device: str,
    now: datetime,
    days: int,
    host: str | None = None,
    overlap: timedelta | None = None,
) -> Path:
    """Issue a certificate to a device and write its bundle; give where that is.

    Raises
    ------
    ParameterError
        When the id is not allowed.
    NotInitialisedError
        When the directory has no authority.
    NotWritableError, DiskFullError, CorruptError
    """
    authority = Authority(directory / AUTHORITY_NAME)
    bundle = directory / DEVICES_NAME / device
    issued = authority.issue_device(device, now, days, overlap)
    write_bundle(bundle, authority, device, broker_for_devices(authority, config, host), issued)
    bundle.parent.chmod(0o700)
    return bundle


def broker_for_devices(authority: Authority, config: AggregatorConfig, host: str | None = None) -> str:
    """Give the broker's address as devices are told it; without `host` by the first name that it has."""
    if "://" in config.broker:
        # Its name and password are the aggregator's own.
        address = replace(BrokerAddress.parse(config.broker), username=None, password=None)
        return str(replace(address, host=host or address.host))
    return str(BrokerAddress(host=host or authority.host, port=config.port, secure=True))


def secure_listener(authority: Authority) -> SecureListener:
    """Give what our own broker needs to take nobody but the fleet's."""
    return SecureListener(
        ca=authority.path / "ca.pem",
        certificate=authority.path / "server.pem",
        key=authority.path / "server.key",
        revoked=authority.path / CRL,
        access=access_rules(authority),
    )


def access_rules(authority: Authority) -> str:
    """Give mosquitto's access rules; ``%u`` is the name in a client's certificate."""
    fleet = FleetTopics(authority.fleet)
    names = sorted({entry.name for entry in authority.entries if entry.kind == "aggregator"})
    lines: list[str] = []
    for name in names:
        lines += [f"user aggregator:{name}", f"topic readwrite {fleet.everything}", ""]
    own = f"{ROOT}/{authority.fleet}/device/%u"
    lines += [f"pattern write {own}/{kind}" for kind in ("status", "update", "quality")]
    lines.append(f"pattern read {own}/receipt")
    for everyone in (
        fleet.head,
        fleet.catalogue_filter,
        f"{ROOT}/{authority.fleet}/snapshot/+/+",
        f"{ROOT}/{authority.fleet}/delta/+/+",
        f"{ROOT}/{authority.fleet}/release/+/+",
    ):
        lines.append(f"pattern read {everyone}")
    return "\n".join([*lines, ""])


class Revocations:
    """Notices that the list of revoked certificates is another than before."""

    def __init__(self, authority: Authority) -> None:
        self._path = authority.path / CRL
        self._seen = _look(self._path)

    def changed(self) -> bool:
        """Tell whether it has changed since the last call; true once."""
        before, self._seen = self._seen, _look(self._path)
        return before != self._seen


class Standing:
    """Keeps an `Admission` in step with the register: who has no certificate that counts is not taken.

    That also ends what comes by a connection from before: brokers look at certificates when one begins.
    """

    def __init__(self, authority: Authority) -> None:
        self._path = authority.path
        self._seen = (0, 0)
        self._changes = self._followed_at = datetime.min.replace(tzinfo=UTC)

    def follow(self, admission: Admission, now: datetime) -> int:
        """Take the register over if it has changed, or time has changed who counts; revoke what is due.

        Brokers' list of revoked certificates is written anew if it is not what the register says.

        Returns
        -------
        int
            Certificates that were revoked, as newer ones have taken their places.

        Raises
        ------
        CorruptError
            When the register cannot be read; who was taken before still is.
        FileUnreadableError
            When something is due and the authority's key is not here. The devices count as without it.
        """
        seen = _look(self._path / REGISTER)
        # A clock that was ahead for a moment has changed who counts, and is not believed any longer.
        before, self._followed_at = self._followed_at, now
        if seen == self._seen and before <= now < self._changes:
            return 0
        self._seen, self._changes = seen, datetime.max.replace(tzinfo=UTC)
        authority = Authority(self._path)
        ends: dict[str, datetime] = {}
        for entry in authority.entries:
            if entry.kind == "device":
                ends[entry.name] = max(entry.ends, ends.get(entry.name, entry.ends))
        admission.lapsed = frozenset(name for name, end in ends.items() if end <= now)
        later = (entry.ends for entry in authority.entries if entry.ends > now)
        self._changes = min(later, default=self._changes)
        if any(
            entry.revoke_after and not entry.revoked_at and entry.ends <= now for entry in authority.entries
        ):
            return _with_key(authority.revoke_due, now)
        _with_key(authority.mend_revocations, now)
        return 0


def _with_key(change: Callable[[datetime], int], now: datetime) -> int:
    try:
        return change(now)
    except FileUnreadableError as error:
        raise FileUnreadableError(
            f"{error}; the broker still takes certificates that it should not: where the key is, "
            "call edge-aggregator device revoke --old ID, and bring register.json and crl.pem here"
        ) from error


def _look(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
