"""The paper's experiment: all users in step, a round is one pass of everybody and then one average.

Nothing can be late, lost or doubled here, so there is nothing that sessions and the aggregator's core would
have to decide; `edge.fleet.virtual` and `edge.fleet.live` are for that. A test holds that the three learn
the same.
"""

import hashlib
import io
import time
import zipfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CoreState, RoundSettings
from broker.aggregator.publication import Publication
from broker.errors import CorruptError
from broker.presets import SelectBy
from broker.protocol.messages import encode
from broker.storage import read_file, write_atomically
from edge.fleet.cohort import Cohort, CohortPass, CohortSettings, FleetArrays, cut_into_cohorts
from edge.fleet.outcome import FleetModel, Outcome, RoundQuality
from edge.fleet.runfolder import CHECKPOINT, OnRound, RoundReport, Stopwatch, Traffic
from edge.fleet.scenario import Scenario
from edge.fleet.virtual import make_plan
from edge.fleet.workers import Workers
from trainer.aggregation import Accumulator, FedAvg
from trainer.algorithms import Algorithm, Shared
from trainer.evaluation import Ranks
from trainer.metrics import metrics_from_ranks
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction
from trainer.taste import TasteSettings

_CHECKPOINT_EVERY_S = 2.0
_Array = TypeVar("_Array", bound=NDArray[Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class LockstepSettings:
    """How a fleet trains in step; see ``edge-fleet simulate --help``."""

    algorithm: Algorithm
    hyperparameters: Hyperparameters
    taste: TasteSettings = field(default_factory=TasteSettings)
    encoding: str = "float32"
    rounds: int = 100
    dim: int = 32
    scale: float = 1.0
    select_by: SelectBy = "hr"
    noise: float = 0.0
    seed: int = 0
    workers: int = 1


class Lockstep:
    """One run.

    Parameters
    ----------
    on_round : callable
        Told of every round.
    folder : path, optional
        Where the state is kept from time to time, so that a later run can go on from it.

    Raises
    ------
    ParameterError
        When a setting is out of its range; from `run`, when the training diverges.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: LockstepSettings,
        on_round: OnRound,
        *,
        folder: Path | None = None,
    ) -> None:
        self._settings = settings
        self._on_round = on_round
        self._checkpoint = None if folder is None else folder / CHECKPOINT
        self._identity = _identity(scenario, settings)
        self._n_users = scenario.n_users
        rng = np.random.default_rng([settings.seed, 0])
        shared = settings.algorithm.start(scenario.data.n_items, settings.dim, settings.scale, rng)
        W, b = settings.algorithm.start_users(scenario.n_users, settings.dim, rng)
        cuts = cut_into_cohorts(np.array([train.size for train in scenario.split.train]))
        self._arrays = FleetArrays(shared, W, b, len(cuts))
        cohort_settings = CohortSettings(
            algorithm=settings.algorithm,
            hyperparameters=settings.hyperparameters,
            taste=settings.taste,
            encoding=settings.encoding,
            noise=settings.noise,
            seed=settings.seed,
        )
        # Where the cohorts' users, one cohort after the other, belong.
        self._users = np.concatenate(cuts)
        arrays = self._arrays
        self._download_bytes = _download_bytes(
            scenario, settings, shared, ScoreFunction(w=W[0], b=float(b[0]))
        )

        def make_cohort(number: int) -> Cohort:
            return Cohort(number, cuts[number], scenario, cohort_settings, arrays)

        self._make_workers = partial(Workers, make_cohort, len(cuts), settings.workers)
        self._done = 0
        self._best = _Best.nothing()
        self._saved_at = time.monotonic()

    def run(self, *, users: bool = True) -> Outcome:
        """Train all rounds that are left, and give the best one.

        Parameters
        ----------
        users : bool
            Whether the users' own rows, or shifts, are wanted.
        """
        # Only now, as processes that are made see the arrays as they are, those of a checkpoint included.
        workers = self._make_workers()
        try:
            while self._done < self._settings.rounds:
                self._round(self._done + 1, workers)
            return self._outcome(workers, users=users)
        finally:
            workers.close()

    @property
    def done(self) -> int:
        """How many rounds have been made, those before a `resume` included."""
        return self._done

    def _round(self, number: int, workers: Workers) -> None:
        arrays, watch, began = self._arrays, Stopwatch(), time.perf_counter()
        before = _State.of(arrays, number)
        passes: list[CohortPass] = workers.all("train", number)
        trained = time.perf_counter()
        self._aggregate(number)
        aggregated = time.perf_counter()
        workers.all("evaluate", number)
        quality = RoundQuality(
            val=metrics_from_ranks(arrays.val_ranks), test=metrics_from_ranks(arrays.test_ranks)
        )
        self._done = number
        figure = quality.val.hr if self._settings.select_by == "hr" else quality.val.ndcg
        if figure >= self._best.figure:
            after = _State.of(arrays, number + 1)
            self._best = _Best(round=number, figure=figure, before=before, after=after)
        ended = time.perf_counter()
        watch.train, watch.aggregate = trained - began, aggregated - trained
        watch.evaluate, watch.total = ended - aggregated, ended - began
        traffic = Traffic(
            bytes_up=sum(p.bytes_up for p in passes),
            updates=sum(p.updates for p in passes),
            bytes_down=self._download_bytes * self._n_users,
            device_rounds=self._n_users,
        )
        self._on_round(
            RoundReport(
                number=number,
                version=number,
                quality=quality,
                watch=watch,
                traffic=traffic,
                staleness_mean=0.0,
            )
        )
        if time.monotonic() >= self._saved_at + _CHECKPOINT_EVERY_S:
            self._save()

    def _aggregate(self, number: int) -> None:
        arrays = self._arrays
        before, after = arrays.shared_at(number), arrays.shared_at(number + 1)
        total = Accumulator.into(after.table)
        for cohorts_sum in arrays.sums:
            total.merge(cohorts_sum, 0.0, 0)
        change = FedAvg().change(total, self._n_users)
        np.add(before.table, change, out=after.table)
        network = arrays.network_sums.sum(axis=0) / np.float32(self._n_users)
        np.add(before.network, network, out=after.network)

    def _outcome(self, workers: Workers, *, users: bool) -> Outcome:
        best, arrays, number = self._best, self._arrays, self._best.round
        # The users' own views are made again: cheaper than keeping those of every best round so far.
        best.before.put(arrays, number)
        passes: list[CohortPass] = workers.all("train", number, attack=True)
        arrays.tables[(number + 1) % 2], arrays.networks[(number + 1) % 2] = (
            best.after.table,
            best.after.network,
        )
        parts: list[dict[str, Ranks]] = workers.all("final_ranks", number)
        ranks = {
            view: Ranks(
                sampled=self._by_user([part[view].sampled for part in parts]),
                full=self._by_user([part[view].full for part in parts]),
            )
            for view in ("own", "shared")
        }
        own: list[tuple[Rows, Floats]] = []
        shift = None
        if users and self._settings.taste.strength:
            shift = self._by_user(workers.all("shift", number))
        elif users:
            rows = [rows for part in workers.all("own_rows") for rows in part]
            own = [rows[line] for line in np.argsort(self._users)]
        return Outcome(
            round=number,
            version=number,
            model=FleetModel(
                shared=Shared(table=best.after.table, network=best.after.network),
                W=arrays.W.copy(),
                b=arrays.b.copy(),
                own=own,
                shift=shift,
            ),
            ranks=ranks,
            recovered_f1=float(np.mean([f1 for each in passes for f1 in each.recovered_f1])),
            workers_rss_mb=workers.peak_rss_mb(),
        )

    def _by_user(self, parts: list[_Array]) -> _Array:
        """Put what the cohorts gave for each of their users in the users' order."""
        together = np.concatenate(parts)
        ordered: _Array = np.empty_like(together)
        ordered[self._users] = together
        return ordered

    # -- going on after an end in mid-run -----------------------------------------------------------

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        buffer = io.BytesIO()
        now, best = _State.of(self._arrays, self._done + 1), self._best
        np.savez(
            buffer,
            identity=self._identity,
            done=self._done,
            best_round=best.round,
            best_figure=best.figure,
            **now.arrays("now"),
            **best.before.arrays("before"),
            **best.after.arrays("after"),
        )
        write_atomically(self._checkpoint, buffer.getvalue())
        self._saved_at = time.monotonic()

    def resume(self) -> int:
        """Go on from the folder's checkpoint; give how many rounds that saves.

        Raises
        ------
        CorruptError
            When the checkpoint is damaged or another run's.
        """
        path = self._checkpoint
        if path is None or not path.exists():
            return 0
        try:
            with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as content:
                self._require_ours(content)
                done, now = int(content["done"]), _State.read(content, "now")
                self._best = _Best(
                    round=int(content["best_round"]),
                    figure=float(content["best_figure"]),
                    before=_State.read(content, "before"),
                    after=_State.read(content, "after"),
                )
                now.put(self._arrays, done + 1)
        # What numpy and zipfile say of damaged bytes; a RuntimeError is about an archive's flags.
        except (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise CorruptError(
                f"{path} is no checkpoint of this run ({error}); start anew with --overwrite"
            ) from error
        self._done = done
        return done

    def _require_ours(self, content: Any) -> None:
        if str(content["identity"]) != self._identity:
            raise ValueError("it is another run's")


def _identity(scenario: Scenario, settings: LockstepSettings) -> str:
    """Give a digest of everything that a run's state depends on; the number of workers is not."""
    facts = (
        replace(settings, workers=1),
        *(scenario.name, scenario.sha256, scenario.protocol),
        *(scenario.n_users, scenario.data.n_items, scenario.data.items.size),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _download_bytes(
    scenario: Scenario, settings: LockstepSettings, shared: Shared, start: ScoreFunction
) -> int:
    """Give what a device fetches in a round: head, table, and the network if there is one."""
    plan = make_plan(settings.hyperparameters, settings.taste, encoding=settings.encoding, check_in_s=0.0)
    state = CoreState(instance=settings.seed, version=1, table=shared.table)
    core = AggregatorCore(RoundSettings(), FedAvg(), state)
    head, chunks = Publication(scenario.data.item_keys, plan, start).of(core, session=1)
    return len(encode(head)) + sum(len(encode(chunk)) for chunk in chunks) + shared.network.nbytes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _State:
    """Copies of what a round starts from."""

    table: Any
    network: Any
    W: Any
    b: Any

    @classmethod
    def of(cls, arrays: FleetArrays, number: int) -> "_State":
        shared = arrays.shared_at(number)
        return cls(
            table=shared.table.copy(), network=shared.network.copy(), W=arrays.W.copy(), b=arrays.b.copy()
        )

    def put(self, arrays: FleetArrays, number: int) -> None:
        slot = number % 2
        arrays.tables[slot], arrays.networks[slot] = self.table, self.network
        arrays.W[:], arrays.b[:] = self.W, self.b

    def arrays(self, prefix: str) -> dict[str, Any]:
        return {f"{prefix}_{name}": getattr(self, name) for name in ("table", "network", "W", "b")}

    @classmethod
    def read(cls, content: Any, prefix: str) -> "_State":
        return cls(**{name: content[f"{prefix}_{name}"] for name in ("table", "network", "W", "b")})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Best:
    """The best round so far: what it started from and what it ended with."""

    round: int
    figure: float
    before: _State
    after: _State

    @classmethod
    def nothing(cls) -> "_Best":
        empty = np.empty(0, dtype=np.float32)
        state = _State(table=empty, network=empty, W=empty, b=empty)
        return cls(round=0, figure=-1.0, before=state, after=state)
