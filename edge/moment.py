"""Moments as texts, on every processor: 32-bit ARM's C library knows no second after 19 January 2038."""

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(seconds: float) -> str:
    """Give seconds since the epoch as an ISO 8601 time in UTC.

    Raises
    ------
    OverflowError
        Beyond the years 1 to 9999.
    """
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def local(seconds: float) -> str:
    """Give seconds since the epoch as the local time, or as they are where the C library knows none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return f"{seconds:.0f} seconds since 1970"
