"""The guard's proof: fleets on a virtual clock, half of them with a version that is poisoned.

    python -m tests.integration.guard --runs 20 --data ratings.dat
    python -m tests.integration.guard --delay --data ratings.dat
    python -m tests.integration.guard --liars

A fleet trains until a version that the run's seed chooses. There the table is poisoned as its round closes:
as by somebody who writes to the store, or as by updates that were made to harm and accepted. A run passes
when the poisoned version is found bad, and followed by one with the table of the version before. A clean run
passes when no version is found bad.

What noise alone would do is counted, too: the clean versions' differences, with signs drawn at random.

``--delay`` tells how long a fleet takes with a guard and without, in virtual time; ``--liars`` how often
devices that lie get what they want, by differences as clean and as poisoned versions have them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from broker.aggregator.decisions import CloseRound, Command, KeepQuality
from broker.aggregator.guard import GuardSettings, VersionQuality, is_worse
from broker.presets import load_preset
from edge.fleet.evaluator import Evaluator
from edge.fleet.scenario import Scenario, load_scenario
from edge.fleet.virtual import Simulation, SimulationSettings
from trainer.params import Floats

POISONS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "sign turned": lambda table, _: -table,
    "rows exchanged": lambda table, rng: rng.permutation(table),
    "noise": lambda table, rng: table + 10.0 * table.std() * rng.standard_normal(table.shape, np.float32),
    "zeros": lambda table, _: np.zeros_like(table),
    "one row repeated": lambda table, rng: np.repeat(
        table[rng.integers(len(table))][None], len(table), axis=0
    ),
}
DRAWS = 5
UPDATES = "updates that harm"
"""A fifth of the round's updates are the table with its sign turned, many times over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How a run went.

    Attributes
    ----------
    poisoned : int or None
        The version.
    bad : list of int
        Versions that were found bad.
    restored : int or None
        The version whose table the one after the poisoned one has.
    reports : list of int
        How many reports each finding took.
    unjudged : int
        Versions that were promoted for want of reports.
    versions : int
    differences : list of lists of float
        What devices reported of each version, in shares, as far as the guard looked.
    """

    poisoned: int | None
    bad: list[int]
    restored: int | None
    reports: list[int]
    unjudged: int
    versions: int
    differences: list[list[float]]

    @property
    def passed(self) -> bool:
        """Whether the guard did what it is for."""
        if self.poisoned is None:
            return not self.bad
        return self.bad == [self.poisoned] and self.restored == self.poisoned - 1


class _EndError(Exception):
    pass


class GuardedFleet(Simulation):
    """A fleet whose table is poisoned at one version; it ends `after` versions later."""

    def begin(self, poisoned: int | None, poison: str, last: int, rng: np.random.Generator) -> None:
        """Say what is to happen."""
        self._poisoned, self._poison, self._last, self._rng_of_poison = poisoned, poison, last, rng
        self.findings: dict[int, KeepQuality] = {}
        self.differences: dict[int, list[float]] = {}
        self.rounds: dict[int, CloseRound] = {}

    def trial(self) -> Trial:
        """Run until the end."""
        with suppress(_EndError):
            self.run()
        found = [command.quality for command in self.findings.values()]
        after = None if self._poisoned is None else self.rounds.get(self._poisoned + 1)
        return Trial(
            poisoned=self._poisoned,
            bad=[quality.version for quality in found if quality.finding == "bad"],
            restored=None if after is None else after.round.restored,
            reports=[quality.reports for quality in found if quality.finding in ("good", "bad")],
            unjudged=sum(quality.finding == "unjudged" for quality in found),
            versions=len(self.rounds),
            differences=list(self.differences.values()),
        )

    def _answer(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, KeepQuality):
                self._note_difference(command.quality)
                self.findings[command.quality.version] = command
            elif isinstance(command, CloseRound):
                self.rounds[command.round.version] = command
                if command.round.version == self._poisoned:
                    self._harm(command)
                if command.round.version >= self._last:
                    raise _EndError
        super()._answer(commands)

    def _note_difference(self, quality: VersionQuality) -> None:
        known = self.findings.get(quality.version)
        before = VersionQuality(version=quality.version, finding="trial") if known is None else known.quality
        if before.finding != "trial" or quality.reports == before.reports:
            return
        more = (quality.beaten - before.beaten) - (quality.beaten_before - before.beaten_before)
        difference = more / (quality.candidates - before.candidates)
        self.differences.setdefault(quality.version, []).append(difference)

    def _harm(self, command: CloseRound) -> None:
        table = command.round.table
        if self._poison == UPDATES:
            before = self.rounds[command.round.version - 1].round.table
            poisoned = table - np.float32(0.2 * 20.0) * before
        else:
            poisoned = POISONS[self._poison](table, self._rng_of_poison).astype(np.float32)
        # In the very place of the table that the round has made: everybody gets it, and its hash is right.
        table.flags.writeable = True
        table[:] = poisoned
        table.flags.writeable = False


def settings_of(
    scenario: Scenario, seed: int, *, buffer: int, guard: GuardSettings, rounds: int = 1_000_000
) -> SimulationSettings:
    """Give a fleet as the device preset has it."""
    preset = load_preset("device", "pfedrec", {})
    return SimulationSettings(
        hyperparameters=preset.hyperparameters(scenario.data.n_items),
        taste=preset.taste(timed=scenario.data.timed),
        buffer=buffer,
        guard=guard,
        dim=preset.dim,
        scale=preset.scale,
        rounds=rounds,
        seed=seed,
    )


def seconds_taken(scenario: Scenario, guard: GuardSettings, rounds: int = 12) -> float:
    """Give the virtual seconds of so many rounds of all users' updates."""
    settings = settings_of(scenario, 0, buffer=32, guard=guard, rounds=rounds)
    fleet = Simulation(scenario, settings, Evaluator(scenario, taste=settings.taste), lambda _: None)
    fleet.run(users=False)
    return fleet.now


def share_found_bad(mean: float, deviation: float, liars: int, lie: float, times: int = 2_000) -> float:
    """Give how often a version is found bad when of each 24 reports so many say `lie`, in any order."""
    settings, rng = GuardSettings(), np.random.default_rng(0)
    found = 0
    for _ in range(times):
        line = np.clip(rng.normal(mean, deviation, 2 * settings.reports), -1.0, 1.0)
        line[: 2 * liars] = lie
        found += _is_found_bad(rng.permutation(line.clip(-0.5, 0.5)).tolist(), settings)
    return found / times


def _is_found_bad(differences: list[float], settings: GuardSettings) -> bool:
    for n in range(settings.least, len(differences) + 1):
        if _seems_worse(differences[:n], settings):
            return True
        if n >= settings.reports and np.mean(differences[:n]) >= -settings.margin:
            return False
    return False


def _seems_worse(differences: Sequence[float], settings: GuardSettings) -> bool:
    squares = sum(each * each for each in differences)
    sums = VersionQuality(
        version=0, finding="trial", reports=len(differences), differences=sum(differences), squares=squares
    )
    return is_worse(sums, settings)


def run(
    scenario: Scenario, seed: int, poison: str | None, *, buffer: int, reports: int, versions: int
) -> Trial:
    """Make one run; its poisoned version lies in the second half."""
    settings = settings_of(
        scenario, seed, buffer=buffer, guard=GuardSettings(reports=reports, least=min(8, reports))
    )
    fleet = GuardedFleet(scenario, settings, Evaluator(scenario, taste=settings.taste), lambda _: None)
    rng = np.random.default_rng([seed, 12])
    poisoned = None if poison is None else int(rng.integers(versions // 2, versions))
    fleet.begin(poisoned, poison or "", versions if poisoned is None else poisoned + 2, rng)
    return fleet.trial()


def seem_bad(differences: Sequence[Sequence[float]], times: int, rng: np.random.Generator) -> int:
    """Count the versions that would be found bad if signs were drawn, `times` for each version."""
    settings = GuardSettings()
    found = 0
    for each in differences:
        cut = np.clip(np.asarray(each), -0.5, 0.5)
        for signs in rng.choice((-1.0, 1.0), (times, len(cut))):
            line = (cut * signs).tolist()
            found += any(_seems_worse(line[:n], settings) for n in range(settings.least, len(line) + 1))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs; give 0 if all pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--data", default="synthetic", help="as of edge-fleet simulate")
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--buffer", type=int, default=32)
    parser.add_argument("--reports", type=int, default=24)
    parser.add_argument("--delay", action="store_true")
    parser.add_argument("--liars", action="store_true")
    options = parser.parse_args(arguments)
    if options.liars:
        for liars in range(9):
            good, bad = share_found_bad(0.0, 0.06, liars, -1.0), share_found_bad(-0.33, 0.4, liars, 1.0)
            print(f"{liars} of 24 lie: good versions found bad {good:.3f}, bad ones {bad:.3f}")  # noqa: T201
        return 0
    scenario = load_scenario(options.data, "clean", 0)
    if options.delay:
        for guard in (GuardSettings(reports=0), GuardSettings()):
            seconds = seconds_taken(scenario, guard)
            print(f"{guard.reports} reports: {seconds:.0f} virtual seconds", flush=True)  # noqa: T201
        return 0
    passed = True
    clean: list[list[float]] = []
    kinds = [*POISONS, UPDATES]
    for number in range(2 * options.runs):
        poison = kinds[number // 2 % len(kinds)] if number % 2 else None
        trial = run(
            scenario,
            number // 2,
            poison,
            buffer=options.buffer,
            reports=options.reports,
            versions=options.versions,
        )
        passed &= trial.passed
        if poison is None:
            clean += trial.differences
        print(  # noqa: T201 - the proof's report
            f"run {number // 2:>2} {poison or 'clean':<18} {'passed' if trial.passed else 'FAILED'}: "
            f"{trial.versions} versions, poisoned {trial.poisoned}, bad {trial.bad}, "
            f"{trial.reports[-1] if trial.reports else 0} reports, {trial.unjudged} unjudged",
            flush=True,
        )
    deviations = [float(np.std(each)) for each in clean if len(each) >= GuardSettings().least]
    print(  # noqa: T201 - the proof's report
        f"clean versions: {len(clean)}, deviation of their differences {np.median(deviations):.3f} (median), "
        f"{np.max(deviations):.3f} (most); with signs drawn {DRAWS} times, "
        f"{seem_bad(clean, DRAWS, np.random.default_rng(0))} of {DRAWS * len(clean)} seem bad"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
