"""TLS as every client of ours speaks it: 1.2 or later, the broker's name checked, a certificate of one's own.

Standard library only. What a certificate says is read here as well, as far as people want to know it: whose
it is and from when to when. That is for `doctor` and for sentences; whether a certificate is believed is for
OpenSSL alone.
"""

import base64
import binascii
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import ConfigError, FileUnreadableError
from broker.storage import read_file

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_SEQUENCE, _SET, _INTEGER, _VERSION = 0x30, 0x31, 0x02, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_COMMON_NAME = bytes([0x06, 3, 0x55, 4, 3])
"""The object identifier 2.5.4.3, encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where a client's files are (PEM).

    Attributes
    ----------
    ca : Path or None
        Who signs brokers' certificates; None: those whom the system believes.
    cert, key : Path or None
        The client's own; None where the broker asks for none.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Give the context to connect with.

        Raises
        ------
        ConfigError
            When a file is missing or is not what it should be, or certificate and key do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name and the certificate
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.ca} is no readable CA certificate: {_reason(error)}") from error
        if self.cert is not None:
            try:
                # A key that wants a passphrase would ask for it at a terminal that a service does not have.
                context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{self.cert} and {self.key} are no certificate with its key: {_reason(error)}"
                ) from error
        return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted; a service cannot ask for its passphrase")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).replace("_", " ").lower()


def connection_trouble(error: BaseException | None) -> str | None:
    """Say in words why a handshake failed; None where it was not TLS that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {_reason(error)}"
    return None


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What people want to know of a certificate."""

    common_name: str
    not_before: datetime
    not_after: datetime


def certificate_facts(path: Path) -> CertificateFacts:
    """Read the first certificate of a PEM file.

    Raises
    ------
    ConfigError
        When there is none, or it cannot be read.
    """
    try:
        match = _PEM.search(read_file(path))
        if match is None:
            raise ConfigError(f"{path} holds no certificate")
        return _facts(base64.b64decode(match[1], validate=False))
    except FileUnreadableError as error:
        raise ConfigError(str(error)) from error
    except (ValueError, IndexError, binascii.Error) as error:
        raise ConfigError(f"{path} is no certificate that can be read") from error


def _facts(der: bytes) -> CertificateFacts:
    """Walk to validity and subject (RFC 5280, section 4.1)."""
    certificate = _content(der, _SEQUENCE)[0]
    rest = _content(certificate, _SEQUENCE)[0]
    if rest[0] == _VERSION:
        rest = _content(rest, _VERSION)[1]
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
        rest = _content(rest, tag)[1]
    validity, rest = _content(rest, _SEQUENCE)
    not_before, after = _time(validity)
    not_after, _ = _time(after)
    subject = _content(rest, _SEQUENCE)[0]
    return CertificateFacts(_common_name(subject), not_before, not_after)


def _content(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Give the content of the first DER element, which must have `tag`, and what follows it."""
    if data[0] != tag:
        raise ValueError(f"tag {data[0]:#x} instead of {tag:#x}")
    length, at = data[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(data[2:at], "big")
    if at + length > len(data):
        raise ValueError("an element runs past the end")
    return data[at : at + length], data[at + length :]


def _time(data: bytes) -> tuple[datetime, bytes]:
    tag = data[0]
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError(f"tag {tag:#x} is no time")
    content, rest = _content(data, tag)
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # years 1950 to 2049 (RFC 5280, section 4.1.2.5.1)
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), rest


def _common_name(subject: bytes) -> str:
    while subject:
        relative, subject = _content(subject, _SET)
        attribute = _content(relative, _SEQUENCE)[0]
        if attribute.startswith(_COMMON_NAME):
            value = attribute[len(_COMMON_NAME) :]
            return _content(value, value[0])[0].decode("utf-8", "replace")
    return ""
