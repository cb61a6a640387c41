"""Keys, certificates and revocation lists as values: X.509 by way of `cryptography`; no files here.

Keys are on the curve P-256, which every TLS library and secure element speaks. A certificate's common name
is all that anybody is known by: a device's id, or ``aggregator:NAME``, which no device id can be.
"""

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 7300
_EARLIER = timedelta(days=1)
"""Certificates begin a day before they are made: a device's clock may be behind."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its secret key, both PEM; the key is empty where its owner made it."""

    certificate: bytes
    key: bytes
    serial: int
    not_after: datetime


def make_ca(fleet: str, now: datetime) -> Issued:
    """Make a fleet's authority, for twenty years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"fleet {fleet}"[:64])
    builder = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _issued(builder.sign(key, hashes.SHA256()), key)


def revoked_serials(content: bytes) -> set[int]:
    """Give the serial numbers in a list of revoked certificates (PEM).

    Raises
    ------
    ValueError
        When it is none.
    """
    return {each.serial_number for each in x509.load_pem_x509_crl(content)}


class Signer:
    """The authority at work.

    Raises
    ------
    ValueError
        When a file is not what it should be.
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        self._certificate = x509.load_pem_x509_certificate(certificate)
        loaded = load_pem_private_key(key, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key on an elliptic curve")  # noqa: TRY004 - a file's content, not a type
        if loaded.public_key() != self._certificate.public_key():
            raise ValueError("not the key of this certificate")
        self._key = loaded

    def server(self, hosts: list[str], now: datetime, days: int) -> Issued:
        """Issue a broker's certificate for host names and addresses."""
        names: list[x509.GeneralName] = []
        for host in dict.fromkeys(hosts):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        return self._leaf("broker", ExtendedKeyUsageOID.SERVER_AUTH, names, now, days)

    def client(self, common_name: str, now: datetime, days: int) -> Issued:
        """Issue a device's or an aggregator's certificate."""
        return self._leaf(common_name, ExtendedKeyUsageOID.CLIENT_AUTH, [], now, days)

    def certify(self, request: "Request", common_name: str, now: datetime, days: int) -> Issued:
        """Issue a certificate for a key that is its owner's alone; the request's own name does not matter."""
        certificate = self._signed(
            request.public_key, common_name, ExtendedKeyUsageOID.CLIENT_AUTH, [], now, days
        )
        return _issued(certificate, None)

    def revocations(self, revoked: dict[int, datetime], now: datetime) -> bytes:
        """Give the list (PEM) of revoked serial numbers with their times.

        It is good for as long as the authority: brokers read it from a file that is theirs, and would
        refuse everybody once it was out of date.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _EARLIER)
            .next_update(self._certificate.not_valid_after_utc)
        )
        for serial, at in revoked.items():
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _leaf(
        self,
        common_name: str,
        purpose: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
        now: datetime,
        days: int,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        return _issued(self._signed(key.public_key(), common_name, purpose, names, now, days), key)

    def _signed(
        self,
        public_key: ec.EllipticCurvePublicKey,
        common_name: str,
        purpose: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
        now: datetime,
        days: int,
    ) -> x509.Certificate:
        builder = (
            _builder(_name(common_name), self._certificate.subject, public_key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a certificate (PKCS #10) whose sender has proved to have the key.

    Attributes
    ----------
    fingerprint : str
        SHA-256 of the public key, in hexadecimal digits.
    """

    public_key: ec.EllipticCurvePublicKey
    fingerprint: str


def read_request(pem: bytes) -> Request:
    """Read a request, and check that it is signed with the key it names.

    Raises
    ------
    ValueError
        When it is none, or its key is not on the curve P-256.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except UnsupportedAlgorithm as error:
        raise ValueError("a request of an unknown kind") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key on the curve P-256")  # noqa: TRY004 - a file's content, not a type
    if not is_signed:
        raise ValueError("not signed with its own key")
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Request(key, hashlib.sha256(encoded).hexdigest())


def make_head_key() -> tuple[bytes, bytes]:
    """Make an Ed25519 key that signs heads: its secret half (PEM) and its public one (32 bytes)."""
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def load_head_key(pem: bytes) -> Ed25519PrivateKey:
    """Read the secret half.

    Raises
    ------
    ValueError
        When it is none.
    """
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")  # noqa: TRY004 - a file's content, not a type
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - max(_EARLIER, timedelta(days=1 - days)))
        .not_valid_after(now + timedelta(days=days))
    )


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None) -> Issued:
    return Issued(
        certificate=certificate.public_bytes(Encoding.PEM),
        key=b"" if key is None else key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )
