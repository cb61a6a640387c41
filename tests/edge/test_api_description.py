"""The API's OpenAPI description is valid, and says what the code does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from edge.api.choice import DEFAULT_TOP, MAX_AMONG, MAX_TOP, OPTIONS, Choice
from edge.api.endpoints import MAX_INTERACTIONS, Endpoints, description
from edge.api.listens import MAX_LISTENS, MAX_TAG_CHARACTERS, MAX_TAGS
from edge.config import load_config
from edge.facts import device_facts
from edge.interaction import MAX_ID_CHARACTERS
from tests.edge.builders import ITEM_KEYS
from tests.edge.calling import RunningApi, a_device
from tests.edge.running import looking_at
from tests.edge.test_api import WRONG_INTERACTIONS, with_table
from tests.edge.test_api_choice import WRONG_CHOICES
from trainer.datasets import MAX_KEY_BYTES

DOCUMENT: dict[str, Any] = json.loads(description())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningApi]:
    """Give a device with a table."""
    with RunningApi(a_device(tmp_path / "me")) as running:
        with_table(running, [*ITEM_KEYS[:-1], "item-9"])  # the one that examples name
        yield running


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give all calls that are described."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def checker(schema: dict[str, Any]) -> Draft202012Validator:
    """Give what checks values against a schema of the description."""
    return Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def schema_of(content: dict[str, Any]) -> dict[str, Any]:
    """Give the schema of a body or an answer."""
    found: dict[str, Any] = content["content"]["application/json"]["schema"]
    return found


def test_description_is_valid_openapi() -> None:
    """Of version 3.1."""
    assert DOCUMENT["openapi"].startswith("3.1.")
    validate(DOCUMENT)


def test_description_has_exactly_the_calls_that_there_are(tmp_path: Path) -> None:
    """By method and path."""
    directory = a_device(tmp_path / "me")
    with looking_at(directory) as store:
        calls = Endpoints(load_config(directory, {}), store, "x").calls
    assert {(method, path) for method, path, _ in operations()} == calls


def test_description_has_the_limits_of_the_code() -> None:
    """Where a schema can say them."""
    assert SCHEMAS["Interactions"]["properties"]["interactions"]["maxItems"] == MAX_INTERACTIONS
    assert SCHEMAS["Submission"]["properties"]["payload"]["maxItems"] == MAX_LISTENS
    interaction = SCHEMAS["Interaction"]["properties"]
    assert (interaction["item"]["maxLength"], interaction["id"]["maxLength"]) == (
        MAX_KEY_BYTES,
        MAX_ID_CHARACTERS,
    )
    track = SCHEMAS["Listen"]["properties"]["track_metadata"]["properties"]
    tags = track["additional_info"]["properties"]["tags"]
    assert (tags["maxItems"], tags["items"]["maxLength"]) == (MAX_TAGS, MAX_TAG_CHARACTERS)
    choice = SCHEMAS["Choice"]["properties"]
    assert (choice["top"]["maximum"], choice["among"]["maxItems"]) == (MAX_TOP, MAX_AMONG)


def test_options_of_recommendations_are_described_alike() -> None:
    """In the address and in the body, with the defaults of the code."""
    choice = SCHEMAS["Choice"]["properties"]
    parameters = {
        each["name"]: each for each in DOCUMENT["paths"]["/v1/recommendations"]["get"]["parameters"]
    }
    assert parameters.keys() == OPTIONS == choice.keys() - {"among"}
    for name, parameter in parameters.items():
        body = dict(choice[name])
        assert (parameter["description"], parameter["schema"]) == (body.pop("description"), body)
        assert body["default"] == getattr(Choice(), name)
    assert Choice().top == DEFAULT_TOP


@pytest.mark.parametrize(
    ("method", "path", "operation"), list(operations()), ids=lambda value: str(value)[:30]
)
def test_call_takes_its_example_and_answers_as_described(
    api: RunningApi, method: str, path: str, operation: dict[str, Any]
) -> None:
    """Its own example fits its schema, too."""
    body = None
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        body = content["example"]
        checker(content["schema"]).validate(body)
    described = operation["responses"]["200"]["content"]["application/json"]
    if "example" in described:
        checker(described["schema"]).validate(described["example"])
    query = f"?token={api.token}" if path == "/1/validate-token" else ""
    answer = api.call(method, path + query, body)
    assert answer.status == 200
    checker(described["schema"]).validate(answer.value)


@pytest.mark.parametrize(
    ("method", "path", "operation"), list(operations()), ids=lambda value: str(value)[:30]
)
def test_error_of_a_call_is_as_described(
    api: RunningApi, method: str, path: str, operation: dict[str, Any]
) -> None:
    """With a status that is described for it."""
    body = {"wrong": 1} if method == "POST" else None
    answer = api.call(method, f"{path}?wrong=1" if body is None else path, body)
    reference = operation["responses"][str(answer.status)]["$ref"].rpartition("/")[2]
    described = DOCUMENT["components"]["responses"][reference]
    checker(schema_of(described)).validate(answer.value)


def test_status_is_described_whole(tmp_path: Path) -> None:
    """Every fact, and no other."""
    directory = a_device(tmp_path / "me")
    with looking_at(directory) as store:
        facts = device_facts(load_config(directory, {}), store, running=True)
    assert set(SCHEMAS["Status"]["properties"]) == set(SCHEMAS["Status"]["required"]) == set(facts)


def test_description_refuses_the_choices_that_the_code_refuses() -> None:
    """But for control characters, and what the catalogue has."""
    bodies = [body for body, _ in WRONG_CHOICES if not isinstance(body, bytes)]
    accepted = [body for body in bodies if checker(SCHEMAS["Choice"]).is_valid(body)]
    assert accepted == [{"among": ["a\nb"]}, {"among": ["\ud800"]}, {"among": ["no-such-item"]}]


def test_description_refuses_what_the_code_refuses() -> None:
    """Of interactions, but for what a schema cannot say (bytes, printable text, times)."""
    bodies = [body for body, _ in WRONG_INTERACTIONS if not isinstance(body, bytes)]
    accepted = [body for body in bodies if checker(SCHEMAS["Interactions"]).is_valid(body)]
    beyond = {"ü", "a\nb", "\ud800", "tomorrow", "a\0"}
    for body in accepted:
        [interaction] = body["interactions"]
        text = [str(value) for value in interaction.values()]
        is_time = isinstance(interaction.get("at"), (int, float))
        assert is_time or any(word in value for value in text for word in beyond)
