"""How fast the devices of a simulated fleet are."""

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ParameterError

STRAGGLERS = 0.1
STRAGGLER_FACTOR = 10.0
"""A tenth of the devices is so many times slower than it would be otherwise."""


def pass_factors(spread: float, n_devices: int, seed: int) -> NDArray[np.float64]:
    """Draw how many times the usual each device's pass takes: log-normal with median 1, a tenth stragglers.

    Parameters
    ----------
    spread : float
        The logarithm's standard deviation; 0 makes all devices equally fast, without stragglers.

    Raises
    ------
    ParameterError
        When the spread does not lie between 0 and 3.
    """
    if not 0.0 <= spread <= 3.0:
        raise ParameterError(f"the spread of speeds is {spread}; it must lie between 0 and 3")
    if spread == 0.0:
        return np.ones(n_devices)
    rng = np.random.default_rng([seed, 9])
    factors: NDArray[np.float64] = np.exp(spread * rng.standard_normal(n_devices))
    factors[rng.choice(n_devices, round(STRAGGLERS * n_devices), replace=False)] *= STRAGGLER_FACTOR
    return factors
