"""Bundles for tests, signed without a library: a device's dependencies are enough, on any processor."""

import hashlib
from collections.abc import Mapping
from typing import Any

from broker.protocol import ed25519
from broker.protocol.releases import (
    APPLICATION,
    Manifest,
    ReleaseFile,
    bundle_head,
    manifest_bytes,
    signed_bytes,
)

FLEET = "shop"
SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))


def _scalar(secret: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(secret).digest()
    number = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return number, digest[32:]


def _times_base(number: int) -> bytes:
    return ed25519._encoded(ed25519._two_products(number, ed25519._BASE, 0, ed25519._BASE))


def public_half(secret: bytes) -> bytes:
    """Give the public key of 32 secret bytes (RFC 8032, section 5.1.5)."""
    return _times_base(_scalar(secret)[0])


def sign(secret: bytes, message: bytes) -> bytes:
    """Give the signature of a message (RFC 8032, section 5.1.6)."""
    number, prefix = _scalar(secret)
    public = _times_base(number)
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % ed25519._L
    point = _times_base(r)
    k = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % ed25519._L
    return point + ((r + k * number) % ed25519._L).to_bytes(32, "little")


KEY = public_half(SECRET)
OTHER_KEY = public_half(OTHER_SECRET)


def a_manifest(files: Mapping[str, bytes], **changes: Any) -> Manifest:
    """Give a manifest of files; those named ``*.sh`` are executable."""
    listed = tuple(
        ReleaseFile(
            path=path,
            size=len(content),
            sha256=hashlib.sha256(content).digest(),
            executable=path.startswith(APPLICATION) and path.endswith(".sh"),
        )
        for path, content in sorted(files.items())
    )
    fields: dict[str, Any] = {"fleet": FLEET, "release": 1, "files": listed}
    return Manifest(**fields | changes)


def a_head(manifest: Manifest, secret: bytes = SECRET) -> bytes:
    """Sign a manifest; give the bundle's bytes before the files."""
    return bundle_head(manifest, public_half(secret), sign(secret, signed_bytes(manifest_bytes(manifest))))


def a_bundle(files: Mapping[str, bytes] | None = None, *, secret: bytes = SECRET, **changes: Any) -> bytes:
    """Give a bundle's bytes."""
    files = {"app/greeting.txt": b"hello\n"} if files is None else files
    contents = b"".join(content for _, content in sorted(files.items()))
    return a_head(a_manifest(files, **changes), secret) + contents
