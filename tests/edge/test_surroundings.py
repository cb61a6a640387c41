"""What is read from a machine's files: trees as different machines have them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.guards import Reading
from edge.surroundings import Surroundings, minute_of_day

NOON = 1_780_000_000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let local time be UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def a_tree(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def read(root: Path, files: dict[str, str]) -> Reading:
    """Read a tree."""
    return Surroundings(a_tree(root, files)).read(NOON)


def test_nothing_at_all_is_unknown(tmp_path: Path) -> None:
    """But the time."""
    assert Surroundings(tmp_path / "nowhere").read(NOON) == Reading(minute_of_day=minute_of_day(NOON))


def test_raspberry_pi_is_read(tmp_path: Path) -> None:
    """No battery: mains; four cores; one zone; a cable."""
    (tmp_path / "sys/class/power_supply").mkdir(parents=True)
    found = read(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/devices/system/cpu/online": "0-3\n",
            "proc/loadavg": "1.00 0.50 0.25 1/180 4242\n",
            "proc/meminfo": "MemTotal: 948304 kB\nMemFree: 100 kB\nMemAvailable:     524288 kB\n",
            "proc/net/route": (
                "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
                "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
            ),
            "sys/class/net/eth0/ifindex": "2\n",
            "sys/class/net/eth0/uevent": "INTERFACE=eth0\nIFINDEX=2\n",
        },
    )
    assert found == Reading(
        minute_of_day=20 * 60 + 26,
        on_mains=True,
        temperature_c=48.312,
        free_memory_mb=512.0,
        load_per_core=0.25,
    )


SUPPLY = "sys/class/power_supply"
BATTERY = {f"{SUPPLY}/BAT0/type": "Battery\n", f"{SUPPLY}/BAT0/capacity": "63\n"}
CHARGER = {f"{SUPPLY}/AC/type": "Mains\n"}


@pytest.mark.parametrize(
    ("files", "on_mains", "percent"),
    [
        (BATTERY | {f"{SUPPLY}/BAT0/status": "Discharging"}, False, 63.0),
        (BATTERY | {f"{SUPPLY}/BAT0/status": "Charging"}, True, 63.0),
        (BATTERY | {f"{SUPPLY}/BAT0/status": "Full"}, True, 63.0),
        (BATTERY | {f"{SUPPLY}/BAT0/status": "Unknown"}, None, 63.0),
        (BATTERY | CHARGER | {f"{SUPPLY}/BAT0/status": "Unknown", f"{SUPPLY}/AC/online": "0"}, False, 63.0),
        (BATTERY | CHARGER | {f"{SUPPLY}/BAT0/status": "Unknown", f"{SUPPLY}/AC/online": "1"}, True, 63.0),
        (BATTERY | {f"{SUPPLY}/BAT0/present": "0"}, True, None),
        ({f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/capacity": "many"}, None, None),
        ({f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/capacity": "-1"}, None, None),
        (
            {
                f"{SUPPLY}/hid-mouse/type": "Battery",
                f"{SUPPLY}/hid-mouse/scope": "Device",
                f"{SUPPLY}/hid-mouse/status": "Discharging",
            },
            True,
            None,
        ),
        ({f"{SUPPLY}/ups/type": "UPS", f"{SUPPLY}/ups/status": "Discharging"}, False, None),
        (
            {
                f"{SUPPLY}/a/type": "Battery",
                f"{SUPPLY}/a/capacity": "40",
                f"{SUPPLY}/b/type": "Battery",
                f"{SUPPLY}/b/capacity": "60",
                f"{SUPPLY}/b/status": "Discharging",
            },
            False,
            50.0,
        ),
        ({f"{SUPPLY}/broken/online": "1"}, True, None),
    ],
)
def test_power_is_told_from_chargers_and_batteries(
    tmp_path: Path,
    files: dict[str, str],
    on_mains: bool | None,  # noqa: FBT001
    percent: float | None,
) -> None:
    """A mouse's battery does not feed the machine."""
    found = read(tmp_path, files)
    assert (found.on_mains, found.battery_percent) == (on_mains, percent)


@pytest.mark.parametrize(
    ("zones", "hottest"),
    [(("41000", "67500", "39000"), 67.5), (("-274000", "999999"), None), (("hot", ""), None), ((), None)],
)
def test_hottest_plausible_zone_counts(tmp_path: Path, zones: tuple[str, ...], hottest: float | None) -> None:
    """Zones without a sensor give absurd numbers."""
    files = {f"sys/class/thermal/thermal_zone{n}/temp": temp for n, temp in enumerate(zones)}
    assert read(tmp_path, files).temperature_c == hottest


@pytest.mark.parametrize(
    ("online", "cores"), [("0", 1), ("0-1,3", 3), ("rubbish", os.cpu_count()), ("", os.cpu_count())]
)
def test_load_is_shared_out_among_the_cores_that_are_on(tmp_path: Path, online: str, cores: int) -> None:
    """Where they are listed."""
    found = read(tmp_path, {"proc/loadavg": "6.00 1 1 1/1 1", "sys/devices/system/cpu/online": online})
    assert found.load_per_core == pytest.approx(6.0 / cores)


@pytest.mark.parametrize("content", ["", "rubbish", "\0\0", "MemAvailable: much kB"])
def test_file_of_rubbish_is_unknown(tmp_path: Path, content: str) -> None:
    """No exception comes from there."""
    files = dict.fromkeys(("proc/loadavg", "proc/meminfo", "proc/net/route"), content)
    found = read(tmp_path, files)
    assert (found.load_per_core, found.free_memory_mb, found.metered) == (None, None, None)


def test_file_that_is_no_text_or_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """A directory in its place, and bytes."""
    (tmp_path / "proc/meminfo").mkdir(parents=True)
    (tmp_path / "proc/loadavg").write_bytes(b"\xff\xfe\x00")
    found = Surroundings(tmp_path).read(NOON)
    assert (found.load_per_core, found.free_memory_mb) == (None, None)


HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


def a_route(interface: str, metric: int) -> str:
    """Give a default route."""
    return f"{interface}\t00000000\t0101A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n"


MODEM = {
    "sys/class/net/wwan0/ifindex": "5\n",
    "sys/class/net/wwan0/uevent": "DEVTYPE=wwan\nINTERFACE=wwan0\nIFINDEX=5\n",
    "sys/class/net/wlan0/ifindex": "3\n",
    "sys/class/net/wlan0/uevent": "DEVTYPE=wlan\nINTERFACE=wlan0\nIFINDEX=3\n",
}


def test_modem_is_metered_when_the_default_route_takes_it(tmp_path: Path) -> None:
    """The route with the better metric is the one that counts."""
    by_modem = HEADER + a_route("wwan0", 100) + a_route("wlan0", 600)
    by_wifi = HEADER + a_route("wwan0", 700) + a_route("wlan0", 600)
    assert read(tmp_path, MODEM | {"proc/net/route": by_modem}).metered is True
    assert read(tmp_path, MODEM | {"proc/net/route": by_wifi}).metered is None
    assert read(tmp_path, MODEM | {"proc/net/route": HEADER}).metered is None


@pytest.mark.parametrize(("value", "metered"), [("metered=1\n", True), ("metered=2\n", False), ("", True)])
def test_profile_of_network_manager_wins(tmp_path: Path, value: str, metered: bool) -> None:  # noqa: FBT001
    """Where it says nothing, the kind of interface does."""
    files = {
        "proc/net/route": HEADER + a_route("wwan0", 100),
        "run/NetworkManager/devices/5": "[device]\nmanaged=true\nconnection-uuid=abc-5\n",
        "etc/NetworkManager/system-connections/other.nmconnection": "[connection]\nuuid=x\nmetered=2\n",
        "etc/NetworkManager/system-connections/sim.nmconnection": f"[connection]\nuuid=abc-5\n{value}[gsm]\n",
    }
    assert read(tmp_path, MODEM | files).metered is metered


def test_route_with_a_strange_name_leads_nowhere(tmp_path: Path) -> None:
    """A name becomes part of a path."""
    files = {"proc/net/route": HEADER + a_route("../../../etc", 1), "etc/uevent": "DEVTYPE=wwan\n"}
    assert read(tmp_path, files).metered is None


def test_clock_that_was_never_set_tells_no_time() -> None:
    """A board without a battery for its clock wakes up in 1970."""
    assert minute_of_day(3600.0) is None
    assert minute_of_day(NOON) == 20 * 60 + 26


def test_synchronised_clock_has_left_its_mark(tmp_path: Path) -> None:
    """Where systemd-timesyncd looks after it."""
    assert Surroundings(tmp_path).clock_is_synchronised() is None
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    assert Surroundings(tmp_path).clock_is_synchronised() is False
    (tmp_path / "run/systemd/timesync/synchronized").touch()
    assert Surroundings(tmp_path).clock_is_synchronised() is True


def test_this_machine_can_be_read() -> None:
    """Whatever it is: Linux has a load and memory."""
    found = Surroundings().read(time.time())
    assert found.load_per_core is not None
    assert found.free_memory_mb is not None
    assert found.free_memory_mb > 1.0
