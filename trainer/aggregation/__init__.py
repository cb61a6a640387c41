"""How a server round combines updates into one change of the item table: one interface, two strategies."""

from trainer.aggregation.interface import Accumulator, Strategy
from trainer.aggregation.rounds import FedAvg, FedBuff

__all__ = ["Accumulator", "FedAvg", "FedBuff", "Strategy"]
