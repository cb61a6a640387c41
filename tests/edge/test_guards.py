"""When a device may train: every guard, and any machine."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.guards import LOOK_S, Limits, Permission, Reading, permission, quiet_spans, unknown_facts
from trainer.errors import ParameterError

COMFORT = Reading(
    minute_of_day=12 * 60,
    on_mains=True,
    battery_percent=100.0,
    temperature_c=45.0,
    free_memory_mb=300.0,
    load_per_core=0.2,
    metered=False,
    new_interactions=3,
)
STRICT = Limits(
    quiet_hours="07:00-09:30, 22:00-06:00",
    min_battery_percent=80.0,
    max_temperature_c=70.0,
    min_free_memory_mb=100,
    max_load_per_core=1.0,
    min_new_interactions=2,
)

readings = st.builds(
    Reading,
    minute_of_day=st.none() | st.integers(0, 1439),
    on_mains=st.none() | st.booleans(),
    battery_percent=st.none() | st.floats(0, 100),
    temperature_c=st.none() | st.floats(-50, 150),
    free_memory_mb=st.none() | st.floats(0, 1e5),
    load_per_core=st.none() | st.floats(0, 100),
    metered=st.none() | st.booleans(),
    new_interactions=st.none() | st.integers(0, 100),
)
minutes = st.integers(0, 1439)


def test_comfortable_machine_trains() -> None:
    """And is looked at again soon."""
    assert permission(STRICT, COMFORT) == Permission()
    assert unknown_facts(STRICT, COMFORT) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"minute_of_day": 7 * 60}, "quiet hours until 09:30"),
        ({"minute_of_day": 23 * 60}, "quiet hours until 06:00"),
        ({"minute_of_day": 5 * 60 + 59}, "quiet hours until 06:00"),
        ({"on_mains": False, "battery_percent": 79.0}, "on battery, below 80 %"),
        ({"temperature_c": 70.5}, "too hot: above 70 °C"),
        ({"free_memory_mb": 99.0}, "memory is short: less than 100 MB available"),
        ({"load_per_core": 1.01}, "the machine is busy: load above 1 a core"),
        ({"new_interactions": 1}, "gathering: fewer than 2 new interactions since the last pass"),
    ],
)
def test_guard_objects_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    """One after the other."""
    found = permission(STRICT, replace(COMFORT, **changes))
    assert (found.train, found.transfer, found.reason) == (False, True, reason)
    assert found.look_again_s >= LOOK_S


@pytest.mark.parametrize(
    "changes",
    [
        {"minute_of_day": 9 * 60 + 30},
        {"minute_of_day": 6 * 60},
        {"on_mains": False, "battery_percent": 80.0},
        {"on_mains": True, "battery_percent": 3.0},
        {"on_mains": False, "battery_percent": None},
        {"temperature_c": 70.0},
        {"free_memory_mb": 100.0},
        {"load_per_core": 1.0},
        {"new_interactions": 2},
    ],
)
def test_limit_itself_is_allowed(changes: dict[str, Any]) -> None:
    """The end of a span, a charge, a temperature."""
    assert permission(STRICT, replace(COMFORT, **changes)).train


def test_first_reason_is_the_one_that_is_given() -> None:
    """In the order of the table in docs/service.md."""
    reading = replace(COMFORT, on_mains=False, battery_percent=5.0, temperature_c=90.0, load_per_core=9.0)
    assert permission(STRICT, reading).reason == "on battery, below 80 %"


def test_never_on_battery_holds_for_any_charge() -> None:
    """Even one that cannot be read."""
    limits = Limits(min_battery_percent=101.0)
    for charge in (None, 100.0):
        reading = Reading(on_mains=False, battery_percent=charge)
        assert permission(limits, reading).reason == "on battery"
    assert permission(limits, Reading(on_mains=True)).train
    assert permission(limits, Reading()).train


@pytest.mark.parametrize(
    ("setting", "read", "transfer"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("auto", None, True),
        ("yes", None, False),
        ("yes", False, False),
        ("no", True, True),
    ],
)
def test_metered_network_forbids_transfers_alone(setting: str, read: bool | None, transfer: bool) -> None:  # noqa: FBT001
    """The setting wins over what was read; the personal model is tuned all the same."""
    found = permission(Limits(metered=setting), replace(COMFORT, metered=read))
    assert (found.train, found.transfer) == (True, transfer)
    assert ("the network is metered" in found.reason) is not transfer


def test_metered_network_is_not_forgotten_while_another_guard_objects() -> None:
    """The reason is the one against training."""
    found = permission(STRICT, replace(COMFORT, metered=True, temperature_c=99.0))
    assert (found.train, found.transfer, found.reason) == (False, False, "too hot: above 70 °C")


def test_unknown_facts_are_named_where_a_limit_is_set() -> None:
    """What nobody asks for is not missed."""
    assert unknown_facts(STRICT, Reading()) == (
        "time of day",
        "power",
        "temperature",
        "free memory",
        "load",
        "new interactions",
        "metered network",
    )
    free = Limits(
        min_battery_percent=0,
        max_temperature_c=0,
        min_free_memory_mb=0,
        max_load_per_core=0,
        metered="no",
    )
    assert unknown_facts(free, Reading()) == ()


@given(readings)
def test_no_limit_forbids_nothing(reading: Reading) -> None:
    """Zero stands for none."""
    free = Limits(
        min_battery_percent=0, max_temperature_c=0, min_free_memory_mb=0, max_load_per_core=0, metered="no"
    )
    assert permission(free, reading) == Permission()


@given(readings, st.sampled_from(sorted(Reading.__dataclass_fields__)))
def test_fact_that_becomes_unknown_never_forbids_more(reading: Reading, name: str) -> None:
    """Whatever else is known."""
    before = permission(STRICT, reading)
    after = permission(STRICT, replace(reading, **{name: None}))
    assert after.train or not before.train
    assert after.transfer or not before.transfer
    assert bool(after.reason) is not (after.train and after.transfer)
    assert 0.0 < after.look_again_s <= 600.0


@given(minutes, minutes, minutes)
def test_quiet_hours_hold_for_their_minutes_and_no_others(begin: int, end: int, minute: int) -> None:
    """Over midnight, too; one look after their end, at the latest, training goes on."""
    text = f"{begin // 60}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    if begin == end:
        with pytest.raises(ParameterError, match="begins and ends at different times"):
            quiet_spans(text)
        return
    inside = begin <= minute < end if begin < end else not end <= minute < begin
    limits, reading = Limits(quiet_hours=text), replace(COMFORT, minute_of_day=minute)
    found = permission(limits, reading)
    assert found.train is not inside
    if inside:
        waited = 0.0
        while not found.train:
            waited += found.look_again_s / 60
            found = permission(limits, replace(reading, minute_of_day=int(minute + waited) % 1440))
        assert int(minute + waited) % 1440 == end


def test_quiet_hours_may_last_to_the_end_of_the_day() -> None:
    """As people write it."""
    assert quiet_spans("18:00-24:00") == [(18 * 60, 0)]
    assert quiet_spans("  ") == []


@pytest.mark.parametrize(
    "text", ["7-9", "07:00", "25:00-26:00", "07:60-08:00", "07:00-08:00;", "a:bb-c:dd", ","]
)
def test_quiet_hours_that_are_none_are_refused(text: str) -> None:
    """With an example of what is."""
    with pytest.raises(ParameterError, match=r"quiet_hours has .*; write spans as 07:00-09:30"):
        Limits(quiet_hours=text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_battery_percent": 102.0}, "min_battery_percent is 102.0; it must lie between 0 and 101"),
        ({"max_temperature_c": -1.0}, "max_temperature_c is -1.0"),
        ({"max_load_per_core": float("nan")}, "max_load_per_core is nan"),
        ({"min_new_interactions": -1}, "min_new_interactions is -1"),
        ({"metered": "maybe"}, "metered is 'maybe'; it must be one of auto, yes, no"),
    ],
)
def test_limit_out_of_range_is_refused(changes: dict[str, Any], sentence: str) -> None:
    """With its name and its bounds."""
    with pytest.raises(ParameterError, match=sentence):
        Limits(**changes)


def test_manual_lists_every_limit_with_its_default() -> None:
    """In the table of docs/service.md."""
    manual = (Path(__file__).resolve().parents[2] / "docs" / "service.md").read_text()
    for field in fields(Limits):
        default = f'"{field.default}"' if isinstance(field.default, str) else f"{field.default:g}"
        assert f"| `{field.name}` | {default} |" in manual
