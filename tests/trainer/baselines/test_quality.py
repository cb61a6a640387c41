"""What the baselines reach on MovieLens 100K: they must not flatter the method by being weak."""

import numpy as np
import pytest

from tests.datasets import ml_100k
from tests.trainer.baselines.builders import clean_samplers
from trainer.baselines import (
    BASELINES,
    Baseline,
    Mf,
    Ncf,
    best_fit,
)
from trainer.baselines.descent import DescentSettings
from trainer.datasets import parse_ratings
from trainer.evaluation import full_ranks, sampled_ranks
from trainer.metrics import metrics_from_ranks
from trainer.splits import leave_one_out, sampled_candidates

_SHORT_MF = Mf(grid=(DescentSettings(epochs=12, lr=0.005, decay=0.01),))
_SHORT_NCF = Ncf(grid=(DescentSettings(epochs=8, lr=0.005, decay=0.01),))


@pytest.mark.dataset
@pytest.mark.parametrize(
    ("baseline", "sampled_at_least", "full_at_least"),
    [
        pytest.param(BASELINES["item-knn"], 0.32, 0.058, id="item-knn"),
        pytest.param(BASELINES["ease"], 0.36, 0.070, id="ease"),
        pytest.param(BASELINES["ials"], 0.37, 0.068, id="ials"),
        pytest.param(_SHORT_MF, 0.35, 0.062, id="mf"),
        pytest.param(_SHORT_NCF, 0.31, 0.050, id="ncf"),
    ],
)
def test_ml_100k_is_ranked_as_well_as_elsewhere(
    baseline: Baseline, sampled_at_least: float, full_at_least: float
) -> None:
    """NDCG@10 on the clean protocol, dim 32; about two standard errors below what was measured."""
    data = parse_ratings(ml_100k().read_bytes(), "ratings.dat")
    split = leave_one_out(data, np.random.default_rng(0))
    val, test = sampled_candidates(split, np.random.default_rng(0))

    best = best_fit(baseline, split, clean_samplers(split), 32, val, np.random.default_rng(1))

    assert metrics_from_ranks(sampled_ranks(best.view, test)[0]).ndcg >= sampled_at_least
    assert metrics_from_ranks(full_ranks(best.view, split.train, split.test)).ndcg >= full_at_least
