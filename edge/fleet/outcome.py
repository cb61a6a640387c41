"""What a run comes to: the quality of its rounds, and the best round with every user's ranks in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.algorithms import Shared
from trainer.evaluation import Ranks
from trainer.metrics import RankingMetrics
from trainer.params import Floats, Rows

VIEWS = ("own", "shared")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundQuality:
    """Own view, sampled ranking."""

    val: RankingMetrics
    test: RankingMetrics


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FleetModel:
    """A fleet's state after a round.

    Attributes
    ----------
    shared : Shared
        Table and network.
    W : ndarray, shape (n_users, dim), float32
    b : ndarray, shape (n_users,), float32
    own : sequence of (ndarray, ndarray)
        Each user's own rows, ascending, and their values, shape (n_own, dim); empty where nobody has any.
    shift : ndarray, shape (n_users, n_items), float32, or None
        What the users' taste adds to the scores, where that is their own view.
    """

    shared: Shared
    W: Floats
    b: Floats
    own: Sequence[tuple[Rows, Floats]]
    shift: Floats | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """The best round by validation.

    Attributes
    ----------
    model : FleetModel or None
        None for what no fleet has trained.
    ranks : dict of str to Ranks
        Of the test items, in the views ``own`` and ``shared``.
    recovered_f1 : float or None
        How well an aggregator tells users' positives from single updates of that round; None: not tried.
    description : str
        What is special about the round, for people.
    workers_rss_mb : float
        Peak memory of the processes that helped, in MiB.
    """

    round: int
    version: int
    ranks: dict[str, Ranks]
    model: FleetModel | None = None
    recovered_f1: float | None = None
    description: str = ""
    workers_rss_mb: float = 0.0
