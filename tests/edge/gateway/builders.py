"""Messages of boards and gateways to try."""

from typing import Any

from hypothesis import strategies as st

from edge.gateway.messages import (
    MOST_UPDATE_BYTES,
    Answered,
    Contribute,
    Idle,
    Offer,
    Part,
    Passed,
    Piece,
    Refused,
    Renumber,
    Send,
    State,
    Want,
)

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
SEQ = st.integers(0, 2**53)


def a_state(**changes: Any) -> State:
    """Give the state of a board that has begun anew."""
    values: dict[str, Any] = {
        "table_format": 1,
        "room": 600,
        "package_room": 65536,
        "incarnation": 4711,
        "seq": 0,
        "pending": 0,
        "instance": 0,
        "version": 0,
        "crc": 0,
        "size": 0,
        "revision": 0,
        "known": 0,
        "device": "pi-1",
    }
    return State(**(values | changes))


@st.composite
def states(draw: st.DrawFn) -> State:
    """Give any state that a board may tell."""
    seq = draw(SEQ)
    return State(
        table_format=draw(st.integers(0, 1)),
        room=draw(st.integers(128, 2**16 - 1)),
        package_room=draw(U32),
        incarnation=draw(st.integers(1, 2**53)),
        seq=seq,
        pending=draw(st.sampled_from([0, seq])),
        instance=draw(U64),
        version=draw(U64),
        crc=draw(U32),
        size=draw(U32),
        revision=draw(U64),
        known=draw(U32),
        device=draw(st.text("abcXYZ019._-", min_size=1, max_size=64)),
    )


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """Give any part of an update."""
    data = draw(st.binary(min_size=1, max_size=600))
    size = draw(st.integers(len(data), MOST_UPDATE_BYTES))
    offset = draw(st.integers(0, size - len(data)))
    return Part(incarnation=draw(U64), seq=draw(U64), size=size, crc=draw(U32), offset=offset, data=data)


BYTE = st.integers(0, 255)
FROM_BOARD = st.one_of(
    states(),
    parts(),
    st.builds(Want, crc=U32, offset=U32, size=U16),
    st.builds(Passed, seq=U64, status=BYTE),
)
FROM_GATEWAY = st.one_of(
    st.builds(Idle, time=U64, online=BYTE),
    st.builds(Offer, instance=U64, version=U64, crc=U32, model=U32, mask=U32, head=U32),
    st.builds(Piece, crc=U32, offset=U32, data=st.binary(max_size=600)),
    st.builds(Contribute, instance=U64, version=U64, seq=U64),
    st.builds(Send, incarnation=U64, seq=U64, offset=U32),
    st.builds(Answered, incarnation=U64, seq=U64, verdict=BYTE),
    st.builds(Renumber, incarnation=U64),
    st.builds(Refused, reason=BYTE),
)
