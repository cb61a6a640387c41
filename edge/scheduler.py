"""When a device trains, and why it does not: one decision from plain facts.

Two kinds of pass:

* a *contributing* one makes an update for the fleet. It waits for a check-in, for an empty outbox, and
  for something to say: a version that this device has not contributed to, or new interactions. After
  `max_idle_passes` of them without a new interaction the device rests.
* a *local* one only tunes the personal model, as soon as there are new interactions, online or not.
"""

from dataclasses import dataclass, replace
from enum import Enum

from broker.protocol.messages import Head


class Pass(Enum):
    """What kind of pass to make now."""

    NONE = "none"
    LOCAL = "local"
    CONTRIBUTING = "contributing"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the device's passes have covered; stored with their results.

    Attributes
    ----------
    contributed_version : int
        Newest version that an update was made from; -1 before the first.
    trained_revision : int
        State of the interactions that the newest pass knew.
    contributed_revision : int
        State of the interactions that the newest contributing pass knew.
    idle_passes : int
        Contributing passes since the last new interaction.
    """

    contributed_version: int = -1
    trained_revision: int = 0
    contributed_revision: int = 0
    idle_passes: int = 0

    def with_table(self, head: Head, held: Head | None) -> "Progress":
        """Give the progress once the table of `head` is on the device, where that of `held` was the newest.

        To another aggregator directory everything is news. One that was set back, to an older version or to
        another one of the same number, has lost what was contributed since.
        """
        if held is None or not head.follows(held):
            return Progress()
        is_set_back = head.version < max(held.version, self.contributed_version) or (
            head.version == held.version and head.sha256 != held.sha256
        )
        if not is_set_back:
            return self
        return replace(self, contributed_version=min(self.contributed_version, head.version - 1))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and the reason in words that `status` shows."""

    kind: Pass
    reason: str


_NO_TABLE = Decision(Pass.NONE, "waiting for the first table")
_NO_INTERACTION = Decision(Pass.NONE, "no interactions with items of the catalogue yet")
_NEW_INTERACTIONS = Decision(Pass.LOCAL, "new interactions")
_OUTBOX = Decision(Pass.NONE, "an update waits for its receipt")
_CHECK_IN = Decision(Pass.NONE, "waiting for the next check-in")
_RESTING = Decision(Pass.NONE, "resting: no new interactions for many versions")
_SAME_VERSION = Decision(Pass.NONE, "waiting for a new version")
_CONTRIBUTE = Decision(Pass.CONTRIBUTING, "contributing to the newest version")


def decide(
    *,
    has_table: bool,
    n_known: int,
    version: int,
    revision: int,
    progress: Progress,
    outbox_empty: bool,
    check_in_due: bool,
    max_idle_passes: int,
) -> Decision:
    """Decide about the next pass.

    Parameters
    ----------
    n_known : int
        The user's items that are in the catalogue.
    version : int
        Of the table on the device.
    revision : int
        State of the interactions; grows with each new one.
    """
    if not has_table:
        return _NO_TABLE
    if n_known == 0:
        return _NO_INTERACTION
    if not (outbox_empty and check_in_due):
        if revision > progress.trained_revision:
            return _NEW_INTERACTIONS
        if not outbox_empty:
            return _OUTBOX
        rests = progress.idle_passes >= max_idle_passes and revision <= progress.contributed_revision
        return _RESTING if rests else _CHECK_IN
    if revision > progress.contributed_revision:
        return _CONTRIBUTE
    if progress.idle_passes >= max_idle_passes:
        return _RESTING
    return _CONTRIBUTE if version > progress.contributed_version else _SAME_VERSION
