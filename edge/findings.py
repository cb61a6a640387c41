"""What ``edge-client doctor`` makes of a device's facts: a finding for each, and what to do about it.

Nothing here reads anything; `edge.doctor` does. A fact that is None is unknown, and no reason to worry.
"""

import math
import re
from datetime import UTC, datetime

from broker.findings import Finding, note, ok, problem, unchecked
from broker.probe import Answer
from edge import moment
from edge.guards import Limits

EARLIEST = 1_704_067_200.0
"""2024-01-01, in seconds since the epoch: a clock before this release was never set."""
_LATEST = 4_102_444_800.0
"""2100-01-01."""
_CLOCK_TOLERANCE_S = 120.0
_LEAST_SQLITE = (3, 24)
"""The first that knows ON CONFLICT DO UPDATE."""
_LEAST_FREE_DISK_MB = 20.0
_GOOD_FREE_DISK_MB = 200.0
_COPIES = 4
"""Of the table that a download and a pass hold at once."""
_SLOW_MS = 500.0
_RENEW_S = 30 * 86400.0


def versions(installed: dict[str, str | None]) -> Finding:
    """Judge the versions by name; None: not installed. SQLite's is the only one that nothing else bounds."""
    shown = ", ".join(f"{name} {version}" for name, version in installed.items() if version is not None)
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return problem(
            "versions", f"{shown}; not installed: {', '.join(missing)}", "install pfedrec-edge again"
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed.get("SQLite") or "")[:2])
    if numbers and numbers < _LEAST_SQLITE:
        least = ".".join(map(str, _LEAST_SQLITE))
        return problem("versions", shown, f"use a Python whose SQLite is {least} or later")
    return ok("versions", shown)


def clock(now: float, newest_interaction_at: float | None, *, synchronised: bool | None) -> Finding:
    """Judge the time of day, in seconds since the epoch."""
    shown = moment.local(now)
    remedy = "set the clock (timedatectl set-time), and let NTP keep it (timedatectl set-ntp true)"
    if not EARLIEST <= now < _LATEST:
        return problem("clock", f"{shown} is not today", remedy)
    behind_s = 0.0 if newest_interaction_at is None else newest_interaction_at - now
    if behind_s > _CLOCK_TOLERANCE_S:
        found = f"{shown} is {_span(behind_s)} behind the newest recorded interaction"
        wrong = f"edge-client forget --from {_day(newest_interaction_at or now)}"
        return problem("clock", found, f"{remedy}; if the interaction's time is wrong, take it back: {wrong}")
    if synchronised is False:
        return note("clock", f"{shown}, not synchronised yet", "let NTP reach its server, or set-ntp true")
    return ok("clock", f"{shown}, {'synchronised' if synchronised else 'NTP unknown'}")


def disk(free_mb: float, database_mb: float) -> Finding:
    """Judge the free space of the directory's file system: a new table is written beside the old."""
    found = f"{free_mb:.0f} MB free, the database has {database_mb:.1f} MB"
    remedy = "free some space, for example old logs (journalctl --vacuum-size=50M)"
    if free_mb < max(_LEAST_FREE_DISK_MB, 2.0 * database_mb):
        return problem("disk", found, remedy)
    if free_mb < _GOOD_FREE_DISK_MB:
        return note("disk", found, remedy)
    return ok("disk", found)


def memory(free_mb: float | None, table_mb: float, limits: Limits) -> Finding:
    """Judge the memory that is available against what a pass holds, and against the owner's own limit."""
    if free_mb is None:
        return unchecked("memory", "the machine does not tell")
    found = f"{free_mb:.0f} MB available, the table has {table_mb:.1f} MB"
    if free_mb < _COPIES * table_mb:
        return problem("memory", found, f"a pass needs {_COPIES} times the table; end other programs")
    if free_mb < limits.min_free_memory_mb:
        remedy = f"end other programs, or lower min_free_memory_mb ({limits.min_free_memory_mb} now)"
        return note("memory", f"{found}; passes wait", remedy)
    return ok("memory", found)


def broker(answer: Answer) -> Finding:
    """Judge what came of the attempt to connect."""
    remedy = {
        "refuses": "correct user name and password in config.toml (broker), or let the broker allow it",
        "busy": "wait, and look into the broker's log",
        "closed": "start the broker, or correct the port in config.toml (broker)",
        "unreachable": "check cable, WLAN, firewall, and the address in config.toml (broker)",
        "unnamed": "check the name in config.toml (broker), and the name server",
        "silent": "check the port in config.toml (broker), or restart the broker, which may hang",
        "foreign": "correct the port in config.toml (broker); a port with TLS wants mqtts://",
        "distrusted": "see the certificates below; revoked or of another fleet: ask for a new bundle",
    }.get(answer.outcome)
    return ok("broker", answer.reason) if remedy is None else problem("broker", answer.reason, remedy)


def silent_fleet(reason: str, fleet: str) -> Finding:
    """Judge a connection by which no table has come: nobody may serve a fleet of that name there."""
    remedy = (
        "compare fleet in config.toml with what edge-aggregator status says, letter by letter, and see "
        "whether the aggregator runs"
    )
    return note("broker", f"{reason}; no table of fleet {fleet} has come from there yet", remedy)


def certificates(
    now: float, dates: list[tuple[str, float, float]], n_keys: int, complaint: str | None
) -> Finding:
    """Judge the dates of certificates, and whether what the aggregator publishes is believed.

    Parameters
    ----------
    dates : list of (str, float, float)
        Files, and from when to when each is valid, in seconds since the epoch; none: no TLS.
    n_keys : int
        Keys that heads may be signed with; 0: no signature is asked for.
    complaint : str or None
        Why the newest head is not believed.
    """
    check = "certificates"
    renew = "ask the operator for a new bundle (edge-aggregator device add)"
    for name, begins, ends in dates:
        if now < begins:
            return problem(
                check, f"{name} is valid from {_day(begins)} on only", "set the clock, or " + renew
            )
        if now >= ends:
            return problem(check, f"{name} has expired on {_day(ends)}", renew)
    if complaint is not None:
        remedy = "tell the operator: somebody else publishes, or the keys on this device are old ones"
        return problem(check, complaint, remedy)
    heads = f"heads are signed by one of {n_keys} known keys" if n_keys else "heads may be unsigned"
    if not dates:
        return unchecked(check, f"no certificate of this device's own; {heads}")
    name, _, ends = min(dates, key=lambda each: each[2])
    found = f"{name} is valid until {_day(ends)}; {heads}"
    if ends - now < _RENEW_S:
        return note(check, found, renew)
    return ok(check, found)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def scorer(name: str, milliseconds: float, n_items: int) -> Finding:
    """Judge how long the whole catalogue takes to be scored once."""
    found = f"{name} scores {n_items} items in {milliseconds:.3g} ms"
    if not math.isfinite(milliseconds) or milliseconds > _SLOW_MS:
        return note("scorer", found, "try the other scorer in config.toml; see whether the machine is busy")
    return ok("scorer", found)


def permissions(
    directory: str, unwritable: list[str], strangers: list[str], owner: str, config_mode: int, *, secret: bool
) -> Finding:
    """Judge who may write what.

    Parameters
    ----------
    unwritable : list of str
        What this user cannot write.
    strangers : list of str
        Files that belong to another than the directory's owner.
    secret : bool
        Whether the settings hold a password.
    """
    if unwritable:
        return problem(
            "permissions",
            f"{', '.join(unwritable)} cannot be written",
            "mount the file system writable, or run doctor and start as the directory's owner",
        )
    if strangers:
        return problem(
            "permissions",
            f"{', '.join(strangers)} and the directory, {owner}'s, belong to different users",
            f"chown -R {owner}: {directory}",
        )
    if config_mode & 0o077:
        found = f"others may read config.toml (mode {config_mode:o})"
        remedy = f"chmod 600 {directory}/config.toml"
        if secret:
            return problem("permissions", f"{found}, which holds the broker's password", remedy)
        return note("permissions", found, remedy)
    return ok("permissions", f"{owner} may write; config.toml is {owner}'s alone")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
