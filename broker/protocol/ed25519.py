"""Ed25519 signatures, verified only (RFC 8032, section 5.1), in plain integers.

A device's dependencies are closed and Python's standard library has no Ed25519, so here it is, written from
the RFC. Nothing here is secret, so nothing needs to take the same time for all inputs; signing does, and
is left to a library on the aggregator's side.

Where the RFC leaves a choice, the stricter one is taken:

* S must be less than the group's order, so that a signature cannot be turned into another valid one;
* a point whose y is not below 2^255 - 19, or whose x is 0 with the sign bit set, is refused;
* a public key of small order is refused, as it has signatures that hold for many messages;
* the equation is the one without the cofactor, R = [S]B - [k]A, and R is compared as bytes.
"""

import hashlib
from functools import lru_cache
from typing import Final, TypeAlias

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_ONE: Final = pow(2, (_P - 1) // 4, _P)

_Point: TypeAlias = tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z (RFC 8032, section 5.1.4)."""
_NEUTRAL: Final[_Point] = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` (64 bytes) of `message` was made with the secret half of `public_key` (32)."""
    if len(signature) != SIGNATURE_BYTES or not is_public_key(public_key):
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    k = int.from_bytes(digest, "little") % _L
    a = _decoded(public_key)
    if a is None:  # is_public_key has looked; here for the reader and the type checker
        return False
    minus_a = (_P - a[0], a[1], a[2], _P - a[3])
    return _encoded(_two_products(s, _BASE, k, minus_a)) == signature[:32]


@lru_cache(maxsize=16)
def is_public_key(key: bytes) -> bool:
    """Tell whether 32 bytes are a point of the curve, encoded as it must be, and not of small order."""
    point = _decoded(key) if len(key) == KEY_BYTES else None
    if point is None:
        return False
    for _ in range(3):  # the cofactor is 8
        point = _sum(point, point)
    return not _is_neutral(point)


def _decoded(encoded: bytes) -> _Point | None:
    """Give the point, or None where the bytes are none (RFC 8032, section 5.1.3)."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    # The candidate for the square root of u/v.
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if (v * x * x - u) % _P:
        x = x * _ROOT_OF_MINUS_ONE % _P
        if (v * x * x - u) % _P:
            return None
    if x == 0 and sign:
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _encoded(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _is_neutral(point: _Point) -> bool:
    x, y, z, _ = point
    return x == 0 and (y - z) % _P == 0


def _sum(one: _Point, other: _Point) -> _Point:
    """Add two points; the formulas are complete, so they may be equal (RFC 8032, section 5.1.4)."""
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a = (y1 - x1) * (y2 - x2) % _P
    b = (y1 + x1) * (y2 + x2) % _P
    c = 2 * t1 * t2 * _D % _P
    d = 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _two_products(s: int, base: _Point, k: int, other: _Point) -> _Point:
    """Give [s]base + [k]other with one row of doublings for both."""
    both = _sum(base, other)
    added = (_NEUTRAL, base, other, both)
    result = _NEUTRAL
    for bit in range(max(s.bit_length(), k.bit_length()) - 1, -1, -1):
        result = _sum(result, result)
        choice = (s >> bit & 1) | (k >> bit & 1) << 1
        if choice:
            result = _sum(result, added[choice])
    return result


def _base() -> _Point:
    point = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    if point is None:
        raise AssertionError("the base point is on the curve")
    return point


_BASE: Final = _base()
