"""Reads what the guards compare: the machine's power, temperature, memory, load and network, from its files.

Everything is below one root, ``/`` on a device: a tree of plain files stands for a machine. What is missing,
unreadable or no number is None; nothing here raises, decides or waits.
"""

import os
import time
from pathlib import Path

from edge.guards import Reading

_EARLIEST_YEAR = 2024
"""A clock before this release was never set."""
_PLAUSIBLE_C = (-50.0, 150.0)
_NM = "run/NetworkManager"


class Surroundings:
    """A machine's facts.

    Parameters
    ----------
    root : Path
        Where ``sys``, ``proc``, ``run`` and ``etc`` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, now: float) -> Reading:
        """Give the facts at `now`, in seconds since the epoch; that of interactions is the caller's."""
        on_mains, battery_percent = self._power()
        return Reading(
            minute_of_day=minute_of_day(now),
            on_mains=on_mains,
            battery_percent=battery_percent,
            temperature_c=self._temperature_c(),
            free_memory_mb=self.free_memory_mb(),
            load_per_core=self._load_per_core(),
            metered=self._metered(),
        )

    def free_memory_mb(self) -> float | None:
        """Give the memory that is available to new work."""
        for line in (self._text("proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            amount = _number(rest.removesuffix("kB"))
            if name == "MemAvailable" and amount is not None:
                return amount / 1024.0
        return None

    def clock_is_synchronised(self) -> bool | None:
        """Tell whether systemd-timesyncd has set the clock since the start; None: there is none of it."""
        folder = self._root / "run/systemd/timesync"
        if not folder.is_dir():
            return None
        return (folder / "synchronized").exists()

    # -- power -------------------------------------------------------------------------------------

    def _power(self) -> tuple[bool | None, float | None]:
        """Tell whether mains feeds the machine, and the charge of its batteries in percent."""
        folder = self._root / "sys/class/power_supply"
        chargers, states, charges = [], [], []
        for supply in self._entries(folder):
            kind = self._text(supply / "type")
            if kind is None or self._text(supply / "scope") == "Device":  # a mouse's, for example
                continue
            if kind not in ("Battery", "UPS"):
                chargers.append(self._text(supply / "online"))
            elif self._text(supply / "present") != "0":
                states.append(self._text(supply / "status"))
                charges.append(_number(self._text(supply / "capacity")))
        known = [charge for charge in charges if charge is not None and 0.0 <= charge <= 100.0]
        return _on_mains(chargers, states, listed=folder.is_dir()), sum(known) / len(known) if known else None

    # -- heat and work -----------------------------------------------------------------------------

    def _temperature_c(self) -> float | None:
        zones = self._entries(self._root / "sys/class/thermal", "thermal_zone*")
        found = [_number(self._text(zone / "temp")) for zone in zones]
        least, most = _PLAUSIBLE_C
        plausible = [each / 1000.0 for each in found if each is not None and least <= each / 1000.0 <= most]
        return max(plausible, default=None)

    def _load_per_core(self) -> float | None:
        load = _number((self._text("proc/loadavg") or "").split(" ")[0])
        return None if load is None else load / self._n_cores()

    def _n_cores(self) -> int:
        """Give the cores that are on, from a list such as 0-2,4."""
        count = 0
        for part in (self._text("sys/devices/system/cpu/online") or "").split(","):
            first, _, last = part.partition("-")
            if not first.isdigit() or not (last or first).isdigit():
                return os.cpu_count() or 1
            count += int(last or first) - int(first) + 1
        return max(count, 1)

    # -- network -----------------------------------------------------------------------------------

    def _metered(self) -> bool | None:
        """Tell whether the way to the rest of the world is metered.

        As its profile in NetworkManager says, if that can be read; else a modem for mobile networks is, as
        NetworkManager itself guesses. For others it cannot be told without asking over D-Bus.
        """
        interface = self._default_interface()
        if interface is None:
            return None
        device = self._root / "sys/class/net" / interface
        profile = self._profile_says(self._text(device / "ifindex"))
        if profile is not None:
            return profile
        return True if "DEVTYPE=wwan" in (self._text(device / "uevent") or "").splitlines() else None

    def _default_interface(self) -> str | None:
        """Give the interface of the default route with the best metric."""
        best: tuple[float, str] | None = None
        for line in (self._text("proc/net/route") or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
                continue
            route = (_number(fields[6]) or 0.0, fields[0])
            best = route if best is None else min(best, route)
        # It becomes part of a path.
        return None if best is None or "/" in best[1] or best[1].startswith(".") else best[1]

    def _profile_says(self, index: str | None) -> bool | None:
        if index is None or not index.isdigit():
            return None
        uuid = _entries_of(self._text(f"{_NM}/devices/{index}")).get("connection-uuid")
        if uuid is None:
            return None
        for folder in (f"{_NM}/system-connections", "etc/NetworkManager/system-connections"):
            for path in self._entries(self._root / folder, "*.nmconnection"):
                profile = _entries_of(self._text(path))
                if profile.get("uuid") == uuid:
                    return {"1": True, "2": False}.get(profile.get("metered", ""))
        return None

    # -- files -------------------------------------------------------------------------------------

    def _text(self, path: str | Path) -> str | None:
        try:
            return (self._root / path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):  # sysfs answers with all kinds of errors for what is not there
            return None

    @staticmethod
    def _entries(folder: Path, pattern: str = "*") -> list[Path]:
        try:
            return sorted(folder.glob(pattern))
        except OSError:
            return []


def minute_of_day(now: float) -> int | None:
    """Give the local time as minutes since midnight; None for a clock that was never set."""
    local = time.localtime(now)
    return None if local.tm_year < _EARLIEST_YEAR else local.tm_hour * 60 + local.tm_min


def _on_mains(chargers: list[str | None], states: list[str | None], *, listed: bool) -> bool | None:
    if "1" in chargers:
        return True
    if "Discharging" in states:
        return False
    if any(state in ("Charging", "Full", "Not charging") for state in states):
        return True
    if states:
        return False if "0" in chargers else None
    # Without any battery only mains is left.
    return True if listed else None


def _number(text: str | None) -> float | None:
    try:
        return float(text.strip()) if text else None
    except ValueError:
        return None


def _entries_of(text: str | None) -> dict[str, str]:
    """Give the entries of a key file, whatever their groups; of equal ones the first."""
    entries: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, sign, value = line.partition("=")
        if sign:
            entries.setdefault(name.strip(), value.strip())
    return entries
