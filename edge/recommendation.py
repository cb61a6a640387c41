"""A user's recommendations, from what the device holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker.errors import NothingYetError, UnknownItemError
from edge.explanation import supporting_items
from edge.personal import Personal
from edge.scorer import Scorer, top_k
from edge.store import DeviceStore, Model
from trainer.params import sigmoid
from trainer.taste import with_taste

_SUPPORTING = 3
"""Items that are named as reasons; more would not be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """One item: its place from 1, its key, and its score between 0 and 1.

    Attributes
    ----------
    because : list of str
        The user's own items that speak most for it; empty where nothing was asked, or none does.
    """

    rank: int
    item: str
    score: float
    because: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendations:
    """The best items, best first.

    Attributes
    ----------
    version : int
        Of the table that they come from.
    personal : bool
        Whether the user's own training has shaped them.
    """

    version: int
    personal: bool
    items: list[Recommended]


def recommend(
    store: DeviceStore,
    scorer: Scorer,
    count: int,
    *,
    exclude_seen: bool = True,
    among: Sequence[str] | None = None,
    explain: bool = False,
    in_use: Model | None = None,
) -> Recommendations:
    """Give the `count` best items.

    In the user's own view: by taste, made anew from the newest interactions, or with the rows that the last
    pass left, as the fleet's plan says. Before the first pass the fleet's first score function ranks: about
    by popularity.

    Parameters
    ----------
    exclude_seen : bool
        Leave out what the user has interacted with. Retired items are left out in any case.
    among : sequence of str, optional
        Only these items.
    explain : bool
        Say which of the user's own items speak for each.
    in_use : Model, optional
        The table in use by a running ``start``, which may not be stored yet.

    Raises
    ------
    NothingYetError
        When no table has arrived yet.
    UnknownItemError
        When `among` has no item of the catalogue.
    CorruptError
        When the table is damaged.
    """
    model = in_use if in_use is not None and _fits(in_use, store) else store.model()
    if model is None:
        raise NothingYetError(
            "there is no model on this device yet; run edge-client start while its broker and aggregator run"
        )
    personal = store.personal()
    known = personal or Personal.beginning(model.head.w, model.head.b)
    interacted = store.interacted()
    newest = interacted.newest[interacted.newest < model.head.rows]
    score_function = with_taste(known.score_function, model.table, newest, model.head.plan.taste)
    logits = scorer.logits(known.view(model.table), score_function)
    left_out = interacted.retired[interacted.retired < model.head.rows]
    if exclude_seen:
        left_out = np.union1d(left_out, newest)
    if among is not None:
        wanted = store.item_rows(among)
        wanted = wanted[wanted < model.head.rows]
        if not wanted.size:
            raise UnknownItemError("none of the items to choose among is in the catalogue")
        others = np.ones(model.head.rows, dtype=np.bool_)
        others[wanted] = False
        left_out = np.union1d(left_out, others.nonzero()[0])
    best = top_k(logits, count, left_out)
    scores = sigmoid(logits[best].astype(np.float32))
    keys = store.item_keys(best)
    because: list[list[int]] = [[] for _ in best]
    if explain:
        taste, w = model.head.plan.taste, known.score_function.w
        because = supporting_items(known.view(model.table), w, newest, taste, best, _SUPPORTING)
    return Recommendations(
        version=model.head.version,
        personal=personal is not None,
        items=[
            Recommended(
                rank=rank,
                item=item,
                score=float(score),
                because=store.item_keys(np.array(rows, dtype=np.int64)),
            )
            for rank, (item, score, rows) in enumerate(zip(keys, scores, because, strict=True), 1)
        ],
    )


def _fits(newest: Model, store: DeviceStore) -> bool:
    """Tell whether a table goes with the catalogue and the personal state that are stored just now."""
    stored = store.model_head()
    return (
        newest.head.follows(stored)
        and stored is not None
        and (newest.head.catalogue_sha256 == stored.catalogue_sha256)
    )
