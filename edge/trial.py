"""The release that a start runs with: chosen, checked, tried, kept or given back.

`begin` chooses before anything of the device is opened. While the agent runs, `Running.look` is asked
again and again; it keeps a release that works and tells when another slot is to be used.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from broker.errand import Errand
from broker.errors import PFedRecError
from edge.health import problem_of
from edge.slots import Slots
from edge.slotstate import SlotState

_LOOK_S = 1.0
"""Between two looks whether a release was installed."""
_ALONE = 10.0
"""Without a broker a trial takes so many times as long: a device may be offline for weeks."""


def begin(directory: Path, say: Callable[[str], None]) -> SlotState:
    """Choose the release of this start, and let ``current`` lead to it; give what is where.

    A trial has spent an attempt then. What is damaged is passed over, down to what ships with the package.

    Raises
    ------
    InUseError, DiskFullError, NotWritableError
    """
    slots = Slots(directory)
    if not slots.path.exists():
        return SlotState()
    while True:
        before = slots.state()
        state = slots.change(SlotState.booted)
        if before.holding == "trial" and not state.on_trial:
            say(_failed(state))
        try:
            if state.in_use is not None:
                slots.check(state.in_use)
        except PFedRecError as error:
            say(_failed(slots.change(partial(_given_up, reason=str(error)))))
        else:
            slots.point(state.in_use)
            return state


def _given_up(state: SlotState, reason: str) -> SlotState:
    return state.rolled_back(reason) if state.on_trial else state.lost(reason)


def _failed(state: SlotState) -> str:
    back = f"release {state.release}" if state.release else "what ships with pfedrec-edge"
    return f"release {state.failed} is not used: {state.reason}; back to {back}"


class Running:
    """The release of one turn of ``start``.

    Parameters
    ----------
    state : SlotState
        What `begin` gave.
    now : float
        Seconds on the monotonic clock.
    """

    def __init__(self, directory: Path, state: SlotState, say: Callable[[str], None], now: float) -> None:
        self._directory = directory
        self._slots = Slots(directory)
        self._state = state
        self._say = say
        self._began = now
        # Nothing yet: an update may have come since `begin` looked.
        self._mark: tuple[int, int] | None = None
        self._look_at = now
        self._examination = Errand(self._examine) if state.on_trial else None

    @property
    def on_trial(self) -> bool:
        """Whether the release is neither kept nor given back yet."""
        return self._examination is not None

    def look(self, now: float, trial_s: float, *, connected: bool) -> bool:
        """Tell whether another slot is to be used from now on.

        Parameters
        ----------
        trial_s : float
            How long a trial must run with the broker reached, in seconds.

        Raises
        ------
        InUseError, DiskFullError, NotWritableError
        """
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        if self._examination is None:
            return self._is_another_to_be_tried()
        return self._judge(self._examination, now, trial_s if connected else _ALONE * trial_s)

    def _is_another_to_be_tried(self) -> bool:
        mark = self._slots.mark()
        if mark == self._mark:
            return False
        self._mark = mark
        return self._slots.state().holding == "trial"

    def _judge(self, examination: Errand[str], now: float, trial_s: float) -> bool:
        if not examination.done:
            return False
        reason = examination.finished()
        if reason:
            self.fail(reason)
            return True
        if now >= self._began + trial_s:
            signed = self._slots.signed(self._state.spare)
            self._slots.change(lambda state: state.confirmed(signed.key.hex()))
            self._examination = None
            self._say(f"release {signed.manifest.release} works and is kept")
        return False

    def _examine(self) -> str:
        slot = self._state.spare
        manifest = self._slots.manifest(slot)
        return problem_of(self._directory, manifest, self._slots.path / slot) or ""

    def fail(self, reason: str) -> None:
        """Give the release back."""
        self._examination = None
        self._say(_failed(self._slots.change(lambda state: state.rolled_back(reason))))

    def stopped(self) -> None:
        """The turn was told to end: a trial that is not over gets its attempt back."""
        if self._examination is not None:
            self._slots.change(SlotState.returned)
