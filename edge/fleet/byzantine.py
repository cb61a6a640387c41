"""Devices that send something else than what they learned: attacks to try robust rounds with."""

from dataclasses import replace
from typing import Literal

import numpy as np

from broker.protocol.encodings import ENCODINGS, SparseChange
from broker.protocol.messages import Update
from trainer.errors import ParameterError
from trainer.params import Rows

Attack = Literal["sign-flip", "scale", "random"]
ATTACKS: tuple[Attack, ...] = ("sign-flip", "scale", "random")


def attackers(share: float, n_devices: int, seed: int) -> Rows:
    """Draw which devices attack: the nearest whole number to ``share`` of them, ascending.

    Raises
    ------
    ParameterError
        When the share does not lie between 0 and 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ParameterError(f"the share of Byzantine devices is {share}; it must lie between 0 and 1")
    rng = np.random.default_rng([seed, 8])
    return np.sort(rng.choice(n_devices, round(share * n_devices), replace=False))


def attacked(
    update: Update, attack: Attack, strength: float, shape: tuple[int, int], rng: np.random.Generator
) -> Update:
    """Give what a Byzantine device sends in an update's place: the same rows, other values.

    ``sign-flip`` sends ``-strength`` times the change, ``scale`` ``strength`` times it, ``random`` normal
    noise ``strength`` times as long as it.
    """
    encoding = ENCODINGS[update.encoding]
    honest = encoding.decode(update.body, *shape)
    if attack == "random":
        change = rng.standard_normal(honest.change.shape, dtype=np.float32)
        length = float(np.linalg.norm(change))
        change *= np.float32(strength * float(np.linalg.norm(honest.change)) / (length or 1.0))
    else:
        change = honest.change * np.float32(-strength if attack == "sign-flip" else strength)
    return replace(update, body=encoding.encode(SparseChange(rows=honest.rows, change=change)))
