"""Recommendations as a caller wants them, and bodies where they are wrong or none is taken."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api.choice import DEFAULT_TOP, MAX_AMONG, MAX_CHOICE_BYTES, MAX_TOP, Choice
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head
from tests.edge.calling import RunningApi, a_device, stored
from tests.edge.running import looking_at
from trainer.errors import ParameterError

PATH = "/v1/recommendations"
TABLE = np.array([[6, 0], [5, 0], [4, 0], [3, 0], [2, 0], [1, 0]], dtype=np.float32)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """Give the API of a device that knows bread; the fleet's order is that of the keys."""
    directory = a_device(tmp_path_factory.mktemp("choice") / "me")
    with looking_at(directory) as store:
        store.replace_model(a_head(7, table=TABLE), TABLE, ITEM_KEYS)
        store.record([("bread", 1.0)])
    with RunningApi(directory, port=True) as running:
        yield running


def call(api: RunningApi, method: str, path: str, body: Any = None) -> Any:
    """Call with the token; what was stored before is all that is stored after."""
    before = contents(api)
    answer = api.call(method, path, body, Authorization=f"Token {api.token}")
    assert contents(api) == before
    return answer


def contents(api: RunningApi) -> list[Any]:
    """Give what another program on the device could have stored."""
    with looking_at(api.directory) as store:
        return [rows(store, table) for table in ("interactions", "identities", "facts", "personal", "outbox")]


def rows(store: DeviceStore, table: str) -> list[Any]:
    """Give a table."""
    return store._rows(f"SELECT * FROM {table}")  # noqa: S608


def items(answer: Any) -> list[str]:
    """Give what is recommended."""
    assert answer.status == 200, answer.value
    return [each["item"] for each in answer.value["items"]]


def test_what_the_user_knows_is_left_out_unless_asked_for(api: RunningApi) -> None:
    """In the address or in a body."""
    unseen = [item for item in ITEM_KEYS if item != "bread"]
    assert items(call(api, "GET", f"{PATH}?exclude_seen=true")) == unseen
    assert items(call(api, "POST", PATH, {})) == unseen
    assert "bread" in items(call(api, "GET", f"{PATH}?exclude_seen=false"))
    assert "bread" in items(call(api, "POST", PATH, {"exclude_seen": False}))


def test_body_can_name_the_items_to_choose_among(api: RunningApi) -> None:
    """Best first, whatever their order; those that the catalogue does not have are passed over."""
    among = ["fig", "no-such-item", "cheese", "bread", "cheese"]
    assert items(call(api, "POST", PATH, {"among": among})) == ["cheese", "fig"]
    assert items(call(api, "POST", PATH, {"among": among, "top": 1})) == ["cheese"]
    assert items(call(api, "POST", PATH, {"among": ["bread"]})) == []


def test_body_has_all_options_of_the_address(api: RunningApi) -> None:
    """And gives the same."""
    by_address = call(api, "GET", f"{PATH}?top=3&explain=true&exclude_seen=false")
    by_body = call(api, "POST", PATH, {"top": 3, "explain": True, "exclude_seen": False})
    assert by_address.value == by_body.value
    assert any(each["because"] for each in by_body.value["items"])


def test_many_items_can_be_named(api: RunningApi) -> None:
    """As many as allowed, with keys as long as allowed."""
    longest = [f"{number:04}".ljust(256, "x") for number in range(MAX_AMONG - 1)]
    assert items(call(api, "POST", PATH, {"among": ["fig", *longest]})) == ["fig"]


WRONG_CHOICES: list[tuple[Any, str]] = [
    (b"", "not well formed"),
    (b"\xff", "not well formed"),
    (b"{", "not well formed"),
    (b"top=5", "not well formed"),
    (b'{"top": NaN}', "not well formed"),
    (b"[" * 10_000, "not well formed"),
    (None, "the body must be"),
    ([], "the body must be"),
    (["fig"], "the body must be"),
    ("fig", "the body must be"),
    (5, "the body must be"),
    ({"count": 5}, "the body must be"),
    ({"top": 5, "more": 1}, "the body must be"),
    ({"top": None}, "top must be"),
    ({"top": 0}, "top must be"),
    ({"top": -1}, "top must be"),
    ({"top": MAX_TOP + 1}, "top must be"),
    ({"top": 10**4000}, "top must be"),
    ({"top": 1.5}, "top must be"),
    ({"top": "5"}, "top must be"),
    ({"top": True}, "top must be"),
    ({"top": [5]}, "top must be"),
    ({"explain": None}, "explain must be"),
    ({"explain": "true"}, "explain must be"),
    ({"explain": 1}, "explain must be"),
    ({"exclude_seen": None}, "exclude_seen must be"),
    ({"exclude_seen": "no"}, "exclude_seen must be"),
    ({"exclude_seen": 0}, "exclude_seen must be"),
    ({"among": None}, "among must be"),
    ({"among": "fig"}, "among must be"),
    ({"among": {"fig": 1}}, "among must be"),
    ({"among": []}, "among must be"),
    ({"among": ["fig"] * (MAX_AMONG + 1)}, "among must be"),
    ({"among": ["fig", None]}, "an item must be text"),
    ({"among": [5]}, "an item must be text"),
    ({"among": [""]}, "1 to 256 bytes"),
    ({"among": ["x" * 257]}, "1 to 256 bytes"),
    ({"among": ["a\nb"]}, "1 to 256 bytes"),
    ({"among": ["\ud800"]}, "1 to 256 bytes"),
    ({"among": ["no-such-item"]}, "none of the items"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG_CHOICES, ids=lambda value: str(value)[:40])
def test_choice_that_is_wrong_is_refused(api: RunningApi, body: Any, sentence: str) -> None:
    """With a sentence."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = call(api, "POST", PATH, content)
    assert (answer.status, answer.value["code"]) == (400, 400)
    assert sentence in answer.value["error"]


@pytest.mark.parametrize(
    "parameters", ["exclude_seen=", "exclude_seen=no", "explain=1", "explain=True", "among=fig", "top=true"]
)
def test_address_that_is_wrong_is_refused(api: RunningApi, parameters: str) -> None:
    """With a sentence; a list of items needs a body, and a body has all options."""
    assert call(api, "GET", f"{PATH}?{parameters}").status == 400
    assert call(api, "POST", f"{PATH}?{parameters}", {}).status == 400


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/status", PATH, "/1/validate-token"])
@pytest.mark.parametrize(
    "body",
    [
        *(json.dumps(body).encode() for body, _ in WRONG_CHOICES if not isinstance(body, bytes)),
        *(body for body, _ in WRONG_CHOICES if isinstance(body, bytes) and body),
        b'{"interactions": [{"item": "fig"}]}',
        bytes(MAX_CHOICE_BYTES),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_call_that_takes_no_body_refuses_any(api: RunningApi, path: str, body: bytes) -> None:
    """Whatever it is: who sends one means another call."""
    answer = call(api, "GET", path, body)
    assert (answer.status, answer.value["code"]) == (413, 413)
    assert "takes no body" in answer.value["error"]
    assert stored(api.directory) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "top": st.integers(0, MAX_TOP + 1) | json_values,
        "exclude_seen": st.booleans() | json_values,
        "explain": st.booleans() | json_values,
        "among": st.lists(st.text(), max_size=3) | json_values,
    },
)


@given(document=options | json_values)
def test_any_document_is_a_choice_or_a_sentence(document: Any) -> None:
    """Never another error; what is left out is as the command has it."""
    try:
        choice = Choice.of_document(document)
    except ParameterError as error:
        assert str(error)  # noqa: PT017 - that there is no error is right as well
        return
    assert 1 <= choice.top <= MAX_TOP
    assert choice.top == document.get("top", DEFAULT_TOP)
    assert choice.among == document.get("among")


@given(parameters=st.dictionaries(st.sampled_from(["top", "exclude_seen", "explain"]), st.text()))
def test_any_address_is_a_choice_or_a_sentence(parameters: dict[str, str]) -> None:
    """Never another error."""
    try:
        assert Choice.of_parameters(parameters).among is None
    except ParameterError as error:
        assert str(error)  # noqa: PT017
