"""Asks a device's running ``start`` through its socket file, as any program of the user's may."""

import http.client
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.config import SOCKET_NAME
from edge.recommendation import Recommendations, Recommended

_ANSWER_S = 20.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(directory: Path, call: str, document: Any) -> Any | None:
    """POST a JSON document to a call; give the answer's, None where nobody answers with one."""
    connection = _Connection(directory / SOCKET_NAME)
    try:
        connection.request(
            "POST", call, body=json.dumps(document), headers={"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = response.read()
        return json.loads(content) if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def recommend_by_start(
    directory: Path, top: int, *, exclude_seen: bool, among: Sequence[str] | None, explain: bool
) -> Recommendations | None:
    """Give what `edge.recommendation.recommend` gives there, with the newest table; None if it does not."""
    document: dict[str, Any] = {"top": top, "exclude_seen": exclude_seen, "explain": explain}
    if among is not None:
        document["among"] = list(among)
    answer = ask(directory, "/v1/recommendations", document)
    if answer is None:
        return None
    try:
        return Recommendations(
            version=answer["version"],
            personal=answer["personal"],
            items=[Recommended(**each) for each in answer["items"]],
        )
    except (TypeError, KeyError):
        return None  # another release's
