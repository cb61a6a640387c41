"""Moments as texts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import moment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00+00:00"),
        (-1.0, "1969-12-31T23:59:59+00:00"),
        (2_147_483_648.0, "2038-01-19T03:14:08+00:00"),
        (4_102_444_800.9, "2100-01-01T00:00:00+00:00"),
    ],
)
def test_utc_knows_seconds_that_32_bits_do_not(seconds: float, text: str) -> None:
    """Before the epoch and after 2038."""
    assert moment.utc(seconds) == text


@given(seconds=st.floats(-1e18, 1e18))
def test_no_moment_is_too_strange_to_be_shown(seconds: float) -> None:
    """As a date, or as a number of seconds."""
    assert re.fullmatch(
        r"-?\d+-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}|-?\d+ seconds since 1970", moment.local(seconds)
    )
