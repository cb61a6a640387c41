"""The schema in docs/protocol.cddl and the code agree."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycddl import Schema, ValidationError

from broker.errors import ProtocolError
from broker.protocol import wire
from broker.protocol.encodings import ENCODINGS
from broker.protocol.messages import (
    Chunk,
    Delta,
    Head,
    Message,
    Offer,
    Plan,
    Quality,
    Receipt,
    Status,
    Update,
    decode,
    encode,
)
from tests.broker.protocol.golden import GOLDEN
from tests.broker.protocol.strategies import known_updates, messages, sparse_changes, wire_values

CDDL = (Path(__file__).parents[3] / "docs" / "protocol.cddl").read_text(encoding="utf-8")
WRONG_VALUES: tuple[object, ...] = (
    None,
    False,
    0,
    -1,
    2**64 - 1,
    0.5,
    -1e300,
    "",
    "no such thing",
    b"",
    b"abc",
    [],
    [-1],
    {},
    {"rows": 1},
    np.zeros(2, np.uint32),
    np.zeros(0, np.float32),
)
TEXT_LITERALS = ("type", "verdict")


def schema(rule: str) -> Schema:
    """Give the schema with `rule` as what is validated."""
    return Schema(f"this-one = {rule}\n{CDDL}")


MESSAGE = schema("message")


def schema_allows(payload: bytes) -> bool:
    """Tell whether the schema takes `payload` for a message."""
    try:
        MESSAGE.validate_cbor(payload)
    except ValidationError:
        return False
    return True


def code_refuses(payload: bytes) -> bool:
    """Tell whether the decoder refuses `payload`."""
    try:
        decode(payload, Head, Chunk, Status, Update, Receipt, Quality)
    except ProtocolError:
        return True
    return False


def content_of(message: Message) -> dict[str, Any]:
    """Give the map that travels for `message`."""
    content = wire.loads(encode(message))
    assert isinstance(content, dict)
    return content


def parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the maps with named fields in a message: itself, a head's plan, and its steps."""
    return [content, content["plan"], *content["deltas"]] if "plan" in content else [content]


@given(messages())
@settings(deadline=None)
def test_schema_allows_every_message(message: Message) -> None:
    """What the code encodes is a message, and one of its own type."""
    payload = encode(message)

    MESSAGE.validate_cbor(payload)
    schema(message.TYPE).validate_cbor(payload)


@given(known_updates())
@settings(deadline=None)
def test_schema_allows_every_known_body(update: Update) -> None:
    """The body of every encoding has the rule of its name."""
    body = wire.dumps(dict(update.body))

    schema(f"{update.encoding}-body").validate_cbor(body)
    schema("known-body").validate_cbor(body)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_schema_refuses_another_encodings_body(name: str, data: st.DataObject) -> None:
    """The rules of the encodings' bodies exclude each other."""
    body = wire.dumps(ENCODINGS[name].encode(data.draw(sparse_changes())))

    for other in ENCODINGS.keys() - {name}:
        with pytest.raises(ValidationError):
            schema(f"{other}-body").validate_cbor(body)


@pytest.mark.parametrize("kind", [Head, Chunk, Status, Update, Receipt, Quality, Plan, Delta, Offer])
def test_schema_lists_the_fields_in_order(kind: type) -> None:
    """A rule names the fields of its message as the code writes them."""
    rule = {Plan: "training-plan", Delta: "delta", Offer: "offer"}.get(kind) or kind.TYPE  # type: ignore[attr-defined]
    lines = CDDL.split(f"\n{rule} = {{\n")[1].split("\n}")[0].splitlines()
    names = [line.split(":")[0].strip().removeprefix("? ") for line in lines]

    envelope = [] if kind in (Plan, Delta, Offer) else ["v", "type"]
    assert names == envelope + [field.name for field in fields(kind)]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_missing_field_is_refused_by_both(name: str) -> None:
    """No field may be left out."""
    for at, part in enumerate(parts(content_of(GOLDEN[name]))):
        for field in part.keys() - {"offer"}:  # which a head need not have
            content = content_of(GOLDEN[name])
            del parts(content)[at][field]
            payload = wire.dumps(content)

            assert not schema_allows(payload), field
            assert code_refuses(payload), field


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize("key", ["extra", "V", "", 1, b"v", None])
def test_extra_field_is_refused_by_both(name: str, key: object) -> None:
    """No field may be added."""
    for at in range(len(parts(content_of(GOLDEN[name])))):
        content: dict[Any, Any] = content_of(GOLDEN[name])
        parts(content)[at][key] = 1  # type: ignore[index]
        payload = wire.dumps(content)

        # The validator lets more keys pass in maps that lie in an array.
        assert at > 1 or not schema_allows(payload)
        assert code_refuses(payload)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_wrong_value_is_refused_by_the_code_where_the_schema_refuses_it(name: str) -> None:
    """For every field the schema refuses many values, and the code all of those."""
    for at, part in enumerate(parts(content_of(GOLDEN[name]))):
        for field in part:
            refused = 0
            for value in WRONG_VALUES:
                if field in TEXT_LITERALS and isinstance(value, bytes):
                    continue  # the validator of pycddl 0.6 panics when it compares bytes with a text
                content = content_of(GOLDEN[name])
                parts(content)[at][field] = value
                payload = wire.dumps(content)
                if not schema_allows(payload):
                    refused += 1
                    assert code_refuses(payload), (field, value)
            assert refused >= 8, field


@given(messages(), st.data())
@settings(deadline=None, max_examples=500)
def test_mutation_that_the_schema_refuses_is_refused_by_the_code(
    message: Message, data: st.DataObject
) -> None:
    """The code is never laxer than the schema."""
    content = content_of(message)
    part = data.draw(st.sampled_from(parts(content)))
    field = data.draw(st.sampled_from(sorted(part)))
    match data.draw(st.sampled_from(["drop", "add", "replace", "rename"])):
        case "drop":
            del part[field]
        case "add":
            part[data.draw(st.text(st.characters(codec="utf-8"), max_size=8))] = data.draw(wire_values())
        case "rename":
            part[data.draw(st.text(st.characters(codec="utf-8"), max_size=8))] = part.pop(field)
        case _:
            part[field] = data.draw(wire_values())
    # pycddl 0.6 panics when it compares bytes with a text.
    assume(not any(isinstance(content.get(literal), bytes) for literal in TEXT_LITERALS))
    payload = wire.dumps(content)

    assert schema_allows(payload) or code_refuses(payload)
