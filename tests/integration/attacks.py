"""The messages of the hostile proof, drawn from a seed: thirteen kinds, and how each must come out."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import cbor2
import numpy as np

from broker.errors import ProtocolError
from broker.protocol.chunks import cut
from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import CHUNK_BYTES, Chunk, Head, Update, decode, encode
from broker.protocol.topics import FleetTopics

FLEET = "shop"
TOPICS = FleetTopics(FLEET)
ITEMS, DIM = 8_000, 8
ATTACKERS = 500


@dataclass(frozen=True)
class Attack:
    """One message; it must come out as `accounted`: refused, answered, one of the two, held, or elsewhere."""

    kind: str
    topic: str
    payload: bytes
    accounted: str = "refused"


class Attacker:
    """Draws messages.

    Parameters
    ----------
    replayable : callable
        Gives an update of an honest device that was answered, with its topic; None before there is one.
    """

    def __init__(self, seed: int, head: Head, replayable: Callable[[], tuple[str, bytes] | None]) -> None:
        self._rng = random.Random(seed)
        self._head = head
        self._replayable = replayable
        self._seq = 0

    def draw(self) -> Attack:
        """Give the next message."""
        kinds = (
            [self._mutated] * 30
            + [self._bomb] * 15
            + [self._noise] * 10
            + [self._replay] * 10
            + [self._not_finite, self._future, self._huge] * 5
            + [self._wrong_device] * 5
            + [self._wrong_fleet] * 3
            + [self._wrong_place] * 5
            + [self._flood] * 10
            + [self._chunk] * 2
            + [self._anew] * 5
        )
        return self._rng.choice(kinds)()

    def _topic(self) -> str:
        return TOPICS.update(f"bad-{self._rng.randrange(ATTACKERS)}")

    def _update(self, encoding: str = "float32") -> Update:
        self._seq += 1
        rng = np.random.default_rng(self._rng.getrandbits(32))
        n_rows = self._rng.randrange(1, 12)
        rows = np.sort(rng.choice(ITEMS, n_rows, replace=False)).astype(np.uint32)
        values = rng.standard_normal(n_rows * DIM).astype(np.float32)
        body = ENCODINGS[encoding].encode(
            SparseChange(rows=rows.astype(np.int64), change=values.reshape(n_rows, DIM))
        )
        return Update(
            instance=self._head.instance,
            incarnation=self._rng.randrange(3),
            seq=self._seq,
            base_version=0,
            encoding=encoding,
            body=body,
        )

    def _mutated(self) -> Attack:
        while True:
            payload = bytearray(encode(self._update(self._rng.choice(list(ENCODINGS)))))
            for _ in range(self._rng.choice((1, 1, 2, 8))):
                at = self._rng.randrange(len(payload))
                match self._rng.randrange(4):
                    case 0:
                        payload[at] ^= 1 << self._rng.randrange(8)
                    case 1:
                        payload[at] = self._rng.randrange(256)
                    case 2:
                        del payload[at:]
                        payload += b"\x00" * (not payload)
                    case _:
                        payload[at:at] = self._rng.randbytes(self._rng.randrange(1, 5))
            try:
                decode(bytes(payload), Update, Chunk)
            except ProtocolError:
                return Attack("mutated", self._topic(), bytes(payload))

    def _bomb(self) -> Attack:
        n = self._rng.randrange(2, 2_000)
        payload = self._rng.choice(
            (
                b"\x81" * n,  # lists in lists
                b"\xa1\x00" * n,  # maps in maps
                b"\x9f" * n,  # lists without an announced end
                b"\xd8\x1c" * n,  # shared values in shared values
                b"\xc2" + b"\x59\xff\xff" + b"\xff" * n,  # a big number
                b"\x9b" + b"\xff" * 8,  # 2^64 - 1 items
                b"\xbb" + b"\x7f" + b"\xff" * 7,
                b"\x5b" + b"\x7f" + b"\xff" * 7 + b"x" * n,  # as many bytes
                b"\xd8\x55\x5b" + b"\x00\x00\x00\xff" + b"\xff" * 4,  # a typed array of a terabyte
                cbor2.dumps({number: number for number in range(n + 600)}),
                cbor2.dumps(["x" * 9] * (n + 600)),
            )
        )
        return Attack("bomb", self._topic(), payload)

    def _noise(self) -> Attack:
        return Attack("noise", self._topic(), self._rng.randbytes(self._rng.randrange(0, 400)) + b"\xff")

    def _replay(self) -> Attack:
        found = self._replayable()
        if found is None:
            return self._noise()
        return Attack("replay", *found, accounted="answered")

    def _not_finite(self) -> Attack:
        update = self._update()
        body = {name: array.copy() for name, array in update.body.items()}
        floats = next(array for array in body.values() if array.dtype == np.float32)
        floats[self._rng.randrange(floats.size)] = self._rng.choice((np.nan, np.inf, -np.inf))
        return Attack("not finite", self._topic(), encode(replace(update, body=body)), "answered")

    def _anew(self) -> Attack:
        update = replace(self._update(), incarnation=self._rng.getrandbits(64), base_version=10**9)
        return Attack("begun anew", TOPICS.update("anew"), encode(update), "answered or refused")

    def _future(self) -> Attack:
        update = replace(self._update(), base_version=10**6 + self._rng.randrange(10**9))
        return Attack("future version", self._topic(), encode(update), "answered")

    def _huge(self) -> Attack:
        chunk = Chunk(
            digest=self._rng.randbytes(8),
            index=0,
            count=self._rng.randrange(1, 65_536),
            size=(1 << 20) + self._rng.randrange(1 << 29),
            data=b"x",
        )
        return Attack("huge count", self._topic(), encode(chunk))

    def _wrong_device(self) -> Attack:
        name = self._rng.choice(("", " ", "é", "a b", ".x", "-", "x" * 65, "x" * 5_000, "$SYS", "\u202e"))
        return Attack("wrong device id", f"pfedrec/1/{FLEET}/device/{name}/update", encode(self._update()))

    def _wrong_fleet(self) -> Attack:
        topic = FleetTopics(f"other-{self._rng.randrange(9)}").update("honest-0")
        return Attack("wrong fleet", topic, encode(self._update()), "elsewhere")

    def _wrong_place(self) -> Attack:
        payload = self._rng.choice((encode(self._update()), self._rng.randbytes(60) + b"\xff"))
        name = f"bad-{self._rng.randrange(ATTACKERS)}"
        topic = self._rng.choice((TOPICS.head, TOPICS.status(name), TOPICS.quality(name)))
        return Attack("wrong place", topic, payload)

    def _flood(self) -> Attack:
        return Attack("flood", TOPICS.update("flood"), self._rng.randbytes(30) + b"\xff")

    def _chunk(self) -> Attack:
        size = 2 * CHUNK_BYTES + 1
        whole = self._rng.randbytes(64) * (size // 64 + 1)
        chunk = next(iter(cut(whole[:size], hashlib.sha256(whole).digest())))
        return Attack("endless chunks", self._topic(), encode(chunk), "held")
