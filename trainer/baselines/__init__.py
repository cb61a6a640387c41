"""Recommenders without federation, to compare with: fitted on everybody's interactions in one place."""

from trainer.baselines.ease import Ease
from trainer.baselines.ials import Ials
from trainer.baselines.interface import Baseline, Samplers, Scorer
from trainer.baselines.itemknn import ItemKnn
from trainer.baselines.mf import Mf
from trainer.baselines.ncf import Ncf
from trainer.baselines.popularity import Popularity
from trainer.baselines.selection import BestFit, ScorerView, best_fit

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline for baseline in (Popularity(), ItemKnn(), Ease(), Ials(), Mf(), Ncf())
}
"""By name, each with the grid that suits data sets of MovieLens's size."""

__all__ = [
    "BASELINES",
    "Baseline",
    "BestFit",
    "Ease",
    "Ials",
    "ItemKnn",
    "Mf",
    "Ncf",
    "Popularity",
    "Samplers",
    "Scorer",
    "ScorerView",
    "best_fit",
]
