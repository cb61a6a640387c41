"""Reading what a user interacted with: times, and files of item and time."""

import csv
from datetime import UTC, datetime

from trainer.datasets import checked_key, decoded_lines
from trainer.errors import DataFormatError, ParameterError

_LATEST = 253402300800.0  # the year 10000, where calendars and databases end
_HEADERS = {"item", "item_id", "itemid", "item_key", "key"}


def parse_time(text: str) -> float:
    """Read a time: seconds since the epoch, or ISO 8601 (UTC where it names no zone).

    Raises
    ------
    ParameterError
        When it is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ParameterError(
                f"{text[:40]!r} is no time; write seconds since 1970 or for example 2026-05-01T12:30:00"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0.0 <= seconds < _LATEST:
        raise ParameterError(f"{text[:40]!r} is no time between the years 1970 and 9999")
    return seconds


def parse_events(content: bytes, source: str, now: float) -> list[tuple[str, float]]:
    """Read lines of ``ITEM`` or ``ITEM,TIME``, with or without a header; give item keys and times.

    Parameters
    ----------
    now : float
        Time of a line that has none, in seconds since the epoch.

    Raises
    ------
    DataFormatError
        With the line number, when the file is empty, binary, or has a line that does not fit.
    """
    lines = decoded_lines(content, source)
    events: list[tuple[str, float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = [field.strip() for field in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise DataFormatError(source, number, str(error)) from error
        if not events and fields[0].lower() in _HEADERS:
            continue
        if len(fields) > 2:
            raise DataFormatError(source, number, f"{len(fields)} fields where ITEM or ITEM,TIME is expected")
        item = checked_key(fields[0], "item", source, number)
        try:
            at = parse_time(fields[1]) if len(fields) == 2 and fields[1] else now
        except ParameterError as error:
            raise DataFormatError(source, number, str(error)) from None
        events.append((item, at))
    if not events:
        raise DataFormatError(source, None, "there is a header but no event")
    return events
