"""Ed25519 in plain integers: RFC 8032's vectors, a library's signatures, and what must be refused."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.ed25519 import is_public_key, verify

ORDER = 2**252 + 27742317777372353535851937790883648493
FIELD = 2**255 - 19

# RFC 8032, section 7.1: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
            "454d4423643ce80e2a9ac94fa54ca49f"
        ),
        (
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
            "3dca179c138ac17ad9bef1177331a704"
        ),
    ),
]
SMALL_ORDER = [
    (1).to_bytes(32, "little"),  # the neutral element
    (FIELD - 1).to_bytes(32, "little"),  # of order 2
    bytes(32),  # of order 4
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),  # of order 8
]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_signatures_of_the_rfc_hold(key: str, message: str, signature: str) -> None:
    """And none of them for another message."""
    content = bytes.fromhex(message)
    assert verify(bytes.fromhex(key), content, bytes.fromhex(signature))
    assert not verify(bytes.fromhex(key), content + b"x", bytes.fromhex(signature))


def believed_by_library(key: bytes, message: bytes, signature: bytes) -> bool:
    """Ask `cryptography`."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_library_signatures_hold(seed: bytes, message: bytes) -> None:
    """Whatever the key and the message."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert verify(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), message, key.sign(message))


@given(st.data())
def test_one_changed_bit_is_judged_as_the_library_judges_it(data: st.DataObject) -> None:
    """In the signature or in the message: refused by both."""
    message = data.draw(st.binary(min_size=1, max_size=64))
    signature = KEY.sign(message)
    mixed = bytearray(signature + message)
    bit = data.draw(st.integers(0, 8 * len(mixed) - 1))
    mixed[bit // 8] ^= 1 << bit % 8
    changed, other = bytes(mixed[:64]), bytes(mixed[64:])
    assert not verify(PUBLIC, other, changed)
    assert not believed_by_library(PUBLIC, other, changed)


def test_signature_cannot_be_turned_into_another() -> None:
    """S + L fits the equation, too; only S below L is one (RFC 8032, section 5.1.7)."""
    signature = KEY.sign(b"head")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(PUBLIC, b"head", signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_key_of_small_order_is_refused(key: bytes) -> None:
    """With the neutral element as key, R = [S]B holds for each message."""
    assert not is_public_key(key)
    assert not verify(key, b"anything", (1).to_bytes(32, "little") + bytes(32))


@pytest.mark.parametrize(
    "key",
    [
        (FIELD + 3).to_bytes(32, "little"),  # y is not below the field's size
        (1 | 1 << 255).to_bytes(32, "little"),  # x is 0, and negative
        (2).to_bytes(32, "little"),  # no point has this y
        b"",
        bytes(31),
        bytes(33),
    ],
)
def test_what_is_no_point_is_refused(key: bytes) -> None:
    """And ends in no error."""
    assert not is_public_key(key)
    assert not verify(key, b"", bytes(64))


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_refused_without_an_error(key: bytes, signature: bytes) -> None:
    """Whatever comes over the wire."""
    assert not verify(key, b"head", signature)
    assert not verify(PUBLIC, b"head", signature)
