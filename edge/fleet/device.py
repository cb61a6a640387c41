"""A virtual device: the same session as on a Pi, with its memory in this process instead of a file."""

from typing import Final

import numpy as np

from broker.errors import EncodingError
from broker.protocol.messages import Head, Plan, Quality, Update
from edge.fleet.scenario import Scenario
from edge.personal import make_update
from edge.quality import compare
from edge.session import Remembered, Session, Train
from trainer.errors import ParameterError
from trainer.local import LocalResult, local_pass
from trainer.params import Floats, Hyperparameters, ScoreFunction

ID_PREFIX: Final = "virtual-"


class VirtualDevice:
    """One user's device.

    Attributes
    ----------
    session : Session
    result : LocalResult or None
        The user's own: what the newest pass left; None before the first.
    outbox : Update or None
        What waits for its receipt.
    updates_made : int
    """

    __slots__ = (
        "_head", "_hyperparameters", "_incarnation", "_plan", "_positives", "_rng", "_sampler", "_table",
        "name", "outbox", "result", "session", "updates_made",
    )  # fmt: skip

    def __init__(self, scenario: Scenario, index: int, seed: int) -> None:
        self.name = f"{ID_PREFIX}{index:06d}"
        self._rng = np.random.default_rng([seed, 3, index])
        self._positives = scenario.split.train[index]
        self._sampler = scenario.sampler(index)
        # Drawn from the seed, unlike a real device's, so that a run can be repeated to the last bit.
        self._incarnation = int(self._rng.integers(1, 2**53))
        self.session = Session(Remembered(incarnation=self._incarnation), self._rng.random)
        self.session.interactions_changed(1, self._positives.size, 0.0)
        self.result: LocalResult | None = None
        self.outbox: Update | None = None
        self.updates_made = 0
        self._table: Floats | None = None
        self._head: Head | None = None
        self._plan: Plan | None = None
        self._hyperparameters = Hyperparameters()

    @property
    def incarnation(self) -> int:
        """Names this device's updates, together with their numbers."""
        return self._incarnation

    @property
    def table(self) -> Floats | None:
        """The table on the device, shape (n_items, dim)."""
        return self._table

    def compare(self, head: Head, table: Floats) -> Quality | None:
        """Give the report that the fleet's guard asks of some devices when a table arrives, else None.

        Its random numbers are its own: a fleet with a guard trains as one without.
        """
        before_head, before = self._head, self._table
        if before_head is None or before is None or not head.asks(self.name):
            return None
        score_function = None if self.result is None else self.result.score_function
        rng = np.random.default_rng([self._incarnation, head.version])
        none = self._positives[:0]
        return compare(head, table, before_head.version, before, score_function, self._positives, none, rng)

    def hold(self, head: Head, table: Floats) -> None:
        """Put a checked table in the place of the one before; shape (n_items, dim), shared, read-only."""
        self._head, self._table = head, table

    def train(self, command: Train) -> Update | None:
        """Make one local pass; keep its results, and give the update if it made one.

        Raises
        ------
        ParameterError
            When the pass diverged.
        """
        head, table = self._head, self._table
        if head is None or table is None:
            raise RuntimeError("the session wants a pass without a table")
        before = ScoreFunction(w=head.w, b=head.b) if self.result is None else self.result.score_function
        if head.plan is not self._plan:
            self._plan, self._hyperparameters = head.plan, head.plan.hyperparameters
        self.result = local_pass(
            table, before, self._positives, self._sampler, self._hyperparameters, self._rng
        )
        if command.seq is not None:
            try:
                self.outbox = make_update(head, self._incarnation, command.seq, self.result)
            except EncodingError as error:
                raise ParameterError(f"the training diverges ({error}); give a smaller --item-lr") from error
            self.updates_made += 1
        return self.outbox

    def settle(self) -> None:
        """Empty the outbox: its update was answered."""
        self.outbox = None
