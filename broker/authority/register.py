"""The register of an authority: a line for every certificate that was issued. A value, and its file."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import CorruptError
from broker.storage import read_file, write_atomically


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


@dataclass(frozen=True, slots=True)
class Register:
    """Whose authority it is, under which names its broker is reached, and what it has issued, in order."""

    fleet: str
    hosts: tuple[str, ...]
    issued: tuple[Entry, ...] = ()


def read_register(path: Path) -> Register:
    """Read a register.

    Raises
    ------
    CorruptError, FileUnreadableError
    """
    try:
        content = json.loads(read_file(path))
        issued = tuple(Entry(**entry) for entry in content["issued"])
        for entry in issued:
            _require_sound(entry)
        return Register(content["fleet"], tuple(content["hosts"]), issued)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} cannot be read; restore it from a backup") from error


def _require_sound(entry: Entry) -> None:
    int(entry.serial, 16)
    require_moment(entry.not_after)
    for text in (entry.revoked_at, entry.revoke_after):
        if text is not None:
            require_moment(text)


def write_register(path: Path, register: Register) -> None:
    """Write a register, for its owner alone.

    Raises
    ------
    NotWritableError, DiskFullError
    """
    # A certificate a line: for people, and as the json module writes 10,000 entries much faster so.
    fleet, hosts = json.dumps(register.fleet), json.dumps(register.hosts)
    issued = ",\n".join(json.dumps(_written(entry)) for entry in register.issued)
    text = f'{{"fleet": {fleet}, "hosts": {hosts}, "issued": [\n{issued}\n]}}\n'
    write_atomically(path, text.encode(), mode=0o600)


def _written(entry: Entry) -> dict[str, str | None]:
    fields = asdict(entry)
    if entry.revoke_after is None:
        del fields["revoke_after"]  # earlier releases know none
    return fields


def require_moment(text: str) -> None:
    """Check that something is a time as `moment` writes it, with its zone.

    Raises
    ------
    ValueError, TypeError
    """
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")


def moment(at: datetime) -> str:
    """Write a time as the register has it: ISO 8601, to the second."""
    return at.isoformat(timespec="seconds")
