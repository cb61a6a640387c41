"""Two slots: whatever happens in whatever order, a device has a release that works, or what ships."""

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.errors import CorruptError
from edge.slotstate import ATTEMPTS, SlotState, from_text, to_text


class Slots(RuleBasedStateMachine):
    """Installs, starts, confirmations, failures and damage, beside an account of what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.state = SlotState()
        self.content: dict[str, int] = {}
        self.worked: set[int] = set()
        self.starts: dict[int, int] = {}
        self.newest = 0

    @rule(whole=st.booleans())
    def install(self, *, whole: bool) -> None:
        """Write the spare slot; perhaps cut off."""
        self.state = self.state.emptied()
        self.content[self.state.spare] = 0
        if whole:
            self.newest += 1
            self.content[self.state.spare] = self.newest
            self.starts[self.newest] = 0
            self.state = self.state.filled(self.newest)

    @rule()
    def start(self) -> None:
        """A start begins, and may be killed at any time after."""
        self.state = self.state.booted()
        if self.state.on_trial:
            self.starts[self.state.release] += 1

    @precondition(lambda self: self.state.on_trial)
    @rule()
    def confirm(self) -> None:
        """The trial works."""
        self.worked.add(self.state.release)
        self.state = self.state.confirmed("ab" * 32)

    @precondition(lambda self: self.state.on_trial)
    @rule()
    def fail(self) -> None:
        """The trial does not."""
        failed = self.state.release
        self.state = self.state.rolled_back("it fails")
        assert (self.state.failed, self.state.reason) == (failed, "it fails")
        assert self.state.holding == "empty"

    @precondition(lambda self: self.state.on_trial)
    @rule()
    def stop(self) -> None:
        """The start is told to end in the middle of a trial."""
        self.starts[self.state.release] -= 1
        self.state = self.state.returned()

    @precondition(lambda self: self.state.active is not None and self.state.in_use == self.state.active)
    @rule()
    def lose(self) -> None:
        """The files in use are damaged."""
        before = self.state
        self.state = before.lost("damaged")
        assert self.state.release == (before.spare_release if before.holding == "before" else 0)

    @invariant()
    def what_is_in_use_is_there_and_works_or_is_tried(self) -> None:
        """A slot in use has the release that the state says."""
        state = self.state
        if state.in_use is None:
            assert state.release == 0
            return
        assert self.content[state.in_use] == state.release
        assert state.release in self.worked or (state.on_trial and self.starts[state.release] <= ATTEMPTS)

    @invariant()
    def active_has_worked(self) -> None:
        """And so has the one to go back to."""
        state = self.state
        assert state.active != state.spare
        if state.active is not None:
            assert state.active_release in self.worked
            assert self.content[state.active] == state.active_release
        if state.holding == "before":
            assert state.spare_release in self.worked
            assert self.content[state.spare] == state.spare_release

    @invariant()
    def highest_is_remembered(self) -> None:
        """Whatever was lost since."""
        assert self.state.highest == max(self.worked, default=0)

    @invariant()
    def no_trial_lasts_for_ever(self) -> None:
        """Starts that are killed come back to what works."""
        state = self.state
        for _ in range(ATTEMPTS + 1):
            state = state.booted()
        assert (state.in_use, state.release) == (state.active, state.active_release)

    @invariant()
    def text_says_it_all(self) -> None:
        """What is stored is what is read."""
        assert from_text(to_text(self.state), "state") == self.state


Slots.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestSlots = Slots.TestCase


def test_a_trial_has_some_starts() -> None:
    """Then it counts as failed, by itself."""
    state = SlotState().filled(1)
    for _ in range(ATTEMPTS):
        state = state.booted()
        assert state.on_trial
    state = state.booted()
    assert (state.in_use, state.failed, state.holding) == (None, 1, "empty")
    assert "3 starts" in state.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"active": "c"},
        {"active": "a", "spare": "a"},
        {"spare": 1},
        {"spare": None},
        {"holding": "full"},
        {"in_use": "a"},
        {"attempts": -1},
        {"attempts": "3"},
        {"highest": 1.5},
        {"key": 3},
        {"more": 1},
        {"reason": ...},
    ],
    ids=str,
)
def test_state_that_nobody_wrote_is_refused(changes: dict[str, Any]) -> None:
    """By name; and so is what is no JSON."""
    content = json.loads(to_text(SlotState())) | changes
    text = json.dumps({name: value for name, value in content.items() if value is not ...})
    if changes == {"reason": ...}:
        assert from_text(text, "state") == SlotState()  # what has a default may be missing
        return
    with pytest.raises(CorruptError, match="state is damaged"):
        from_text(text, "state")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "3", "{}"])
def test_no_state_at_all_is_refused(text: str) -> None:
    """Without a traceback."""
    with pytest.raises(CorruptError):
        from_text(text, "state")
