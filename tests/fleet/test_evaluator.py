"""How good a round is, which one is the best, and that its figures are those of a plain computation."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.fleet.device import VirtualDevice
from edge.fleet.evaluator import Evaluator, Snapshot
from edge.fleet.scenario import Scenario
from edge.scheduler import Progress
from edge.session import Train
from tests.fleet.builders import a_head, a_scenario, a_table
from trainer.metrics import RankingMetrics, metrics_from_ranks
from trainer.params import Floats, ScoreFunction
from trainer.taste import TasteSettings, with_taste

Scores = NDArray[np.float64]
Ranks = Callable[[int, Scores], int]


def a_fleet(scenario: Scenario, table: Floats, trained: int) -> list[VirtualDevice]:
    """Give a device for each user; the first `trained` of them have made a pass."""
    devices = [VirtualDevice(scenario, user, 1) for user in range(scenario.n_users)]
    for device in devices[:trained]:
        device.hold(a_head(table), table)
        device.train(Train(1, Progress()))
    return devices


def a_start(table: Floats) -> ScoreFunction:
    """Give what devices have that have not trained."""
    head = a_head(table)
    return ScoreFunction(w=head.w, b=head.b)


def plainly(snapshot: Snapshot, rank_of: Ranks, *, own: bool) -> tuple[float, float]:
    """Compute HR@10 and NDCG@10 user by user in float64."""
    ranks = []
    for user, result in enumerate(snapshot.results):
        table = snapshot.table.astype(np.float64)
        if own and result is not None:
            table[result.rows] = result.values
        scores = table @ snapshot.W[user].astype(np.float64) + float(snapshot.b[user])
        ranks.append(rank_of(user, scores))
    gains = [1 / np.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks]
    return float(np.mean([rank < 10 for rank in ranks])), float(np.mean(gains))


def among_candidates(scenario: Scenario) -> Ranks:
    """Give the rank of the positive among its 99 negatives; a tie is lost."""
    return lambda user, scores: int((scores[scenario.test[user, 1:]] >= scores[scenario.test[user, 0]]).sum())


def in_the_catalogue(scenario: Scenario) -> Ranks:
    """Give the rank of the positive among all items but the training ones; a tie is lost."""

    def rank(user: int, scores: Scores) -> int:
        test = scenario.split.test[user]
        left_out = {*scenario.split.train[user].tolist(), test}
        return sum(
            scores[item] >= scores[test] for item in range(scenario.data.n_items) if item not in left_out
        )

    return rank


def figures(metrics: RankingMetrics) -> tuple[float, float]:
    """Give HR and NDCG."""
    return metrics.hr, metrics.ndcg


# -- one round -------------------------------------------------------------------------------------


def test_quality_of_a_round_is_that_of_the_own_views() -> None:
    """Users who have not trained count with what every device starts from."""
    scenario = a_scenario(n_users=40)
    table = a_table(scenario)
    evaluator = Evaluator(scenario)

    quality = evaluator.evaluate(1, 1, table, a_fleet(scenario, table, trained=25), a_start(table))

    expected = plainly(evaluator.best, among_candidates(scenario), own=True)
    assert figures(quality.test) == pytest.approx(expected, abs=1e-9)


def test_snapshot_is_the_rounds_state() -> None:
    """Numbers, table and every user's own."""
    scenario = a_scenario()
    table = a_table(scenario)
    devices = a_fleet(scenario, table, trained=3)
    evaluator = Evaluator(scenario)

    evaluator.evaluate(4, 17, table, devices, a_start(table))

    best = evaluator.best
    assert (best.round, best.version) == (4, 17)
    assert best.table is table
    assert best.results == [device.result for device in devices]
    assert best.W.dtype == best.b.dtype == np.float32
    assert np.array_equal(best.W[-1], a_start(table).w)
    trained = devices[0].result
    assert trained is not None
    assert np.array_equal(best.W[0], trained.score_function.w)
    assert best.b[0] == np.float32(trained.score_function.b)


# -- the best of them ------------------------------------------------------------------------------


def test_before_any_round_there_is_no_best() -> None:
    """It is a mistake of whoever asks."""
    with pytest.raises(RuntimeError, match="no round was evaluated"):
        _ = Evaluator(a_scenario()).best


def test_best_round_is_that_of_the_best_validation() -> None:
    """Whatever the test figures say; of equal ones the later."""
    scenario = a_scenario(n_users=40)
    devices = a_fleet(scenario, a_table(scenario), trained=0)
    evaluator = Evaluator(scenario)
    best_hr, best_round, tests = -1.0, 0, []
    for number in range(1, 25):
        table = a_table(scenario, seed=number)

        quality = evaluator.evaluate(number, number, table, devices, a_start(table))

        tests.append(quality.test.hr)
        if quality.val.hr >= best_hr:
            best_hr, best_round = quality.val.hr, number
        assert evaluator.best.round == best_round
    assert tests[best_round - 1] < max(tests), "the case is no case: validation and test agree"


def test_of_equal_rounds_the_later_is_the_best() -> None:
    """As in the paper."""
    scenario = a_scenario()
    table = a_table(scenario)
    evaluator = Evaluator(scenario)
    for number in (1, 2, 3):
        evaluator.evaluate(number, 10 * number, table, a_fleet(scenario, table, trained=0), a_start(table))

    assert (evaluator.best.round, evaluator.best.version) == (3, 30)


# -- the figures at the end ------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [0, 30, 40])
def test_final_figures_are_those_of_a_plain_computation(trained: int) -> None:
    """Both views and both rankings, in float64 from the arrays of the best round."""
    scenario = a_scenario(n_users=40)
    table = a_table(scenario)
    evaluator = Evaluator(scenario)
    evaluator.evaluate(1, 1, table, a_fleet(scenario, table, trained=trained), a_start(table))

    outcome = evaluator.outcome()

    assert set(outcome.ranks) == {"own", "shared"}
    for name, ranks in outcome.ranks.items():
        own = name == "own"
        sampled = plainly(evaluator.best, among_candidates(scenario), own=own)
        full = plainly(evaluator.best, in_the_catalogue(scenario), own=own)
        assert figures(metrics_from_ranks(ranks.sampled)) == pytest.approx(sampled, abs=1e-12)
        assert figures(metrics_from_ranks(ranks.full)) == pytest.approx(full, abs=1e-12)


@pytest.mark.parametrize("recency", [0.0, 2.0])
def test_own_view_by_taste_is_the_shared_one_with_its_shift(recency: float) -> None:
    """The folder's shift is what the ranks are made of, and what the user's device would score."""
    scenario = a_scenario(n_users=40)
    table = a_table(scenario)
    taste = TasteSettings(recency=recency, strength=0.7)
    evaluator = Evaluator(scenario, taste=taste)
    quality = evaluator.evaluate(1, 1, table, a_fleet(scenario, table, trained=30), a_start(table))

    outcome = evaluator.outcome()

    assert outcome.model is not None
    assert outcome.model.shift is not None
    assert list(outcome.model.own) == []
    for user in (0, 7, 39):
        own = ScoreFunction(w=outcome.model.W[user], b=float(outcome.model.b[user]))
        on_device = with_taste(own, table, scenario.split.train[user], taste)
        expected = table @ (on_device.w - own.w)
        np.testing.assert_allclose(outcome.model.shift[user], expected, atol=1e-4)
        scores = table.astype(np.float64) @ own.w + own.b + outcome.model.shift[user]
        assert outcome.ranks["own"].sampled[user] == among_candidates(scenario)(user, scores)
        assert outcome.ranks["own"].full[user] == in_the_catalogue(scenario)(user, scores)
    assert figures(metrics_from_ranks(outcome.ranks["own"].sampled)) == pytest.approx(
        figures(quality.test), abs=0.03
    )


def test_round_is_chosen_by_the_figure_that_the_preset_names() -> None:
    """HR as the paper, or NDCG."""
    scenario = a_scenario()
    devices = a_fleet(scenario, a_table(scenario), trained=0)
    by_hr, by_ndcg = Evaluator(scenario), Evaluator(scenario, select_by="ndcg")
    seen = []
    for number in range(1, 25):
        table = a_table(scenario, seed=number)
        for evaluator in (by_hr, by_ndcg):
            quality = evaluator.evaluate(number, number, table, devices, a_start(table))
        seen.append((quality.val.ndcg, number))
    assert by_ndcg.best.round == max(seen)[1]
    assert by_hr.best.round != by_ndcg.best.round, "the case is no case: both figures agree"


def test_final_figures_count_ties_against_the_positive() -> None:
    """A table that says nothing ranks everybody's item last."""
    scenario = a_scenario()
    table = np.zeros_like(a_table(scenario))
    evaluator = Evaluator(scenario)
    evaluator.evaluate(1, 1, table, a_fleet(scenario, table, trained=0), a_start(table))

    for ranks in evaluator.outcome().ranks.values():
        for of_users in (ranks.sampled, ranks.full):
            assert figures(metrics_from_ranks(of_users)) == (0.0, 0.0)
