"""What is the user's own: a score function and a fine-tuned view of some items; and how a pass renews it."""

from dataclasses import dataclass

import numpy as np

from broker.errors import EncodingError
from broker.protocol.encodings import ENCODINGS, FactoredChange
from broker.protocol.messages import Head, Update
from trainer.local import LocalResult
from trainer.params import Floats, Rows, ScoreFunction
from trainer.taste import TasteSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Personal:
    """The personal state. It never leaves the device.

    Attributes
    ----------
    score_function : ScoreFunction
    own_rows : ndarray, shape (n_own,), int64
        Rows of the item table that the newest pass touched, ascending.
    own_values : ndarray, shape (n_own, dim), float32
        The user's own view of those rows.
    """

    score_function: ScoreFunction
    own_rows: Rows
    own_values: Floats

    @classmethod
    def beginning(cls, w: Floats, b: float) -> "Personal":
        """Give a state without rows of its own; a new user's has the fleet's first score function."""
        return cls(
            score_function=ScoreFunction(w=w, b=b),
            own_rows=np.empty(0, dtype=np.int64),
            own_values=np.empty((0, w.size), dtype=np.float32),
        )

    @classmethod
    def of(cls, result: LocalResult, taste: TasteSettings) -> "Personal":
        """Give what a pass has made of it; a view by taste needs no rows of its own."""
        if taste.strength:
            return cls.beginning(result.score_function.w, result.score_function.b)
        return cls(score_function=result.score_function, own_rows=result.rows, own_values=result.values)

    def require_finite(self) -> None:
        """Refuse a state that has diverged.

        Raises
        ------
        EncodingError
            When a value is not finite.
        """
        w, b = self.score_function.w, self.score_function.b
        if not (np.isfinite(w).all() and np.isfinite(b) and np.isfinite(self.own_values).all()):
            raise EncodingError("the personal state has a value that is not finite")

    def fits(self, table: Floats) -> bool:
        """Tell whether it can be a view of a table of that shape."""
        n_items, dim = table.shape
        rows = self.own_rows
        inside = not rows.size or bool(rows.min() >= 0 and rows.max() < n_items)
        return self.score_function.w.size == dim and inside

    def view(self, table: Floats) -> Floats:
        """Lay the own rows over the shared table; shape (n_items, dim), read-only, new if there are any."""
        if not self.own_rows.size:
            return table
        own = table.copy()
        own[self.own_rows] = self.own_values
        own.flags.writeable = False
        return own


def as_change(result: LocalResult) -> FactoredChange:
    """Give what a pass did to the table, as the factors that the pass has anyway."""
    return FactoredChange(rows=result.rows, coefficients=result.coefficients, directions=result.vectors)


def make_update(head: Head, incarnation: int, seq: int, result: LocalResult) -> Update:
    """Encode a pass over the table of `head` as its plan wants it; exactly if that encoding is unknown here.

    Raises
    ------
    EncodingError
        When a change is not finite or beyond all bounds.
    """
    encoding = ENCODINGS.get(head.plan.encoding, ENCODINGS["float32"])
    return Update(
        instance=head.instance,
        incarnation=incarnation,
        seq=seq,
        base_version=head.version,
        encoding=encoding.name,
        body=encoding.encode(as_change(result)),
    )
