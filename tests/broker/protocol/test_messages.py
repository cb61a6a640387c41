"""What a message refuses to be made of."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from broker.errors import SchemaError
from broker.protocol.messages import (
    MAX_ITEMS_IN_CATALOGUE,
    MAX_SEQ,
    MAX_TRANSFER_BYTES,
    MAX_U64,
    Chunk,
    Head,
    Message,
    Offer,
    Plan,
    Quality,
    Receipt,
    Status,
    Update,
)
from tests.broker.protocol.golden import GOLDEN, HEAD, OFFER
from tests.broker.protocol.strategies import plans
from trainer.params import Hyperparameters
from trainer.taste import TasteSettings

PLAN = HEAD.plan
CHUNK, STATUS, UPDATE, RECEIPT, QUALITY = (
    GOLDEN[name] for name in ("chunk", "status", "update-float32", "receipt", "quality")
)
ROWS = np.zeros(1, np.uint32)
NAN = float("nan")
INFINITY = float("inf")


def integer(low: int, high: int) -> list[object]:
    """Give what is no integer from `low` to `high`."""
    return [
        low - 1,
        high + 1,
        -(2**64),
        float(low),
        True,
        False,
        None,
        str(low),
        b"\x01",
        np.int64(low),
        [low],
    ]


def real(low: float, high: float) -> list[object]:
    """Give what is no finite float from `low` to `high`."""
    outside = [np.nextafter(low, -INFINITY).item(), np.nextafter(high, INFINITY).item()]
    return [*outside, NAN, INFINITY, -INFINITY, 1, 0, True, None, "0.5", np.float32(0.5), [0.5]]


def text(max_bytes: int) -> list[object]:
    """Give what is no text of at most `max_bytes`."""
    wide = "é" * (max_bytes // 2 + 1)
    return ["x" * (max_bytes + 1), wide, "\ud800", b"x", None, 1, ["x"], np.str_("x")]


def octets(low: int, high: int) -> list[object]:
    """Give what is not `low` to `high` bytes."""
    return [b"x" * (low - 1), b"x" * (high + 1), "x" * low, bytearray(low), memoryview(b"x" * low), None, 1]


IDENTIFIERS: list[object] = [
    "",
    "-a",
    ".a",
    "a/b",
    "a+",
    "#",
    "a b",
    "é",
    "a\n",
    "a" * 65,
    None,
    1,
    b"int8",
    ["a"],
]

REFUSED: list[tuple[Message | Plan | Offer, str, list[object]]] = [
    (PLAN, "lr", real(0.0, 1e9)),
    (PLAN, "item_lr", real(0.0, 1e9)),
    (PLAN, "negatives", integer(1, 1000)),
    (PLAN, "batch_size", integer(1, 65536)),
    (PLAN, "encoding", IDENTIFIERS),
    (PLAN, "check_in_s", real(0.0, 604800.0)),
    (PLAN, "max_idle_passes", integer(1, 1_000_000)),
    # A step must not take away more than there is: lr · decay is at most 1, and this lr is 0.1.
    (PLAN, "decay", real(0.0, 10.0)),
    (PLAN, "taste_recency", real(0.0, 1e6)),
    (PLAN, "taste_strength", real(0.0, 100.0)),
    (PLAN, "guard", real(0.0, 1.0)),
    (HEAD, "instance", integer(0, MAX_U64)),
    (HEAD, "session", integer(0, MAX_SEQ)),
    (HEAD, "version", integer(0, MAX_SEQ)),
    (HEAD, "rows", integer(1, MAX_ITEMS_IN_CATALOGUE)),
    (HEAD, "dim", integer(1, 1024)),
    (HEAD, "sha256", octets(32, 32)),
    (HEAD, "slot", integer(0, 1)),
    (HEAD, "chunks", [*integer(1, 65_536), 2, 65_536]),
    (HEAD, "catalogue_rows", integer(HEAD.rows, MAX_ITEMS_IN_CATALOGUE)),
    (HEAD, "catalogue_chunks", [*integer(1, 65_536), 2, 65_536]),
    (HEAD, "catalogue_bytes", integer(1, MAX_TRANSFER_BYTES)),
    (HEAD, "catalogue_sha256", octets(32, 32)),
    (HEAD, "plan", [None, {}, HEAD, "plan", 1]),
    (
        HEAD,
        "w",
        [
            None,
            [0.5, 0.5],
            b"\x00" * 8,
            np.float32(0.5),
            np.zeros(1, np.float32),
            np.zeros(3, np.float32),
            np.zeros((1, 2), np.float32),
            np.zeros(2, np.float64),
            np.zeros(2, np.int8),
            np.array([0.5, NAN], np.float32),
            np.array([-INFINITY, 0.5], np.float32),
        ],
    ),
    (HEAD, "b", real(-1e30, 1e30)),
    (HEAD, "deltas", [None, [], [1], (HEAD.version,), (None,), HEAD.deltas[:1], HEAD.deltas[::-1]]),
    (HEAD, "offer", [{}, 1, "offer", PLAN, HEAD]),
    (OFFER, "release", integer(1, MAX_SEQ)),
    (OFFER, "size", integer(1, MAX_TRANSFER_BYTES)),
    (OFFER, "sha256", octets(32, 32)),
    (OFFER, "percent", integer(0, 100)),
    (OFFER, "groups", [None, ["beta"], "beta", (1,), ("a/b",), ("",), ("beta",) * 17]),
    (HEAD, "signature", [value for value in octets(64, 64) if value is not None]),
    (CHUNK, "digest", octets(8, 8)),
    (CHUNK, "index", integer(0, 0)),
    (CHUNK, "count", integer(1, 65_536)),
    (CHUNK, "size", integer(1, MAX_TRANSFER_BYTES)),
    (CHUNK, "data", octets(1, 122_880)),
    (STATUS, "online", [None, 0, 1, "true", np.True_, [True]]),
    (STATUS, "session", integer(0, MAX_SEQ)),
    (STATUS, "incarnation", integer(0, MAX_U64)),
    (STATUS, "version", [value for value in integer(0, MAX_SEQ) if value is not None]),
    (STATUS, "scorer", text(32)),
    (STATUS, "software", text(64)),
    (UPDATE, "instance", integer(0, MAX_U64)),
    (UPDATE, "incarnation", integer(0, MAX_U64)),
    (UPDATE, "seq", integer(1, MAX_SEQ)),
    (UPDATE, "base_version", integer(0, MAX_SEQ)),
    (UPDATE, "encoding", IDENTIFIERS),
    (
        UPDATE,
        "body",
        [
            None,
            {},
            [ROWS],
            ROWS,
            {str(n): ROWS for n in range(9)},
            {1: ROWS},
            {b"rows": ROWS},
            {"rows": [1]},
            {"rows": b"\x00" * 4},
            {"rows": ROWS, "values": None},
            {"rows": np.zeros(1, np.int64)},
            {"values": np.zeros(1, np.float64)},
            {"values": np.zeros((1, 2), np.float32)},
            {"values": np.float32(1.0)},
        ],
    ),
    (RECEIPT, "incarnation", integer(0, MAX_U64)),
    (RECEIPT, "seq", integer(0, MAX_SEQ)),
    (
        RECEIPT,
        "verdict",
        [None, "", "ACCEPTED", "accepted ", 1, b"accepted", ("accepted",), np.ones(2, np.int8)],
    ),
    (RECEIPT, "reason", text(400)),
    (RECEIPT, "version", integer(0, MAX_SEQ)),
    (RECEIPT, "staleness", integer(0, MAX_SEQ)),
    (RECEIPT, "check_in_s", real(0.0, 604800.0)),
    (QUALITY, "instance", integer(0, MAX_U64)),
    (QUALITY, "version", [*integer(40, MAX_SEQ), 0]),
    (QUALITY, "version_before", integer(0, 40)),
    (QUALITY, "candidates", integer(1, 10_000)),
    *((QUALITY, name, integer(0, 1)) for name in ("hits", "hits_before")),
    *((QUALITY, name, integer(0, 99)) for name in ("beaten", "beaten_before")),
    *((QUALITY, name, real(0.0, 1.0)) for name in ("ndcg", "ndcg_before")),
    *((QUALITY, name, real(0.0, 1e6)) for name in ("loss", "loss_before")),
]


@pytest.mark.parametrize(
    ("message", "field", "values"),
    REFUSED,
    ids=[f"{type(message).__name__}-{field}" for message, field, _ in REFUSED],
)
def test_wrong_value_is_refused_with_the_fields_name(
    message: Message | Plan, field: str, values: list[object]
) -> None:
    """Type and range of every field are checked, and the refusal names the field."""
    for value in values:
        changes: dict[str, Any] = {field: value}
        with pytest.raises(SchemaError, match=field):
            replace(message, **changes)


def test_every_field_has_refused_values() -> None:
    """The table above has no gap."""
    expected = {
        (kind.__name__, name)
        for kind in (Plan, Offer, Head, Chunk, Status, Update, Receipt, Quality)
        for name in kind.__dataclass_fields__
        if name != "TYPE"
    }

    assert {(type(message).__name__, field) for message, field, _ in REFUSED} == expected


@pytest.mark.parametrize("message", [PLAN, *GOLDEN.values()], ids=["plan", *GOLDEN])
def test_message_cannot_be_changed(message: Message | Plan) -> None:
    """Messages are values."""
    with pytest.raises(FrozenInstanceError):
        setattr(message, fields(message)[0].name, 1)


def test_table_too_large_to_send_is_refused() -> None:
    """Rows and dim may each be right and their product not."""
    with pytest.raises(SchemaError, match="a table of 1073745920 bytes; at most 1073741824 are sent"):
        replace(HEAD, rows=262_145, dim=1024)


def test_table_of_the_largest_size_is_allowed() -> None:
    """A table of 1 GiB has a head."""
    head = replace(
        HEAD, rows=262_144, dim=1024, catalogue_rows=262_144, chunks=8739, w=np.zeros(1024, np.float32)
    )

    assert head.table_bytes == MAX_TRANSFER_BYTES


def test_catalogue_may_be_ahead_of_the_table() -> None:
    """Items are appended to the catalogue before a table has their rows."""
    assert replace(HEAD, catalogue_rows=HEAD.rows + 5).catalogue_rows == HEAD.rows + 5


@pytest.mark.parametrize(("index", "count"), [(1, 1), (5, 5), (65_536, 65_536)])
def test_chunk_beyond_its_count_is_refused(index: int, count: int) -> None:
    """Indices begin with zero."""
    changes: dict[str, Any] = {"index": index, "count": count}
    with pytest.raises(SchemaError, match=f"index must be an integer from 0 to {count - 1}"):
        replace(CHUNK, **changes)


def test_update_takes_any_mapping() -> None:
    """A body need not be a dict."""

    class Body(Mapping[str, Any]):
        """One array."""

        def __getitem__(self, key: str) -> object:
            """Give it for any key."""
            return ROWS

        def __iter__(self) -> Any:
            """Give its name."""
            return iter(["rows"])

        def __len__(self) -> int:
            """Count it."""
            return 1

    changes: dict[str, Any] = {"body": Body()}
    assert isinstance(replace(UPDATE, **changes), Update)


@given(plans())
def test_plan_has_hyperparameters(plan: Plan) -> None:
    """Every plan that may travel gives settings that a local pass takes."""
    assert plan.hyperparameters == Hyperparameters(
        lr=plan.lr,
        item_lr=plan.item_lr,
        negatives=plan.negatives,
        batch_size=plan.batch_size,
        decay=plan.decay,
    )
    assert plan.taste == TasteSettings(recency=plan.taste_recency, strength=plan.taste_strength)


def test_offer_reaches_a_share_of_devices_that_only_grows() -> None:
    """About as many as it says; who is in stays in; another release has others first."""
    devices = [f"pi-{number}" for number in range(2000)]

    def reached(release: int, percent: int) -> set[str]:
        offer = replace(OFFER, release=release, percent=percent)
        return {device for device in devices if offer.reaches(device)}

    before: set[str] = set()
    for percent in (0, 1, 10, 50, 99, 100):
        now = reached(7, percent)
        assert before <= now
        assert abs(len(now) - 20 * percent) <= 3 * 2000**0.5
        before = now
    assert reached(7, 0) == set()
    assert reached(7, 100) == set(devices)
    assert reached(7, 10) != reached(8, 10)


def test_offer_reaches_all_of_a_group() -> None:
    """Whatever the share."""
    offer = replace(OFFER, percent=0)
    assert offer.reaches("pi-1", {"attic", "lab"})
    assert not offer.reaches("pi-1", {"attic"})
    assert not offer.reaches("pi-1")
