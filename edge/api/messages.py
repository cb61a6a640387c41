"""HTTP/1.1 requests and answers as bytes, without input or output.

Only what a local API needs: a head of at most 16 KB, a body of a known length, answers of JSON. What is
asked of the body's length and of authorization is decided by the owner as soon as the head is there,
before a byte of the body is kept (`Admit`).

Refused by design: bodies without Content-Length (411), folded header lines, bare line feeds. A request that
breaks off leaves nothing behind.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from trainer.errors import PFedRecError

MAX_HEAD_BYTES = 16 * 1024
"""Request line and headers; browsers' cookies are what makes heads large, and nobody sends us any."""
_MAX_PARAMETERS = 20
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,15}")
_END_OF_HEAD = b"\r\n\r\n"


class HttpError(PFedRecError):
    """A request that is answered with an error.

    Attributes
    ----------
    status : int
    headers : mapping
        More headers of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A request without its body; header names are in lower case."""

    method: str
    path: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    content_length: int
    keep_alive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A whole request."""

    head: Head
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer; `body` is JSON."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        """Give an answer of a JSON value."""
        return cls(status=status, body=json.dumps(value, ensure_ascii=False).encode(), headers=headers or {})

    @classmethod
    def of_error(cls, error: HttpError) -> "Response":
        """Give an error as ListenBrainz does: its code and one sentence."""
        return cls.of({"code": error.status, "error": str(error)}, error.status, error.headers)

    def encode(self, *, keep_alive: bool, with_body: bool = True) -> bytes:
        """Give the bytes on the wire."""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Content-Length": str(len(self.body)),
            "Cache-Control": "no-store",
            "Date": formatdate(usegmt=True),
            "Connection": "keep-alive" if keep_alive else "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body if with_body else b"")


Admit: TypeAlias = Callable[[Head], None]
"""Told a head before its body is kept; raises HttpError to refuse."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestReader:
    """Makes requests of the bytes of one connection, one after the other.

    Parameters
    ----------
    admit : callable
        See `Admit`.
    """

    def __init__(self, admit: Admit) -> None:
        self._admit = admit
        self._buffer = bytearray()
        self._head: Head | None = None
        self._continue_wanted = False

    @property
    def begun(self) -> bool:
        """Whether a part of a request is here."""
        return bool(self._buffer) or self._head is not None

    @property
    def expected_bytes(self) -> int:
        """How long the body of the request that has begun is; 0 before its head is here."""
        return 0 if self._head is None else self._head.content_length

    def receive(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._buffer += data

    def forget(self) -> None:
        """Drop what has come; the connection is of no further use."""
        self._buffer.clear()
        self._head = None

    def take_continue(self) -> bool:
        """Tell, once for each request, whether the peer waits to be told to send the body."""
        wanted, self._continue_wanted = self._continue_wanted, False
        return wanted

    def next_request(self) -> Request | None:
        """Give the next whole request, None if more bytes are needed.

        Raises
        ------
        HttpError
            When it is none, or not admitted; the connection is of no further use.
        """
        if self._head is None:
            head = self._read_head()
            if head is None:
                return None
            self._admit(head)
            self._head = head
            waits = head.headers.get("expect", "").lower() == "100-continue"
            self._continue_wanted = waits and len(self._buffer) < head.content_length
        head = self._head
        if len(self._buffer) < head.content_length:
            return None
        body = bytes(memoryview(self._buffer)[: head.content_length])
        del self._buffer[: head.content_length]
        self._head = None
        return Request(head=head, body=body)

    def _read_head(self) -> Head | None:
        while self._buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines before a request
            del self._buffer[:2]
        end = self._buffer.find(_END_OF_HEAD, 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise HttpError(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
            return None
        content = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + len(_END_OF_HEAD)]
        return parse_head(content)


def parse_head(content: bytes) -> Head:
    """Read a request line and headers, without the empty line that ends them.

    Raises
    ------
    HttpError
    """
    first, *rest = content.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise HttpError(400, "this is no HTTP request")
    method, target, major, minor = (each.decode("ascii") for each in line.groups())
    if major != "1":
        raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    headers = _headers(rest)
    if minor == "1" and "host" not in headers:
        raise HttpError(400, "the request has no Host header")
    if "transfer-encoding" in headers:
        raise HttpError(411, "send the body with its Content-Length")
    path, parameters = _target(target)
    return Head(
        method=method,
        path=path,
        parameters=parameters,
        headers=headers,
        content_length=_content_length(headers.get("content-length", "0")),
        keep_alive=minor != "0" and headers.get("connection", "").lower() != "close",
    )


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise HttpError(400, "the request has a header line that is none")
        name, value = found[1].decode("ascii").lower(), found[2].decode("latin-1")
        if name in ("content-length", "host", "authorization") and headers.get(name, value) != value:
            raise HttpError(400, f"the request has two different {name} headers")
        headers[name] = value
    return headers


def _content_length(text: str) -> int:
    if not _LENGTH.fullmatch(text):
        raise HttpError(400, "the Content-Length is no length")
    return int(text)


def _target(target: str) -> tuple[str, dict[str, str]]:
    try:
        parts = urlsplit(target if "://" in target.partition("?")[0] else f"http://device{target}")
        parameters = parse_qsl(
            parts.query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="strict"
        )
    except ValueError:
        raise HttpError(400, "the request's address cannot be read") from None
    if not parts.path.startswith("/"):
        raise HttpError(400, "the request's address has no path")
    if len(dict(parameters)) < len(parameters):
        raise HttpError(400, "the request's address names a parameter twice")
    return parts.path, dict(parameters)
