"""FedAvg over the whole fleet, its buffered asynchronous form, and each update by itself."""

from dataclasses import dataclass

from trainer.aggregation.interface import Accumulator, SummedRound
from trainer.errors import ParameterError
from trainer.params import Floats

_LEAST_WEIGHT = 1e-12
"""Smaller weights would vanish in float32, and the mean of a round of such updates with them."""


def _require_population(population: int) -> None:
    if population < 1:
        raise ParameterError(f"population is {population}; a fleet has at least one client")


def _polynomial(staleness: int, exponent: float) -> float:
    if staleness < 0:
        raise ParameterError(f"staleness is {staleness}; an update cannot come from a later version")
    return max(_LEAST_WEIGHT, float((1.0 + staleness) ** -exponent))


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The paper's server: ``ΔE = (1/N) Σ ΔE_u`` over all N clients, untouched rows counting as zero.

    Source: arXiv 2301.08143, equation 7. Staleness does not occur in synchronous rounds, so every
    update weighs the same.
    """

    def open(self, n_items: int, dim: int) -> SummedRound:
        """See `Strategy.open`."""
        return SummedRound(self, n_items, dim)

    def weight(self, staleness: int) -> float:
        """Give 1: in a synchronous round all updates are made from the same version."""
        return _polynomial(staleness, 0.0)

    def change(self, updates: Accumulator, population: int) -> Floats:
        """Divide the sum by the population, so that who did not take part counts as no change."""
        _require_population(population)
        return updates.scaled(1.0 / population)


@dataclass(frozen=True, slots=True)
class FedBuff:
    """Buffered asynchronous rounds: ``ΔE = (n/N) · Σ s_u ΔE_u / Σ s_u`` with ``s = (1 + staleness)^-a``.

    n updates are a fraction n/N of one synchronous round over N clients, so that N/n buffered rounds
    move the table as far as one round of `FedAvg` and the item learning rate means the same in both.
    The staleness weight is FedBuff's (arXiv 2106.06639, section 5, a = 1/2).

    Attributes
    ----------
    exponent : float
        a, at least 0; 0 weighs all updates alike.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.exponent <= 10.0:
            raise ParameterError(f"the staleness exponent is {self.exponent}; it must lie between 0 and 10")

    def open(self, n_items: int, dim: int) -> SummedRound:
        """See `Strategy.open`."""
        return SummedRound(self, n_items, dim)

    def weight(self, staleness: int) -> float:
        """Give ``(1 + staleness)^-a``, but not less than 1e-12."""
        return _polynomial(staleness, self.exponent)

    def change(self, updates: Accumulator, population: int) -> Floats:
        """Average with the weights, scaled by the fraction of the fleet that took part."""
        _require_population(population)
        if updates.count == 0:
            return updates.scaled(0.0)
        fraction = min(1.0, updates.count / population)
        return updates.scaled(fraction / updates.weight)


@dataclass(frozen=True, slots=True)
class FedAsync:
    """Each update at once: ``ΔE = μ · (1 + staleness)^-a · ΔE_u``; rounds should have one update.

    FedAsync (arXiv 1903.03934, polynomial staleness) mixes models, ``E <- (1 - μ_t) E + μ_t E_u``. Where the
    update was made from the newest table this is the same; an older one would also pull the table back
    towards what it was, which the sparse change does not: rows that others moved meanwhile keep that. Its
    weights are not renormalised: a stale update moves the table less.

    Attributes
    ----------
    exponent : float
        a, at least 0.
    mixing : float or None
        μ, above 0 and at most 1; None is 1/N, with which N fresh updates move the table as far as one
        round of `FedAvg`: the item learning rate of devices reckons with a division by N.
    """

    exponent: float = 0.5
    mixing: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.exponent <= 10.0:
            raise ParameterError(f"the staleness exponent is {self.exponent}; it must lie between 0 and 10")
        if self.mixing is not None and not 0.0 < self.mixing <= 1.0:
            raise ParameterError(f"the mixing weight is {self.mixing}; it must lie above 0 and at most at 1")

    def open(self, n_items: int, dim: int) -> SummedRound:
        """See `Strategy.open`."""
        return SummedRound(self, n_items, dim)

    def weight(self, staleness: int) -> float:
        """Give ``(1 + staleness)^-a``, but not less than 1e-12."""
        return _polynomial(staleness, self.exponent)

    def change(self, updates: Accumulator, population: int) -> Floats:
        """Add the updates up, each by itself."""
        _require_population(population)
        return updates.scaled(1.0 / population if self.mixing is None else self.mixing)
