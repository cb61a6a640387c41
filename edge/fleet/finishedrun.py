"""A finished run, read back from its folder: what tables and reports are made from.

The counterpart of `edge.fleet.runfolder`, which writes it. It trusts no file: a folder that is damaged is
named.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import CorruptError, FileUnreadableError
from broker.storage import read_file
from edge.fleet.scenario import SYNTHETIC

RANKINGS = ("sampled", "full")
_OF_A_RUN = ("summary.json", "config.json", "metrics.jsonl")
_SUMMARY_KEYS = ("algorithm", "protocol", "mode", "encoding")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedUsers:
    """``users.npz``: what the users' own views are made from; see docs/architecture.md.

    Attributes
    ----------
    W : ndarray, shape (n_users, dim)
    b : ndarray, shape (n_users,)
    indptr, rows, values : ndarrays
        Own rows in CSR form: (n_users + 1,), (nnz,) and (nnz, dim).
    shift : ndarray, shape (n_users, n_items), or None
        What is added to the own scores.
    """

    keys: tuple[str, ...]
    W: NDArray[np.float32]
    b: NDArray[np.float32]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    shift: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedModel:
    """``model.npz``: the shared table, shape (n_items, dim), its keys, and the network where there is one."""

    table: NDArray[np.float32]
    item_keys: tuple[str, ...]
    network: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedRanks:
    """``ranks.npz``: each user's rank of the test item, 0 the best, by view and ranking."""

    keys: tuple[str, ...]
    by_view: Mapping[tuple[str, str], NDArray[np.integer[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinishedRun:
    """A folder with a summary.

    Attributes
    ----------
    summary, config : dict
        As the files have them; `config` is empty where there is none.
    """

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return str(self.summary["algorithm"])

    @property
    def seed(self) -> int:
        """The seed of all random draws."""
        return int(self.summary["seed"])

    @property
    def hold_out(self) -> str:
        """Which items were held out; runs from before it was written down held out the last."""
        return str(self.config.get("hold_out", "last"))

    @property
    def dataset_name(self) -> str:
        """The data set's name, mostly FOLDER/FILE."""
        return str(self.summary["dataset"]["name"])

    @property
    def dataset_size(self) -> tuple[int, int, int]:
        """How many users, items and interactions there are."""
        users, items, interactions = (
            int(self.summary["dataset"][name]) for name in ("users", "items", "interactions")
        )
        return users, items, interactions

    @property
    def is_generated(self) -> bool:
        """Whether the data was drawn, anew for each seed."""
        return self.dataset_name.split(":", maxsplit=1)[0] == SYNTHETIC

    def figure(self, view: str, ranking: str, name: str) -> float:
        """Give a test figure of the summary, such as ``hr@10``."""
        try:
            return float(self.summary["test"][view][ranking][name])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{self.path}/summary.json has no test.{view}.{ranking}.{name}") from error

    def rounds(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        return [_json(line, path) for line in read_file(path).splitlines() if line.strip()]

    def ranks(self) -> SavedRanks:
        """Read ``ranks.npz``.

        Raises
        ------
        FileUnreadableError, CorruptError
        """
        names = {f"{view}_{ranking}": (view, ranking) for view in ("own", "shared") for ranking in RANKINGS}
        arrays = _arrays(self.path / "ranks.npz", ("user_keys", *names))
        keys = _keys(arrays["user_keys"])
        by_view = {views: arrays[name] for name, views in names.items()}
        for name, views in names.items():
            ranks = by_view[views]
            if ranks.shape != (len(keys),) or ranks.dtype.kind != "i" or (ranks.size and ranks.min() < 0):
                raise CorruptError(f"{self.path}/ranks.npz: {name} has no rank for each of its users")
        return SavedRanks(keys=keys, by_view=by_view)

    def candidates(self) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        """Read ``candidates.npz``: item rows, shape (n_users, n), the positive first."""
        arrays = _arrays(self.path / "candidates.npz", ("val", "test"))
        return arrays["val"], arrays["test"]

    def model(self) -> SavedModel | None:
        """Read ``model.npz``; None where nothing was trained in a fleet."""
        path = self.path / "model.npz"
        if not path.exists():
            return None
        arrays = _arrays(path, ("E", "item_keys"), ("network",))
        table, keys = arrays["E"], _keys(arrays["item_keys"])
        if table.ndim != 2 or len(table) != len(keys) or not np.isfinite(table).all():
            raise CorruptError(f"{path} has no finite row for each of its items")
        return SavedModel(
            table=table, item_keys=keys, network=arrays.get("network", np.empty(0, dtype=np.float32))
        )

    def users(self) -> SavedUsers | None:
        """Read ``users.npz``; None where the run was made without ``--save-users``."""
        path = self.path / "users.npz"
        if not path.exists():
            return None
        own = ("own_indptr", "own_rows", "own_values")
        arrays = _arrays(path, ("user_keys", "W", "b", *own), ("shift",))
        keys = _keys(arrays["user_keys"])
        indptr, rows, values = (arrays[name] for name in own)
        fits = (
            len(arrays["W"]) == len(arrays["b"]) == len(keys) == len(indptr) - 1
            and len(rows) == len(values) == indptr[-1]
        )
        if not fits:
            raise CorruptError(f"{path} has arrays that do not fit its {len(keys)} users")
        return SavedUsers(
            keys=keys,
            W=arrays["W"],
            b=arrays["b"],
            indptr=indptr,
            rows=rows,
            values=values,
            shift=arrays.get("shift"),
        )


def read_runs(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Read the runs in folders; a folder of runs' folders stands for these.

    Returns
    -------
    (list of FinishedRun, list of str)
        The second has a sentence for each folder that is left out.

    Raises
    ------
    FileUnreadableError
        When there is no such folder.
    CorruptError
        When a summary is damaged.
    """
    runs: list[FinishedRun] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise FileUnreadableError(f"{path} is no folder; give the folders of runs")
        folders = [path] if _holds_a_run(path) else [each for each in _folders(path) if _holds_a_run(each)]
        if not folders:
            left_out.append(f"{path} holds no run")
        for folder in folders:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            if (folder / "summary.json").exists():
                runs.append(_read_run(folder))
            else:
                left_out.append(f"{folder} is not finished")
    return runs, left_out


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir())


def _holds_a_run(path: Path) -> bool:
    return any((path / name).is_file() for name in _OF_A_RUN)


def _read_run(folder: Path) -> FinishedRun:
    path = folder / "summary.json"
    summary = _json(read_file(path), path)
    config_path = folder / "config.json"
    config = _json(read_file(config_path), config_path) if config_path.exists() else {}
    run = FinishedRun(path=folder, summary=summary, config=config)
    try:
        _ = ([summary[key] for key in _SUMMARY_KEYS], run.seed, run.dataset_size, run.dataset_name)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path} is no summary of a run ({type(error).__name__}: {error})") from error
    return run


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise CorruptError(f"{path} is no JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CorruptError(f"{path} has no JSON object")
    return parsed


def _arrays(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Load the named arrays and no other, without pickle."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in (*needed, *optional) if name in needed or name in archive}
    except FileNotFoundError as error:
        raise FileUnreadableError(f"{path} is missing; the run's folder is not whole") from error
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptError(f"{path} is damaged ({error})") from error


def _keys(array: NDArray[Any]) -> tuple[str, ...]:
    return tuple(map(str, array.tolist()))
