"""What is said about refused messages: to whoever sent one, and in the log.

Lines in the log are a few of each kind, then a sum; a flood must not fill a disk. Every refusal is counted
elsewhere (`broker.aggregator.watching`); these are for people.
"""

import contextlib
import logging

from broker.aggregator.admission import Admission
from broker.aggregator.decisions import ReplyReceipt
from broker.aggregator.watching import refusal_name
from broker.connection import Received
from broker.errors import ProtocolError, RateLimitError
from broker.protocol.messages import Receipt, Update, decode
from broker.protocol.topics import FleetTopics

_LOG = logging.getLogger(__name__)
LINES = 10
PERIOD_S = 60.0
_MOST_REASON = 200


class RefusalLog:
    """Writes at most `LINES` lines of each kind in `PERIOD_S` seconds."""

    def __init__(self) -> None:
        self._begins: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def note(self, kind: str, sentence: str, now: float) -> None:
        """Take one refusal; kinds are as many as classes of errors."""
        if now >= self._begins.get(kind, -PERIOD_S) + PERIOD_S:
            self._sum_up(kind)
            self._begins[kind] = now
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= LINES:
            _LOG.warning("%s", sentence)
        if self._counts[kind] == LINES:
            _LOG.warning("more of the kind %s are counted, but not written for a minute", kind)

    def _sum_up(self, kind: str) -> None:
        more = self._counts.pop(kind, 0) - LINES
        if more > 0:
            _LOG.warning("%d more messages were refused as %s", more, kind)


class Refusals:
    """Notes refused messages, and answers those of devices, as often as `admission` allows."""

    def __init__(self, topics: FleetTopics, admission: Admission) -> None:
        self._topics = topics
        self._admission = admission
        self._log = RefusalLog()

    def answer(
        self, message: Received, error: ProtocolError, version: int, check_in_s: float, now: float
    ) -> list[ReplyReceipt]:
        """Give the receipt of a message that is no update, if it is to have one.

        It has no number, so its receipt has none either. One that came too soon is not lost on its device:
        where it has a number, the receipt has it.

        Parameters
        ----------
        version, check_in_s : int, float
            What the receipt tells of the newest version, and when to come back.
        """
        self._log.note(
            refusal_name(error), f"refused a message on {ascii(message.topic[:200])[1:-1]}: {error}", now
        )
        try:
            address = self._topics.parse(message.topic)
        except ProtocolError:
            return []
        silent = isinstance(error, RateLimitError) and not error.answered
        if address.kind != "update" or silent or not self._admission.may_answer(address.device, now):
            return []
        incarnation = seq = 0
        if isinstance(error, RateLimitError):
            with contextlib.suppress(ProtocolError):
                update = decode(message.payload, Update)
                incarnation, seq = update.incarnation, update.seq
        receipt = Receipt(
            incarnation=incarnation,
            seq=seq,
            verdict="rejected",
            reason=str(error)[:_MOST_REASON],
            version=version,
            staleness=0,
            check_in_s=check_in_s,
        )
        return [ReplyReceipt(address.device, receipt)]
