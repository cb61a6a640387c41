"""HTTP as bytes: requests in any pieces, answers, and what is no request."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.api.messages import MAX_HEAD_BYTES, Head, HttpError, Request, RequestReader, Response, parse_head

POST = (
    b"POST /v1/interactions?top=1&x=%C3%BC HTTP/1.1\r\n"
    b"Host: a\r\nContent-Length: 5\r\nX-More: \tb \r\n\r\nhello"
)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def a_reader() -> RequestReader:
    """Give a reader that admits everything."""
    return RequestReader(lambda _head: None)


def requests_in(reader: RequestReader) -> list[Request]:
    """Take all that are whole."""
    found = []
    while (request := reader.next_request()) is not None:
        found.append(request)
    return found


def test_request_is_read_whole() -> None:
    """Method, path, parameters, headers in lower case, and body."""
    reader = a_reader()
    reader.receive(POST)
    [request] = requests_in(reader)
    assert request.body == b"hello"
    assert request.head == Head(
        method="POST",
        path="/v1/interactions",
        parameters={"top": "1", "x": "ü"},
        headers={"host": "a", "content-length": "5", "x-more": "b"},
        content_length=5,
        keep_alive=True,
    )


@given(cuts=st.lists(st.integers(0, len(POST * 2 + GET)), max_size=12))
def test_requests_are_the_same_in_any_pieces(cuts: list[int]) -> None:
    """Three of them, one after the other."""
    stream, reader, found = POST + b"\r\n" + POST + GET, a_reader(), []
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    begin = 0
    for end in ends:
        reader.receive(stream[begin:end])
        found += requests_in(reader)
        begin = end
    assert [(request.head.method, request.body) for request in found] == [
        ("POST", b"hello"),
        ("POST", b"hello"),
        ("GET", b""),
    ]
    assert not reader.begun


def test_reader_asks_before_it_keeps_a_body() -> None:
    """What is not admitted is not read, however long."""
    heads = []

    def admit(head: Head) -> None:
        heads.append(head)
        raise HttpError(413, "no")

    reader = RequestReader(admit)
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\nxx")
    with pytest.raises(HttpError, match="no"):
        reader.next_request()
    assert heads[0].content_length == 999_999_999


def test_reader_tells_once_that_a_client_waits() -> None:
    """Before it sends a large body; not when the body is there."""
    reader = a_reader()
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
    assert reader.next_request() is None
    assert (reader.take_continue(), reader.take_continue()) == (True, False)
    assert reader.expected_bytes == 2
    reader.receive(b"ok")
    assert [request.body for request in requests_in(reader)] == [b"ok"]


@pytest.mark.parametrize(
    ("line", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close", False),
        (b"GET / HTTP/1.0", False),
        (b"GET http://somewhere/x HTTP/1.1\r\nHost: a", True),
    ],
)
def test_connection_goes_on_as_the_client_says(line: bytes, keep_alive: bool) -> None:  # noqa: FBT001
    """In HTTP/1.1 unless it says otherwise."""
    assert parse_head(line).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"get / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a", 400),
        (b"GET /?x=%ff HTTP/1.1\r\nHost: a", 400),
        (b"GET /?a=1&a=2 HTTP/1.1\r\nHost: a", 400),
        (b"GET /?" + b"&".join(b"a%d=1" % n for n in range(30)) + b" HTTP/1.1\r\nHost: a", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: a", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/2.0\r\nHost: a", 505),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x", 400),
        (b"GET / HTTP/1.1\r\nHost : a", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nb", 400),
        (b"GET / HTTP/1.1\r\nHost: \x00", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", 411),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_head_that_is_none_is_refused(content: bytes, status: int) -> None:
    """With a sentence."""
    with pytest.raises(HttpError) as found:
        parse_head(content)
    assert found.value.status == status
    assert str(found.value)


def test_head_without_end_is_refused_early() -> None:
    """It is not collected for ever."""
    reader = a_reader()
    reader.receive(b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES)
    with pytest.raises(HttpError, match="larger than 16384 bytes"):
        reader.next_request()


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: POST[:-5] + tail))
def test_any_bytes_are_requests_or_an_error(content: bytes) -> None:
    """And no other error."""
    reader = a_reader()
    reader.receive(content + b"\r\n\r\n")
    try:
        requests_in(reader)
    except HttpError as error:
        assert 400 <= error.status < 600  # noqa: PT017 - that there is no error is right as well


def test_error_is_answered_as_listenbrainz_does() -> None:
    """With its code, and in bytes that any client understands."""
    response = Response.of_error(HttpError(405, "ü", {"Allow": "GET"}))
    assert json.loads(response.body) == {"code": 405, "error": "ü"}
    head, _, body = response.encode(keep_alive=False).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 405 Method Not Allowed"
    assert {"Allow: GET", "Connection: close", f"Content-Length: {len(body)}"} <= set(lines)
    assert response.encode(keep_alive=True, with_body=False).endswith(b"\r\n\r\n")
