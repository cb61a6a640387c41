"""What a gateway answers a board: one decision from plain facts. No port, no store, no clock.

Theory of operation
-------------------
The board tells its state again and again; the answer follows from that state and from what the gateway
holds, and from nothing that either has said before. So whichever of the two is reset, at whatever moment, the
next state is answered as if nothing had happened.

An update has one name, (incarnation, seq), from the moment that the board has stored it with its bytes. The
board keeps both until it is told that the fleet has answered; the gateway stores the bytes before it
publishes them, and until a receipt comes. Whoever is asked twice gives the same bytes, and the aggregator
counts a name once.
"""

from dataclasses import dataclass
from typing import TypeAlias

from edge.gateway.messages import (
    VERDICT_UNKNOWN,
    Answered,
    Contribute,
    Idle,
    Offer,
    Refused,
    Renumber,
    Send,
    State,
)
from edge.gateway.package import Package


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the gateway holds of a board's.

    Attributes
    ----------
    incarnation : int
        That the board's updates bear.
    last_seq : int
        The newest update that has come here.
    outbox_seq : int or None
        The update that waits for its receipt.
    verdict : int
        That of `last_seq`, or VERDICT_UNKNOWN.
    used_up : bool
        Whether the fleet knows numbers of this incarnation that neither end does.
    """

    incarnation: int
    last_seq: int = 0
    outbox_seq: int | None = None
    verdict: int = VERDICT_UNKNOWN
    used_up: bool = False


Answer: TypeAlias = Idle | Offer | Contribute | Send | Answered | Renumber | Refused


def answer(
    state: State, known: Known, package: Package | None, order: int | None, idle: Idle, received: int = 0
) -> Answer | None:
    """Answer a board's state.

    Parameters
    ----------
    package : Package or None
        Of the newest version here.
    order : int or None
        The update that the session wants made.
    idle : Idle
        What is said when there is nothing to say.
    received : int
        Bytes of the update that waits on the board that are here.

    Returns
    -------
    message or None
        None: the board's numbers go on from others than those known here; see `adopted`.
    """
    if state.incarnation != known.incarnation:
        # What came under the former one is sent first: the receipt would not be known under the new one.
        return None if known.outbox_seq is None else idle
    if state.pending > known.last_seq:
        return Send(incarnation=state.incarnation, seq=state.pending, offset=received)
    if state.pending and state.pending != known.outbox_seq:
        verdict = known.verdict if state.pending == known.last_seq else VERDICT_UNKNOWN
        return Answered(incarnation=state.incarnation, seq=state.pending, verdict=verdict)
    if known.outbox_seq is None:
        if state.seq < known.last_seq or known.used_up:
            return Renumber(incarnation=state.incarnation)
        if state.seq > known.last_seq:
            return None
    held = (state.instance, state.version, state.crc, state.size)
    if package is not None and held != (
        package.instance,
        package.version,
        package.crc,
        len(package.content),
    ):
        if len(package.content) > state.package_room:
            return Refused(reason=Refused.TOO_LARGE)
        return Offer(
            instance=package.instance,
            version=package.version,
            crc=package.crc,
            model=package.model,
            mask=package.mask,
            head=package.head,
        )
    if order is not None and package is not None:
        return Contribute(instance=package.instance, version=package.version, seq=order)
    return idle


def adopted(state: State, known: Known) -> Known:
    """Give what a gateway holds once it goes on with a board's own numbers.

    Those of another incarnation count from where the board is. Under the same one, numbers that have not come
    here went elsewhere, or were lost with an older gateway: they are used.
    """
    if state.incarnation != known.incarnation:
        if known.outbox_seq is not None:
            return known
        before = state.seq - 1 if state.pending else state.seq
        return Known(incarnation=state.incarnation, last_seq=before)
    if state.pending or state.seq <= known.last_seq:
        return known
    return Known(incarnation=known.incarnation, last_seq=state.seq)
