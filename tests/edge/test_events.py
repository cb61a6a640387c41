"""Times and files of interactions, as people and other programs write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.events import parse_events, parse_time
from trainer.errors import DataFormatError, ParameterError

NOW = 1_700_000_000.0
LATEST = 253402300800.0


@given(seconds=st.floats(0.0, LATEST, exclude_max=True))
def test_parse_time_of_seconds_is_those_seconds(seconds: float) -> None:
    """To the last bit."""
    assert parse_time(repr(seconds)) == seconds


@given(
    moment=st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    minutes=st.none() | st.integers(-23 * 60, 23 * 60),
)
def test_parse_time_of_iso_8601_is_that_moment(moment: datetime, minutes: int | None) -> None:
    """With the zone that it names; UTC if it names none."""
    zone = UTC if minutes is None else timezone(timedelta(minutes=minutes))
    text = moment.isoformat() if minutes is None else moment.replace(tzinfo=zone).isoformat()
    assert parse_time(text) == moment.replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("1e3", 1000.0),
        ("1970-01-01", 0.0),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01 01:00+01:00", 0.0),
        ("2026-05-01T12:30:00", 1777638600.0),
    ],
)
def test_parse_time_of_known_moment_is_known(text: str, seconds: float) -> None:
    """Some usual forms."""
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "yesterday", "12:30", "2026-13-01", "2026-02-30", "0x10", "1,5", "2026-05-01T25:00"]
)
def test_parse_time_of_no_time_says_how_to_write_one(text: str) -> None:
    """With what was found."""
    with pytest.raises(ParameterError, match=r"is no time; write seconds since 1970 or for example 2026-"):
        parse_time(text)


@pytest.mark.parametrize(
    "text",
    ["-1", "nan", "inf", "-inf", "1e300", str(LATEST), "1969-12-31T23:59:59", "0001-01-01T00:00+23:00"],
)
def test_parse_time_out_of_the_calendar_is_refused(text: str) -> None:
    """Neither before 1970 nor after 9999, and no number that is none."""
    with pytest.raises(ParameterError, match="between the years 1970 and 9999"):
        parse_time(text)


@given(text=st.text(max_size=60))
def test_parse_time_of_any_text_is_a_time_or_a_sentence(text: str) -> None:
    """One line, and short whatever was given."""
    sentence = ""
    try:
        assert 0.0 <= parse_time(text) < LATEST
    except ParameterError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"a", [("a", NOW)]),
        (b"a\nb\n", [("a", NOW), ("b", NOW)]),
        (b"a,5\nb,1970-01-01T00:00:06\n", [("a", 5.0), ("b", 6.0)]),
        (b"item,time\na,5\n", [("a", 5.0)]),
        (b"Item_ID\r\na\r\n", [("a", NOW)]),
        (b"\n\n a , 5 \n\n", [("a", 5.0)]),
        (b'"a,b",5\n', [("a,b", 5.0)]),
        (b"a,\n", [("a", NOW)]),
        ("\ufeffAmélie,5\n".encode(), [("Amélie", 5.0)]),
        ("Amélie,5\n".encode("latin-1"), [("Amélie", 5.0)]),
        (b"a,5\nitem,6\n", [("a", 5.0), ("item", 6.0)]),
    ],
)
def test_parse_events_reads(content: bytes, events: list[tuple[str, float]]) -> None:
    """With and without times, headers, quotes, blank lines, in the usual encodings."""
    assert parse_events(content, "events.csv", NOW) == events


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"", None, "empty"),
        (b" \n\n", None, "empty"),
        (b"item,time\n", None, "a header but no event"),
        (b"a\nb\0c\n", 2, "binary"),
        (b"\x89PNG\r\n\x1a\n\0\0", 3, "binary"),
        (b"a,5\nb,6,7\n", 2, "3 fields"),
        (b"a,5\n\n,6\n", 3, "the item is empty"),
        (b"a,5\nb,soon\n", 2, "'soon' is no time"),
        (b"a,5\nb,-6\n", 2, "between the years"),
        (b"a\nb\tc\n", 2, "control characters"),
        (b"a\n" + b"x" * 2000, 2, "longer than"),
        (b"a\n" + b"x" * 200_000, 2, "longer than|too long|field"),
    ],
)
def test_parse_events_of_broken_file_names_the_line(content: bytes, line: int | None, problem: str) -> None:
    """And nothing of it is used."""
    with pytest.raises(DataFormatError, match=problem) as refusal:
        parse_events(content, "events.csv", NOW)
    assert refusal.value.line == line
    assert str(refusal.value).startswith("events.csv" if line is None else f"events.csv, line {line}: ")


@given(content=st.binary(max_size=200))
def test_parse_events_of_any_bytes_gives_events_or_a_sentence(content: bytes) -> None:
    """Whatever the file is."""
    try:
        events = parse_events(content, "file", NOW)
    except DataFormatError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert events
    assert "\n" not in sentence
    for item, at in events if not sentence else ():
        assert item
        assert item.isprintable()
        assert 0.0 <= at < LATEST


@given(
    events=st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
                lambda key: key not in {"item", "item_id", "itemid", "item_key", "key"}
            ),
            st.floats(0.0, LATEST, exclude_max=True),
        ),
        min_size=1,
    )
)
def test_parse_events_reads_back_what_was_written(events: list[tuple[str, float]]) -> None:
    """Line by line."""
    content = "".join(f"{item},{at!r}\n" for item, at in events).encode()
    assert parse_events(content, "file", NOW) == events
