import numpy as np

from tests.trainer.baselines.builders import a_split, clean_samplers
from trainer.baselines import Popularity


def test_scores_are_the_users_of_an_item() -> None:
    """Training items only, the same for everybody."""
    split = a_split([[1, 2], [2], [2, 4]], 5)

    ((_, scorer),) = Popularity().fits(split, clean_samplers(split), 8, np.random.default_rng(0))

    np.testing.assert_array_equal(scorer.scores(slice(0, 3)), [[0, 1, 3, 0, 1]] * 3)
