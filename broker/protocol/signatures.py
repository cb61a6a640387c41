"""Signed heads: which bytes are signed, and which keys a device trusts.

What is signed is ``pfedrec/1/FLEET/head``, a line feed, and the head's encoding with ``signature`` null: the
fleet's topic is in it so that a head of one fleet is none of another, whoever uses a key for two.

A device has a file of public keys, oldest first. The aggregator signs with one of them and keeps the next
one ready. Once a device has met a head signed with a later key, earlier ones count no more: a stolen key ends
with its successor's first head. That is the whole of rotation; nothing travels for it.
"""

import re
from dataclasses import replace

from broker.errors import SignatureError
from broker.protocol.ed25519 import KEY_BYTES, is_public_key, verify
from broker.protocol.messages import Head, encode
from broker.protocol.topics import ROOT, FleetTopics
from trainer.errors import ParameterError

MAX_KEYS = 16
_LINE = re.compile(r"ed25519 ([0-9a-f]{64})")


def signed_bytes(head: Head, fleet: str) -> bytes:
    """Give what the signature of a head is made over; the head's own signature does not matter."""
    return f"{FleetTopics(fleet).head}\n".encode() + encode(replace(head, signature=None))


def provisioned_bytes(manifest: bytes, fleet: str) -> bytes:
    """Give what the signature of a provisioned batch is made over: like a head's, under another name."""
    return f"{ROOT}/{FleetTopics(fleet).fleet}/provision\n".encode() + manifest


def keys_to_text(keys: tuple[bytes, ...], signs: str = "heads") -> str:
    """Write a file of public keys, oldest first."""
    lines = [f"ed25519 {key.hex()}" for key in keys]
    return "\n".join([f"# Public keys of the fleet's {signs}, oldest first.", *lines, ""])


def keys_from_text(text: str, source: str) -> tuple[bytes, ...]:
    """Read a file of public keys.

    Raises
    ------
    ParameterError
        When a line is none, a key is no point of large order, or there are none or too many.
    """
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        key = bytes.fromhex(match[1]) if match else b""
        if len(key) != KEY_BYTES or not is_public_key(key):
            raise ParameterError(f"{source}, line {number}: a key is written: ed25519 and 64 hex digits")
        keys.append(key)
    if not 1 <= len(set(keys)) == len(keys) <= MAX_KEYS:
        raise ParameterError(f"{source} must hold 1 to {MAX_KEYS} different keys; it has {len(keys)}")
    return tuple(keys)


def signer_of(head: Head, fleet: str, keys: tuple[bytes, ...]) -> int:
    """Tell which of the keys has signed a head.

    Raises
    ------
    SignatureError
        When the head is not signed, or by none of them.
    """
    if head.signature is None:
        raise SignatureError("the head is not signed")
    content = signed_bytes(head, fleet)
    # The newest first: it is the usual one once it is in use.
    for place in range(len(keys) - 1, -1, -1):
        if verify(keys[place], content, head.signature):
            return place
    raise SignatureError("the head's signature is of none of this fleet's keys")
