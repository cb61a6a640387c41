"""The fleet on a virtual clock: asynchronous rounds, and that a seed decides everything."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.aggregator.core import AggregatorCore
from broker.aggregator.decisions import CloseRound, Command, ReplyReceipt
from broker.protocol.messages import Update, encode
from edge.fleet import virtual
from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator, Snapshot
from edge.fleet.outcome import RoundQuality
from edge.fleet.scenario import Scenario
from edge.fleet.virtual import Simulation, SimulationSettings
from tests.fleet.builders import DIM, a_scenario
from trainer.errors import ParameterError
from trainer.evaluation import popularity_metrics
from trainer.metrics import metrics_from_ranks
from trainer.params import Floats, ScoreFunction, paper_hyperparameters

if TYPE_CHECKING:
    from edge.fleet.runfolder import RoundReport

ROUNDS = 4


class History(Evaluator):
    """An evaluator that keeps every round."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.rounds: list[Snapshot] = []

    def evaluate(
        self, number: int, version: int, table: Floats, devices: Sequence[VirtualDevice], start: ScoreFunction
    ) -> RoundQuality:
        """Keep the round, too."""
        one = Evaluator(self._scenario)
        one.evaluate(number, version, table, devices, start)
        self.rounds.append(one.best)
        return super().evaluate(number, version, table, devices, start)


class Outcome:
    """A simulation that was run."""

    def __init__(self, scenario: Scenario, **settings: Any) -> None:
        self.scenario = scenario
        self.history = History(scenario)
        self.reports: list[RoundReport] = []
        usual: dict[str, Any] = {"dim": DIM, "rounds": ROUNDS, "seed": 2, "buffer": 4}
        given = SimulationSettings(
            hyperparameters=paper_hyperparameters(scenario.data.n_items), **(usual | settings)
        )
        Simulation(scenario, given, self.history, self.reports.append).run()

    @property
    def table(self) -> Floats:
        """The last round's."""
        return self.history.rounds[-1].table


class Books:
    """What the aggregator's core has decided."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.verdicts: Counter[str] = Counter()
        self.staleness: list[int] = []
        self.closed: list[int] = []


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    """Keep books of every simulation's core."""
    kept = Books()

    class Recorded(AggregatorCore):
        def update_received(self, device: str, update: Update, payload: bytes, now: float) -> list[Command]:
            commands = super().update_received(device, update, payload, now)
            kept.updates.append(update)
            for command in commands:
                if isinstance(command, ReplyReceipt):
                    kept.verdicts[command.receipt.verdict] += 1
                    if command.receipt.verdict == "accepted":
                        kept.staleness.append(command.receipt.staleness)
                elif isinstance(command, CloseRound):
                    kept.closed.append(command.round.updates)
            return commands

    monkeypatch.setattr(virtual, "AggregatorCore", Recorded)
    return kept


def same(one: Outcome, other: Outcome) -> bool:
    """Tell whether two runs came to the same, to the last bit."""
    return all(
        np.array_equal(a.table, b.table) and np.array_equal(a.W, b.W) and np.array_equal(a.b, b.b)
        for a, b in zip(one.history.rounds, other.history.rounds, strict=True)
    )


def test_bytes_up_are_those_of_the_encoded_updates(books: Books) -> None:
    """As they would travel."""
    outcome = Outcome(a_scenario())

    assert sum(r.traffic.bytes_up for r in outcome.reports) == sum(len(encode(u)) for u in books.updates)


def test_bytes_down_are_those_of_a_table_for_each_download() -> None:
    """And a head and a receipt, which are small."""
    scenario = a_scenario()
    outcome = Outcome(scenario)

    table_bytes = 4 * scenario.data.n_items * DIM
    for report in outcome.reports:
        per_download = report.traffic.bytes_down / report.traffic.device_rounds
        assert table_bytes < per_download < table_bytes + 2000


def test_watch_covers_the_parts_of_a_round() -> None:
    """None is negative, and together they are not more than the whole."""
    for report in Outcome(a_scenario()).reports:
        parts = (report.watch.train, report.watch.aggregate, report.watch.evaluate)
        assert min(parts) > 0.0
        assert sum(parts) <= report.watch.total


def test_buffered_rounds_take_a_full_buffer_each(books: Books) -> None:
    """So there are as many versions as the counted updates fill buffers."""
    scenario = a_scenario(n_users=40)

    outcome = Outcome(scenario, buffer=8)

    assert set(books.closed) == {8}
    assert outcome.reports[-1].version == len(books.closed) == books.verdicts["accepted"] // 8
    assert [report.version * 8 for report in outcome.reports] == [40 * n for n in range(1, ROUNDS + 1)]


def test_buffered_round_of_the_results_is_as_many_updates_as_devices(books: Books) -> None:
    """Also where the buffer does not divide their number: rounded up to a version, without drift."""
    scenario = a_scenario(n_users=40)

    outcome = Outcome(scenario, buffer=7, rounds=7)

    assert [report.version for report in outcome.reports] == [-(-40 * n // 7) for n in range(1, 8)]


def test_buffered_updates_all_have_one_verdict(books: Books) -> None:
    """Those made are those counted and those stale; the run ends as a round closes, so none is open."""
    scenario = a_scenario(n_users=40)

    outcome = Outcome(scenario, buffer=4, max_staleness=1)

    made = sum(report.traffic.updates for report in outcome.reports)
    assert made == books.verdicts.total() == books.verdicts["accepted"] + books.verdicts["stale"]
    assert books.verdicts["accepted"] == sum(books.closed)
    assert books.verdicts["stale"] > 0


@pytest.mark.parametrize("max_staleness", [0, 1, 10])
def test_buffered_counts_no_update_beyond_the_maximum_staleness(books: Books, max_staleness: int) -> None:
    """And those below it are as stale as the reports say."""
    scenario = a_scenario(n_users=40)

    outcome = Outcome(scenario, buffer=4, max_staleness=max_staleness)

    assert max(books.staleness) <= max_staleness
    mean = np.mean([report.staleness_mean for report in outcome.reports])
    assert mean == pytest.approx(np.mean(books.staleness))
    if max_staleness == 10:
        assert mean > 0.0


def test_buffered_devices_send_each_number_once(books: Books) -> None:
    """Numbers grow by one, and a device contributes at most once to a version."""
    Outcome(a_scenario(n_users=40), buffer=8)

    by_device: dict[int, list[Update]] = {}
    for update in books.updates:
        by_device.setdefault(update.incarnation, []).append(update)
    for updates in by_device.values():
        assert [update.seq for update in updates] == list(range(1, len(updates) + 1))
        versions = [update.base_version for update in updates]
        assert versions == sorted(set(versions))


@pytest.mark.parametrize("buffer", [41, 1000])
def test_buffer_that_never_fills_is_refused(buffer: int) -> None:
    """Each device contributes once to a version, so more than all of them never come."""
    with pytest.raises(ParameterError, match=f"buffer is {buffer}; it must be at most 40"):
        Outcome(a_scenario(n_users=40), buffer=buffer)


def test_buffer_of_all_devices_is_allowed() -> None:
    """It waits for everybody."""
    outcome = Outcome(a_scenario(n_users=40), buffer=40, rounds=2)

    assert [report.version for report in outcome.reports] == [1, 2]


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_seed_decides_everything(encoding: str) -> None:
    """The same one gives the same tables to the last bit, another one others."""
    scenario = a_scenario()
    settings = {"encoding": encoding}

    assert same(Outcome(scenario, **settings), Outcome(scenario, **settings))
    assert not same(Outcome(scenario, **settings), Outcome(scenario, **settings, seed=3))


def test_int8_comes_to_nearly_the_table_of_float32() -> None:
    """The first round differs by the rounding alone: half a level of 127 of each row's largest change."""
    scenario = a_scenario(n_users=40)
    exact, rounded = (Outcome(scenario, encoding=each, buffer=40) for each in ("float32", "int8"))
    first, other = exact.history.rounds[0], rounded.history.rounds[0]
    changes = np.zeros(len(first.table))
    for result in first.results:
        assert result is not None
        changes[result.rows] += np.abs(result.change).max(axis=1) / (2 * 127)

    error = np.abs(first.table - other.table).max(axis=1)

    assert np.array_equal(first.W, other.W)
    assert (error <= 1.001 * changes / 40 + 1e-5).all()
    assert 0.0 < np.linalg.norm(rounded.table - exact.table) < 0.05 * np.linalg.norm(exact.table)


def test_int8_updates_are_a_fraction_of_the_size() -> None:
    """At the width of the paper less than a third."""
    scenario = a_scenario()
    exact, rounded = (Outcome(scenario, encoding=e, dim=32, rounds=1) for e in ("float32", "int8"))

    assert 3 * rounded.reports[0].traffic.bytes_up < exact.reports[0].traffic.bytes_up


def test_it_learns_what_popularity_does_not_know() -> None:
    """On data with a structure the shared table ranks far better, without help from held-out items."""
    scenario = a_scenario(n_users=None, seed=0)

    outcome = Outcome(scenario, encoding="int8", dim=32, rounds=40, buffer=32)

    popularity = popularity_metrics(scenario.split, scenario.test)
    shared = metrics_from_ranks(outcome.history.outcome().ranks["shared"].sampled)
    assert shared.hr > 1.6 * popularity.hr
    assert shared.ndcg > 1.6 * popularity.ndcg


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_staleness": 100_001}, "max_staleness is 100001"),
        ({"buffer": 0}, "buffer is 0"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_setting_out_of_range_is_refused(settings: dict[str, Any], words: str) -> None:
    """Before anything is trained."""
    with pytest.raises(ParameterError, match=words):
        Outcome(a_scenario(), **settings)
