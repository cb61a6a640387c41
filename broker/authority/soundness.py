"""Whether the files of an authority are there, are what they should be, and belong together; by reading."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.authority.authority import CRL, Authority
from broker.authority.certificates import load_head_key
from broker.errors import CorruptError, FileUnreadableError
from broker.storage import read_file

_RENEW = "edge-aggregator keys renew, where ca.key is"
_RESTORE = "restore the directory authority from a backup"


def first_complaint(authority: Authority, *, own_broker: bool) -> tuple[str, str] | None:
    """Give what keeps the aggregator from starting, or devices from believing it, and the remedy.

    ``ca.key`` may be elsewhere.

    Parameters
    ----------
    own_broker : bool
        Whether it runs the broker itself; otherwise ``server.key`` may be where that is.
    """
    path = authority.path
    try:
        ca = x509.load_pem_x509_certificate(read_file(path / "ca.pem"))
        if (path / "ca.key").exists() and _public_key(read_file(path / "ca.key")) != ca.public_key():
            return f"{path / 'ca.key'} is not the key of ca.pem", _RESTORE
    except (ValueError, FileUnreadableError) as error:
        return f"{path / 'ca.key'} or ca.pem is damaged or missing: {error}", _RESTORE
    for name in ("aggregator", *(["server"] if own_broker or (path / "server.key").exists() else [])):
        found = _pair_complaint(authority, name, ca)
        if found is not None:
            return found, _RENEW
    try:
        revoked = x509.load_pem_x509_crl(read_file(path / CRL))
        # Of what an authority signs, its key is on a curve.
        if not revoked.is_signature_valid(ca.public_key()):  # type: ignore[arg-type]
            return f"{path / CRL} is another authority's", _RESTORE
    except (ValueError, TypeError, FileUnreadableError) as error:
        return f"{path / CRL} is damaged or missing: {error}", _RESTORE
    return _head_complaint(authority)


def _pair_complaint(authority: Authority, name: str, ca: x509.Certificate) -> str | None:
    certificate_file, key_file = authority.path / f"{name}.pem", authority.path / f"{name}.key"
    try:
        certificate = x509.load_pem_x509_certificate(read_file(certificate_file))
        key = _public_key(read_file(key_file))
    except FileUnreadableError as error:
        return str(error)
    except (ValueError, TypeError):
        return f"{certificate_file} or {key_file.name} is damaged"
    if certificate.public_key() != key:
        return f"{key_file} is not the key of {certificate_file.name}"
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return f"{certificate_file} is another authority's than ca.pem"
    return None


def _head_complaint(authority: Authority) -> tuple[str, str] | None:
    try:
        known = authority.head_keys()
        for name in ("head.key", "next-head.key"):
            public = load_head_key(read_file(authority.path / name)).public_key().public_bytes_raw()
            if public not in known:
                return f"{authority.path / name} is none of the keys in head_key.pub", _RESTORE
    except (CorruptError, FileUnreadableError) as error:
        return str(error), _RESTORE
    except (ValueError, TypeError):
        return f"{authority.path / name} is no Ed25519 key", _RESTORE
    return None


def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on an elliptic curve")  # noqa: TRY004 - a file's content, not a type
    return key.public_key()
