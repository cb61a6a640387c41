"""The six messages, frozen and checked on construction, and the codec between them and bytes.

A message is a CBOR map whose keys are the field names, with ``v`` (protocol version) and ``type``
first. A message with an unknown, missing or ill-typed field is refused: what two ends must agree on is
written down in ``docs/protocol.cddl`` and changes with the version in the topic.
"""

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from broker.errors import SchemaError
from broker.protocol import wire
from broker.protocol.checks import (
    require_boolean,
    require_bytes,
    require_choice,
    require_identifier,
    require_integer,
    require_name,
    require_real,
    require_text,
    shown,
)
from broker.protocol.topics import PROTOCOL_VERSION
from broker.protocol.wire import TypedArray, is_typed_array
from trainer.params import MAX_DIM, Floats, Hyperparameters
from trainer.taste import TasteSettings

MAX_U64 = 2**64 - 1
MAX_SEQ = 2**53
"""Versions and sequence numbers stay exact in every language's and database's numbers."""
MAX_ITEMS_IN_CATALOGUE = 4_000_000
MAX_CHUNKS = 65_536
CHUNK_BYTES = 120 * 1024
"""Data in one chunk; with its envelope it stays below `wire.MAX_MESSAGE_BYTES`."""
MAX_TRANSFER_BYTES = 1 << 30
MAX_REASON_BYTES = 400
DIGEST_PREFIX_BYTES = 8
MAX_DELTAS = 8
MAX_GROUPS = 16
MAX_LOSS = 1e6

Verdict = Literal["accepted", "duplicate", "stale", "rejected"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def chunk_count(size: int) -> int:
    """Give how many chunks `size` bytes take."""
    return max(1, -(-size // CHUNK_BYTES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How devices take part: the training plan in the head.

    Attributes
    ----------
    lr, item_lr, negatives, batch_size, decay
        `trainer.params.Hyperparameters`.
    taste_recency, taste_strength
        `trainer.taste.TasteSettings`.
    encoding : str
        The update encoding that the aggregator wants.
    check_in_s : float
        Seconds between a device's receipt and its next look at the head.
    max_idle_passes : int
        Passes that a device makes without a new interaction before it rests.
    guard : float
        The share of devices that report a version's quality; on the wire only where it is not 0.
    """

    lr: float
    item_lr: float
    negatives: int
    batch_size: int
    encoding: str
    check_in_s: float
    max_idle_passes: int
    decay: float = 0.0
    taste_recency: float = 0.0
    taste_strength: float = 0.0
    guard: float = 0.0

    def __post_init__(self) -> None:
        require_real(self, "lr", 0.0, 1e9)
        require_real(self, "item_lr", 0.0, 1e9)
        require_integer(self, "negatives", 1, 1000)
        require_integer(self, "batch_size", 1, 65536)
        require_identifier(self, "encoding")
        require_real(self, "check_in_s", 0.0, 604800.0)
        require_integer(self, "max_idle_passes", 1, 1_000_000)
        require_real(self, "decay", 0.0, 1e9)
        if self.lr * self.decay > 1.0:
            raise SchemaError("lr times decay must be at most 1")
        require_real(self, "taste_recency", 0.0, 1e6)
        require_real(self, "taste_strength", 0.0, 100.0)
        require_real(self, "guard", 0.0, 1.0)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The part of the plan that a local pass needs."""
        return Hyperparameters(
            lr=self.lr,
            item_lr=self.item_lr,
            negatives=self.negatives,
            batch_size=self.batch_size,
            decay=self.decay,
        )

    @property
    def taste(self) -> TasteSettings:
        """The part of the plan that the own view needs."""
        return TasteSettings(recency=self.taste_recency, strength=self.taste_strength)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A step on offer: from the version before `version` to it.

    Attributes
    ----------
    size : int
        Bytes of the whole step (`broker.protocol.deltas`).
    digest : bytes
        The first eight bytes of its SHA-256.
    """

    version: int
    size: int
    digest: bytes

    def __post_init__(self) -> None:
        require_integer(self, "version", 1, MAX_SEQ)
        require_integer(self, "size", 1, MAX_TRANSFER_BYTES)
        require_bytes(self, "digest", DIGEST_PREFIX_BYTES, DIGEST_PREFIX_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A release on offer (`broker.protocol.releases`), and whom it is offered to.

    Attributes
    ----------
    release : int
        Its number.
    size : int
        Bytes of its bundle.
    sha256 : bytes
        Of its bundle.
    percent : int
        The share of all devices that it is for, drawn by the release's number and the device's id.
    groups : tuple of str
        Besides: all devices that count themselves among one of these.
    """

    release: int
    size: int
    sha256: bytes
    percent: int
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_integer(self, "release", 1, MAX_SEQ)
        require_integer(self, "size", 1, MAX_TRANSFER_BYTES)
        require_bytes(self, "sha256", 32, 32)
        require_integer(self, "percent", 0, 100)
        if type(self.groups) is not tuple or len(self.groups) > MAX_GROUPS:
            raise SchemaError(f"groups must be a list of at most {MAX_GROUPS} names")
        for name in self.groups:
            require_name(name, "each of groups")

    @property
    def slot(self) -> int:
        """Where the bundle's chunks are; the next release goes to the other one."""
        return self.release % 2

    def reaches(self, device: str, groups: AbstractSet[str] = frozenset()) -> bool:
        """Tell whether it is for a device: the same answer as long as the share does not shrink."""
        if groups & set(self.groups):
            return True
        digest = hashlib.sha256(f"release/{self.release}/{device}".encode()).digest()
        return int.from_bytes(digest[:8], "big") * 100 < self.percent * 2**64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """The manifest of the newest published version; retained.

    Attributes
    ----------
    instance : int
        Drawn when the aggregator's directory was made: versions of different instances have nothing in
        common.
    session : int
        Grows with every connection of the aggregator: whoever waits for a receipt sends again.
    version : int
        Of the table; grows by one each server round.
    rows, dim : int
        Shape of the table, float32.
    sha256 : bytes
        Of the table's values, row by row, little-endian float32.
    slot, chunks : int
        Where the snapshot is, and in how many chunks.
    catalogue_rows, catalogue_chunks, catalogue_bytes : int
    catalogue_sha256 : bytes
        Of the item keys, UTF-8, each ended by a line feed, in row order.
    deltas : tuple of Delta
        The newest steps between versions, in order, the last one to this version; maybe none.
    plan : Plan
    w : ndarray, shape (dim,), float32
    b : float
        The score function that a new device starts from.
    offer : Offer or None
        A release on offer; on the wire only where there is one.
    signature : bytes or None
        Room for Ed25519 over the other fields.
    """

    TYPE: ClassVar[str] = "head"
    instance: int
    session: int
    version: int
    rows: int
    dim: int
    sha256: bytes
    slot: int
    chunks: int
    catalogue_rows: int
    catalogue_chunks: int
    catalogue_bytes: int
    catalogue_sha256: bytes
    plan: Plan
    w: Floats
    b: float
    deltas: tuple[Delta, ...] = ()
    offer: Offer | None = None
    signature: bytes | None = None

    def __post_init__(self) -> None:
        require_integer(self, "instance", 0, MAX_U64)
        for name in ("session", "version"):
            require_integer(self, name, 0, MAX_SEQ)
        require_integer(self, "rows", 1, MAX_ITEMS_IN_CATALOGUE)
        require_integer(self, "dim", 1, MAX_DIM)
        if self.table_bytes > MAX_TRANSFER_BYTES:
            raise SchemaError(f"a table of {self.table_bytes} bytes; at most {MAX_TRANSFER_BYTES} are sent")
        for name in ("sha256", "catalogue_sha256"):
            require_bytes(self, name, 32, 32)
        require_integer(self, "slot", 0, 1)
        require_integer(self, "chunks", 1, MAX_CHUNKS)
        # Append-only: the catalogue may be one step ahead of a table, never behind.
        require_integer(self, "catalogue_rows", self.rows, MAX_ITEMS_IN_CATALOGUE)
        require_integer(self, "catalogue_bytes", 1, MAX_TRANSFER_BYTES)
        require_integer(self, "catalogue_chunks", 1, MAX_CHUNKS)
        expected = (chunk_count(self.table_bytes), chunk_count(self.catalogue_bytes))
        if (self.chunks, self.catalogue_chunks) != expected:
            raise SchemaError(f"chunks and catalogue_chunks must be {expected[0]} and {expected[1]}")
        if not isinstance(self.plan, Plan):
            raise SchemaError("plan must be a map")
        if (
            not is_typed_array(self.w)
            or self.w.dtype != np.float32
            or self.w.shape != (self.dim,)
            or not np.isfinite(self.w).all()
        ):
            raise SchemaError(f"w must be {self.dim} finite float32 values")
        require_real(self, "b", -1e30, 1e30)
        if type(self.deltas) is not tuple or len(self.deltas) > MAX_DELTAS:
            raise SchemaError(f"deltas must be a list of at most {MAX_DELTAS} steps")
        first = self.version - len(self.deltas) + 1
        if any(
            type(delta) is not Delta or delta.version != first + number
            for number, delta in enumerate(self.deltas)
        ):
            raise SchemaError("deltas must be the steps to the newest versions, in order")
        if self.offer is not None and type(self.offer) is not Offer:
            raise SchemaError("offer must be a map")
        if self.signature is not None:
            require_bytes(self, "signature", 64, 64)

    @property
    def table_bytes(self) -> int:
        """Size of the table's values."""
        return 4 * self.rows * self.dim

    def asks(self, device: str) -> bool:
        """Tell whether a device is to report this version's quality: another sample for each version."""
        return is_sampled(self.instance, self.version, device, self.plan.guard)

    def follows(self, other: "Head | None") -> bool:
        """Tell whether it is of the same table as `other`, whatever their versions."""
        return other is not None and (self.instance, self.dim) == (other.instance, other.dim)

    def deltas_from(self, version: int) -> tuple[Delta, ...]:
        """Give the steps that lead from an older version to this one; none where some are not on offer."""
        count = self.version - version
        return self.deltas[-count:] if 0 < count <= len(self.deltas) else ()


def is_sampled(instance: int, version: int, device: str, rate: float) -> bool:
    """Tell whether a device reports a version: the same answer at both ends, another for each version."""
    digest = hashlib.sha256(f"{instance}/{version}/{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2.0**64


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of something larger: a table, a catalogue, or an update.

    Attributes
    ----------
    digest : bytes
        The first eight bytes of the whole's SHA-256; chunks of the same whole have the same.
    index, count : int
    size : int
        Bytes of the whole.
    data : bytes
    """

    TYPE: ClassVar[str] = "chunk"
    digest: bytes
    index: int
    count: int
    size: int
    data: bytes

    def __post_init__(self) -> None:
        require_bytes(self, "digest", DIGEST_PREFIX_BYTES, DIGEST_PREFIX_BYTES)
        require_integer(self, "count", 1, MAX_CHUNKS)
        require_integer(self, "index", 0, self.count - 1)
        require_integer(self, "size", 1, MAX_TRANSFER_BYTES)
        require_bytes(self, "data", 1, CHUNK_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A device is there, or (as its last will) gone; retained.

    Attributes
    ----------
    session : int
        Grows with every connection of the device, so that an old last will is recognised.
    incarnation : int
        Drawn when the device's store was made.
    version : int or None
        The table's version on the device.
    scorer, software : str
        Runtime facts: which scorer runs, and the release.
    """

    TYPE: ClassVar[str] = "status"
    online: bool
    session: int
    incarnation: int
    version: int | None
    scorer: str
    software: str

    def __post_init__(self) -> None:
        require_boolean(self, "online")
        require_integer(self, "session", 0, MAX_SEQ)
        require_integer(self, "incarnation", 0, MAX_U64)
        if self.version is not None:
            require_integer(self, "version", 0, MAX_SEQ)
        require_text(self, "scorer", 32)
        require_text(self, "software", 64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Update:
    """What one local pass changed in the item table, encoded.

    Attributes
    ----------
    instance : int
        The aggregator instance whose table it was trained on.
    incarnation, seq : int
        Together they name the update for ever; a number seen before counts once.
    base_version : int
        Of the table that the pass started from.
    encoding : str
        Which of `broker.protocol.encodings` reads the body.
    body : mapping of str to typed arrays
    """

    TYPE: ClassVar[str] = "update"
    instance: int
    incarnation: int
    seq: int
    base_version: int
    encoding: str
    body: Mapping[str, TypedArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("instance", "incarnation"):
            require_integer(self, name, 0, MAX_U64)
        require_integer(self, "seq", 1, MAX_SEQ)
        require_integer(self, "base_version", 0, MAX_SEQ)
        require_identifier(self, "encoding")
        if not isinstance(self.body, Mapping) or not 1 <= len(self.body) <= 8:
            raise SchemaError("body must be a map of 1 to 8 typed arrays")
        for name, value in self.body.items():
            if type(name) is not str or not is_typed_array(value):
                raise SchemaError("body must map names to typed arrays")


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The aggregator's answer to an update.

    Attributes
    ----------
    verdict : str
        ``accepted``: journalled, will count once. ``duplicate``: was answered before, as `reason` says.
        ``stale``: too many versions old. ``rejected``: wrong, as `reason` says. Any of them ends the
        update's stay in the outbox.
    version : int
        The aggregator's newest.
    staleness : int
        Versions between the update's base and the newest.
    check_in_s : float
        Seconds until the device should look at the head again.
    """

    TYPE: ClassVar[str] = "receipt"
    incarnation: int
    seq: int
    verdict: Verdict
    reason: str
    version: int
    staleness: int
    check_in_s: float

    def __post_init__(self) -> None:
        require_integer(self, "incarnation", 0, MAX_U64)
        require_integer(self, "seq", 0, MAX_SEQ)
        require_choice(self, "verdict", VERDICTS)
        require_text(self, "reason", MAX_REASON_BYTES)
        require_integer(self, "version", 0, MAX_SEQ)
        require_integer(self, "staleness", 0, MAX_SEQ)
        require_real(self, "check_in_s", 0.0, 604800.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How well a version ranks an item of a user's that it is not told of, beside the table before it.

    The item is ranked against `candidates` others that the user does not have, drawn at random.

    Attributes
    ----------
    instance : int
    version, version_before : int
        Of the table that has arrived, and of the one that the device had.
    candidates : int
    hits, hits_before : int
        1 if the item is among the ten best, else 0; by the new table, and by the one before.
    beaten, beaten_before : int
        Candidates that are ranked below the item; ties count against it.
    ndcg, ndcg_before : float
        NDCG@10.
    loss, loss_before : float
        The mean cross-entropy of item and candidates.
    """

    TYPE: ClassVar[str] = "quality"
    instance: int
    version: int
    version_before: int
    candidates: int
    hits: int
    hits_before: int
    beaten: int
    beaten_before: int
    ndcg: float
    ndcg_before: float
    loss: float
    loss_before: float

    def __post_init__(self) -> None:
        require_integer(self, "instance", 0, MAX_U64)
        require_integer(self, "version", 1, MAX_SEQ)
        require_integer(self, "version_before", 0, self.version - 1)
        require_integer(self, "candidates", 1, 10_000)
        for name in ("hits", "hits_before"):
            require_integer(self, name, 0, 1)
        for name in ("beaten", "beaten_before"):
            require_integer(self, name, 0, self.candidates)
        for name in ("ndcg", "ndcg_before"):
            require_real(self, name, 0.0, 1.0)
        for name in ("loss", "loss_before"):
            require_real(self, name, 0.0, MAX_LOSS)


Message: TypeAlias = Head | Chunk | Status | Update | Receipt | Quality
_M = TypeVar("_M", bound="Message")
_KINDS: tuple[type[Message], ...] = (Head, Chunk, Status, Update, Receipt, Quality)
_MESSAGES: dict[str, type[Message]] = {kind.TYPE: kind for kind in _KINDS}
_NAMES: dict[type, tuple[str, ...]] = {
    kind: tuple(f.name for f in fields(kind)) for kind in (*_KINDS, Plan, Delta, Offer)
}


def encode(message: Message) -> bytes:
    """Give the message's bytes; the same message gives the same bytes."""
    content: dict[str, Any] = {"v": PROTOCOL_VERSION, "type": message.TYPE}
    content.update((name, getattr(message, name)) for name in _NAMES[type(message)])
    if isinstance(message, Head):
        content["plan"] = {name: getattr(message.plan, name) for name in _NAMES[Plan]}
        if not message.plan.guard:  # ends of before there was a guard would refuse it
            del content["plan"]["guard"]
        if message.offer is None:  # the same
            del content["offer"]
        else:
            content["offer"] = {name: getattr(message.offer, name) for name in _NAMES[Offer]}
            content["offer"]["groups"] = list(message.offer.groups)
        content["deltas"] = [
            {name: getattr(delta, name) for name in _NAMES[Delta]} for delta in message.deltas
        ]
    elif isinstance(message, Update):
        content["body"] = dict(message.body)
    return wire.dumps(content)


def update_size(update: Update) -> int:
    """Give ``len(encode(update))`` without encoding."""
    return encoded_update_bytes(
        update.encoding,
        {name: array.nbytes for name, array in update.body.items()},
        (update.instance, update.incarnation, update.seq, update.base_version),
    )


def encoded_update_bytes(
    encoding: str, arrays: Mapping[str, int], integers: tuple[int, int, int, int]
) -> int:
    """Give the size of an encoded update without the update.

    Parameters
    ----------
    arrays : mapping of str to int
        Names and sizes in bytes of the body's arrays.
    integers : tuple
        Its instance, incarnation, seq and base version.
    """
    # Only integers and arrays differ between updates of the same encoding and body names.
    size = _bare_update_size(encoding, tuple(arrays))
    size += sum(map(_argument_bytes, integers))
    for nbytes in arrays.values():
        size += nbytes + _argument_bytes(nbytes)
    return size


@lru_cache(maxsize=64)
def _bare_update_size(encoding: str, names: tuple[str, ...]) -> int:
    empty = np.empty(0, dtype=np.float32)
    bare = Update(
        instance=0, incarnation=0, seq=1, base_version=0, encoding=encoding, body=dict.fromkeys(names, empty)
    )
    return len(encode(bare))


def _argument_bytes(value: int) -> int:
    """Give the bytes that follow the first one of a CBOR integer or length (RFC 8949, section 3)."""
    if value < 24:
        return 0
    return 1 if value < 0x100 else 2 if value < 0x10000 else 4 if value < 0x100000000 else 8


def decode(payload: bytes, *expected: type[_M], max_bytes: int = wire.MAX_MESSAGE_BYTES) -> _M:
    """Read a message of one of the `expected` types.

    Parameters
    ----------
    max_bytes : int
        The largest payload to look at; larger than the default only for an update put together from
        chunks.

    Raises
    ------
    MalformedError
        When the payload is not the CBOR that the protocol allows.
    SchemaError
        When it is, but is not such a message.
    """
    content = wire.loads(payload, max_bytes)
    if not isinstance(content, dict):
        raise SchemaError(f"a message is a map, not {shown(content)}")
    version = content.pop("v", None)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise SchemaError(f"not a message of protocol version {PROTOCOL_VERSION}")
    name = content.pop("type", None)
    kind = _MESSAGES.get(name) if type(name) is str else None
    if kind is None or kind not in expected:
        raise SchemaError(f"the type is {shown(name)}; expected {' or '.join(k.TYPE for k in expected)}")
    if kind is Head:
        content["offer"] = _offer(content["offer"]) if "offer" in content else None
    _require_fields(content, kind)
    if kind is Head:
        if isinstance(content["deltas"], list):
            content["deltas"] = tuple(_delta(step) for step in content["deltas"][: MAX_DELTAS + 1])
        if isinstance(content["plan"], dict):
            content["plan"].setdefault("guard", 0.0)
            _require_fields(content["plan"], Plan)
            content["plan"] = Plan(**content["plan"])
    return kind(**content)


def _offer(content: Any) -> Offer:
    if not isinstance(content, dict):
        raise SchemaError("offer must be a map")
    _require_fields(content, Offer)
    if isinstance(content["groups"], list):
        content["groups"] = tuple(content["groups"][: MAX_GROUPS + 1])
    return Offer(**content)


def _delta(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    _require_fields(content, Delta)
    return Delta(**content)


def _require_fields(content: dict[Any, Any], kind: type) -> None:
    names = _NAMES[kind]
    if len(content) == len(names) and all(name in content for name in names):
        return
    missing = [name for name in names if name not in content]
    unknown = [ascii(name)[:42] for name in content if name not in names]
    problem = [f"without {', '.join(missing)}"] * bool(missing)
    problem += [f"with the unknown field {', '.join(unknown[:3])}"] * bool(unknown)
    raise SchemaError(f"a {kind.__name__.lower()} {' and '.join(problem)}")
