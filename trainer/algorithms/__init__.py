"""Federated algorithms by name."""

from trainer.algorithms.ablation import GlobalScore
from trainer.algorithms.dualper import dualper
from trainer.algorithms.fedmf import FedMF
from trainer.algorithms.fedncf import FedNCF
from trainer.algorithms.fedrecon import FedRecon
from trainer.algorithms.interface import Algorithm, Scores, Scoring, Shared
from trainer.algorithms.pfedrec import PFedRec

__all__ = ["ALGORITHMS", "Algorithm", "Scores", "Scoring", "Shared"]

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        PFedRec(),
        PFedRec(name="pfedrec-joint", joint=True),
        PFedRec(name="pfedrec-user", own_rows=False),
        GlobalScore(),
        GlobalScore(name="pfedrec-neither", own_rows=False),
        FedMF(),
        dualper(FedMF()),
        FedNCF(),
        dualper(FedNCF()),
        FedRecon(),
        dualper(FedRecon()),
    )
}
