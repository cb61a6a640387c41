import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.datasets import ml_100k
from trainer import datasets
from trainer.datasets import MAX_KEY_BYTES, decoded_lines, parse_ratings
from trainer.errors import DataFormatError, DataTooSmallError
from trainer.splits import Interactions

_HEADER_WORDS = {"user", "userid", "user_id", "uid", "reviewerid", "item", "itemid", "item_id", "iid"} | {
    "movieid", "movie_id", "artistid", "artist_id", "asin", "rating", "weight", "timestamp", "time",
}  # fmt: skip


def _read(text: str | bytes, *, min_interactions: int = 3) -> dict[str, list[str]]:
    """Parse a file; give each user's item keys in the order of the result."""
    content = text.encode() if isinstance(text, str) else text
    return _histories(parse_ratings(content, "ratings.dat", min_interactions=min_interactions))


def _histories(data: Interactions) -> dict[str, list[str]]:
    return {key: [data.item_keys[item] for item in data.of(user)] for user, key in enumerate(data.user_keys)}


def _lines(separator: str, rows: Sequence[Sequence[str]], end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in rows)


_ROWS = [["u1", "c", "5", "30"], ["u1", "a", "3", "10"], ["u1", "b", "1", "20"]]


@pytest.mark.parametrize("separator", [",", "\t", "::", " ", "  \t ", ", ", "\t ", " :: "])
@pytest.mark.parametrize("header", [[], [["userId", "movieId", "rating", "timestamp"]]])
def test_separators_with_and_without_header(separator: str, header: list[list[str]]) -> None:
    """Each separator is recognised, blanks around it do not count, and a header is no data."""
    assert _read(_lines(separator, header + _ROWS)) == {"u1": ["a", "b", "c"]}


@pytest.mark.parametrize("separator", ["::", "\t"])
def test_comma_inside_a_key_is_no_separator(separator: str) -> None:
    """Colons and tabs are looked for before commas, and tabs before white space."""
    assert _read(_lines(separator, [["u 1", item] for item in ("a, the", "b", "c d")])) == {
        "u 1": ["a, the", "b", "c d"]
    }


@pytest.mark.parametrize("separator", [",", "\t", "::", " "])
def test_two_and_three_columns_keep_the_order_of_the_file(separator: str) -> None:
    """Without a time, file order is the order of time; a rating changes nothing."""
    for n_columns in (2, 3):
        assert _read(_lines(separator, [row[:n_columns] for row in _ROWS])) == {"u1": ["c", "a", "b"]}


@pytest.mark.parametrize(
    "header",
    [
        "userID\tartistID\tweight",
        "user\titem\trating",
        "USER_ID\tITEM_ID\tx",
        "uid\tiid\t?",
        "reviewerID\tasin\toverall",
        " user \t item \t n ",
    ],
)
def test_known_headers(header: str) -> None:
    """The column names of the field's data sets are recognised in any case."""
    assert _read(header + "\nu\ta\t1\nu\tb\t2\nu\tc\t3\n") == {"u": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "text",
    [
        "user,item,timestamp\nu,a,3\nu,b,1\nu,c,2\n",
        "user,item,time,rating\nu,a,3,1\nu,b,1,2\nu,c,2,3\n",
        "user,item,rating,stamp\nu,a,1,3\nu,b,2,1\nu,c,3,2\n",
    ],
)
def test_header_names_the_column_of_the_time(text: str) -> None:
    """A column named as the time is the time; otherwise the fourth is."""
    assert _read(text) == {"u": ["b", "c", "a"]}


def test_header_with_item_before_user_is_refused() -> None:
    """Users and items are never silently swapped."""
    with pytest.raises(DataFormatError, match="line 1: the columns begin with item, user; the first must be"):
        _read("item,user\na,u\nb,u\nc,u\n")


def test_quoted_csv() -> None:
    """Quotes may hold commas and quotes, and stand beside lines without any."""
    text = 'user,item,rating,timestamp\n"u,1","Good, the Bad",5,3\n"u,1", "say ""hi""" ,4,2\n"u,1",x,4,1\n'

    assert _read(text) == {"u,1": ["x", 'say "hi"', "Good, the Bad"]}


def test_blanks_around_keys_do_not_count() -> None:
    """A key is the same with and without quotes and blanks around it; blanks inside are kept."""
    text = '"user", "item"\nu 1,a\n"u 1","b"\n u 1 , "c" \n'

    assert _read(text) == {"u 1": ["a", "b", "c"]}


def test_quote_in_a_tab_separated_key_is_kept() -> None:
    """Only comma-separated files have quoting."""
    assert _read('u\t"a"\nu\tb"\nu\t12"\n') == {"u": ['"a"', 'b"', '12"']}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", "  \n"])
def test_line_ends_byte_order_mark_and_blank_lines(end: str, start: str) -> None:
    """Any usual line end, a mark at the start and blank lines anywhere are no data."""
    text = start + end.join(["u,a", "u,b", "", " \t", "u,c"])

    assert _read(text) == {"u": ["a", "b", "c"]}


def test_byte_order_mark_before_a_header() -> None:
    """The mark does not hide the first column's name."""
    assert _read(b"\xef\xbb\xbfuser,item\nu,a\nu,b\nu,c\n") == {"u": ["a", "b", "c"]}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_utf8_and_latin1_keys(encoding: str) -> None:
    """Keys beyond ASCII are read from UTF-8, and from Latin-1 where the bytes are no UTF-8."""
    assert _read("Zoë,Amélie\nZoë,Åse\nZoë,b\n".encode(encoding)) == {"Zoë": ["Amélie", "Åse", "b"]}


def test_duplicates_keep_the_earliest() -> None:
    """Of a repeated pair the earliest time counts, wherever it stands in the file."""
    text = "u,a,1,50\nu,b,1,20\nu,a,1,10\nu,c,1,30\nu,b,5,40\n"

    assert _read(text) == {"u": ["a", "b", "c"]}


def test_duplicate_takes_its_place_in_the_file_from_the_earliest() -> None:
    """Where the kept line ties with another, the order of those two lines decides."""
    text = "u,a,1,9\nu,b,1,3\nu,c,1,4\nu,a,1,3\n"

    assert _read(text) == {"u": ["b", "a", "c"]}


def test_duplicates_count_once_towards_the_minimum() -> None:
    """Three lines with two distinct items are two interactions."""
    assert list(_read("u,a\nu,a\nu,b\nv,a\nv,b\nv,c\n")) == ["v"]


def test_time_ties_by_file_order() -> None:
    """Interactions of the same time stay in the order of the file."""
    assert _read("u,z,1,7\nu,a,1,7\nu,m,1,7\nu,first,1,6.5\n") == {"u": ["first", "z", "a", "m"]}


@pytest.mark.parametrize("times", [("-1", "0", "1.5"), ("1e3", "1.1e3", " 2000 "), ("8", "9", "+10")])
def test_times_are_numbers_not_text(times: tuple[str, str, str]) -> None:
    """Times compare as numbers: negative, fractional, with an exponent or a sign."""
    text = _lines(",", [["u", item, "1", time] for item, time in zip("cab", times, strict=True)][::-1])

    assert _read(text) == {"u": ["c", "a", "b"]}


def test_numbering_is_that_of_the_file() -> None:
    """Users and items are numbered by their first line, whatever the times."""
    data = parse_ratings(b"v,b,1,9\nu,a,1,8\nv,a,1,1\nu,c,1,2\nv,c,1,5\nu,b,1,1\n", "f", min_interactions=3)

    assert (data.user_keys, data.item_keys) == (("v", "u"), ("b", "a", "c"))
    assert data.items.dtype == data.indptr.dtype == np.int64
    np.testing.assert_array_equal(data.indptr, [0, 3, 6])
    np.testing.assert_array_equal(data.items, [1, 2, 0, 0, 2, 1])


def test_users_with_few_interactions_go_and_their_items_with_them() -> None:
    """A user below the minimum is dropped, then the items that nobody is left for."""
    data = parse_ratings(b"w,rare\nw,a\nw,b\nu,a\nu,b\nu,c\nu,d\n", "f", min_interactions=4)

    assert (data.user_keys, data.item_keys) == (("u",), ("a", "b", "c", "d"))


def test_default_minimum_is_ten() -> None:
    """Without a minimum of the caller's, nine interactions are too few and ten are enough."""
    nine = _lines(",", [["u", f"i{item}"] for item in range(9)]).encode()

    assert parse_ratings(nine + b"u,i9\n", "f").items.size == 10
    with pytest.raises(DataTooSmallError, match="10 interactions or more"):
        parse_ratings(nine, "f")


def test_minimum_is_never_below_three() -> None:
    """Leave-one-out needs three, so a lower minimum is taken as three."""
    assert list(_read("u,a\nu,b\nv,a\nv,b\nv,c\n", min_interactions=1)) == ["v"]


def test_too_few_interactions_names_the_file_and_the_way_out() -> None:
    """The message gives the file, the numbers and what to do."""
    with pytest.raises(DataTooSmallError, match=r"ratings\.dat: none of its 2 users has 3 .*give a larger"):
        _read("u,a\nu,b\nv,a\n")


_LONG = "x" * (MAX_KEY_BYTES + 1)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", None, "the file is empty"),
        (b" \n\t\r\n\n", None, "the file is empty"),
        (b"\xef\xbb\xbf", None, "the file is empty"),
        (b"u,a\nu,\0b\n", 2, "a NUL byte; this is a binary file"),
        ("u,a\nu,b\n".encode("utf-16"), 1, "binary file"),
        (b"user,item,rating\n", None, "a header but no line of data"),
        (b"user,item\n\n  \n", None, "a header but no line of data"),
        (b"alone\n", 1, "1 field where 2 to 4 are expected"),
        (b"\n\na,b,c,d,e\n", 3, "5 fields where 2 to 4 are expected"),
        (b"u,a\nu,b,3\n", 2, "3 fields where the first line has 2"),
        (b"user,item,rating\nu,a,1\n\nu,b\n", 4, "2 fields where the first line has 3"),
        (b"u,a,1,2\nu\tb\t1\t2\n", 2, "1 field where the first line has 4"),
        (b'u,a,1\n"u,b,1\n', 2, "1 field where the first line has 3"),
        (b"u,a,1\nu,b,good\n", 2, "the rating is 'good', not a number"),
        (b"u,a,1\nu,b,\n", 2, "the rating is '', not a number"),
        (b"u,a,inf\n", 1, "the rating is 'inf'; it must be finite"),
        (b"u,a,1,5\nu,b,1,soon\n", 2, "the time is 'soon', not a number"),
        (b"u,a,1,5\nu,b,1,nan\n", 2, "the time is 'nan'; it must be finite"),
        (b"u,a,1,1e999\n", 1, "the time is '1e999'; it must be finite"),
        (b"user,item,timestamp\nu,a,never\n", 2, "the time is 'never', not a number"),
        (b"user,item,timestamp,rating\nu,a,1,good\n", 2, "the rating is 'good', not a number"),
        (b"u,a\n,b\n", 2, "the user is empty"),
        (b"u,a\nu, \n", 2, "the item is empty"),
        (b'u,a\n"",b\n', 2, "the user is empty"),
        (f"u,a\n{_LONG},b\n".encode(), 2, "the user is longer than 256 bytes"),
        (f"u,a\nu,{_LONG}\n".encode(), 2, "the item is longer than 256 bytes"),
        (f"u,{'é' * 129}\n".encode(), 1, "the item is longer than 256 bytes"),
        (b"u,a\nu,b\x07c\n", 2, r"the item 'b\x07c' holds control characters"),
        ("u,a\nu\u202ev,c\n".encode(), 2, r"the user 'u\u202ev' holds control characters"),
        (b'u,a\r\nu,b\r\nu,"' + b"x" * 200_000 + b'"\r\n', 3, "the quoted fields cannot be read"),
        (b'u,"' + b"x" * 200_000 + b'"\n', 1, "the quoted fields cannot be read"),
    ],
)
def test_refusals_name_the_line(content: bytes, line: int | None, message: str) -> None:
    """What cannot be read is a sentence with the file, the line and what was found."""
    with pytest.raises(DataFormatError) as caught:
        _read(content)

    assert (caught.value.source, caught.value.line) == ("ratings.dat", line)
    assert str(caught.value).startswith("ratings.dat" if line is None else f"ratings.dat, line {line}: ")
    assert message in str(caught.value)


def test_longest_key_is_read() -> None:
    """A key of exactly 256 bytes is allowed."""
    longest = "é" * (MAX_KEY_BYTES // 2)

    assert _read(f"u,a\nu,b\nu,{longest}\n") == {"u": ["a", "b", longest]}


def test_refusal_cuts_what_it_quotes() -> None:
    """A huge field does not fill the user's screen."""
    with pytest.raises(DataFormatError) as caught:
        _read("u,a," + "9x" * 50_000)

    assert len(str(caught.value)) < 120


@settings(deadline=None)
@example(b'u,"')
@example(b"user\x85item")
@given(st.binary(max_size=200) | st.text("ui,:\t \"\n\r0.9e-'\x00é", max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """Whatever the bytes, the result is interactions or a named error, nothing else."""
    try:
        data = parse_ratings(content, "f", min_interactions=3)
    except (DataFormatError, DataTooSmallError):
        return
    assert data.indptr[-1] == data.items.size
    assert set(data.items.tolist()) == set(range(data.n_items))


Record = tuple[str, str, float]


def _keys(forbidden: str) -> st.SearchStrategy[str]:
    """Give printable keys without `forbidden` characters; blanks only inside, and only where allowed."""
    alphabet = st.characters(exclude_categories=("C", "Z"), exclude_characters=forbidden)
    if " " not in forbidden:
        alphabet |= st.just(" ")
    return st.text(alphabet, min_size=1, max_size=9).filter(
        lambda key: key == key.strip() and "::" not in key and key.lower() not in _HEADER_WORDS
    )


@st.composite
def _files(draw: st.DrawFn, separator: str, forbidden: str) -> tuple[bytes, dict[str, list[str]]]:
    """Draw the bytes of a ratings file, and what reading it must give."""
    users = draw(st.lists(_keys(forbidden), min_size=1, max_size=4, unique=True))
    items = draw(st.lists(_keys(forbidden), min_size=3, max_size=8, unique=True))
    times = st.integers(0, 3).map(float) | st.floats(-1e12, 1e12)
    records: list[Record] = draw(
        st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items), times), min_size=1, max_size=30)
    )
    # One user has all items, so that the file is never too small.
    records += [(users[0], item, 0.0) for item in items]
    n_columns = draw(st.integers(2, 4))
    rows = [[user, item, "4.5", repr(time)][:n_columns] for user, item, time in records]
    if draw(st.booleans()):
        rows.insert(0, ["user", "item", "rating", "timestamp"][:n_columns])
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    if separator == "csv":
        out = io.StringIO()
        dialect = draw(st.sampled_from(["excel", "unix"]))
        csv.writer(out, dialect, lineterminator=end).writerows(rows)
        text = out.getvalue()
    else:
        text = _lines(separator, rows, end)
    if draw(st.booleans()):
        text = text.removesuffix(end)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    return text.encode(encoding), _expected(records, timed=n_columns == 4)


def _expected(records: list[Record], *, timed: bool) -> dict[str, list[str]]:
    """Say what a file of `records` means: the earliest of each pair, ordered by time, then by line."""
    earliest: dict[str, dict[str, tuple[float, int]]] = {}
    for line, (user, item, time) in enumerate(records):
        when = (time if timed else 0.0, line)
        of_user = earliest.setdefault(user, {})
        of_user[item] = min(when, of_user.get(item, when))
    return {
        user: sorted(whens, key=lambda item: whens[item])
        for user, whens in earliest.items()
        if len(whens) >= 3
    }


@pytest.mark.parametrize(
    ("separator", "forbidden"),
    [(",", ',"'), ("csv", ""), ("\t", ""), ("::", ":"), (" ", " ,"), (" \t ", "")],
    ids=["comma", "quoted", "tab", "colons", "space", "tab and blanks"],
)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_round_trip(separator: str, forbidden: str, data: st.DataObject) -> None:
    """Random interactions written in each format are read back, users and items in the file's order."""
    content, expected = data.draw(_files(separator, forbidden))

    read = _read(content)

    assert read == expected
    assert list(read) == list(expected)


# -- blocks, column by column and line by line -----------------------------------------------------


@contextmanager
def _reading(*, block_bytes: int, by_columns: bool) -> Iterator[None]:
    """Read in blocks of about so many bytes, and perhaps never by columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_BLOCK_BYTES", block_bytes)
        if not by_columns:
            patch.setattr(datasets._Columns, "_add_columns", lambda *_: False)
        yield


def _outcome(content: bytes, *, block_bytes: int, by_columns: bool) -> object:
    """Give all that can be seen of reading a file, be it interactions or a refusal."""
    with _reading(block_bytes=block_bytes, by_columns=by_columns):
        try:
            data = parse_ratings(content, "f", min_interactions=3)
        except (DataFormatError, DataTooSmallError) as error:
            return type(error), str(error)
    assert data.items.dtype == data.indptr.dtype == np.int64
    return data.user_keys, data.item_keys, data.indptr.tolist(), data.items.tolist(), data.timed


_FIELD = st.sampled_from(
    [
        "u",
        "v",
        "a",
        "b",
        "c",
        " a ",
        "-1",
        "é",
        "\x85",
        "\x1f",
        "\xa0a",
        "a\u2003",
        ":",
        "",
        '"',
        '"a"',
        '"a,b"',
    ]
)
_NUMBER_FIELD = st.sampled_from(["1", "2", "-3", "1e3", " 4 ", "1_0", "٣", "nan", "inf", "x", "", '"5"'])


@st.composite
def _nearly_regular(draw: st.DrawFn) -> bytes:
    """Draw a file most lines of which are plain."""
    separator = draw(st.sampled_from([",", "\t", "::", " ", " \t"]))
    n_columns = draw(st.integers(2, 4))
    plain = st.tuples(st.sampled_from("uv"), st.sampled_from("abcd"), st.just("1"), st.sampled_from("123"))
    odd = st.tuples(_FIELD, _FIELD, _NUMBER_FIELD, _NUMBER_FIELD)
    lines = [
        separator.join(fields[:n_columns])
        for fields in draw(st.lists(plain, min_size=3, max_size=20)) + draw(st.lists(odd, max_size=2))
    ]
    lines += draw(st.lists(st.sampled_from(["", " ", "u", "u,a,1,2,3"]), max_size=1))
    lines = draw(st.permutations(lines))
    if draw(st.booleans()):
        lines = [separator.join(["user", "item", "rating", "time"][:n_columns]), *lines]
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))


@settings(deadline=None, max_examples=300)
@given(_nearly_regular(), st.integers(1, 200))
def test_columns_and_lines_give_the_same(content: bytes, block_bytes: int) -> None:
    """Whether by columns or line by line, in few blocks or many: the same interactions, the same refusal."""
    careful = _outcome(content, block_bytes=1 << 20, by_columns=False)

    assert _outcome(content, block_bytes=1 << 20, by_columns=True) == careful
    assert _outcome(content, block_bytes=block_bytes, by_columns=True) == careful
    assert _outcome(content, block_bytes=block_bytes, by_columns=False) == careful


@settings(deadline=None)
@given(st.data())
def test_whole_and_in_blocks_give_the_same(data: st.DataObject) -> None:
    """Well-formed files of every kind, the quoted ones too, are the same in blocks of a line or two."""
    content, _ = data.draw(_files(*data.draw(st.sampled_from([(",", ',"'), ("csv", ""), ("::", ":")]))))

    assert _outcome(content, block_bytes=1, by_columns=True) == _outcome(
        content, block_bytes=1 << 20, by_columns=False
    )


def test_plain_file_is_read_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank lines, blanks around fields and any line end do not make a file irregular."""
    monkeypatch.delattr(datasets._Columns, "_add_line_by_line")

    for end in ("\n", "\r\n", "\r"):
        text = end.join(["user, item, rating, time", "", "u , a, 1, 3", " u, b,2,1", "\t", "u,c,3,2", ""])
        assert _read(text) == {"u": ["b", "c", "a"]}


def test_colon_at_a_line_end_stays_in_its_line() -> None:
    """A key may end with half a separator."""
    assert _read("u::a:\nu::b\nu:::c\nu::d\nu::e") == {"u": ["a:", "b", ":c", "d", "e"]}


@pytest.mark.parametrize("block_bytes", [1, 7, 30])
def test_refusal_in_a_later_block_names_its_line(block_bytes: int) -> None:
    """Lines are counted through all blocks, blank ones and a header included."""
    text = "\n\nuser,item,rating,time\n" + "u,a,1,2\n\n" * 20 + "u,b,1,nan\n"

    with (
        _reading(block_bytes=block_bytes, by_columns=True),
        pytest.raises(DataFormatError, match="line 44: the time is 'nan'; it must be finite"),
    ):
        _read(text)


def test_byte_that_is_no_utf8_in_a_late_block_decides_for_the_whole_file() -> None:
    """A file has one encoding, whichever block tells."""
    content = "é,a\né,b\né,c\n".encode() + "é,d\n".encode("latin-1") * 4
    with _reading(block_bytes=1, by_columns=True):
        read = _read(content)

    assert read == {"Ã©": ["a", "b", "c"]}


@given(st.text("a\r\n ", max_size=30), st.integers(1, 10))
def test_decoded_lines_are_the_same_in_blocks(text: str, block_bytes: int) -> None:
    """Lines do not depend on where blocks are cut; a line end at the end of the file starts no line."""
    if not text.strip():
        return
    with _reading(block_bytes=block_bytes, by_columns=True):
        lines = decoded_lines(text.encode(), "f")

    assert lines == text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1,-5\n-1,-6\n-1,0\n", {"-1": ["-5", "-6", "0"]}),
        ("1,01\n1,1\n1,1.0\n", {"1": ["01", "1", "1.0"]}),
        ("u,a\nu,b\nu,c\nv,a\n", {"u": ["a", "b", "c"]}),
    ],
    ids=["negative", "as written", "one interaction"],
)
def test_keys_are_text(text: str, expected: dict[str, list[str]]) -> None:
    """What looks like a number is a key like any other; a user with one interaction is dropped."""
    assert _read(text) == expected


@pytest.mark.dataset
def test_ml_100k() -> None:
    """MovieLens 100K has 943 users with at least 20 of 1,682 items each, 100,000 distinct pairs in all."""
    data = parse_ratings(ml_100k().read_bytes(), "ratings.dat")

    assert (data.n_users, data.n_items, data.items.size) == (943, 1682, 100_000)
    assert int(np.diff(data.indptr).min()) == 20
    assert set(data.user_keys) == {str(user) for user in range(1, 944)}
    assert set(data.item_keys) == {str(item) for item in range(1, 1683)}
