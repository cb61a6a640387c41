"""Sessions and core joined in memory: no update is lost, none counts twice, and trouble ends in rest."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration import network
from tests.integration.network import CrashError, Process, Witness, World, live, live_by_seed

SEEDS_IN_A_TEST = 25


def a_fleet_at_work() -> World:
    """Give a fleet with a table and interactions, and updates to make."""
    world = World(seed=1)
    world.begin()
    return world


def finish(world: World) -> Witness:
    """Let a fleet come to rest, check everything, and give what was seen."""
    try:
        world.come_to_rest()
        world.check_at_rest()
    finally:
        world.close()
    return world.witness


@pytest.mark.parametrize("first", range(0, 200, SEEDS_IN_A_TEST))
def test_fleet_in_trouble_keeps_all_promises(first: int) -> None:
    """Whatever order the seeds draw for losses, repetitions, delays, crashes and interactions."""
    for seed in range(first, first + SEEDS_IN_A_TEST):
        live_by_seed(seed, 100)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), numbers=st.lists(st.integers(0, 2**32 - 1), max_size=60))
def test_fleet_in_any_trouble_keeps_all_promises(seed: int, numbers: list[int]) -> None:
    """The same, with an order that can be shortened when it finds something."""
    live(seed, numbers)


def test_fleet_without_trouble_counts_every_right_update() -> None:
    """What the devices make is what the journal has, each answered once; they fetch steps where they can."""
    world = a_fleet_at_work()
    witness = finish(world)
    assert all(device.fetched_by_steps for device in world.devices)
    spoilt = [update for update in witness.made if update[0] == "device-2"]
    assert len(spoilt) == network.MAX_IDLE_PASSES
    assert all(witness.verdicts[update] == "rejected" for update in spoilt)
    assert witness.counted.keys() == witness.made.keys() - set(spoilt)
    assert len(witness.counted) == 2 * network.MAX_IDLE_PASSES


def crash_everywhere(choose: str) -> int:
    """Run the same fleet again and again, and let a process die one step later each time; give how often."""
    for steps in range(1, sys.maxsize):
        world = World(seed=1)
        process: Process = world.aggregator if choose == "aggregator" else world.devices[0]
        process.steps_to_live = steps
        world.begin()
        finish(world)
        if process.steps_to_live is not None:
            return steps - 1
    raise AssertionError("the process never ends")


@pytest.mark.parametrize("who", ["device", "aggregator"])
def test_crash_at_every_step_loses_nothing(who: str) -> None:
    """No two steps between which dying would cost an update, or count one twice."""
    assert crash_everywhere(who) >= 20


def test_process_dies_at_the_step_it_was_told() -> None:
    """The crash is where it is meant to be."""
    process = Process()
    process.steps_to_live = 2
    process.step()
    with pytest.raises(CrashError):
        process.step()


def test_live_of_one_seed_repeats_itself() -> None:
    """A failure can be looked at again."""
    first, second = live_by_seed(7, 100), live_by_seed(7, 100)
    assert first.history == second.history
    assert first.witness.made == second.witness.made
    assert first.witness.tables == second.witness.tables


def test_device_that_was_away_for_three_weeks_is_back_within_a_minute() -> None:
    """With one upload for all that its user did meanwhile, while the fleet went on."""
    world = a_fleet_at_work()
    try:
        world.come_to_rest()
        away, *others = world.devices
        made_before = {update for update in world.witness.made if update[0] == away.name}
        world.part(away)
        for day in range(21):
            world.now += 86_400.0
            for hour in range(3):
                away.record(6 + (3 * day + hour) % 40, world.now)
            others[0].record(6 + day, world.now)
            world.go_on_for(120.0, without=away)
        assert world.aggregator.core.version > (away.session.version or 0) + 10
        assert {update for update in world.witness.made if update[0] == away.name} == made_before

        back_at = world.now
        world.join(away)
        while away.session.version != world.aggregator.core.version or not away.has_contributed():
            world.go_on_for(1.0)
            assert world.now <= back_at + 60.0

        made = {update for update in world.witness.made if update[0] == away.name} - made_before
        assert len(made) == 1
        assert made <= world.witness.verdicts.keys()
        world.come_to_rest()
        world.check_at_rest()
    finally:
        world.close()
