"""How well a new table ranks an item that it is not told of, beside the table that the device had.

The item is the user's newest. It is left out of the taste; the score function has been trained with it, on
both sides of the comparison alike. Both tables rank it against the same candidates, without the rows that
the last pass left on the device: those were fitted to the table before.

Nothing in a report names the item or the candidates; see docs/protocol.md.
"""

from dataclasses import dataclass

import numpy as np

from broker.protocol.messages import MAX_LOSS, Head, Quality
from trainer.metrics import TOP_K
from trainer.params import Floats, Rows, ScoreFunction
from trainer.sampling import NegativeSampler
from trainer.taste import with_taste

CANDIDATES = 99
LEAST_ITEMS = 3
"""Of users with fewer nothing is reported: their taste is hardly known."""


@dataclass(frozen=True, slots=True)
class _Figures:
    hits: int
    beaten: int
    ndcg: float
    loss: float


def compare(
    head: Head,
    table: Floats,
    version_before: int,
    before: Floats,
    score_function: ScoreFunction | None,
    newest: Rows,
    retired: Rows,
    rng: np.random.Generator,
) -> Quality | None:
    """Give the report about the table that `head` announces; None where there is nothing to compare.

    That is so, too, where a fleet was set back and `head` is of no newer version: the guard asks how much
    better a version is than one before it.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
        The one that has arrived.
    before : ndarray, shape (n or fewer, dim), float32
        The one on the device, of `version_before`.
    score_function : ScoreFunction or None
        The user's; None before the first pass.
    newest : ndarray, shape (n_items_of_user,), int64
        The user's rows, the newest last.
    retired : ndarray, int64
        Rows that are no candidates.
    """
    if head.version <= version_before:
        return None
    n_items = min(len(table), len(before))
    newest, retired = newest[newest < n_items], retired[retired < n_items]
    excluded = np.union1d(newest, retired)
    if newest.size < LEAST_ITEMS or excluded.size >= n_items or before.shape[1] != table.shape[1]:
        return None
    if score_function is None:
        score_function = ScoreFunction(w=head.w, b=head.b)
    drawn = NegativeSampler.excluding(n_items, excluded).draw(CANDIDATES, rng)
    rows = np.concatenate((newest[-1:], drawn))
    with np.errstate(over="ignore", invalid="ignore"):  # a table may be beyond all bounds: that is the point
        new, old = (
            _figures(each, rows, with_taste(score_function, each, newest[:-1], head.plan.taste))
            for each in (table, before)
        )
    return Quality(
        instance=head.instance,
        version=head.version,
        version_before=version_before,
        candidates=CANDIDATES,
        hits=new.hits,
        hits_before=old.hits,
        beaten=new.beaten,
        beaten_before=old.beaten,
        ndcg=new.ndcg,
        ndcg_before=old.ndcg,
        loss=new.loss,
        loss_before=old.loss,
    )


def _figures(table: Floats, rows: Rows, score_function: ScoreFunction) -> _Figures:
    logits = table[rows].astype(np.float64) @ score_function.w.astype(np.float64) + score_function.b
    beaten = int(np.count_nonzero(logits[1:] < logits[0]))
    rank = len(rows) - 1 - beaten
    signs = np.where(np.arange(len(rows)) == 0, -1.0, 1.0)
    loss = float(np.logaddexp(0.0, signs * logits).mean())
    return _Figures(
        hits=int(rank < TOP_K),
        beaten=beaten,
        ndcg=float(1.0 / np.log2(rank + 2.0)) if rank < TOP_K else 0.0,
        loss=min(loss, MAX_LOSS) if loss == loss else MAX_LOSS,  # noqa: PLR0124 - not a number
    )
