"""docs/protocol.md says what the code does, where a test can tell."""

import re
from pathlib import Path

import pytest

from broker import errors
from broker.protocol import wire
from broker.protocol.chunks import CHUNK_BYTES
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import MAX_ITEMS_IN_CATALOGUE, MAX_TRANSFER_BYTES, VERDICTS, Update, encode
from broker.protocol.topics import PROTOCOL_VERSION, FleetTopics
from tests.broker.protocol.golden import GOLDEN
from trainer.params import MAX_DIM

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_page_has_exactly_the_topics() -> None:
    """The table of topics, with the placeholders that the page explains."""
    topics = FleetTopics("FLEET")
    expected = {
        topics.head,
        topics.snapshot(0, 7).replace("0/7", "SLOT/CHUNK"),
        topics.delta(0, 7).replace("0/7", "SLOT/CHUNK"),
        topics.catalogue(7).replace("/7", "/CHUNK"),
        topics.release(0, 7).replace("0/7", "SLOT/CHUNK"),
        topics.status("ID"),
        topics.update("ID"),
        topics.receipt("ID"),
        topics.quality("ID"),
        topics.part("ID"),
        topics.presence("NAME"),
        topics.call,
    }

    assert set(re.findall(r"^\| `([^`]+)` \| ", PAGE, re.MULTILINE)) == expected
    assert PAGE.startswith(f"# The protocol, version {PROTOCOL_VERSION}\n")


@pytest.mark.parametrize(
    "text",
    [
        f"{wire.MAX_MESSAGE_BYTES:,} bytes",
        f"{CHUNK_BYTES:,} bytes",
        f"{wire.MAX_ITEMS} data items",
        f"{wire.MAX_DEPTH} nested containers",
        f"{MAX_ITEMS_IN_CATALOGUE:,} rows",
        f"`dim` at most {MAX_DIM}",
        f"{MAX_TRANSFER_BYTES >> 30} GiB",
    ],
)
def test_page_has_the_limits(text: str) -> None:
    """Every limit as it is in the code."""
    assert text in PAGE


def test_page_explains_every_verdict_encoding_and_refusal() -> None:
    """A new one needs a sentence."""
    kinds = [name for name in errors.__all__ if issubclass(getattr(errors, name), errors.ProtocolError)]

    assert all(f"**{verdict}**" in PAGE for verdict in VERDICTS)
    assert all(f"`{name}`" in PAGE for name in ENCODINGS)
    assert all(name in PAGE for name in kinds if name != "ProtocolError")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("update-float32", 116, 160),
        ("update-int8", 123, 160),
        ("update-int4", 122, 160),
        ("update-float16", 129, 160),
        ("update-factored", 143, 180),
        ("update-factored-int8", 156, 190),
    ],
)
def test_page_has_the_sizes_of_envelopes(name: str, least: int, most: int) -> None:
    """What an update takes beside its arrays."""
    message = GOLDEN[name]
    assert isinstance(message, Update)
    arrays = sum(array.nbytes for array in message.body.values())

    assert len(encode(message)) - arrays == least
    assert f"{least} to {most} bytes" in PAGE
