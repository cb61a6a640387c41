"""Runs' folders written by hand, so that every figure made from them is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.metrics import TOP_KS, metrics_from_ranks

N_CANDIDATES = 4
ML_100K = {"name": "ml-100k/ratings.dat", "users": 943, "items": 1682, "interactions": 100000}
"""What a summary says of the paper's data."""
LASTFM = {"name": "lastfm-2k/user_artists.dat", "users": 1875, "items": 17612, "interactions": 92792}
TINY = {"name": "tiny/ratings.csv", "users": 4, "items": 12, "interactions": 40}
Ranks = Sequence[int]


def write_run(
    path: Path,
    *,
    algorithm: str = "pfedrec",
    seed: int = 0,
    protocol: str = "published",
    mode: str = "sync",
    dataset: Mapping[str, Any] = TINY,
    own: Ranks = (0, 1, 9, 10),
    shared: Ranks | None = None,
    full: Ranks | None = None,
    keys: Sequence[str] = ("a", "b", "c", "d"),
    negatives: int = 4,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished run; `full` (default: as `own`) is the full rank in both views.

    User u's validation and test items are rows 2u and 2u + 1; the sampled negatives begin at row `negatives`.
    """
    path.mkdir(parents=True)
    ranks = {
        "own_sampled": own,
        "own_full": own if full is None else full,
        "shared_sampled": own if shared is None else shared,
        "shared_full": (own if shared is None else shared) if full is None else full,
    }
    arrays = {name: np.array(of, dtype=np.int32) for name, of in ranks.items()}
    np.savez(path / "ranks.npz", user_keys=np.array(keys), **arrays)
    users = np.arange(len(keys))[:, None]
    others = negatives + np.arange(N_CANDIDATES - 1)[None, :] + 0 * users
    np.savez(
        path / "candidates.npz",
        val=np.concatenate((2 * users, others), axis=1),
        test=np.concatenate((2 * users + 1, others), axis=1),
    )
    test: dict[str, Any] = {}
    for name, of in arrays.items():
        view, ranking = name.split("_")
        figures = {k: metrics_from_ranks(of, k) for k in TOP_KS}
        test.setdefault(view, {})[ranking] = {
            f"{at}@{k}": getattr(metrics, at) for k, metrics in figures.items() for at in ("hr", "ndcg")
        }
    rounds = [
        {
            "round": number, "version": number, "seconds": 0.5, "updates": 4, "bytes_up": 400,
            "bytes_down": 800,
            "staleness_mean": 0.0, "val": {"hr": 0.1 * number, "ndcg": 0.05 * number},
            "test": {"hr": 0.1 * number, "ndcg": 0.05 * number},
        }
        for number in (1, 2, 3)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    summary = {
        "dataset": dataset, "algorithm": algorithm, "protocol": protocol, "mode": mode, "encoding": "float32",
        "seed": seed, "rounds": 3, "best_round": 3, "test": test, "seconds_per_round": {"median": 0.5},
        "bytes_up_per_update": 100.0, "bytes_down_per_device_round": 200.0, "peak_rss_mb": 50.0,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    settings = {"preset": "paper", "data_sha256": "0" * 64, "seed": seed} | dict(config or {})
    (path / "config.json").write_text(json.dumps(settings))
    return path


def write_model(
    path: Path, *, shift: bool = False, users: bool = True, n_items: int = 12, n_users: int = 4
) -> None:
    """Add ``model.npz`` and ``users.npz`` to a run: a table of width 2, w along its first axis.

    Item j lies at (j, j % 3). User 0 has item 1 as a row of its own, at (100, 0); with `shift` every user's
    scores of the odd items rise by 5.
    """
    items = np.arange(n_items)
    table = np.stack((items, items % 3), axis=1).astype(np.float32)
    np.savez(path / "model.npz", E=table, item_keys=np.array([str(100 + item) for item in items]))
    if not users:
        return
    more = {"shift": np.tile(5.0 * (items % 2), (n_users, 1)).astype(np.float32)} if shift else {}
    np.savez(
        path / "users.npz",
        user_keys=np.array(["a", "b", "c", "d"][:n_users]),
        W=np.tile(np.array([2.0, 0.0], dtype=np.float32), (n_users, 1)),
        b=np.zeros(n_users, dtype=np.float32),
        own_indptr=np.array([0, 1] + [1] * (n_users - 1)),
        own_rows=np.array([1]),
        own_values=np.array([[100.0, 0.0]], dtype=np.float32),
        **more,
    )
