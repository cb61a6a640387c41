"""Whether this is a moment to train: one decision from plain facts, as they are read from the machine.

A guard compares a fact with a limit of ``config.toml``; the first that objects gives the reason that `status`
shows. A fact that cannot be read never forbids: many boards have no battery, no thermal zone, no manager of
networks. It is named instead, see `unknown_facts`.

All but one of the guards forbid passes, of either kind. The last, of metered networks, forbids what costs
money there: downloads of tables, and updates. Passes that only tune the personal model go on.

Nothing here reads anything; `edge.surroundings` does.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from broker.configfile import option
from trainer.errors import ParameterError

LOOK_S = 10.0
"""Between readings while nothing objects: how late an unplugged charger is noticed."""
_LONGEST_LOOK_S = 600.0
"""A clock may be set meanwhile; so the end of quiet hours is not simply slept for."""
_DAY_MINUTES = 24 * 60
_SPAN = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")
METERED = ("auto", "yes", "no")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When the device trains: the table ``[training]`` of its configuration.

    Raises
    ------
    ParameterError
        When a limit is none.
    """

    quiet_hours: str = option(
        "", 'Local times without training, for example "07:00-09:30, 18:00-23:00"; empty: none.'
    )
    min_battery_percent: float = option(
        80.0, "Without mains power train only from this charge on; 0: always, 101: never."
    )
    max_temperature_c: float = option(75.0, "Hottest thermal zone to train at, in degrees Celsius; 0: any.")
    min_free_memory_mb: int = option(50, "Memory that must be available before a pass, in MB.")
    max_load_per_core: float = option(
        4.0, "Load average of the last minute, divided by the cores, to train at; 0: any."
    )
    min_new_interactions: int = option(
        0, "Interactions to gather before the next pass; 0: also train without, for a new version."
    )
    metered: str = option(
        "auto",
        "Whether the network is metered (no tables, no updates): yes, no, or auto, as far as it can be told.",
    )

    def __post_init__(self) -> None:
        _ = quiet_spans(self.quiet_hours)
        for name, most in (
            ("min_battery_percent", 101.0),
            ("max_temperature_c", 150.0),
            ("min_free_memory_mb", 1e9),
            ("max_load_per_core", 1e6),
            ("min_new_interactions", 1e9),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= most):
                raise ParameterError(f"{name} is {value}; it must lie between 0 and {most:g}")
        if self.metered not in METERED:
            raise ParameterError(f"metered is {self.metered!r}; it must be one of {', '.join(METERED)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is known of the machine at a moment; None: it cannot be read.

    Attributes
    ----------
    minute_of_day : int or None
        Local time, from 0 to 1439; None also while the clock was obviously never set.
    on_mains : bool or None
    battery_percent : float or None
        Of the batteries that feed the machine.
    temperature_c : float or None
        Of the hottest zone.
    free_memory_mb : float or None
        What the kernel calls available.
    load_per_core : float or None
    metered : bool or None
    new_interactions : int or None
        Since the newest pass.
    """

    minute_of_day: int | None = None
    on_mains: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    free_memory_mb: float | None = None
    load_per_core: float | None = None
    metered: bool | None = None
    new_interactions: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """What the device may do now.

    Attributes
    ----------
    train : bool
        Make passes.
    transfer : bool
        Download tables and send updates.
    reason : str
        What speaks against the first of them, for people; it holds no reading, so that it stays the same
        while its cause does. Empty when nothing does.
    look_again_s : float
        Seconds until the machine is worth another look.
    """

    train: bool = True
    transfer: bool = True
    reason: str = ""
    look_again_s: float = LOOK_S


@dataclass(frozen=True, slots=True)
class _Guard:
    """One guard: what it looks at, whether a limit is set, what it says, and when it looks again."""

    fact: str
    field: str
    is_set: Callable[[Limits], bool]
    objection: Callable[[Limits, Reading], str | None]
    look_again_s: float


def permission(limits: Limits, reading: Reading) -> Permission:
    """Decide, and give the first reason that speaks against training."""
    transfer = not is_metered(limits, reading)
    for guard in _GUARDS:
        objection = guard.objection(limits, reading) if guard.is_set(limits) else None
        if objection is not None:
            again_s = guard.look_again_s
            if guard.fact == "time of day":
                again_s = _seconds_until_quiet_ends(limits, reading)
            return Permission(train=False, transfer=transfer, reason=objection, look_again_s=again_s)
    if not transfer:
        return Permission(transfer=False, reason=_METERED, look_again_s=60.0)
    return Permission()


def unknown_facts(limits: Limits, reading: Reading) -> tuple[str, ...]:
    """Name the facts that a limit is set for, but that cannot be read here."""
    names = [
        guard.fact for guard in _GUARDS if guard.is_set(limits) and getattr(reading, guard.field) is None
    ]
    if limits.metered == "auto" and reading.metered is None:
        names.append("metered network")
    return tuple(names)


def is_metered(limits: Limits, reading: Reading) -> bool:
    """Tell whether traffic is to be saved: by the setting, else by what was read."""
    return limits.metered == "yes" or (limits.metered == "auto" and reading.metered is True)


def quiet_spans(text: str) -> list[tuple[int, int]]:
    """Read quiet hours: minutes of the day, from and to; a span whose end is the smaller goes over midnight.

    Raises
    ------
    ParameterError
        When a span is none.
    """
    spans = []
    for part in text.split(",") if text.strip() else []:
        match = _SPAN.fullmatch(part.strip())
        hours = [int(each) for each in match.groups()] if match else [99, 0, 99, 0]
        begin, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if max(begin, end) > _DAY_MINUTES or max(hours[1], hours[3]) > 59:
            raise ParameterError(
                f"quiet_hours has {part.strip()!r}; write spans as 07:00-09:30, with commas between them"
            )
        begin, end = begin % _DAY_MINUTES, end % _DAY_MINUTES
        if begin == end:
            raise ParameterError(
                f"quiet_hours has {part.strip()!r}; a span begins and ends at different times"
            )
        spans.append((begin, end))
    return spans


def _minutes_left(span: tuple[int, int], minute: int) -> int:
    """Give the minutes until a span ends; 0 outside of it."""
    begin, end = span
    length, since = (end - begin) % _DAY_MINUTES, (minute - begin) % _DAY_MINUTES
    return max(0, length - since)


def _quiet(limits: Limits, reading: Reading) -> str | None:
    if reading.minute_of_day is None:
        return None
    for span in quiet_spans(limits.quiet_hours):
        if _minutes_left(span, reading.minute_of_day):
            return f"quiet hours until {span[1] // 60:02}:{span[1] % 60:02}"
    return None


def _seconds_until_quiet_ends(limits: Limits, reading: Reading) -> float:
    minute = reading.minute_of_day or 0
    left = max(_minutes_left(span, minute) for span in quiet_spans(limits.quiet_hours))
    return min(60.0 * left, _LONGEST_LOOK_S)


def _battery(limits: Limits, reading: Reading) -> str | None:
    if reading.on_mains is not False:
        return None
    # A battery whose charge is unknown is taken for a full one: it only forbids where any battery does.
    charge = 100.0 if reading.battery_percent is None else reading.battery_percent
    if limits.min_battery_percent > 100.0:
        return "on battery"
    return _below(charge, limits.min_battery_percent, f"on battery, below {limits.min_battery_percent:g} %")


def _temperature(limits: Limits, reading: Reading) -> str | None:
    sentence = f"too hot: above {limits.max_temperature_c:g} °C"
    return _above(reading.temperature_c, limits.max_temperature_c, sentence)


def _memory(limits: Limits, reading: Reading) -> str | None:
    sentence = f"memory is short: less than {limits.min_free_memory_mb} MB available"
    return _below(reading.free_memory_mb, limits.min_free_memory_mb, sentence)


def _load(limits: Limits, reading: Reading) -> str | None:
    sentence = f"the machine is busy: load above {limits.max_load_per_core:g} a core"
    return _above(reading.load_per_core, limits.max_load_per_core, sentence)


def _interactions(limits: Limits, reading: Reading) -> str | None:
    sentence = f"gathering: fewer than {limits.min_new_interactions} new interactions since the last pass"
    return _below(reading.new_interactions, limits.min_new_interactions, sentence)


def _above(value: float | None, limit: float, sentence: str) -> str | None:
    return sentence if value is not None and value > limit else None


def _below(value: float | None, limit: float, sentence: str) -> str | None:
    return sentence if value is not None and value < limit else None


_METERED = 'the network is metered: tables and updates wait; metered = "no" lets them travel'
_GUARDS: tuple[_Guard, ...] = (
    _Guard("time of day", "minute_of_day", lambda limits: bool(limits.quiet_hours.strip()), _quiet, 0.0),
    _Guard("power", "on_mains", lambda limits: limits.min_battery_percent > 0, _battery, 60.0),
    _Guard("temperature", "temperature_c", lambda limits: limits.max_temperature_c > 0, _temperature, 60.0),
    _Guard("free memory", "free_memory_mb", lambda limits: limits.min_free_memory_mb > 0, _memory, 30.0),
    _Guard("load", "load_per_core", lambda limits: limits.max_load_per_core > 0, _load, 60.0),
    _Guard(
        "new interactions",
        "new_interactions",
        lambda limits: limits.min_new_interactions > 0,
        _interactions,
        LOOK_S,
    ),
)
"""In the order in which they are asked."""
