"""Claims that were given out: a file each in ``DIR/claims``, with the code's hash instead of the code.

A claim is good for one certificate, until a day. It is spent by the first key that is brought with its code;
the same key may ask again, and is given the same certificate: the first answer may have been lost.

The code has 127 bits, drawn, so a plain hash hides it. `Authority` calls what is here, under its lock.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from broker.authority.batches import LETTERS
from broker.authority.register import require_moment
from broker.claim import CODE_LETTERS
from broker.errors import ClaimRefusedError, CorruptError
from broker.storage import named_failures, read_file, write_atomically

_UNKNOWN = "the claim is not one of this fleet's, or its code is wrong"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A claim that was given out.

    Attributes
    ----------
    sha256 : str
        Of the code, in hexadecimal digits.
    expires_at : str
        ISO 8601, UTC.
    days : int
        Validity of the certificate.
    key : str or None
        The fingerprint of the key that has spent it.
    certificate : str or None
        What that was given (PEM).
    """

    device: str
    sha256: str
    expires_at: str
    days: int
    key: str | None = None
    certificate: str | None = None


def draw_code() -> str:
    """Draw a claim's code."""
    return "".join(secrets.choice(LETTERS) for _ in range(CODE_LETTERS))


def hashed(code: str) -> str:
    """Give what is kept of a code."""
    return hashlib.sha256(code.encode()).hexdigest()


def write_claim(folder: Path, given: Given) -> None:
    """Write a claim's file."""
    write_atomically(_path(folder, given.device), json.dumps(asdict(given)).encode(), mode=0o600)


def write_claims(folder: Path, claims: Iterable[Given]) -> None:
    """Write the files of many claims, and have them on the disk together.

    Raises
    ------
    DiskFullError, NotWritableError
    """
    with named_failures(folder):
        for given in claims:
            path = _path(folder, given.device)
            temporary = path.with_name(f".{path.name}")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(asdict(given)))
            temporary.replace(path)
        os.sync()


def read_claim(folder: Path, device: str) -> Given | None:
    """Give a device's claim; None if it was never given one.

    Raises
    ------
    CorruptError
    """
    path = _path(folder, device)
    if not path.exists():
        return None
    try:
        given = Given(**json.loads(read_file(path)))
        require_moment(given.expires_at)
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{path} cannot be read; remove it and give the device another claim") from error
    return given


def require_good(given: Given | None, code: str, key: str, now: datetime) -> Given:
    """Check that a claim may be spent by a key, or was.

    Raises
    ------
    ClaimRefusedError
        When it is unknown, spent by another key, or out of date. Only who has the code learns which.
    """
    # One sentence for both, and hashes compared in constant time: who only tries learns nothing.
    is_code = hmac.compare_digest(hashed(code), given.sha256 if given else hashed(""))
    if given is None or not is_code:
        raise ClaimRefusedError(_UNKNOWN)
    if given.key is not None:
        if given.key != key:
            raise ClaimRefusedError(
                "the claim was used before, with another key; if that was not you, have the device's "
                "certificate revoked"
            )
        return given
    if datetime.fromisoformat(given.expires_at) <= now:
        raise ClaimRefusedError(f"the claim is out of date since {given.expires_at}; ask for another one")
    return given


def void(folder: Path, device: str, now: datetime) -> bool:
    """Let a claim that was not spent end now; tell whether there was one that had not ended."""
    given = read_claim(folder, device)
    if given is None or given.key is not None or datetime.fromisoformat(given.expires_at) <= now:
        return False
    write_claim(folder, replace(given, expires_at=now.isoformat(timespec="seconds")))
    return True


def _path(folder: Path, device: str) -> Path:
    return folder / f"{device}.json"
