"""A simulation from beginning to end: data, settings, the engine that the mode asks for, and the folder."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from broker.presets import Preset, load_preset
from edge.fleet.baselinecommand import BaselineFit
from edge.fleet.byzantine import Attack
from edge.fleet.evaluator import Evaluator
from edge.fleet.lockstep import Lockstep, LockstepSettings
from edge.fleet.outcome import Outcome
from edge.fleet.progress import Progress
from edge.fleet.runfolder import OnRound, RoundReport, RunFolder
from edge.fleet.scenario import Scenario, load_scenario
from edge.fleet.virtual import Simulation, SimulationSettings
from trainer.aggregation import ROBUST, AggregationSettings
from trainer.algorithms import ALGORITHMS
from trainer.baselines import BASELINES
from trainer.errors import ParameterError
from trainer.params import Hyperparameters
from trainer.sampling import Protocol as EvaluationProtocol
from trainer.taste import TasteSettings

Mode = Literal["sync", "buffered"]
BUFFERED_ALGORITHMS = ("pfedrec",)
"""What real devices run, and so the only ones whose sessions can be simulated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateOptions:
    """What ``edge-fleet simulate`` was asked for.

    Attributes
    ----------
    overrides : mapping
        Entries of the preset that were given otherwise.
    item_lr : float or None
        In place of the preset's.
    server : mapping
        Entries of `trainer.aggregation.AggregationSettings`; `robust` adds those of its preset.
    byzantine, attack, strength, speeds
        See `edge.fleet.virtual.SimulationSettings`.
    """

    data: str
    algorithm: str = "pfedrec"
    preset: str = "device"
    protocol: EvaluationProtocol = "clean"
    mode: Mode = "sync"
    buffer: int = 32
    max_staleness: int = 10
    encoding: str = "float32"
    seed: int = 0
    workers: int = 1
    item_lr: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    robust: bool = False
    byzantine: float = 0.0
    attack: Attack = "sign-flip"
    strength: float = 1.0
    speeds: float = 0.0

    @property
    def clocked(self) -> bool:
        """Whether devices have sessions and a clock; otherwise all users are simply in step."""
        return self.mode == "buffered" or bool(self.server or self.robust or self.byzantine or self.speeds)

    @property
    def aggregation(self) -> AggregationSettings:
        """How updates are combined."""
        settings: dict[str, Any] = {"strategy": "fedbuff" if self.mode == "buffered" else "fedavg"}
        settings |= (dict(ROBUST) if self.robust else {}) | dict(self.server)
        try:
            return AggregationSettings(**settings)
        except TypeError as error:
            names = ", ".join(each.name for each in fields(AggregationSettings))
            raise ParameterError(f"--server takes {names} as KEY=VALUE, with a number or a name") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """What a simulation leaves beside its folder."""

    scenario: Scenario
    summary: dict[str, Any]


def run_simulation(
    options: SimulateOptions,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    save_users: bool = False,
    scenario: Scenario | None = None,
    progress: Callable[[int, str], Progress] = Progress,
) -> Simulated:
    """Simulate a fleet, and write its folder.

    Parameters
    ----------
    resume : bool
        Go on from where an earlier call with the same settings was stopped.
    scenario : Scenario, optional
        The data of `options`, where the caller has it already.

    Raises
    ------
    ParameterError
        When options contradict each other.
    AlreadyInitialisedError
        When the folder holds a run, and neither `overwrite` nor `resume` is given.
    """
    preset = load_preset(options.preset, options.algorithm, options.overrides)
    _require_consistent(options, preset, resume=resume)
    scenario = scenario or load_scenario(options.data, options.protocol, options.seed)
    hyperparameters = preset.hyperparameters(scenario.data.n_items)
    if options.item_lr is not None:
        hyperparameters = replace(hyperparameters, item_lr=options.item_lr)
    taste = preset.taste(timed=scenario.data.timed)
    if taste.strength and options.algorithm not in ("pfedrec", *BASELINES):
        raise ParameterError(
            f"a view by taste (taste_strength {taste.strength:g}) is for pfedrec; give --preset paper, "
            "or --set taste_strength=0"
        )
    facts = {
        "algorithm": options.algorithm,
        "mode": "central" if options.algorithm in BASELINES else options.mode,
        "encoding": options.encoding,
        "seed": options.seed,
        "hyperparameters": asdict(hyperparameters),
        "taste": asdict(taste),
    }
    config = {
        "command": "simulate",
        "data": options.data,
        "data_sha256": scenario.sha256,
        "protocol": scenario.protocol,
        "hold_out": scenario.data.hold_out,
        "preset": options.preset,
        "buffer": options.buffer if options.mode == "buffered" else None,
        "max_staleness": options.max_staleness if options.mode == "buffered" else None,
        "aggregation": asdict(options.aggregation) if options.clocked else None,
        **{name: getattr(options, name) for name in ("byzantine", "attack", "strength", "speeds")},
        **{name: getattr(preset, name) for name in ("rounds", "dim", "scale", "noise", "select_by")},
    }
    # How many candidates a baseline has is not known before.
    bar = None if options.algorithm in BASELINES else progress(preset.rounds, "rounds")

    def on_round(report: RoundReport) -> None:
        folder.add_round(report)
        if bar is not None:
            bar.update(report.number, f"HR@10 {report.quality.test.hr:.3f}")

    # An engine checks its settings when it is made: before anything is written.
    engine = _engine(options, preset, hyperparameters, taste, scenario, on_round, out)
    with closing(RunFolder(out, config | facts, overwrite=overwrite, resume=resume)) as folder:
        if resume:
            folder.resume_at(engine.resume())
        outcome = engine.run(users=save_users)
        if bar is not None:
            bar.close()
        summary = folder.finish(scenario, outcome, facts, save_users=save_users)
    return Simulated(scenario=scenario, summary=summary)


class Engine(Protocol):
    """Trains what an outcome is about."""

    def resume(self) -> int:
        """Go on from where an earlier run was stopped; give how many rounds that saves."""
        ...

    def run(self, *, users: bool) -> Outcome:
        """Train; `users` tells whether the users' own state is wanted."""
        ...


def _engine(
    options: SimulateOptions,
    preset: Preset,
    hyperparameters: Hyperparameters,
    taste: TasteSettings,
    scenario: Scenario,
    on_round: OnRound,
    out: Path,
) -> Engine:
    if options.algorithm in BASELINES:
        return BaselineFit(BASELINES[options.algorithm], scenario, preset.dim, options.seed, on_round)
    if not options.clocked:
        in_step = LockstepSettings(
            algorithm=ALGORITHMS[options.algorithm],
            hyperparameters=hyperparameters,
            taste=taste,
            encoding=options.encoding,
            rounds=preset.rounds,
            dim=preset.dim,
            scale=preset.scale,
            select_by=preset.select_by,
            noise=preset.noise,
            seed=options.seed,
            workers=options.workers,
        )
        return Lockstep(scenario, in_step, on_round, folder=out)
    buffered = SimulationSettings(
        hyperparameters=hyperparameters,
        taste=taste,
        # In step, everybody is waited for.
        buffer=options.buffer if options.mode == "buffered" else scenario.n_users,
        max_staleness=options.max_staleness,
        aggregation=options.aggregation,
        byzantine=options.byzantine,
        attack=options.attack,
        strength=options.strength,
        speeds=options.speeds,
        encoding=options.encoding,
        rounds=preset.rounds,
        dim=preset.dim,
        scale=preset.scale,
        seed=options.seed,
    )
    evaluator = Evaluator(scenario, taste=taste, select_by=preset.select_by)
    return Simulation(scenario, buffered, evaluator, on_round)


def _require_consistent(options: SimulateOptions, preset: Preset, *, resume: bool) -> None:
    if options.algorithm in BASELINES and (options.clocked or options.encoding != "float32"):
        raise ParameterError(f"{options.algorithm} has no fleet; it takes neither --mode nor --encoding")
    if not options.clocked:
        return
    if resume:
        raise ParameterError("--resume is for rounds in step; --mode buffered starts anew with --overwrite")
    if options.algorithm not in BUFFERED_ALGORITHMS:
        raise ParameterError(
            f"{options.algorithm} is no algorithm of devices; --mode buffered simulates them with "
            f"{', '.join(BUFFERED_ALGORITHMS)}"
        )
    if preset.noise:
        raise ParameterError(
            "noise is added where users are in step; --mode buffered sends what devices send"
        )
    if options.workers > 1:
        raise ParameterError("--workers shares out rounds in step; --mode buffered runs in one process")
