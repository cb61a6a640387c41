"""When devices are told to come back, so that the load stays level.

Every device that checks in makes about one update, so a fleet of N that checks in every T seconds sends N/T a
second. T is the longest of the configured interval and N over the wanted rate; and while messages queue up it
grows further, up to `MOST_SLOWED` times, until the queue is short again. Devices draw each wait anew between
half and one and a half of what they are told (`edge.session`), so that they spread by themselves and none
takes part more often than others for good: nothing is drawn here.
"""

from dataclasses import dataclass

from trainer.errors import ParameterError

LONGEST_CHECK_IN_S = 604_800.0
"""A week: the longest that a receipt can say."""
MOST_SLOWED = 16.0
EASY_LOAD = 0.25
"""Up to this part of the window the load is what comes and goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pacing:
    """What the pace is to be.

    Attributes
    ----------
    check_in_s : float
        Seconds between a device's looks at the newest version, where nothing speaks for longer.
    updates_per_s : float or None
        Updates that the whole fleet should send a second, at most; None is any.
    """

    check_in_s: float = 30.0
    updates_per_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.check_in_s <= LONGEST_CHECK_IN_S:
            raise ParameterError(f"check_in_s is {self.check_in_s}; it must lie between 0 s and 7 days")
        if self.updates_per_s is not None and not 1e-6 <= self.updates_per_s <= 1e9:
            raise ParameterError(
                f"updates_per_s is {self.updates_per_s}; it must lie between 1e-6 and 1e9; 0 is any"
            )

    def check_in(self, population: int, load: float) -> float:
        """Give the seconds to tell a device.

        Parameters
        ----------
        population : int
            Devices of the fleet.
        load : float
            How much of the broker's window waits to be worked on: 0 nothing, 1 all of it, and perhaps more at
            the broker.
        """
        wanted = self.check_in_s
        if self.updates_per_s is not None:
            wanted = max(wanted, population / self.updates_per_s)
        excess = min(1.0, max(0.0, (load - EASY_LOAD) / (1.0 - EASY_LOAD)))
        if excess:
            # Somebody who is told to come at once cannot be told to come 16 times as late.
            wanted = max(wanted, 1.0) * MOST_SLOWED**excess
        return min(wanted, LONGEST_CHECK_IN_S)
