"""Which release a device uses, which it tries, and which it goes back to: decisions, without the files.

There are two slots, ``a`` and ``b``. One may be *active*: its release has worked. The other is *spare*:
empty, or with the release of before, or with one to be tried. Without an active slot the device runs what
ships with the package, which always works.

    empty --filled--> trial --booted (at most `ATTEMPTS` times)--> confirmed: active; that of before is spare
                                                          '------> rolled back: empty
    A trial's start that does not end with a confirmation has cost an attempt, however it ended; but for one
    that was told to stop.

Each change is stored before anything is done that follows from it: an attempt is spent before the release is
looked at, and the spare slot is empty before its first byte is written.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, TypeAlias

from broker.errors import CorruptError

Slot: TypeAlias = Literal["a", "b"]
Holding: TypeAlias = Literal["empty", "trial", "before"]

ATTEMPTS: Final = 3
_FORMAT = 1
_MOST_REASON = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotState:
    """What is in the slots.

    Attributes
    ----------
    active : Slot or None
        The slot of the release that works; None: there is none yet.
    active_release : int
        Its number.
    spare : Slot
        The other one: where the next release is written.
    holding : Holding
        What the spare slot has.
    spare_release : int
        The number of that release.
    attempts : int
        Starts that a trial has left.
    in_use : Slot or None
        What the newest start uses.
    highest : int
        The highest release that has ever worked here: nothing older is taken.
    key : str
        The newest key whose release has worked here, in hexadecimal digits; earlier ones count no more.
    failed : int
        The release that was rolled back last; 0: none was.
    reason : str
        Why.
    asked : bool
        The owner wants what the fleet offers, whomever it is for.
    """

    active: Slot | None = None
    active_release: int = 0
    spare: Slot = "a"
    holding: Holding = "empty"
    spare_release: int = 0
    attempts: int = 0
    in_use: Slot | None = None
    highest: int = 0
    key: str = ""
    failed: int = 0
    reason: str = ""
    asked: bool = False

    @property
    def on_trial(self) -> bool:
        """Whether the release in use is one that is tried."""
        return self.holding == "trial" and self.in_use == self.spare

    @property
    def release(self) -> int:
        """The number of the release in use; 0: none is."""
        if self.in_use is None:
            return 0
        return self.active_release if self.in_use == self.active else self.spare_release

    def emptied(self) -> "SlotState":
        """The spare slot is about to be written: what is in it counts no more."""
        in_use = self.active if self.in_use == self.spare else self.in_use
        return replace(self, holding="empty", spare_release=0, attempts=0, in_use=in_use)

    def filled(self, release: int) -> "SlotState":
        """The spare slot has a whole release, which the next start tries."""
        return replace(self, holding="trial", spare_release=release, attempts=ATTEMPTS, asked=False)

    def booted(self) -> "SlotState":
        """A start begins: with the trial if it has an attempt left, else with the active release."""
        if self.holding != "trial":
            return replace(self, in_use=self.active)
        if self.attempts == 0:
            return self.rolled_back(f"{ATTEMPTS} starts with it ended before it was confirmed")
        return replace(self, attempts=self.attempts - 1, in_use=self.spare)

    def returned(self) -> "SlotState":
        """A trial was told to stop: that says nothing about the release."""
        if not self.on_trial:
            return self
        return replace(self, attempts=min(ATTEMPTS, self.attempts + 1))

    def confirmed(self, key: str) -> "SlotState":
        """The trial has worked; `key` has signed it."""
        before = self.active
        return replace(
            self,
            active=self.spare,
            active_release=self.spare_release,
            spare=before or ("b" if self.spare == "a" else "a"),
            holding="empty" if before is None else "before",
            spare_release=self.active_release,
            attempts=0,
            highest=max(self.highest, self.spare_release),
            key=key,
        )

    def rolled_back(self, reason: str) -> "SlotState":
        """The trial has not worked."""
        return replace(self.emptied(), failed=self.spare_release, reason=reason[:_MOST_REASON])

    def refused(self, release: int, reason: str) -> "SlotState":
        """A release that was offered is not taken: it is not fetched again, unless it is asked for."""
        return replace(self, failed=release, reason=reason[:_MOST_REASON], asked=False)

    def wished(self) -> "SlotState":
        """The owner asks for what is on offer; also for what has failed before."""
        return replace(self, asked=True, failed=0, reason="")

    def lost(self, reason: str) -> "SlotState":
        """The active release's files are damaged: back to the one of before, or to what ships."""
        if self.active is None:
            return self
        told = replace(self, failed=self.active_release, reason=reason[:_MOST_REASON])
        if self.holding == "before":
            return replace(
                told,
                active=self.spare,
                active_release=self.spare_release,
                spare=self.active,
                holding="empty",
                spare_release=0,
                in_use=self.spare,
            )
        return replace(told, active=None, active_release=0, in_use=None)


def to_text(state: SlotState) -> str:
    """Write a state."""
    return json.dumps({"format": _FORMAT, **asdict(state)}, indent=1) + "\n"


def from_text(text: str, source: str) -> SlotState:
    """Read a state.

    Raises
    ------
    CorruptError
        When it is none that `to_text` can have written.
    """
    try:
        content = json.loads(text)
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")  # noqa: TRY301 - one way to the sentence
        state = SlotState(**content)
        _require_sound(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{source} is damaged: {error}") from error
    return state


def _require_sound(state: SlotState) -> None:
    default = SlotState()
    for name, value in asdict(state).items():
        kind = type(getattr(default, name))
        if name not in ("active", "in_use") and type(value) is not kind:
            raise ValueError(f"{name} is {value!r}")
        if type(value) is int and value < 0:
            raise ValueError(f"{name} is {value}")
    if state.spare not in ("a", "b") or state.active not in (None, "b" if state.spare == "a" else "a"):
        raise ValueError(f"slots {state.active!r} and {state.spare!r}")
    if state.holding not in ("empty", "trial", "before") or state.in_use not in (None, "a", "b"):
        raise ValueError(f"holding {state.holding!r}, in use {state.in_use!r}")
    if state.in_use == state.spare and state.holding != "trial":
        raise ValueError("what is in use is spare")
