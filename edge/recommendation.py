"""A user's recommendations, from what the device holds."""

from dataclasses import dataclass

import numpy as np

from broker.errors import NothingYetError
from edge.personal import Personal
from edge.scorer import Scorer, top_k
from edge.store import DeviceStore
from trainer.params import sigmoid
from trainer.taste import with_taste


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """One item: its place from 1, its key, and its score between 0 and 1."""

    rank: int
    item: str
    score: float


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


def recommend(store: DeviceStore, scorer: Scorer, count: int) -> Recommendations:
    """Give the `count` best items that the user has not interacted with.

    In the user's own view: by taste, made anew from the newest interactions, or with the rows that the last
    pass left, as the fleet's plan says. Before the first pass the fleet's first score function ranks: about
    by popularity.

    Raises
    ------
    NothingYetError
        When no table has arrived yet.
    CorruptError
        When the table is damaged.
    """
    model = store.model()
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
    best = top_k(logits, count, newest)
    scores = sigmoid(logits[best].astype(np.float32))
    keys = store.item_keys(best)
    return Recommendations(
        version=model.head.version,
        personal=personal is not None,
        items=[
            Recommended(rank=rank, item=item, score=float(score))
            for rank, (item, score) in enumerate(zip(keys, scores, strict=True), 1)
        ],
    )
