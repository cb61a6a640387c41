"""Reading item keys from the files that people have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.aggregator.catalogue import parse_item_keys
from trainer.errors import DataFormatError

MOVIES_DAT = """\
1::Toy Story (1995)::Animation|Children's|Comedy
2::Jumanji (1995)::Adventure|Children's|Fantasy
3::Grumpier Old Men (1995)::Comedy|Romance
"""
MOVIES_CSV = """\
1,Toy Story (1995),Adventure|Animation
2,"American President, The (1995)",Comedy|Drama
"""
U_ITEM = """\
1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy,Story|0
2|GoldenEye (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Golden,Eye|0
"""


def parsed(text: str) -> tuple[str, ...]:
    """Read a file's text."""
    return parse_item_keys(text.encode(), "items.txt")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a\nb\nc\n", ("a", "b", "c")),
        ("b\na", ("b", "a")),
        ("only\n", ("only",)),
        ("  a \n\tb\n", ("a", "b")),
        ("a\r\nb\r\n", ("a", "b")),
        ("a\rb\r", ("a", "b")),
        ("\n\na\n\n \nb\n\n", ("a", "b")),
        ("two words\nThe Third Man (1949)\n", ("two words", "The Third Man (1949)")),
        ("映画\nAmélie\n", ("映画", "Amélie")),
        ("\ufeffa\nb\n", ("a", "b")),
        ("one, two\nthree\n", ("one, two", "three")),
    ],
)
def test_plain_file_has_a_key_in_every_line(text: str, keys: tuple[str, ...]) -> None:
    """Without a separator that all lines have, the whole line is the key."""
    assert parsed(text) == keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a,1\nb,2\n", ("a", "b")),
        ("a\t1\nb\t2\n", ("a", "b")),
        ("a::1\nb::2\n", ("a", "b")),
        ("a|1\nb|2\n", ("a", "b")),
        ('"Rock, Paper",x\n"b ""c""",y\nplain,z\n', ("Rock, Paper", 'b "c"', "plain")),
        ("x, y\t1\nz, w\t2\n", ("x, y", "z, w")),
        (MOVIES_DAT, ("1", "2", "3")),
        (MOVIES_CSV, ("1", "2")),
        (U_ITEM, ("1", "2")),
    ],
    ids=["csv", "tab", "double colon", "bar", "quoted", "tab wins", "movies.dat", "movies.csv", "u.item"],
)
def test_table_gives_its_first_column(text: str, keys: tuple[str, ...]) -> None:
    """What separates the first column is what counts, whatever the other columns hold."""
    assert parsed(text) == keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("item_id\n7\n8\n", ("7", "8")),
        ("movieId,title\n7,x\n8,y\n", ("7", "8")),
        ("ID\tname\n7\tx\n8\ty\n", ("7", "8")),
        ("ASIN\nB0001\n", ("B0001",)),
        ("\n\nkey\na\n", ("a",)),
    ],
)
def test_header_is_no_key(text: str, keys: tuple[str, ...]) -> None:
    """A first line that names the column is left out."""
    assert parsed(text) == keys


def test_file_of_one_line_has_no_header() -> None:
    """A single key may be called id."""
    assert parsed("id\n") == ("id",)


def test_file_that_is_not_utf8_is_latin_1() -> None:
    """Old files are read as what they are."""
    assert parse_item_keys("Amélie\nb\n".encode("latin-1"), "items.txt") == ("Amélie", "b")


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"", None, "empty"),
        (b" \n\n", None, "empty"),
        (b"a\nb\0\n", 2, "binary"),
        (b"a,1\n,2\n", 2, "empty"),
        (b"a\nb\na\n", 3, "'a' stands in line 1 already"),
        (b"a\n\nb\nb\n", 4, "'b' stands in line 3 already"),
        (b"a\n" + b"x" * 10_000 + b"\n", 2, "longer than"),
        (b"a\nb\x1b[2J\n", 2, "control characters"),
        (b'"' + b"x" * 200_000 + b'",1\nb,2\n', 1, "larger than"),
    ],
    ids=[
        "nothing",
        "blank",
        "binary",
        "no key",
        "twice",
        "twice after blank",
        "long",
        "control",
        "long quoted",
    ],
)
def test_file_with_a_wrong_line_is_refused(content: bytes, line: int | None, problem: str) -> None:
    """The sentence names the file, the line and what is wrong with it."""
    with pytest.raises(DataFormatError, match=problem) as caught:
        parse_item_keys(content, "items.txt")

    assert (caught.value.source, caught.value.line) == ("items.txt", line)
    assert str(caught.value).startswith("items.txt")


_PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=12)
_KEYS = st.lists(_PLAIN.map(lambda key: f"k{key}"), min_size=1, max_size=20, unique=True)


@given(
    keys=_KEYS, separator=st.sampled_from(["", ",", "\t", "::", "|"]), newline=st.sampled_from(["\n", "\r\n"])
)
def test_any_keys_come_back_in_order(keys: list[str], separator: str, newline: str) -> None:
    """Whatever the separator and the line ends, the first column is read as it stands."""
    text = newline.join(f"{key}{separator}{'rest' * bool(separator)}" for key in keys)

    assert parsed(text) == tuple(keys)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_keys_or_a_format_error(content: bytes) -> None:
    """No file, however broken, raises anything else; what is read is distinct and printable."""
    try:
        keys = parse_item_keys(content, "items.txt")
    except DataFormatError:
        return
    assert keys
    assert len(set(keys)) == len(keys)
    assert all(key and key.isprintable() for key in keys)
