"""Submissions in the form of the ListenBrainz API, without input or output.

What is accepted and refused, with its sentences, follows ListenBrainz' documentation ("JSON Documentation",
"Core" and its constants) and what its server answers. Looser on purpose: an empty ``release_name``, which
players send for a track without a release, is as good as none.

A listen's identity is its time and its artist's and track's names, whatever else comes with it and however
they are capitalised: a player that sends it again with more MusicBrainz ids sends the same listen.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from edge.itemrule import ItemRule, plain
from trainer.errors import ParameterError

MAX_LISTEN_BYTES = 10_240
MAX_LISTENS = 1_000
MAX_SUBMISSION_BYTES = MAX_LISTEN_BYTES * MAX_LISTENS
MAX_TAGS = 50
MAX_TAG_CHARACTERS = 64
MAX_DURATION_S = 24 * 24 * 60 * 60
EARLIEST = int(datetime(2002, 10, 1, tzinfo=UTC).timestamp())
"""Before it nothing recorded listens."""
ALLOWED_SKEW_S = 3600

_TYPES = ("single", "playing_now", "import")
_SINGLE_IDS = ("release_mbid", "recording_mbid", "release_group_mbid", "track_mbid")
_LISTED_IDS = ("artist_mbids", "work_mbids")
_IDENTITY_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Listen:
    """One listen: the item that it is, its time in seconds since 1970, and what makes it this one."""

    item: str
    at: int
    identity: bytes


def read_submission(document: Any, size: int, rule: ItemRule, now: float) -> list[Listen]:
    """Check a submission of `size` bytes whole; give its listens, none of ``playing_now``.

    Parameters
    ----------
    now : float
        Seconds since 1970.

    Raises
    ------
    ParameterError
        With one sentence; then nothing of the submission counts.
    """
    if not isinstance(document, dict):
        raise ParameterError(
            "Invalid JSON document submitted. Top level of JSON document should be a json object."
        )
    if "payload" not in document or "listen_type" not in document:
        raise ParameterError("Invalid JSON document submitted. It needs listen_type and payload.")
    payload, kind = document["payload"], document["listen_type"]
    if not isinstance(payload, list):
        raise ParameterError("The payload in the JSON document should be a list of listens.")
    if not payload:
        raise ParameterError("JSON document does not contain any listens")
    if len(payload) > MAX_LISTENS:
        raise ParameterError(f"Too many listens. You may not submit more than {MAX_LISTENS} listens at once.")
    if size > len(payload) * MAX_LISTEN_BYTES:
        raise ParameterError(
            f"JSON document is too large. Each listens may not be larger than {MAX_LISTEN_BYTES} bytes."
        )
    if kind not in _TYPES:
        raise ParameterError("JSON document requires a valid listen_type key.")
    if kind != "import" and len(payload) > 1:
        raise ParameterError(
            "JSON document contains more than listen for a single/playing_now. It should contain only one."
        )
    if kind == "playing_now":
        _check_playing_now(payload[0])
        return []
    return [_read_listen(each, rule, now) for each in payload]


def _check_playing_now(listen: Any) -> None:
    if isinstance(listen, dict) and "listened_at" in listen:
        raise ParameterError("JSON document must not contain listened_at while submitting playing_now.")
    _read_track(listen, {"track_metadata"})


def _read_listen(listen: Any, rule: ItemRule, now: float) -> Listen:
    if isinstance(listen, dict) and "listened_at" not in listen:
        raise ParameterError("JSON document must contain the key listened_at at the top level.")
    fields = _read_track(listen, {"track_metadata", "listened_at"})
    at = _whole_number(listen["listened_at"])
    if at is None:
        raise ParameterError("JSON document must contain an int value for listened_at.")
    if at >= now + ALLOWED_SKEW_S:
        raise ParameterError("Value for key listened_at is too high.")
    if at < EARLIEST:
        raise ParameterError(
            "Value for key listened_at is too low. listened_at timestamp should be "
            f"greater than {EARLIEST} (2002-10-01 00:00:00 UTC)."
        )
    return Listen(item=rule.item(fields), at=at, identity=_identity(at, fields))


def _identity(at: int, fields: Mapping[str, str]) -> bytes:
    names = (fields["artist_name"].casefold(), fields["track_name"].casefold())
    # No name can hold a line feed: `plain` has made spaces of them.
    content = "\n".join(("listen", str(at), *names))
    return blake2b(content.encode(), digest_size=_IDENTITY_BYTES).digest()


def _read_track(listen: Any, keys: set[str]) -> dict[str, str]:
    """Check a listen but for its time; give the fields that an item rule knows."""
    if not isinstance(listen, dict):
        raise ParameterError("Listen is empty and cannot be validated.")
    if "track_metadata" not in listen:
        raise ParameterError("JSON document must contain the key track_metadata at the top level.")
    if not listen.keys() <= keys:
        raise ParameterError(f"JSON document may only contain {' and '.join(sorted(keys))} top level keys")
    track = listen["track_metadata"]
    if not isinstance(track, dict):
        raise ParameterError("JSON document may not have track_metadata that is no json object.")
    if any("\0" in text for text in _texts(track)):
        raise ParameterError("track_metadata contains a unicode null")
    fields = {
        "artist_name": _name(track, "artist_name", required=True),
        "track_name": _name(track, "track_name", required=True),
        "release_name": _name(track, "release_name", required=False),
    }
    more = track.get("additional_info")
    if more is None:
        return fields
    if not isinstance(more, dict):
        raise ParameterError("track_metadata.additional_info must be a json object.")
    _check_tags(more)
    _check_durations(more)
    return fields | _ids(more)


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            pending += found
        elif isinstance(found, dict):
            pending += [*found.keys(), *found.values()]


def _name(track: Mapping[str, Any], key: str, *, required: bool) -> str:
    if key not in track:
        if required:
            raise ParameterError(f"JSON document does not contain required field track_metadata.{key}.")
        return ""
    value = track[key]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise ParameterError(f"track_metadata.{key} must be a single string.")
    name = plain(value)
    if not name and required:
        raise ParameterError(f"field track_metadata.{key} is empty.")
    return name


def _check_tags(more: Mapping[str, Any]) -> None:
    tags = more.get("tags")
    if tags is None:
        return
    where = "track_metadata.additional_info.tags"
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ParameterError(f"{where} must be a list of strings.")
    if len(tags) > MAX_TAGS:
        raise ParameterError(f"JSON document may not contain more than {MAX_TAGS} items in {where}.")
    if any(len(tag) > MAX_TAG_CHARACTERS for tag in tags):
        raise ParameterError(
            f"JSON document may not contain {where} longer than {MAX_TAG_CHARACTERS} characters."
        )


def _check_durations(more: Mapping[str, Any]) -> None:
    if "duration" in more and "duration_ms" in more:
        raise ParameterError("JSON document should not contain both duration and duration_ms.")
    for key, most in (("duration", MAX_DURATION_S), ("duration_ms", MAX_DURATION_S * 1000)):
        if key in more:
            value = _whole_number(more[key])
            if value is None or value <= 0:
                raise ParameterError(f"Value for {key} is invalid, should be a positive integer.")
            if value > most:
                raise ParameterError(f"Value for {key} is too large, max permitted value is {most}")


def _whole_number(value: Any) -> int | None:
    """Read a number as ListenBrainz does: an integer, its digits, or one whose fraction is dropped."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):
        return None


def _ids(more: Mapping[str, Any]) -> dict[str, str]:
    """Give the ids in the form that MusicBrainz writes; empty ones are as good as none."""
    found = {key: _uuid(more[key], key) for key in _SINGLE_IDS if more.get(key)}
    for key in _LISTED_IDS:
        listed = more.get(key) or []
        if not isinstance(listed, list):
            raise ParameterError(f"{key} must be a list of MBIDs.")
        ids = [_uuid(each, key) for each in listed if each]
        if key == "artist_mbids" and ids:
            found["artist_mbid"] = ids[0]
    isrc = more.get("isrc")
    if isinstance(isrc, str):
        found["isrc"] = plain(isrc)
    return found


def _uuid(value: Any, key: str) -> str:
    try:
        return str(uuid.UUID(value))
    except (AttributeError, TypeError, ValueError):
        raise ParameterError(f"{key} MBID format invalid.") from None
