"""Server optimisers: a round's mean change is taken for a gradient (arXiv 2003.00295, algorithm 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.aggregation.interface import Closing
from trainer.errors import ParameterError
from trainer.params import Floats

OptimiserName = Literal["adagrad", "adam", "yogi"]
OPTIMISERS: tuple[OptimiserName, ...] = ("adagrad", "adam", "yogi")
_MOST = float(np.finfo(np.float32).max)
_MOST_DELTA = np.float32(1.8446742e19)
"""Its square is the largest below what float32 holds: what is farther from zero is cut to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptimiser:
    """FedAdagrad, FedAdam or FedYogi, on the rows that a round touched.

    ``m = β1 m + (1 - β1) Δ``; ``v = v + Δ²`` (Adagrad), ``β2 v + (1 - β2) Δ²`` (Adam) or
    ``v - (1 - β2) Δ² sign(v - Δ²)`` (Yogi); the step is ``lr · m / (sqrt(v) + τ)``. Moments are kept for each
    element and begin with m = 0, v = τ².

    A row that no update touched in a round says nothing about its gradient: its moments stay and it does
    not move, so that a seldom seen item is not carried on by an old momentum, and steps between versions
    stay sparse. Δ is the mean change of those who took part; the step is multiplied by the part of the
    fleet that they are, so that `lr` means the same whatever the buffer.

    All stays finite, however large Δ is. But a row that a huge Δ has moved hardly moves again for as long as
    v remembers it, with Adagrad and Yogi for good: `clip` keeps such a Δ out.

    Attributes
    ----------
    name : str
        ``adagrad``, ``adam`` or ``yogi``.
    lr : float
        Server learning rate: how far a coordinate moves in a round over the whole fleet, about.
    beta1, beta2 : float
        From 0 to below 1; the paper's FedAdagrad has β1 0.
    tau : float
        Above 0: how large a change must be to count as one.
    """

    name: OptimiserName
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ParameterError(f"the server optimiser is {self.name!r}; choose {', '.join(OPTIMISERS)}")
        if not 0.0 < self.lr <= 1e6:
            raise ParameterError(f"server_lr is {self.lr}; it must lie above 0 and at most at 1e6")
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise ParameterError(f"the betas are {self.beta1} and {self.beta2}; from 0 to below 1")
        if not 1e-12 <= self.tau <= 1e6:
            raise ParameterError(f"tau is {self.tau}; it must lie between 1e-12 and 1e6")

    def close(self, mean: Floats, fraction: float, state: Mapping[str, Floats]) -> Closing:
        """Give the table's change for a round's mean change, and the moments after it.

        Parameters
        ----------
        mean : ndarray, shape (n_items, dim), float32
            Rows of zeros were not touched.
        fraction : float
            The part of the fleet that took part.
        state : mapping
            ``m`` and ``v``, shape (n_items, dim) each; empty before the first round. Moments of another
            shape, or of a strategy used before, are those of another table: they begin anew.
        """
        m, v = state.get("m"), state.get("v")
        if m is None or v is None or not m.shape == v.shape == mean.shape:
            m = np.zeros_like(mean)
            v = np.full_like(mean, np.float32(self.tau) ** 2)
        m, v = _finite_copy(m, 0.0), _finite_copy(v, _MOST)
        touched = np.flatnonzero(np.logical_or.reduce(mean != 0.0, axis=1))
        delta = np.clip(mean[touched], -_MOST_DELTA, _MOST_DELTA)
        beta1, beta2 = np.float32(self.beta1), np.float32(self.beta2)
        one, square = np.float32(1.0), delta * delta
        m[touched] = beta1 * m[touched] + (one - beta1) * delta
        before = v[touched]
        with np.errstate(over="ignore"):
            if self.name == "adagrad":
                after = before + square
            elif self.name == "adam":
                after = beta2 * before + (one - beta2) * square
            else:
                after = before - (one - beta2) * square * np.sign(before - square)
        v[touched] = np.minimum(after, np.float32(_MOST))
        change = np.zeros_like(mean)
        step = np.float32(self.lr * fraction)
        change[touched] = step * m[touched] / (np.sqrt(np.maximum(v[touched], 0.0)) + np.float32(self.tau))
        return Closing(change=change, state={"m": m, "v": v})


def _finite_copy(moments: Floats, instead: float) -> Floats:
    """Copy moments; earlier releases let squares overflow, and had others than numbers then."""
    if np.isfinite(moments).all():
        return moments.copy()
    return np.nan_to_num(moments, nan=instead, posinf=instead, neginf=instead)
