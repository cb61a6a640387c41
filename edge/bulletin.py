"""What a running ``start`` leaves for ``edge-client status``: what it does, why, and when it looks next.

Both ends are here. It is written when something has changed, not when time has passed: a flash card that has
to last for years is not written to with every check-in. So a moment that is told may have gone by when it is
read; then the longest time between two of its kind is what is known. Moments are those of the machine's
monotonic clock, which all processes share until the next boot, and which nobody sets.
"""

from typing import Any

from edge.guards import Permission
from edge.session import Session
from edge.store import DeviceStore

IN_USE = "version_in_use"
"""A fact: the version of the table that ``start`` works with."""
_TELL_AGAIN_S = 600.0
"""At most so often a moment alone is told anew."""
_SETTLE_S = 1.0
"""What changes again within this time is told once: a fetch, a pass and the rest after it take a moment."""


class Bulletin:
    """The agent's end.

    Attributes
    ----------
    line : str
        The newest state in a line, for the service manager.
    """

    def __init__(self, store: DeviceStore) -> None:
        self.line = "starting"
        self._store = store
        self._told: tuple[object, ...] = ()
        self._moments: tuple[float | None, ...] = ()
        self._told_at = 0.0
        self._settles_at: float | None = None

    def tell(
        self,
        session: Session,
        permission: Permission,
        look_again_at: float,
        unknown: tuple[str, ...],
        now: float,
        complaint: str = "",
    ) -> None:
        """Write down what has changed."""
        look_at = look_again_at if permission.reason else None
        told = (
            session.online,
            session.activity.value,
            session.reason,
            session.version,
            session.check_in_within_s,
            permission.look_again_s if permission.reason else None,
            unknown,
            complaint,
        )
        moments = (session.check_in_at, look_at)
        is_old = moments != self._moments and now >= self._told_at + _TELL_AGAIN_S
        self.line = f"{told[1]}: {told[2] or '-'}" + ("" if session.online else "; the broker is away")
        if told == self._told and not is_old:
            self._settles_at = None
            return
        if self._settles_at is None:
            self._settles_at = now + _SETTLE_S if self._told else now
        if now < self._settles_at:
            return
        self._told, self._moments, self._told_at, self._settles_at = told, moments, now, None
        self._store.set_facts(
            online=int(session.online),
            activity=told[1],
            reason=told[2],
            check_in_at=moments[0],
            check_in_within_s=told[4],
            look_at=moments[1],
            look_within_s=told[5],
            unknown_facts=", ".join(unknown),
            head_complaint=complaint,
            **{IN_USE: session.version},
        )

    def end(self) -> None:
        """Write down that nothing goes on any more."""
        self._store.set_facts(activity="stopped", reason="")


def read_bulletin(store: DeviceStore, now: float, *, running: bool) -> dict[str, Any]:
    """Give what ``status`` shows of it; `now` is the monotonic clock's.

    Returns
    -------
    dict
        ``online``, ``activity`` and ``reason``; ``next_check_in_s`` and ``next_look_s``, seconds within which
        the device looks for a newer version, and at what keeps it from training (None: it does not);
        ``unknown_facts``, what the guards cannot read; ``head_complaint``, why the newest head is not
        believed (None: it is).
    """
    if not running:
        return {
            "online": False,
            "activity": "stopped",
            "reason": "start is not running",
            "next_check_in_s": None,
            "next_look_s": None,
            "unknown_facts": [],
            "head_complaint": None,
        }
    unknown = str(store.fact("unknown_facts") or "")
    return {
        "online": bool(store.fact("online")),
        "activity": store.fact("activity"),
        "reason": store.fact("reason"),
        "next_check_in_s": _seconds_left(store.fact("check_in_at"), store.fact("check_in_within_s"), now),
        "next_look_s": _seconds_left(store.fact("look_at"), store.fact("look_within_s"), now),
        "unknown_facts": unknown.split(", ") if unknown else [],
        "head_complaint": store.fact("head_complaint") or None,
    }


def _seconds_left(at: float | None, within_s: float | None, now: float) -> float | None:
    if at is None or within_s is None:
        return None
    left = at - now
    # What lies farther ahead than it can was told before the machine was started again.
    return round(left if 0.0 <= left <= within_s else within_s, 1)
