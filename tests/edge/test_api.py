"""The local API over real sockets: what each call does, and that a wrong one stores nothing."""

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import CorruptError, DiskFullError, InUseError, NotWritableError
from edge.api.endpoints import MAX_INTERACTIONS_BYTES
from edge.api.listens import MAX_SUBMISSION_BYTES
from edge.config import SOCKET_NAME, TOKEN_NAME
from edge.store import DeviceStore
from tests.edge.builders import ITEM_KEYS, a_head, a_personal_state
from tests.edge.calling import RunningApi, a_device, a_listen, a_submission, stored
from tests.edge.running import looking_at
from tests.edge.test_listens import WRONG as WRONG_SUBMISSIONS

TABLE = np.array([[3, 0], [0, 1], [2, 0], [0, 2], [1, 0], [0, 3]], dtype=np.float32)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """Give an API on a port that no test records with."""
    with RunningApi(a_device(tmp_path_factory.mktemp("api") / "me"), port=True) as running:
        yield running


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningApi]:
    """Give a new device's API on its socket file."""
    with RunningApi(a_device(tmp_path / "me")) as running:
        yield running


def with_table(api: RunningApi, keys: Sequence[str] = ITEM_KEYS) -> None:
    """Give the device a table and a catalogue."""
    with looking_at(api.directory) as store:
        store.replace_model(a_head(7, table=TABLE, item_keys=keys), TABLE, keys)


# -- record ----------------------------------------------------------------------------------------


def test_record_keeps_interactions_with_their_time(api: RunningApi) -> None:
    """Now, when none is given."""
    body = {"interactions": [{"item": "bread", "at": "1970-01-01T00:00:05Z"}, {"item": "egg", "at": 7.5}]}
    answer = api.call("POST", "/v1/interactions", body)
    assert answer[:2] == (200, {"recorded": 2, "known_before": 0, "waiting_items": ["bread", "egg"]})
    api.call("POST", "/v1/interactions", {"interactions": [{"item": "fig"}]})
    with looking_at(api.directory) as store:
        rows = store._rows("SELECT item, at FROM interactions ORDER BY id")
    assert rows[:2] == [("bread", 5.0), ("egg", 7.5)]
    assert rows[2][1] > 1.6e9


def test_record_keeps_items_that_the_catalogue_does_not_have(api: RunningApi) -> None:
    """And says so; they count once it has them."""
    with_table(api)
    body = {"interactions": [{"item": "bread"}, {"item": "cake"}, {"item": "cake"}]}
    answer = api.call("POST", "/v1/interactions", body)
    assert answer.value == {"recorded": 3, "known_before": 0, "waiting_items": ["cake"]}
    with looking_at(api.directory) as store:
        assert (store.interacted().rows.tolist(), store.interacted().unknown) == ([1], 1)
        keys = (*ITEM_KEYS, "cake")
        table = np.vstack([TABLE, TABLE[:1]])
        store.replace_model(a_head(8, table=table, item_keys=keys), table, keys)
        assert (store.interacted().rows.tolist(), store.interacted().unknown) == ([1, 6], 0)


def test_record_counts_what_has_an_id_once(api: RunningApi) -> None:
    """So a sender that heard no answer can send it again."""
    body = {"interactions": [{"item": "bread", "id": "a"}, {"item": "bread", "id": "b"}, {"item": "egg"}]}
    assert api.call("POST", "/v1/interactions", body).value["recorded"] == 3
    again = api.call("POST", "/v1/interactions", body)
    assert (again.value["recorded"], again.value["known_before"]) == (1, 2)
    twice = {"interactions": [{"item": "fig", "id": "c"}] * 2}
    assert api.call("POST", "/v1/interactions", twice).value["recorded"] == 1
    assert stored(api.directory) == 5


def one(**changes: Any) -> dict[str, Any]:
    """Give a body of one interaction."""
    return {"interactions": [{"item": "bread"} | changes]}


WRONG_INTERACTIONS: list[tuple[Any, str]] = [
    (b"", "not well formed"),
    (b"\xff", "not well formed"),
    (b"{", "not well formed"),
    (b"item=bread", "not well formed"),
    (b"[" * 10_000, "not well formed"),
    (None, "the body must be"),
    ([], "the body must be"),
    ("bread", "the body must be"),
    ({}, "the body must be"),
    ({"items": ["bread"]}, "the body must be"),
    (one() | {"more": 1}, "the body must be"),
    ({"interactions": None}, "the body must be"),
    ({"interactions": {"item": "bread"}}, "the body must be"),
    ({"interactions": []}, "with 1 to 1000"),
    ({"interactions": [{"item": "bread"}] * 1001}, "with 1 to 1000"),
    ({"interactions": ["bread"]}, "an interaction is"),
    ({"interactions": [None]}, "an interaction is"),
    ({"interactions": [{}]}, "an interaction is"),
    ({"interactions": [{"at": 5}]}, "an interaction is"),
    (one(time=5), "an interaction is"),
    (one(item=None), "an item must be text"),
    (one(item=17), "an item must be text"),
    (one(item=["bread"]), "an item must be text"),
    (one(item=""), "1 to 256 bytes"),
    (one(item="x" * 257), "1 to 256 bytes"),
    (one(item="ü" * 129), "1 to 256 bytes"),
    (one(item="a\nb"), "1 to 256 bytes"),
    (one(item="\ud800"), "1 to 256 bytes"),
    (one(at="tomorrow"), "a time must be"),
    (one(at=True), "a time must be"),
    (one(at=-1), "a time must be"),
    (one(at=1e300), "a time must be"),
    (one(at=10**4000), "a time must be"),
    (one(at={"seconds": 5}), "a time must be"),
    (one(id=""), "an id must be"),
    (one(id=7), "an id must be"),
    (one(id="x" * 201), "an id must be"),
    (one(id="a\0"), "an id must be"),
    ({"interactions": [{"item": "bread"}, {"item": ""}]}, "1 to 256 bytes"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG_INTERACTIONS, ids=lambda value: str(value)[:40])
def test_record_that_is_wrong_stores_nothing(shared: RunningApi, body: Any, sentence: str) -> None:
    """All of a request, or none."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = shared.call("POST", "/v1/interactions", content, Authorization=f"Token {shared.token}")
    assert (answer.status, answer.value["code"]) == (400, 400)
    assert sentence in answer.value["error"]
    assert stored(shared.directory) == 0


# -- listens ---------------------------------------------------------------------------------------


def test_listens_are_counted_once(api: RunningApi) -> None:
    """However often and however they are sent."""
    single = a_submission(a_listen(), kind="single")
    for _ in range(2):
        assert api.call("POST", "/1/submit-listens", single)[:2] == (200, {"status": "ok"})
    both = a_submission(a_listen(), a_listen(1), a_listen(1))
    assert api.call("POST", "/1/submit-listens", both).value == {"status": "ok"}
    assert stored(api.directory) == 2
    with looking_at(api.directory) as store:
        assert store.unknown_items(["Artist 0 - Track 0"]) == ["Artist 0 - Track 0"]
        assert store._rows("SELECT item, at FROM interactions") == [
            ("Artist 0 - Track 0", 1.6e9),
            ("Artist 1 - Track 1", 1.6e9 + 1),
        ]


def test_playing_now_is_answered_and_not_counted(api: RunningApi) -> None:
    """It comes again when it was listened to."""
    body = a_submission({"track_metadata": a_listen()["track_metadata"]}, kind="playing_now")
    assert api.call("POST", "/1/submit-listens", body)[:2] == (200, {"status": "ok"})
    assert stored(api.directory) == 0


def test_listens_become_the_items_that_the_rule_says(tmp_path: Path) -> None:
    """For example artists, whatever was played of them."""
    directory = a_device(tmp_path / "me")
    with RunningApi(directory, listen_item="{artist_name}") as api:
        with looking_at(directory) as store:
            store.replace_model(
                a_head(7, table=TABLE, item_keys=["Artist 3", *"abcde"]), TABLE, ["Artist 3", *"abcde"]
            )
        api.call("POST", "/1/submit-listens", a_submission(a_listen(3), a_listen(10), a_listen(4)))
    with looking_at(directory) as store:
        interacted = store.interacted()
    assert (interacted.rows.tolist(), interacted.unknown, interacted.total) == ([0], 1, 3)


@pytest.mark.parametrize(("document", "sentence"), WRONG_SUBMISSIONS, ids=lambda value: str(value)[:40])
def test_submission_that_is_wrong_stores_nothing(shared: RunningApi, document: Any, sentence: str) -> None:
    """The answer has ListenBrainz' form."""
    answer = shared.call("POST", "/1/submit-listens", document, Authorization=f"Token {shared.token}")
    assert (answer.status, answer.value["code"]) == (400, 400)
    # JSON has no infinity, so it does not get as far.
    assert sentence in answer.value["error"] or "not well formed" in answer.value["error"]
    assert stored(shared.directory) == 0


def test_token_is_validated_as_listenbrainz_does(shared: RunningApi) -> None:
    """In the header or as a parameter; the user is the device."""
    valid = {"code": 200, "message": "Token valid.", "valid": True, "user_name": "pi-1"}
    invalid = {"code": 200, "message": "Token invalid.", "valid": False}
    path = "/1/validate-token"
    assert shared.call("GET", path, Authorization=f"Token {shared.token}")[:2] == (200, valid)
    assert shared.call("GET", f"{path}?token={shared.token}")[:2] == (200, valid)
    assert shared.call("GET", path, Authorization="Token wrong")[:2] == (200, invalid)
    missing = {"code": 400, "error": "You need to provide an Authorization token."}
    assert shared.call("GET", path)[:2] == (400, missing)
    assert shared.call("GET", path, Authorization="Token ")[:2] == (400, missing)


# -- recommendations and status --------------------------------------------------------------------


def test_recommendations_are_those_of_the_command(api: RunningApi) -> None:
    """Best first, without what the user interacted with."""
    with_table(api)
    with looking_at(api.directory) as store:
        store.record([("fig", 1.0)])
    answer = api.call("GET", "/v1/recommendations?top=2")
    assert answer.status == 200
    assert [(each["rank"], each["item"]) for each in answer.value["items"]] == [(1, "apple"), (2, "cheese")]
    assert (answer.value["version"], answer.value["personal"]) == (7, False)
    assert len(api.call("GET", "/v1/recommendations").value["items"]) == 5


def test_recommendations_before_the_first_table_come_later(api: RunningApi) -> None:
    """The sentence says what is missing."""
    answer = api.call("GET", "/v1/recommendations")
    assert (answer.status, answer.value["code"]) == (503, 503)
    assert "there is no model on this device yet" in answer.value["error"]


@pytest.mark.parametrize(
    "parameters",
    ["top=0", "top=-1", "top=1001", "top=", "top=ten", "top=1.5", "top=%D9%A3", "top=99999999", "top=1%00",
     "top=1&top=2", "count=5", "top=5&more=1", "top=%ff"],
)  # fmt: skip
def test_recommendations_with_a_wrong_parameter_are_refused(shared: RunningApi, parameters: str) -> None:
    """With a sentence."""
    path = f"/v1/recommendations?{parameters}"
    answer = shared.call("GET", path, Authorization=f"Bearer {shared.token}")
    assert (answer.status, answer.value["code"]) == (400, 400)


def test_status_is_that_of_the_command(api: RunningApi) -> None:
    """The device is running: it answers."""
    with looking_at(api.directory) as store:
        store.record([("bread", 1.0)])
        store.set_facts(online=1, activity="idle", reason="waiting")
        store.save_pass(a_personal_state(), store.remembered().progress, None, at=1777638600.0)
    facts = api.call("GET", "/v1/status").value
    assert (facts["running"], facts["online"], facts["interactions"]) == (True, True, 1)
    assert facts["last_training"] == "2026-05-01T12:30:00+00:00"


# -- who may call what -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "You need to provide an Authorization header."),
        ("", "You need to provide an Authorization header."),
        ("Token", "Provided Authorization header is invalid."),
        ("TOKEN", "Provided Authorization header is invalid."),
        ("Basic cGk6cGk=", "Provided Authorization header is invalid."),
        ("Token wrong", "Invalid authorization token."),
        ("Token \xe9", "Invalid authorization token."),
        ("Bearer wrong", "Invalid authorization token."),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/recommendations"),
        ("POST", "/v1/interactions"),
        ("POST", "/1/submit-listens"),
    ],
)
def test_call_by_the_port_needs_the_token(
    shared: RunningApi, method: str, path: str, header: str | None, sentence: str
) -> None:
    """A wrong one stores nothing."""
    body = one() if path == "/v1/interactions" else a_submission(a_listen())
    headers = {} if header is None else {"Authorization": header}
    answer = shared.call(method, path, body if method == "POST" else None, **headers)
    assert (answer.status, answer.value) == (401, {"code": 401, "error": sentence})
    assert answer.headers["WWW-Authenticate"] == "Token"
    assert stored(shared.directory) == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/status/", 404),
        ("GET", "/v1/../v1/status", 404),
        ("GET", "/1/user/pi-1/listens", 404),
        ("POST", "/v1/status", 405),
        ("DELETE", "/v1/interactions", 405),
        ("GET", "/1/submit-listens", 405),
        ("HEAD", "/1/submit-listens", 405),
        ("OPTIONS", "/1/submit-listens", 405),
        ("BREW", "/v1/status", 405),
    ],
)
def test_call_that_there_is_not_is_refused(shared: RunningApi, method: str, path: str, status: int) -> None:
    """The sentence says what there is."""
    answer = shared.call(method, path, Authorization=f"Token {shared.token}")
    assert answer.status == status
    if status == 405:
        assert answer.headers["Allow"] in ("GET", "POST")


@pytest.mark.parametrize(
    ("path", "most"),
    [("/v1/interactions", MAX_INTERACTIONS_BYTES), ("/1/submit-listens", MAX_SUBMISSION_BYTES)],
)
def test_body_that_is_too_large_is_refused(shared: RunningApi, path: str, most: int) -> None:
    """Before it is sent."""
    with ExitStack() as stack:
        link = stack.enter_context(shared.raw())
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {most + 1}\r\n"
        link.sendall(f"{head}Authorization: Token {shared.token}\r\n\r\n".encode())
        answer = link.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert f"This call takes {most} bytes.".encode() in answer


def test_body_without_a_length_is_refused(shared: RunningApi) -> None:
    """And so is one where none is wanted."""
    with shared.raw() as link:
        request = f"POST /v1/interactions HTTP/1.1\r\nHost: a\r\nAuthorization: Token {shared.token}\r\n\r\n"
        link.sendall(request.encode())
        assert link.recv(10_000).startswith(b"HTTP/1.1 411 ")
    answer = shared.call("GET", "/v1/status", b"{}", Authorization=f"Token {shared.token}")
    assert (answer.status, "no body at all" in answer.value["error"]) == (413, True)


def test_head_is_answered_without_a_body(shared: RunningApi) -> None:
    """With the length that it would have."""
    answer = shared.call("HEAD", "/v1/status", Authorization=f"Token {shared.token}")
    assert (answer.status, answer.value) == (200, None)
    assert int(answer.headers["Content-Length"]) > 100


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (DiskFullError("no space is left"), 507),
        (InUseError("locked by another process"), 503),
        (CorruptError("damaged"), 500),
        (NotWritableError("cannot be written"), 500),
        (RuntimeError("a secret"), 500),
    ],
)
def test_failure_of_the_device_is_an_answer(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int
) -> None:
    """With its sentence, unless nobody knows what it says; the next call is served."""

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(DeviceStore, "record_once", fail)
        for path, body in (("/v1/interactions", one()), ("/1/submit-listens", a_submission(a_listen()))):
            answer = api.call("POST", path, body)
            assert (answer.status, answer.value["code"]) == (status, status)
            assert (str(failure) in answer.value["error"]) is not isinstance(failure, RuntimeError)
    assert api.call("POST", "/v1/interactions", one()).status == 200


# -- where it listens ------------------------------------------------------------------------------


def test_socket_file_is_for_the_user_alone(tmp_path: Path) -> None:
    """So is the token's; one that a killed process has left is replaced, and it goes in the end."""
    directory = a_device(tmp_path / "me")
    (directory / SOCKET_NAME).touch()
    with RunningApi(directory) as api:
        for name in (SOCKET_NAME, TOKEN_NAME):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
        assert api.call("GET", "/v1/status").status == 200
        first = api.token
    assert not (directory / SOCKET_NAME).exists()
    with RunningApi(directory) as api:
        assert api.token == first
    assert len(first) >= 40


def test_api_that_is_not_wanted_is_not_there(tmp_path: Path) -> None:
    """Neither a file nor a token."""
    directory = a_device(tmp_path / "me")
    with RunningApi(directory, api_socket="false") as api:
        assert api.sentences == []
        assert not (directory / SOCKET_NAME).exists()
    assert not (directory / TOKEN_NAME).exists()


def test_directory_with_a_long_name_has_a_socket_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a socket's address can be; a client can call from within."""
    directory = a_device(tmp_path / ("long" * 30) / "me")
    with RunningApi(directory) as api:
        monkeypatch.chdir(directory)
        api.directory = Path()
        assert api.call("GET", "/v1/status").status == 200


def test_file_system_without_sockets_keeps_no_device_from_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once."""
    directory = a_device(tmp_path / "me")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("edge.api.server.os.fchmod", refuse)
    with RunningApi(directory) as api:
        [sentence] = api.sentences
        assert "the local API is not served" in sentence
        assert "operation not permitted" in sentence


def test_token_file_that_is_empty_says_so(tmp_path: Path) -> None:
    """Anybody would know that token."""
    directory = a_device(tmp_path / "me")
    (directory / TOKEN_NAME).write_text("\n")
    with pytest.raises(CorruptError, match="is empty; remove it"), RunningApi(directory):
        pass
