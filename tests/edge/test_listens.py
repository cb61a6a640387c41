"""Submissions in ListenBrainz' form: what is taken, and that everything else is one sentence."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api.jsonbody import MAX_VALUES, read_json
from edge.api.listens import EARLIEST, MAX_LISTEN_BYTES, Listen, read_submission
from edge.itemrule import DEFAULT_RULE, ItemRule
from tests.edge.calling import a_listen, a_submission
from trainer.datasets import checked_key
from trainer.errors import ParameterError

NOW = 4_000_000_000.0
RULE = ItemRule.parse(DEFAULT_RULE)
MBID = "98255a8c-017a-4bc7-8dd6-1fa36124572b"


def read(document: Any, size: int = 100, now: float = NOW) -> list[Listen]:
    """Read a submission."""
    return read_submission(document, size, RULE, now)


def listen_of(**track: Any) -> Listen:
    """Read a submission of one listen."""
    [listen] = read(a_submission(a_listen(**track), kind="single"))
    return listen


def test_listen_is_an_item_at_a_time() -> None:
    """By its names, or by the id that the rule wants first."""
    listen = listen_of()
    assert (listen.item, listen.at) == ("Artist 0 - Track 0", 1_600_000_000)
    assert listen_of(additional_info={"recording_mbid": MBID.upper()}).item == MBID


def test_listen_has_the_identity_of_its_time_and_names() -> None:
    """Whatever else is sent, and however names are written."""
    same = [
        listen_of(),
        listen_of(additional_info={"recording_mbid": MBID}),
        listen_of(artist_name=" ARTIST\t0", release_name="Release"),
    ]
    assert len({listen.identity for listen in same}) == 1
    others = [
        listen_of(track_name="Another"),
        listen_of(artist_name="Another"),
        listen_of(artist_name="Artist 0 Track", track_name="0"),
        read(a_submission(a_listen() | {"listened_at": 1_600_000_001}))[0],
    ]
    assert len({listen.identity for listen in [same[0], *others]}) == 5


@pytest.mark.parametrize("at", [1_600_000_000, "1600000000", 1_600_000_000.7, 1.6e9])
def test_time_is_read_as_listenbrainz_does(at: Any) -> None:
    """Its digits as text, too; fractions are dropped."""
    assert read(a_submission(a_listen() | {"listened_at": at}))[0].at == 1_600_000_000


def test_time_may_be_an_hour_ahead() -> None:
    """Clocks differ."""
    ahead = a_submission(a_listen() | {"listened_at": int(NOW) + 3599})
    assert len(read(ahead)) == 1
    assert read(a_submission(a_listen() | {"listened_at": EARLIEST}))[0].at == EARLIEST


def test_playing_now_is_no_listen() -> None:
    """It is checked all the same."""
    track = {"track_metadata": a_listen()["track_metadata"]}
    assert read(a_submission(track, kind="playing_now")) == []


@pytest.mark.parametrize(
    "more",
    [
        None,
        {},
        {"recording_mbid": "", "artist_mbids": None, "tags": None},
        {"artist_mbids": ["", MBID], "work_mbids": [MBID]},
        {"tags": ["x"] * 50, "duration_ms": "222000"},
        {"isrc": 17, "anything": {"else": [1, None, "x"]}},
    ],
)
def test_additional_info_of_players_is_taken(more: Any) -> None:
    """Empty is as good as missing, and what nobody knows is left alone."""
    assert listen_of(additional_info=more, release_name="").item == "Artist 0 - Track 0"


def track(**changes: Any) -> dict[str, Any]:
    """Give a submission of one listen with other metadata."""
    return a_submission(a_listen(**changes), kind="single")


def more(**info: Any) -> dict[str, Any]:
    """Give one with additional information."""
    return track(additional_info=info)


def at(value: Any) -> dict[str, Any]:
    """Give one of another time."""
    return a_submission(a_listen() | {"listened_at": value}, kind="single")


def playing(**changes: Any) -> dict[str, Any]:
    """Give a playing_now."""
    return a_submission({"track_metadata": a_listen()["track_metadata"]} | changes, kind="playing_now")


def without(listen: dict[str, Any], key: str) -> dict[str, Any]:
    """Leave a key out."""
    return {name: value for name, value in listen.items() if name != key}


WRONG: list[tuple[Any, str]] = [
    (None, "Top level"),
    ([], "Top level"),
    ("single", "Top level"),
    ({}, "needs listen_type and payload"),
    ({"listen_type": "single"}, "needs listen_type and payload"),
    ({"payload": [a_listen()]}, "needs listen_type and payload"),
    ({"listen_type": "single", "payload": a_listen()}, "should be a list"),
    ({"listen_type": "single", "payload": []}, "does not contain any listens"),
    ({"listen_type": "import", "payload": [a_listen()] * 1001}, "Too many listens"),
    (a_submission(a_listen(), kind="love"), "valid listen_type"),
    ({"listen_type": ["single"], "payload": [a_listen()]}, "valid listen_type"),
    (a_submission(a_listen(), a_listen(1), kind="single"), "contain only one"),
    (playing(listened_at=1_600_000_000), "must not contain listened_at"),
    (playing(more=1), "only contain track_metadata top level"),
    (a_submission(None), "Listen is empty"),
    (a_submission("listen"), "Listen is empty"),
    (a_submission(without(a_listen(), "listened_at")), "must contain the key listened_at"),
    (a_submission(without(a_listen(), "track_metadata")), "must contain the key track_metadata"),
    (a_submission(a_listen() | {"user": "x"}), "only contain listened_at and track_metadata"),
    (at(None), "int value for listened_at"),
    (at(value=True), "int value for listened_at"),
    (at("now"), "int value for listened_at"),
    (at(float("inf")), "int value for listened_at"),
    (at([1_600_000_000]), "int value for listened_at"),
    (at(NOW + 3600), "too high"),
    (at(10**300), "too high"),
    (at(EARLIEST - 1), "too low"),
    (at(-1), "too low"),
    (a_submission({"listened_at": 1_600_000_000, "track_metadata": None}), "no json object"),
    (track(artist_name=""), "artist_name is empty"),
    (track(track_name="\u200b \u0007"), "track_name is empty"),
    (track(artist_name=["A", "B"]), "artist_name must be a single string"),
    (track(track_name=7), "track_name must be a single string"),
    (track(release_name=7), "release_name must be a single string"),
    (track(artist_name="a\0b"), "unicode null"),
    (more(notes=[{"x": "\0"}]), "unicode null"),
    (track(additional_info=[]), "must be a json object"),
    (more(tags="rock"), "tags must be a list"),
    (more(tags=[1]), "tags must be a list"),
    (more(tags=["x"] * 51), "more than 50 items"),
    (more(tags=["x" * 65]), "longer than 64"),
    (more(duration=1, duration_ms=1000), "both duration and duration_ms"),
    (more(duration=0), "positive integer"),
    (more(duration="long"), "positive integer"),
    (more(duration_ms=10**12), "too large"),
    (more(recording_mbid="x"), "recording_mbid MBID format invalid"),
    (more(release_mbid=5), "release_mbid MBID format invalid"),
    (more(artist_mbids=["x"]), "artist_mbids MBID format invalid"),
    (more(artist_mbids=MBID), "artist_mbids must be a list"),
]


@pytest.mark.parametrize(("document", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_submission_that_is_wrong_is_refused_whole(document: Any, sentence: str) -> None:
    """With the sentence that ListenBrainz has for it, or one like it."""
    with pytest.raises(ParameterError, match=sentence):
        read(document)


def test_one_wrong_listen_refuses_all() -> None:
    """Nothing of it counts."""
    with pytest.raises(ParameterError, match="artist_name is empty"):
        read(a_submission(a_listen(), a_listen(1, artist_name=" ")))


def test_listens_that_are_too_large_are_refused() -> None:
    """In the mean."""
    with pytest.raises(ParameterError, match="not be larger than 10240 bytes"):
        read(a_submission(a_listen()), size=MAX_LISTEN_BYTES + 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MBID),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
metadata = st.dictionaries(
    st.sampled_from(["artist_name", "track_name", "release_name", "additional_info"]), json_values
) | st.fixed_dictionaries({"artist_name": st.text(), "track_name": st.text(), "additional_info": json_values})
listens = st.fixed_dictionaries(
    {"track_metadata": metadata | json_values}, optional={"listened_at": json_values | st.just(EARLIEST)}
)


@given(
    document=json_values
    | st.fixed_dictionaries(
        {
            "listen_type": st.sampled_from(["single", "import", "playing_now"]),
            "payload": st.lists(listens, max_size=3) | json_values,
        }
    )
)
def test_any_document_is_listens_or_a_sentence(document: Any) -> None:
    """Never another error; and every listen's item can be in a catalogue."""
    try:
        found = read(document)
    except ParameterError as error:
        assert str(error)  # noqa: PT017 - that there is no error is right as well
        return
    for listen in found:
        assert checked_key(listen.item, "item", "", None)
        assert EARLIEST <= listen.at < NOW + 3600


# -- the JSON itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "at byte 0"),
        (b"{", "at byte 1"),
        (b"\xff\xfe", "not well formed"),
        ("{}".encode("utf-16"), "not well formed"),
        (b"\xef\xbb\xbf{}", "not well formed"),
        (b"NaN", "not well formed"),
        (b"[-Infinity]", "not well formed"),
        (b"1" * 5000, "not well formed"),
        (b"[" * 100_000, "not well formed"),
        (b'{"a":' * 50_000, "not well formed"),
        (b"[" + b"{}," * MAX_VALUES + b"{}]", f"more than {MAX_VALUES} values"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_body_that_is_no_json_is_one_sentence(body: bytes, sentence: str) -> None:
    """However it is meant."""
    with pytest.raises(ParameterError, match=sentence):
        read_json(body)


@given(json_values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    """But for numbers that are none."""
    text = json.dumps(value)
    if "NaN" in text or "Infinity" in text:
        return
    assert read_json(text.encode()) == value


def test_uuid_in_any_form_is_written_as_musicbrainz_does() -> None:
    """So that a catalogue's keys match."""
    for form in (MBID, MBID.upper(), f"{{{MBID}}}", uuid.UUID(MBID).hex, f"urn:uuid:{MBID}"):
        assert listen_of(additional_info={"recording_mbid": form}).item == MBID
