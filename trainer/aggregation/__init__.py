"""How a server round combines updates into one change of the item table: one interface, pieces to combine."""

from trainer.aggregation.interface import Accumulator, Closing, OpenRound, Strategy, Weighting
from trainer.aggregation.optimisers import ServerOptimiser
from trainer.aggregation.pipeline import Pipeline
from trainer.aggregation.rounding import RoundedSteps
from trainer.aggregation.rounds import FedAsync, FedAvg, FedBuff
from trainer.aggregation.settings import ROBUST, AggregationSettings

__all__ = [
    "ROBUST",
    "Accumulator",
    "AggregationSettings",
    "Closing",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "OpenRound",
    "Pipeline",
    "RoundedSteps",
    "ServerOptimiser",
    "Strategy",
    "Weighting",
]
