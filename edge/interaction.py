"""One interaction as another program on the device tells it, by HTTP or MQTT: ``{"item", "at", "id"}``.

Sentences about what is wrong do not repeat what was sent: they may go to a log.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from edge.events import parse_time
from trainer.datasets import MAX_KEY_BYTES, checked_key
from trainer.errors import DataError, ParameterError

MAX_ID_CHARACTERS = 200
_KEYS = {"item", "at", "id"}
_IDENTITY_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """One item that the user interacted with.

    Attributes
    ----------
    item : str
    at : float
        Seconds since 1970.
    identity : bytes or None
        See `edge.store.DeviceStore.record_once`.
    """

    item: str
    at: float
    identity: bytes | None


def read_interaction(value: Any, now: float) -> Interaction:
    """Read an object with an item, and if wanted its time (else it is `now`) and the sender's id for it.

    Raises
    ------
    ParameterError
    """
    if not isinstance(value, dict) or not value.keys() <= _KEYS or "item" not in value:
        raise ParameterError(
            'an interaction is {"item": text, "at": time, "id": text}, the last two optional'
        )
    at, name = value.get("at"), value.get("id")
    return Interaction(
        item=read_item(value["item"]),
        at=now if at is None else _time(at),
        identity=None if name is None else _identity(name),
    )


def read_item(value: Any) -> str:
    """Read an item's key.

    Raises
    ------
    ParameterError
    """
    if not isinstance(value, str):
        raise ParameterError("an item must be text")
    try:
        return checked_key(value, "item", "", None)
    except DataError:
        raise ParameterError(
            f"an item must be 1 to {MAX_KEY_BYTES} bytes of text without control characters"
        ) from None


def _time(value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            return parse_time(str(value))
        except (ParameterError, ValueError):  # an integer of thousands of digits has no text
            pass
    raise ParameterError("a time must be seconds since 1970 or ISO 8601, between the years 1970 and 9999")


def _identity(name: Any) -> bytes:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID_CHARACTERS or not name.isprintable():
        raise ParameterError(f"an id must be text of 1 to {MAX_ID_CHARACTERS} printable characters")
    return blake2b(f"id\n{name}".encode(), digest_size=_IDENTITY_BYTES).digest()
