"""A client of ListenBrainz, unchanged, feeds a device that runs."""

import signal
from pathlib import Path

import liblistenbrainz
import pytest
from liblistenbrainz import Listen, ListenBrainz

from broker.embedded import free_port
from edge.config import TOKEN_NAME
from tests.brokers import HOST
from tests.edge.calling import NOBODY, stored
from tests.edge.running import RunningCommand, a_directory, looking_at

N_LISTENS = 5_000
A_REQUEST = 1_000
"""What the server takes; the client does not cut."""


def some_listens(count: int) -> list[Listen]:
    """Give listens as a player's history has them."""
    return [
        Listen(
            track_name=f"Track {number}",
            artist_name=f"Artist {number % 97}",
            listened_at=1_600_000_000 + 200 * number,
            release_name="A Record",
            tags=["a tag"],
            listening_from="a player",
        )
        for number in range(count)
    ]


@pytest.mark.process
def test_listenbrainz_client_feeds_a_running_device(tmp_path: Path) -> None:
    """A single listen, what is playing now, and an import of 5,000: counted once each, though sent twice."""
    directory, port = a_directory(tmp_path / "me", "shop", NOBODY), free_port(HOST)
    arguments = ("start", "--dir", str(directory))
    with RunningCommand("edge-client", *arguments, PFEDREC_API_PORT=str(port)) as device:
        device.hear("local API on")
        client = ListenBrainz(api_base_url=f"http://{HOST}:{port}")
        with pytest.raises(liblistenbrainz.errors.InvalidAuthTokenException):
            client.set_auth_token("another token")
        client.set_auth_token((directory / TOKEN_NAME).read_text().strip())
        listens = some_listens(N_LISTENS)

        client.submit_playing_now(Listen(track_name="Track 0", artist_name="Artist 0"))
        assert stored(directory) == 0
        for _ in range(2):
            client.submit_single_listen(listens[0])
        assert stored(directory) == 1
        for _ in range(2):
            for start in range(0, N_LISTENS, A_REQUEST):
                client.submit_multiple_listens(listens[start : start + A_REQUEST])
        assert stored(directory) == N_LISTENS

        with pytest.raises(liblistenbrainz.errors.ListenBrainzAPIException) as refused:
            client.submit_multiple_listens(some_listens(A_REQUEST + 1))
        assert refused.value.status_code == 400
        assert device.end(signal.SIGTERM) == 0
    with looking_at(directory) as store:
        assert store.interacted().total == N_LISTENS
