"""Who may send, and how much: asked before a message is looked into. No input, output or clock.

Three questions, each with a refusal of its own name:

* may this device take part at all (block list; allow list and certificates, where there are such);
* has it sent more than its rate (a token bucket: a minute's worth may come at once, then one by one);
* is it one more device than the aggregator takes.

A message that is no update counts for a part of one. A device above its rate goes into debt, down to another
minute's worth; as long as it does not slow down it is refused. In the first part of the debt it is told so,
below that nothing is answered or even decoded: a flood costs the aggregator little, and its own sender
everything.
"""

from dataclasses import dataclass

from broker.errors import (
    BlockedDeviceError,
    LapsedDeviceError,
    RateLimitError,
    TooManyDevicesError,
    UnlistedDeviceError,
)
from trainer.errors import ParameterError

_MOST_BUCKETS = 100_000
_ANSWERS_PER_S = 1.0
_ANSWERS_AT_ONCE = 10.0
_ALL_ANSWERS_PER_S = 500.0
_EVERYBODY = "#"
"""No device id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionSettings:
    """What is taken.

    Attributes
    ----------
    updates_per_minute : float or None
        Of one device; None: any.
    most_devices : int
        Devices that may ever come.

    Raises
    ------
    ParameterError
        When one is out of range.
    """

    updates_per_minute: float | None = None
    most_devices: int = 1_000_000

    def __post_init__(self) -> None:
        if self.updates_per_minute is not None and not 1.0 <= self.updates_per_minute <= 1e6:
            raise ParameterError(
                f"updates_per_minute is {self.updates_per_minute}; it must be 0 (any) or 1 to 1000000"
            )
        if self.most_devices < 1:
            raise ParameterError(f"most_devices is {self.most_devices}; it must be at least 1")


class Buckets:
    """Token buckets by name, of one size and rate; their number is bounded.

    Parameters
    ----------
    size : float
        Tokens of a full bucket; new ones are full.
    per_s : float
        Tokens that come back a second.
    debt : float
        How far below 0 a bucket can be.
    """

    def __init__(self, size: float, per_s: float, debt: float = 0.0) -> None:
        self._size, self._per_s, self._debt = size, per_s, debt
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str, tokens: float, now: float) -> float:
        """Take tokens, into debt if need be; give what is left, below 0 where there were too few."""
        level, at = self._levels.pop(name, (self._size, now))
        level = min(self._size, level + (now - at) * self._per_s) - tokens
        # Popped and put in again: who was active last is last, and the first is forgotten for the newest.
        self._levels[name] = max(level, -self._debt), now
        if len(self._levels) > _MOST_BUCKETS:
            del self._levels[next(iter(self._levels))]
        return level


class Admission:
    """Asked for every message of a device.

    Attributes
    ----------
    blocked : frozenset of str
        Devices that are refused.
    allowed : frozenset of str or None
        The only ones that are not; None: all.
    lapsed : frozenset of str
        Devices whose certificates are all revoked or out of date: refused as well.
    """

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        self._settings = settings or AdmissionSettings()
        self.blocked: frozenset[str] = frozenset()
        self.allowed: frozenset[str] | None = None
        self.lapsed: frozenset[str] = frozenset()
        rate = self._settings.updates_per_minute
        self._buckets = None if rate is None else Buckets(rate, rate / 60.0, rate)
        self._answers = Buckets(_ANSWERS_AT_ONCE, _ANSWERS_PER_S)
        self._all_answers = Buckets(_ALL_ANSWERS_PER_S, _ALL_ANSWERS_PER_S)

    def require_listed(self, device: str) -> None:
        """Refuse a device by its name.

        Raises
        ------
        BlockedDeviceError, UnlistedDeviceError, LapsedDeviceError
        """
        if device in self.blocked:
            raise BlockedDeviceError("this device is blocked by the operator")
        if self.allowed is not None and device not in self.allowed:
            raise UnlistedDeviceError("this device is not on the operator's list of allowed ones")
        if device in self.lapsed:
            raise LapsedDeviceError("this device's certificate was revoked, or has expired")

    def require_rate(self, device: str, updates: float, now: float) -> None:
        """Count a message that is `updates` of an update (a chunk is less than a whole one).

        Raises
        ------
        RateLimitError
            When the device has sent too much; `answered` tells whether it is worth an answer.
        """
        if self._buckets is None:
            return
        left = self._buckets.take(device, updates, now)
        if left < 0.0:
            rate = self._settings.updates_per_minute
            raise RateLimitError(
                f"more than {rate:g} updates a minute; wait", answered=left >= -0.5 * (rate or 0.0)
            )

    def require_room(self, n_devices: int) -> None:
        """Refuse a device that never came before, when `n_devices` have.

        Raises
        ------
        TooManyDevicesError
        """
        if n_devices >= self._settings.most_devices:
            raise TooManyDevicesError(f"{n_devices} devices have come; no more are taken (most_devices)")

    def may_answer(self, device: str, now: float) -> bool:
        """Tell whether a message of a device that is no update is worth one more answer."""
        if self._answers.take(device, 1.0, now) < 0.0:
            return False
        return self._all_answers.take(_EVERYBODY, 1.0, now) >= 0.0
