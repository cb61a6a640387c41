"""iALS: weighted least squares on all users and items, solved for one side at a time.

Hu, Koren and Volinsky (ICDM 2008) in the form of Rendle et al. (arXiv 2110.14037): minimise

    Σ_{(u,i) observed} (1 - p_u·q_i)² + c Σ_{all u,i} (p_u·q_i)²
    + λ (Σ_u (n_u + c·items)^power |p_u|² + Σ_i (n_i + c·users)^power |q_i|²)

With the q fixed, each p_u solves a system of width dim whose part ``c·Q'Q`` is the same for all users
(the Gramian trick). So a sweep costs entries x dim² + (users + items) x dim³, whatever users x items is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.baselines.factors import FactorScorer
from trainer.baselines.incidence import Incidence, entries_of
from trainer.baselines.interface import Samplers, Scorer
from trainer.errors import ParameterError
from trainer.params import Floats, initial_table
from trainer.splits import Split

_INITIAL_SCALE = 0.1
"""Times 1/sqrt(dim): the standard deviation of the first item factors, as in arXiv 2110.14037."""
_BLOCK_FLOATS = 2**21
"""Bounds what a batch of systems gathers to 8 MiB in float32, or a single row where that is more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeastSquares:
    """The weights of the objective.

    Attributes
    ----------
    unobserved : float
        c (alpha in the paper), the weight of every pair beside the 1 of an observed one.
    penalty : float
        λ, the L2 penalty.
    power : float
        How the penalty of a row grows with its weight: 0 not at all, 1 as in ALS for ratings.

    Raises
    ------
    ParameterError
        When a value is out of its range.
    """

    unobserved: float
    penalty: float
    power: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("unobserved", self.unobserved), ("penalty", self.penalty)):
            if not 0.0 < value < np.inf:
                raise ParameterError(f"{name} is {value}; it must be finite and above 0")
        if not 0.0 <= self.power <= 2.0:
            raise ParameterError(f"power is {self.power}; it must lie between 0 and 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ials:
    """iALS over a grid of weights and penalties; a candidate after every sweep.

    Attributes
    ----------
    unobserved, penalties : tuple of float
        See `LeastSquares`.
    power : float
    sweeps : int

    Raises
    ------
    ParameterError
        When a grid is empty or a value out of its range.
    """

    unobserved: tuple[float, ...] = (0.1, 0.3, 1.0)
    penalties: tuple[float, ...] = (0.003, 0.005, 0.01)
    power: float = 1.0
    sweeps: int = 10

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ParameterError(f"sweeps is {self.sweeps}; it must be at least 1")
        if not self._grid():
            raise ParameterError("unobserved and penalties must list at least one value each")

    def _grid(self) -> list[LeastSquares]:
        return [
            LeastSquares(unobserved=unobserved, penalty=penalty, power=self.power)
            for unobserved in self.unobserved
            for penalty in self.penalties
        ]

    @property
    def name(self) -> str:
        """See `Baseline.name`."""
        return "ials"

    def fits(
        self,
        split: Split,
        samplers: Samplers,  # noqa: ARG002
        dim: int,
        rng: np.random.Generator,
    ) -> Iterator[tuple[str, Scorer]]:
        """See `Baseline.fits`. Every setting starts from the same item factors."""
        by_user = Incidence.of_training(split)
        by_item = by_user.transposed()
        start = initial_table(split.n_items, dim, rng, scale=_INITIAL_SCALE) / np.float32(np.sqrt(dim))
        no_bias = np.zeros(split.n_items, dtype=np.float32)
        for objective in self._grid():
            item_factors = start
            for sweep in range(1, self.sweeps + 1):
                user_factors = half_sweep(item_factors, by_user, objective)
                item_factors = half_sweep(user_factors, by_item, objective)
                yield (
                    f"unobserved {objective.unobserved:g}, penalty {objective.penalty:g}, sweep {sweep}",
                    FactorScorer(user_factors=user_factors, item_factors=item_factors, item_bias=no_bias),
                )


def half_sweep(fixed: Floats, incidence: Incidence, objective: LeastSquares) -> Floats:
    """Minimise the objective over the factors of one side.

    Parameters
    ----------
    fixed : ndarray, shape (n_fixed, dim), float32
        The factors of the other side.
    incidence : Incidence, shape (n_rows, n_fixed)
        Rows are the side to solve for.

    Returns
    -------
    ndarray, shape (n_rows, dim), float32

    Raises
    ------
    ParameterError
        When `fixed` and `incidence` do not fit.
    """
    if len(fixed) != incidence.n_columns:
        raise ParameterError(f"there are {len(fixed)} fixed factors for {incidence.n_columns} columns")
    dim = fixed.shape[1]
    shared = objective.unobserved * np.dot(fixed.T, fixed)
    counts = incidence.counts
    penalties = objective.penalty * (counts + objective.unobserved * len(fixed)) ** objective.power
    # An entry beyond a shorter row's end is this row of zeros. Rows of like length go together.
    padded = np.concatenate((fixed, np.zeros((1, dim), dtype=fixed.dtype)))
    order = np.argsort(counts, kind="stable")[::-1]
    solved = np.empty((incidence.n_rows, dim), dtype=np.float32)
    start = 0
    while start < order.size:
        longest = int(counts[order[start]])
        rows = order[start : start + max(1, _BLOCK_FLOATS // (max(longest, dim) * dim))]
        start += rows.size
        entries = np.full((rows.size, longest), len(fixed), dtype=np.int64)
        entries[np.arange(longest) < counts[rows, None]] = incidence.columns[
            entries_of(incidence.indptr, rows)
        ]
        observed = padded[entries]
        systems = np.matmul(observed.transpose(0, 2, 1), observed)
        systems += shared
        np.einsum("nii->ni", systems)[:] += penalties[rows, None]
        solved[rows] = np.linalg.solve(systems, observed.sum(axis=1)[:, :, None])[:, :, 0]
    return solved
