"""Golden vectors: what numpy and the trainer say about a model, for a board to compare itself with.

All inputs come from seeded streams that the board draws for itself; so a thousand score vectors cost four
bytes each.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.protocol import messages
from broker.protocol.messages import Head, Plan, chunk_count
from broker.protocol.modelfile import Model
from firmware_tools import arithmetic
from trainer.integers import QuantisedTable
from trainer.local import local_pass
from trainer.params import Floats, Hyperparameters, Rows, ScoreFunction, item_lr
from trainer.sampling import NegativeSampler
from trainer.taste import TasteSettings, with_taste

INSTANCE, INCARNATION, VERSION = 4711, 99, 3
"""Of the update that a self-test encodes."""
PASSES = 10
_VECTOR_SEED, _TRAINING_SEED, _POSITIVE_SEED = 1, 2, 3
_SCORED, _SCORED_ROWS, _PROBES, _BEST = 8, 32, 8, 10
_TASTE = TasteSettings(recency=2.0, strength=1.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Golden:
    """What a self-test compares with.

    Attributes
    ----------
    vector_words, training_words : ndarray, shape (4,), uint64
        Where the board's streams begin.
    scored_rows : ndarray, shape (n_scored_rows,), int64
    scores : ndarray, shape (8, n_scored_rows), float32
        sigmoid(w · e + b) of the first eight vectors, from double precision.
    integer_crcs : ndarray, shape (8,), uint32
        CRC-32 of the integer scores of all rows; of a float table 0.
    ranking_crcs : ndarray, shape (n_vectors,), uint32
        CRC-32 of the ten best (row, key) without the positives.
    positives : ndarray, shape (n_positives,), int64
        The user's items, oldest first.
    taste : ndarray, shape (dim,), float32
    hyperparameters : Hyperparameters
    w, b
        The score function after ten passes.
    rows : int
        Rows in the last pass.
    probe_rows, changes
        Some of them, and their changes, shape (n_probes, dim).
    head : bytes
        A head that announces the model.
    """

    vector_words: NDArray[np.uint64]
    training_words: NDArray[np.uint64]
    scored_rows: Rows
    scores: Floats
    integer_crcs: NDArray[np.uint32]
    ranking_crcs: NDArray[np.uint32]
    positives: Rows
    taste: Floats
    hyperparameters: Hyperparameters
    w: Floats
    b: float
    rows: int
    probe_rows: Rows
    changes: Floats
    head: bytes


def make_golden(model: Model, n_vectors: int, interactions: int) -> Golden:
    """Compute the golden vectors of a model; the same model gives the same ones.

    Parameters
    ----------
    n_vectors : int
        Score vectors whose ten best are compared.
    interactions : int
        The user's items in training; fewer where the catalogue is small.
    """
    n_items, dim = model.shape
    floats = model.floats
    rng = np.random.default_rng(_VECTOR_SEED)
    vectors = (2.0 * rng.random((n_vectors, dim)) - 1.0).astype(np.float32)
    scored_rows = np.unique(np.linspace(0, n_items - 1, _SCORED_ROWS).astype(np.int64))
    exact = vectors[:_SCORED].astype(np.float64) @ floats[scored_rows].astype(np.float64).T + model.b
    n_positives = max(1, min(interactions, n_items // 4))
    positives = np.random.default_rng(_POSITIVE_SEED).permutation(n_items)[:n_positives].astype(np.int64)
    hyperparameters = Hyperparameters(
        lr=0.1, item_lr=item_lr(0.1, n_items, 80.0), negatives=8, batch_size=256, decay=0.1
    )
    start = ScoreFunction(w=model.w, b=model.b)
    stream = np.random.default_rng(_TRAINING_SEED)
    sampler = NegativeSampler.excluding(n_items, positives)
    after = start
    for _ in range(PASSES):
        result = local_pass(floats, after, positives, sampler, hyperparameters, stream)
        after = result.score_function
    probes = np.unique(np.linspace(0, result.rows.size - 1, _PROBES).astype(np.int64))
    return Golden(
        vector_words=_words(_VECTOR_SEED),
        training_words=_words(_TRAINING_SEED),
        scored_rows=scored_rows,
        scores=(1.0 / (1.0 + np.exp(-exact))).astype(np.float32),
        integer_crcs=_integer_crcs(model, vectors[:_SCORED]),
        ranking_crcs=np.array([_ranking_crc(model, w, positives) for w in vectors], dtype=np.uint32),
        positives=positives,
        taste=with_taste(start, floats, positives, _TASTE).w,
        hyperparameters=hyperparameters,
        w=after.w,
        b=after.b,
        rows=result.rows.size,
        probe_rows=result.rows[probes],
        changes=result.change[probes],
        head=_head(model, hyperparameters),
    )


def _words(seed: int) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = np.random.SeedSequence(seed).generate_state(4, np.uint64).astype(np.uint64)
    return words


def _integer_crcs(model: Model, vectors: Floats) -> NDArray[np.uint32]:
    table = model.table
    if not isinstance(table, QuantisedTable):
        return np.zeros(len(vectors), dtype=np.uint32)
    quantised = [arithmetic.quantise_vector(w)[0] for w in vectors]
    scores = [arithmetic.integer_scores(table, vector) for vector in quantised]
    return np.array([zlib.crc32(s.astype("<i4").tobytes()) for s in scores], dtype=np.uint32)


def ranking(model: Model, w: Floats, excluded: Rows) -> tuple[Rows, NDArray[np.int32]]:
    """Give the ten best rows and their keys as a board finds them: by integers where the table is."""
    if isinstance(model.table, QuantisedTable):
        keys = arithmetic.integer_scores(model.table, arithmetic.quantise_vector(w)[0])
    else:
        keys = arithmetic.keys_of_logits(arithmetic.float_logits(model.table, w, model.b))
    wide = keys.astype(np.int64)
    wide[excluded] = np.iinfo(np.int64).min
    best = np.argsort(-(wide + 1), kind="stable")[: min(_BEST, wide.size - excluded.size)]
    return best, keys[best]


def _ranking_crc(model: Model, w: Floats, excluded: Rows) -> int:
    rows, keys = ranking(model, w, excluded)
    pairs = np.empty((rows.size, 2), dtype="<u4")
    pairs[:, 0], pairs[:, 1] = rows, keys.view(np.uint32)
    return zlib.crc32(pairs.tobytes())


def _head(model: Model, hyperparameters: Hyperparameters) -> bytes:
    rows, dim = model.shape
    catalogue_bytes = 8 * rows
    plan = Plan(
        lr=hyperparameters.lr,
        item_lr=hyperparameters.item_lr,
        negatives=hyperparameters.negatives,
        batch_size=hyperparameters.batch_size,
        encoding="int8",
        check_in_s=60.0,
        max_idle_passes=30,
        decay=hyperparameters.decay,
        taste_recency=_TASTE.recency,
        taste_strength=_TASTE.strength,
    )
    return messages.encode(
        Head(
            instance=INSTANCE,
            session=1,
            version=VERSION,
            rows=rows,
            dim=dim,
            sha256=bytes(32),
            slot=0,
            chunks=chunk_count(4 * rows * dim),
            catalogue_rows=rows,
            catalogue_chunks=chunk_count(catalogue_bytes),
            catalogue_bytes=catalogue_bytes,
            catalogue_sha256=bytes(32),
            plan=plan,
            w=model.w,
            b=float(model.b),
        )
    )
