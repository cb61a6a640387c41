"""The guard: when a version is good, bad or unjudged, and what the core does with a bad one."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import (
    CloseRound,
    Command,
    CoreState,
    Journal,
    KeepQuality,
    ReplyReceipt,
    RoundSettings,
)
from broker.aggregator.guard import Guard, GuardSettings, Restorable, VersionQuality, is_worse
from broker.aggregator.store.interface import Batch
from broker.aggregator.store.sqlite import SqliteStore
from broker.protocol.messages import Quality, encode, is_sampled
from tests.broker.aggregator.builders import INSTANCE, a_genesis, a_table, an_update
from trainer.aggregation import FedAvg, FedBuff
from trainer.errors import ParameterError

SETTINGS = GuardSettings(reports=6, least=3, wait_s=10.0)
DEVICES = [f"device-{number}" for number in range(60)]


def a_report(version: int = 1, *, now: int = 80, before: int = 80, version_before: int = 0) -> Quality:
    """Give a report of how many candidates an item beats."""
    return Quality(
        instance=INSTANCE,
        version=version,
        version_before=version_before,
        candidates=99,
        hits=1,
        hits_before=0,
        beaten=now,
        beaten_before=before,
        ndcg=0.5,
        ndcg_before=0.25,
        loss=1.0,
        loss_before=2.0,
    )


def a_version(version: int) -> Restorable:
    """Give a version, with something that a strategy remembers."""
    return Restorable(version=version, table=a_table(version), memory={"moment": a_table(version + 100)})


def a_guard() -> Guard:
    """Give a guard with version 1 on trial since time 0."""
    guard = Guard(SETTINGS, a_version(0))
    guard.published(a_version(1))
    assert guard.tick(0.0) is None
    return guard


def test_enough_reports_without_a_fall_make_a_version_good() -> None:
    """Then it is what a bad one goes back to; the sums are all that is kept."""
    guard = a_guard()
    for number in range(SETTINGS.reports):
        assert guard.on_trial
        assert guard.good.version == 0
        quality = guard.report(f"device-{number}", a_report(now=79 + number % 3))
    assert quality is not None
    assert (quality.finding, quality.reports, quality.hits, quality.candidates) == ("good", 6, 6, 594)
    assert (quality.beaten, quality.beaten_before, quality.ndcg, quality.loss_before) == (480, 480, 3.0, 12.0)
    assert (guard.on_trial, guard.good.version) == (False, 1)


def test_version_that_ranks_worse_is_bad_as_soon_as_noise_is_ruled_out() -> None:
    """Not before the least number of reports."""
    guard = a_guard()
    found = [guard.report(f"device-{number}", a_report(now=20 + number)) for number in range(3)]
    assert [each.finding for each in found if each] == ["trial", "trial", "bad"]
    assert guard.is_bad
    assert guard.good.version == 0
    assert "0.212 of others (by the tables before: 0.808)" in found[-1].summary if found[-1] else False


def test_version_that_seems_worse_needs_more_reports() -> None:
    """It is neither good nor bad while noise may explain it."""
    guard = a_guard()
    for number in range(SETTINGS.reports):
        quality = guard.report(f"device-{number}", a_report(now=80 - 9 * (number % 2)))
        assert quality is not None
        assert quality.finding == "trial"
    found = guard.report("one more", a_report(now=95))
    assert found is not None
    assert found.finding == "good"


def test_device_is_heard_once_and_about_the_newest_version_only() -> None:
    """Whatever it sends."""
    guard = a_guard()
    assert guard.report("pi", a_report()) is not None
    assert guard.report("pi", a_report(now=0)) is None
    assert guard.report("other", a_report(version=2)) is None
    assert Guard(SETTINGS, a_version(1)).report("pi", a_report()) is None


def test_version_without_reports_is_unjudged_in_the_end_and_still_watched() -> None:
    """A late finding counts until the next version is made."""
    guard = a_guard()
    assert (guard.tick(9.9), guard.ends_at) == (None, 10.0)
    assert guard.tick(10.0) == VersionQuality(version=1, finding="unjudged")
    assert guard.tick(11.0) is None
    assert (guard.on_trial, guard.good.version) == (False, 0)
    for number in range(3):
        quality = guard.report(f"device-{number}", a_report(now=0))
    assert quality is not None
    assert quality.finding == "bad"
    assert guard.overtaken() is None
    assert guard.good.version == 0


def test_trial_that_began_before_a_restart_waits_anew() -> None:
    """The clock may have, too."""
    guard = Guard(SETTINGS, a_version(0))
    guard.published(a_version(1))
    assert (guard.on_trial, guard.ends_at) == (True, None)
    assert guard.tick(1000.0) is None
    assert guard.ends_at == 1010.0


def test_next_version_takes_over_what_is_not_bad() -> None:
    """An unjudged version is promoted by the next one's birth."""
    guard = a_guard()
    quality = guard.overtaken()
    assert quality is not None
    assert quality.finding == "unjudged"
    assert guard.good.version == 1
    guard.published(a_version(2), finding="restored")
    assert (guard.on_trial, guard.good.version, guard.overtaken()) == (False, 2, None)


def added_up(differences: Iterable[float]) -> VersionQuality:
    """Give what is kept of reports with these differences."""
    each = list(differences)
    squares = sum(difference * difference for difference in each)
    return VersionQuality(
        version=1, finding="trial", reports=len(each), differences=sum(each), squares=squares
    )


@given(st.lists(st.floats(-0.5, 0.5), min_size=8, max_size=40))
def test_equal_or_better_is_never_worse(differences: list[float]) -> None:
    """However the reports scatter; and one more of the same mean changes no direction."""
    if sum(differences) >= 0.0:
        assert not is_worse(added_up(differences), GuardSettings())
    assert not is_worse(added_up(differences[:7]), GuardSettings())


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_sums_are_those_of_the_reports(beaten: list[int]) -> None:
    """One difference of half the candidates at most, in either direction, whatever is reported."""
    quality = VersionQuality(version=1, finding="trial")
    for each in beaten:
        quality = quality.plus(replace(a_report(), candidates=10_000, beaten=each, beaten_before=4_000))
    cut = np.clip((np.array(beaten) - 4_000) / 10_000, -0.5, 0.5)
    assert quality.differences == pytest.approx(cut.sum())
    assert quality.squares == pytest.approx((cut**2).sum())


@pytest.mark.parametrize(("deviation", "share"), [(0.06, 0.0), (0.15, 0.005), (0.2, 0.015)])
def test_noise_alone_is_not_worse(deviation: float, share: float) -> None:
    """Paired differences as clean versions have them, and wilder ones, looked at after each report."""
    rng = np.random.default_rng(1)
    lines = rng.normal(0.0, deviation, (1500, 24))
    worse = sum(_is_found_worse(line) for line in lines)
    assert worse <= share * len(lines)


def _is_found_worse(differences: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    settings = GuardSettings()
    return any(is_worse(added_up(differences[:n].tolist()), settings) for n in range(settings.least, 25))


@pytest.mark.parametrize(("liars", "most"), [(2, 0.0), (3, 0.05)])
def test_few_liars_do_not_make_a_good_version_bad(liars: int, most: float) -> None:
    """They say the worst there is; among 24 in any order it seldom is enough."""
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        guard = Guard(GuardSettings(), a_version(0))
        guard.published(a_version(1))
        said = [a_report(now=round(each), before=60) for each in rng.normal(60.0, 6.0, 24 - liars)]
        said += [a_report(now=0, before=99)] * liars
        rng.shuffle(said)  # type: ignore[arg-type]
        for number, report in enumerate(said):
            guard.report(f"device-{number}", report)
        found += guard.is_bad
    assert found <= most * 200


@pytest.mark.parametrize(
    "change", [{"reports": -1}, {"least": 1}, {"margin": 2.0}, {"z": -1.0}, {"wait_s": 0.0}]
)
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    """Each with a sentence."""
    with pytest.raises(ParameterError):
        GuardSettings(**change)
    assert GuardSettings(reports=24).rate(32) == 0.75
    assert GuardSettings(reports=24).rate(8) == 1.0


def test_sample_is_another_for_each_version_and_as_large_as_wanted() -> None:
    """Both ends come to it by themselves."""
    drawn = [
        [is_sampled(7, version, f"device-{number}", 0.25) for number in range(4000)] for version in (1, 2)
    ]
    assert [abs(sum(each) / 4000 - 0.25) < 0.03 for each in drawn] == [True, True]
    assert drawn[0] != drawn[1]
    assert not is_sampled(7, 1, "pi", 0.0)
    assert is_sampled(7, 1, "pi", 1.0)


# --- in the core --------------------------------------------------------------------------------------


def a_core(**state: object) -> AggregatorCore:
    """Give a core of twenty devices, rounds of two updates, and a guard that asks everybody."""
    state = {"strategy_state": {"moment": a_table(7)}} | state
    settings = RoundSettings(buffer=2, population=20, deadline_s=None, guard=SETTINGS)
    held = CoreState(instance=INSTANCE, version=0, table=a_table(), seen=set(DEVICES))
    for name, value in state.items():
        setattr(held, name, value)
    return AggregatorCore(settings, FedAvg(), held)


def send(core: AggregatorCore, seq: int, base: int = 0) -> list[Command]:
    """Let a device send an update."""
    return core.update_received("pi", an_update(seq=seq, base_version=base), b"", 0.0)


def verdict(commands: list[Command]) -> tuple[str, str]:
    """Give what the device is told."""
    (receipt,) = [each.receipt for each in commands if isinstance(each, ReplyReceipt)]
    return receipt.verdict, receipt.reason


def report_all(core: AggregatorCore, **fields: int) -> list[Command]:
    """Let devices report the newest version until something is decided."""
    commands: list[Command] = []
    for number in range(SETTINGS.reports):
        commands += core.quality_received(f"device-{number}", a_report(core.version, **fields), 0.0)
        if not core.on_trial:
            break
    return commands


def closed(commands: list[Command]) -> list[CloseRound]:
    """Give the versions that were made."""
    return [each for each in commands if isinstance(each, CloseRound)]


def test_no_version_is_made_while_one_is_on_trial() -> None:
    """The finding closes the round that is full by then."""
    core = a_core()
    assert closed(send(core, 1) + send(core, 2))
    assert core.on_trial
    assert not closed(send(core, 3) + send(core, 4) + send(core, 5))

    (made,) = closed(report_all(core))

    assert (made.round.version, made.round.updates) == (2, 3)


@pytest.mark.parametrize(("buffer", "held"), [(1, 12), (2, 12), (7, 14)])
def test_two_rounds_of_updates_end_a_trial(buffer: int, held: int) -> None:
    """Where reports do not come; small rounds wait until there could have been reports enough."""
    core = a_core()
    core.settings = replace(core.settings, buffer=buffer)
    made = [len(closed(send(core, seq))) for seq in range(1, buffer + held + 1)]
    assert made == [0] * (buffer - 1) + [1] + [0] * (held - 1) + [1]


def test_time_ends_a_trial() -> None:
    """Then the round that is full by then closes."""
    core = a_core()
    send(core, 1)
    send(core, 2)
    send(core, 3)
    send(core, 4)
    assert core.tick(1.0) == []
    assert core.wake_at == 11.0
    unjudged, again, _ = core.tick(11.0)
    assert isinstance(unjudged, KeepQuality)
    assert isinstance(again, CloseRound)


def test_bad_version_is_followed_by_the_table_before_and_nothing_of_it_counts() -> None:
    """Neither what waits in the open round nor what comes later."""
    core = a_core()
    good = core.table
    send(core, 1)
    send(core, 2)
    send(core, 3, base=1)

    commands = report_all(core, now=10)

    (made,) = closed(commands)
    assert (made.round.version, made.round.restored, made.round.dropped, made.round.updates) == (2, 0, 1, 0)
    np.testing.assert_array_equal(core.table, good)
    np.testing.assert_array_equal(made.round.strategy_state["moment"], a_table(7))
    found = [each.quality.finding for each in commands if isinstance(each, KeepQuality)]
    assert found == ["trial", "trial", "bad"]
    assert verdict(send(core, 4, base=1)) == ("rejected", "version 1 was given up")
    assert verdict(send(core, 5, base=0))[0] == "accepted"
    # A device that comes from the bad version finds any other better.
    assert core.quality_received("device-9", a_report(2, version_before=1), 0.0) == []
    assert not core.on_trial


def test_state_of_before_a_restart_goes_on() -> None:
    """The trial with the version before, and what was rolled back."""
    core = a_core(version=5, table=a_table(5), before=a_version(4), rolled_back=[(1, 3)])
    assert core.on_trial
    assert verdict(send(core, 1, base=2)) == ("rejected", "version 2 was given up")
    (made,) = closed(report_all(core, now=10))
    assert (made.round.version, made.round.restored) == (6, 4)
    np.testing.assert_array_equal(core.table, a_table(4))
    np.testing.assert_array_equal(made.round.strategy_state["moment"], a_table(104))


class Stored:
    """A core and its store, which may be started anew."""

    def __init__(self, path: Path, settings: RoundSettings) -> None:
        self.settings = settings
        self.store = SqliteStore(path)
        self.store.initialise(a_genesis())
        self.store.commit(Batch(commands=(), devices=DEVICES, closed_at=0.0))
        self.start()

    def start(self) -> None:
        """Start, or start anew."""
        self.core = AggregatorCore(self.settings, FedBuff(), self.store.load(), self.store.pending())

    def keep(self, commands: list[Command]) -> None:
        """Store what a batch came to."""
        kept = [each for each in commands if isinstance(each, Journal | CloseRound | KeepQuality)]
        self.store.commit(Batch(commands=kept, closed_at=0.0, strategy="{}"))

    def make_a_version(self) -> None:
        """Let devices send a round."""
        for number in range(self.settings.buffer):
            update = an_update(seq=1)
            self.keep(self.core.update_received(DEVICES[number], update, encode(update), 0.0))

    def report(self, first: int, last: int, *, now: int) -> None:
        """Let some devices report."""
        for device in DEVICES[first:last]:
            self.keep(self.core.quality_received(device, a_report(now=now, before=90), 1.0))

    @property
    def found(self) -> tuple[str, int]:
        """The finding of version 1, and how many have reported it."""
        quality = self.store.rounds(9)[-1].quality
        assert quality is not None
        return quality.finding, quality.reports


@pytest.mark.parametrize("population", [100, 10])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_restart_in_the_middle_of_reports_forgets_none(population: int, before: int, tmp_path: Path) -> None:
    """Whether somebody waits for them, or, in a small fleet, nobody does."""
    guard = GuardSettings(reports=12, least=6)
    stored = Stored(tmp_path / "s", RoundSettings(buffer=2, population=population, guard=guard))
    stored.make_a_version()
    waits = stored.core.on_trial
    stored.report(0, before, now=5)
    stored.start()
    assert stored.core.on_trial == waits == (population == 100)
    stored.report(before, 6, now=5)
    assert stored.found == ("bad", 6)
    assert stored.store.rounds(1)[0].closed_by == "rollback"
    stored.store.close()


def test_restart_does_not_put_an_unjudged_version_on_trial_again(tmp_path: Path) -> None:
    """Its reports are added up; enough of them make it good."""
    stored = Stored(tmp_path / "s", RoundSettings(buffer=2, population=100, guard=SETTINGS))
    stored.make_a_version()
    stored.report(0, 3, now=90)
    stored.keep(stored.core.tick(0.0) + stored.core.tick(10.0))
    assert stored.found == ("unjudged", 3)
    stored.start()
    assert not stored.core.on_trial
    stored.report(3, 6, now=90)
    assert stored.found == ("good", 6)
    stored.store.close()


def test_reports_that_were_not_asked_for_are_passed_over() -> None:
    """Another instance's, and those of devices outside the sample."""
    core = AggregatorCore(
        RoundSettings(buffer=100, population=20, deadline_s=1.0, guard=GuardSettings(reports=5)),
        FedAvg(),
        CoreState(instance=INSTANCE, version=0, table=a_table(), seen=set(DEVICES)),
    )
    send(core, 1)
    core.tick(0.0)
    assert closed(core.tick(1.0))
    heard = [bool(core.quality_received(device, a_report(1), 2.0)) for device in DEVICES]
    assert heard == [is_sampled(INSTANCE, 1, device, 0.05) for device in DEVICES]
    assert any(heard)


def test_names_that_never_came_are_not_heard() -> None:
    """However many somebody makes up, nothing is found, and nothing is kept."""
    core = a_core()
    send(core, 1)
    send(core, 2)
    assert core.on_trial
    assert not any(core.quality_received(f"made-up-{n}", a_report(1, now=0), 0.0) for n in range(50))
    assert core.device_seen("made-up-1")
    assert core.quality_received("made-up-1", a_report(1), 0.0)


def test_share_that_is_listened_to_is_the_one_that_was_asked_for() -> None:
    """A head of before other settings for rounds asks as it did."""
    core = a_core()
    core.sample_rate = 0.25
    send(core, 1)
    send(core, 2)
    heard = [bool(core.quality_received(device, a_report(1), 0.0)) for device in DEVICES[:20]]
    assert heard == [is_sampled(INSTANCE, 1, device, 0.25) for device in DEVICES[:20]]


def test_small_fleet_does_not_wait() -> None:
    """With fewer devices than twice the reports, rounds close as without a guard."""
    core = a_core()
    core.settings = RoundSettings(buffer=2, population=11, deadline_s=None, guard=SETTINGS)
    assert [len(closed(send(core, seq))) for seq in range(1, 5)] == [0, 1, 0, 1]
