"""What a message's fields are checked with; every refusal is a `SchemaError` that names the field.

A refusal is short printable ASCII whatever the sender wrote, so that it fits a log line and the reason of
a receipt.

Types are compared exactly: a bool is no integer here, an integer is no float, and a subclass with a
behaviour of its own never gets in.
"""

import math

from broker.errors import SchemaError
from broker.protocol.topics import checked_id
from trainer.errors import ParameterError


def require_integer(message: object, name: str, low: int, high: int) -> None:
    """Refuse anything but an int from `low` to `high`."""
    value = getattr(message, name)
    if type(value) is not int or not low <= value <= high:
        raise SchemaError(f"{name} must be an integer from {low} to {high}, not {shown(value)}")


def require_real(message: object, name: str, low: float, high: float) -> None:
    """Refuse anything but a finite float from `low` to `high`."""
    value = getattr(message, name)
    if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
        raise SchemaError(f"{name} must be a float from {low:g} to {high:g}, not {shown(value)}")


def require_boolean(message: object, name: str) -> None:
    """Refuse anything but true and false."""
    value = getattr(message, name)
    if type(value) is not bool:
        raise SchemaError(f"{name} must be true or false, not {shown(value)}")


def require_text(message: object, name: str, max_bytes: int) -> None:
    """Refuse anything but text of at most `max_bytes` in UTF-8."""
    value = getattr(message, name)
    if type(value) is not str or len(value) > max_bytes or not _utf8_fits(value, max_bytes):
        raise SchemaError(f"{name} must be text of at most {max_bytes} bytes, not {shown(value)}")


def _utf8_fits(text: str, max_bytes: int) -> bool:
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:  # a lone surrogate: UTF-8 cannot carry it
        return False


def require_bytes(message: object, name: str, low: int, high: int) -> None:
    """Refuse anything but `low` to `high` bytes."""
    value = getattr(message, name)
    if type(value) is not bytes or not low <= len(value) <= high:
        raise SchemaError(f"{name} must be {low} to {high} bytes, not {shown(value)}")


def require_identifier(message: object, name: str) -> None:
    """Refuse what cannot name a fleet, a device or an encoding."""
    require_name(getattr(message, name), name)


def require_name(value: object, name: str) -> None:
    """Refuse a value that cannot name a fleet, a device, an encoding or a group."""
    try:
        checked_id(value if type(value) is str else "", name)
    except ParameterError:
        raise SchemaError(f"{name} must be 1 to 64 of A-Z a-z 0-9 . _ -, not {shown(value)}") from None


def require_choice(message: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of the texts `choices`."""
    value = getattr(message, name)
    # The type first: comparing an array with a text gives an array, which is neither true nor false.
    if type(value) is not str or value not in choices:
        raise SchemaError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")


def shown(value: object) -> str:
    """Give the beginning of a value of any kind, in printable ASCII: logs and receipts quote it."""
    start = value[:60] if isinstance(value, str | bytes) else value
    return f"{type(value).__name__} {' '.join(ascii(start).split())[:60]}"
