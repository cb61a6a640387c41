"""The one line that lets a device in: read back as it was written, refused without being repeated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.authority.claims import draw_code
from broker.claim import Claim
from broker.errors import InputError

AUTHORITY = "0123456789abcdef" * 4
CODE = "abcdefghjkmnpqrstvwxyz2345"


@settings(max_examples=40)
@given(
    host=st.sampled_from(["broker.example", "10.0.0.7", "fd00::5", "localhost"]),
    port=st.integers(1, 65535),
    device=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
)
def test_claim_is_read_back_as_it_was_written(host: str, port: int, device: str) -> None:
    """With space around it, as copying leaves; printing it tells no code."""
    claim = Claim(host=host, port=port, device=device, code=draw_code(), authority=AUTHORITY)
    assert Claim.parse(f" {claim.text()}\n") == claim
    assert claim.code not in repr(claim) + str(claim)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "claim://",
        f"https://h:1/d/{CODE}#{AUTHORITY}",
        f"claim://h/d/{CODE}#{AUTHORITY}",
        f"claim://h:0/d/{CODE}#{AUTHORITY}",
        f"claim://h:99999/d/{CODE}#{AUTHORITY}",
        f"claim://h:x/d/{CODE}#{AUTHORITY}",
        f"claim://u@h:1/d/{CODE}#{AUTHORITY}",
        f"claim://h:1/d/{CODE}/more#{AUTHORITY}",
        f"claim://h:1/d?/{CODE}#{AUTHORITY}",
        f"claim://h:1/ä/{CODE}#{AUTHORITY}",
        f"claim://h:1/d/{CODE[:-1]}#{AUTHORITY}",
        f"claim://h:1/d/{CODE}#{AUTHORITY[:-1]}",
        f"claim://h:1/d/{CODE}",
        f"claim://[::1/d/{CODE}#{AUTHORITY}",
    ],
)
def test_what_is_no_claim_is_refused_and_not_repeated(text: str) -> None:
    """A sentence ends up in logs."""
    with pytest.raises(InputError, match="that is no claim") as caught:
        Claim.parse(text)
    assert CODE[:-1] not in str(caught.value)
    assert caught.value.__cause__ is None
