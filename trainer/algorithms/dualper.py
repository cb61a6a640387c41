"""DualPer, the paper's plug-in (arXiv 2301.08143): a personal view of the items for any such algorithm.

The user side steps first and the rows after it, and the user scores with the rows that its pass left.
"""

from dataclasses import replace

from trainer.algorithms.fedmf import FedMF
from trainer.algorithms.fedncf import FedNCF
from trainer.algorithms.fedrecon import FedRecon

SharedTable = FedMF | FedNCF | FedRecon
"""Algorithms that share an item table and have no view of their own of it."""


def dualper(base: SharedTable) -> SharedTable:
    """Give `base` with item-side personalisation."""
    return replace(base, name=f"{base.name}+dualper", own_rows=True, joint=False)
