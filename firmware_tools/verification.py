"""Whether numpy, TFLite and the C core score alike, and what quantisation costs the ranking of real users.

It works on a run's folder (model.npz, users.npz, candidates.npz): every user's own score function, and the
held-out item among its 99 negatives. Integers are the C core's; a ``.tflite`` file may be put beside them.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from broker.errors import AttentionError, CorruptError, DataError, FileUnreadableError, InputError
from broker.storage import read_file
from edge.scorer import ScorerChoice, TfliteUnavailableError, make_scorer, open_interpreter
from firmware_tools import arithmetic
from firmware_tools.c_export import read_table, read_users
from firmware_tools.ccore import host_core
from firmware_tools.flatbuffer import read_graph
from trainer.integers import quantise_table
from trainer.metrics import metrics_from_ranks, ranks_among_candidates
from trainer.params import Floats, Rows, ScoreFunction

TOP = 10
TOLERANCE = 1e-6
"""Between scores (probabilities) of different programs."""
_COMPARED = 200
"""Users whose whole catalogue is scored by every program."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Users:
    """What a run says of its users.

    Attributes
    ----------
    table : ndarray, shape (n_items, dim), float32
    W : ndarray, shape (n_users, dim), float32
        The vectors that serve the users' own views (with the taste in them, where views are by taste).
    b : ndarray, shape (n_users,), float32
    own : sequence of (rows, values)
        Each user's own rows; empty where views are by taste.
    candidates : ndarray, shape (n_users, n_candidates), int64
        The held-out item first.
    """

    table: Floats
    W: Floats
    b: Floats
    own: list[tuple[Rows, Floats]]
    candidates: Rows


def read_run(folder: Path) -> Users:
    """Read a run's folder.

    Raises
    ------
    FileUnreadableError, DataError
        When a file is missing, was not written (``--save-users``), or does not fit the others.
    """
    table = read_table(folder / "model.npz")
    W, b = read_users(folder / "users.npz", table.shape[1])
    saved = _arrays(folder / "users.npz", ("own_indptr", "own_rows", "own_values"))
    candidates = _arrays(folder / "candidates.npz", ("test",))["test"]
    n_users, n_items = len(W), len(table)
    indptr, rows, values = saved["own_indptr"], saved["own_rows"], saved["own_values"]
    shift = saved.get("shift")
    fits = (
        candidates.ndim == 2
        and len(candidates) == n_users
        and indptr.shape == (n_users + 1,)
        and (shift is None or shift.shape == (n_users, n_items))
        and all(r.size == 0 or (r.min() >= 0 and r.max() < n_items) for r in (rows, candidates))
    )
    if not fits:
        raise DataError(f"users.npz and candidates.npz of {folder} do not fit its model.npz")
    own = [
        (rows[start:end].astype(np.int64), values[start:end])
        for start, end in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)
    ]
    return Users(
        table=table, W=W + _vectors_of(shift, table), b=b, own=own, candidates=candidates.astype(np.int64)
    )


def _vectors_of(shift: Floats | None, table: Floats) -> Floats:
    """Give the vectors c with ``shift = c · table^T``: what the taste has added to w."""
    if shift is None:
        return np.zeros((1, table.shape[1]), dtype=np.float32)
    solved = np.linalg.lstsq(table.astype(np.float64), shift.T.astype(np.float64), rcond=None)[0]
    vectors: Floats = solved.T.astype(np.float32)
    return vectors


def _arrays(path: Path, needed: tuple[str, ...]) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (*needed, *({"shift"} & set(arrays.files)))}
    except FileUnreadableError:
        raise
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} lacks what a run with --save-users writes: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far a program's scores are from numpy's, at most; and whether integers are the reference's."""

    program: str
    difference: float
    exact: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether the program computes the same."""
        return self.difference <= TOLERANCE and self.exact is not False


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How a way of scoring ranks the users' held-out items, and how much of numpy's ten best it keeps."""

    name: str
    hr: float
    ndcg: float
    overlap: float


def compare_programs(users: Users, scorer: ScorerChoice = "tflite") -> list[Agreement]:
    """Score the catalogue for some users with every program.

    Raises
    ------
    TfliteUnavailableError
        When `scorer` is "tflite" and no runtime is installed.
    AttentionError
        When there is no C compiler.
    """
    core, other = host_core(), make_scorer(scorer)
    quantised = quantise_table(users.table)
    differences = {other.name: 0.0, "c": 0.0}
    exact = True
    for user in _some(len(users.W)):
        w, b = users.W[user], float(users.b[user])
        expected = _probabilities(users.table.astype(np.float64) @ w.astype(np.float64) + b)
        found = {
            other.name: other.logits(users.table, ScoreFunction(w=w, b=b)),
            "c": core.logits(users.table, w, b),
        }
        for name, logits in found.items():
            gap = float(np.abs(_probabilities(logits.astype(np.float64)) - expected).max())
            differences[name] = max(differences[name], gap)
        integers = arithmetic.integer_scores(quantised, arithmetic.quantise_vector(w)[0])
        exact = exact and bool(np.array_equal(core.integer_scores(quantised, w), integers))
    return [
        Agreement(program=name, difference=value, exact=exact if name == "c" else None)
        for name, value in differences.items()
    ]


def _probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = 0.5 * np.tanh(0.5 * logits) + 0.5
    return probabilities


def _some(n_users: int) -> list[int]:
    chosen: list[int] = np.unique(np.linspace(0, n_users - 1, _COMPARED).astype(np.int64)).tolist()
    return chosen


Logits = NDArray[np.floating[Any]]
Scores = Callable[[int], Logits]
"""Logits of all items by the shared table, for a user by number."""


def rankings(users: Users, tflite: Mapping[str, bytes]) -> list[Ranking]:
    """Rank held-out items with floats, with the C core's integers, and with other TFLite models.

    Parameters
    ----------
    tflite : mapping of str to bytes
        Models with the table baked in, by name.

    Raises
    ------
    CorruptError
        When such a model does not score this catalogue.
    """
    quantised = quantise_table(users.table)

    def by_floats(user: int) -> Logits:
        logits: Logits = users.table @ users.W[user] + users.b[user]
        return logits

    def by_integers(user: int) -> Logits:
        vector, scale = arithmetic.quantise_vector(users.W[user])
        # In double precision, so that no two integers become one.
        steps = arithmetic.integer_scores(quantised, vector).astype(np.float64)
        return steps * (65536.0 * float(quantised.unit) * float(scale)) + float(users.b[user])

    ways: dict[str, Scores] = {"float32": by_floats, "int8": by_integers}
    ways |= {name: _baked(users, name, content) for name, content in tflite.items()}
    reference = [_best(_own(users, user, by_floats(user))) for user in range(len(users.W))]
    return [_ranking(users, name, way, reference) for name, way in ways.items()]


def _own(users: Users, user: int, logits: Logits) -> Logits:
    """Lay the user's own rows over the scores of the shared table."""
    rows, values = users.own[user]
    if rows.size:
        logits = logits.copy()
        logits[rows] += (values - users.table[rows]) @ users.W[user]
    return logits


def _best(logits: Logits) -> set[int]:
    return set(np.argsort(-logits, kind="stable")[:TOP].tolist())


def _ranking(users: Users, name: str, way: Scores, reference: list[set[int]]) -> Ranking:
    ranks, kept = [], 0
    for user, best in enumerate(reference):
        logits = _own(users, user, way(user))
        ranks.append(ranks_among_candidates(logits[users.candidates[user]][None])[0])
        kept += len(best & _best(logits))
    figures = metrics_from_ranks(np.array(ranks), TOP)
    overlap = kept / sum(map(len, reference))
    return Ranking(name=name, hr=figures.hr, ndcg=figures.ndcg, overlap=overlap)


def _baked(users: Users, name: str, content: bytes) -> Scores:
    """Score with a model whose inputs are w and b, of any type; outputs are read as floats."""
    read_graph(content)  # the runtime trusts the bytes
    try:
        interpreter = open_interpreter(content)
    except TfliteUnavailableError as error:
        raise InputError(f"{name} cannot be run here: {error}") from error
    interpreter.allocate_tensors()
    inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
    (output,) = interpreter.get_output_details()
    found = {key: next((d for n, d in inputs.items() if f"_{key}:" in n or n == key), None) for key in "wb"}
    w, b = found["w"], found["b"]
    if (
        w is None
        or b is None
        or output["shape"].tolist() != [1, len(users.table)]
        or (w["shape"].tolist() != [1, users.table.shape[1]])
    ):
        raise CorruptError(f"{name} has other inputs and outputs than w, b and the scores of this catalogue")

    def score(user: int) -> Logits:
        interpreter.set_tensor(w["index"], _into(w, users.W[user][None]))
        interpreter.set_tensor(b["index"], _into(b, users.b[user : user + 1]))
        interpreter.invoke()
        raw = interpreter.get_tensor(output["index"])[0]
        scale, zero = output["quantization"]
        logits: Logits = (raw.astype(np.float32) - zero) * scale if scale else raw
        return logits

    return score


def _into(detail: Mapping[str, Any], values: Floats) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    steps = np.rint(values / scale + zero).clip(limits.min, limits.max)
    quantised: NDArray[Any] = steps.astype(detail["dtype"])
    return quantised


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What `verify` found."""

    n_users: int
    agreements: list[Agreement]
    rankings: list[Ranking]

    def loss(self, ranking: Ranking) -> float:
        """Points of HR@10 below the floats'; negative where it is above."""
        return 100.0 * (self.rankings[0].hr - ranking.hr)

    @property
    def facts(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "users": self.n_users,
            "programs": {
                each.program: {"difference": each.difference}
                | ({} if each.exact is None else {"integers_exact": each.exact})
                for each in self.agreements
            },
            "rankings": {
                each.name: {
                    "hr@10": each.hr,
                    "ndcg@10": each.ndcg,
                    "hr_loss_points": self.loss(each),
                    "top10_overlap": each.overlap,
                }
                for each in self.rankings
            },
        }

    @property
    def lines(self) -> dict[str, str]:
        """The figures as a person reads them."""
        lines = {"users": f"{self.n_users}, own views"}
        for each in self.agreements:
            integers = (
                "" if each.exact is None else f", integers {'as' if each.exact else 'NOT AS'} the reference"
            )
            lines[each.program] = f"scores within {each.difference:.1e} of numpy{integers}"
        for ranking in self.rankings:
            lines[ranking.name] = (
                f"HR@10 {ranking.hr:.4f} ({0.0 - self.loss(ranking):+.2f} points), "
                f"NDCG@10 {ranking.ndcg:.4f}, {100 * ranking.overlap:.1f} % of the ten best"
            )
        return lines

    def require(self, max_loss: float) -> None:
        """Refuse programs that differ, and integers that cost more than `max_loss` points of HR@10.

        Raises
        ------
        AttentionError
        """
        wrong = [each.program for each in self.agreements if not each.holds]
        if wrong:
            raise AttentionError(f"{' and '.join(wrong)} and numpy do not score alike")
        (integers,) = [each for each in self.rankings if each.name == "int8"]
        if self.loss(integers) > max_loss:
            raise AttentionError(
                f"8-bit integers cost {self.loss(integers):.2f} points of HR@10; "
                f"--max-loss allows {max_loss:g}"
            )


def verify(folder: Path, tflite: Mapping[str, bytes], scorer: ScorerChoice = "tflite") -> Verdict:
    """Compare programs and rankings on a run's folder; see the functions above for what is raised."""
    users = read_run(folder)
    return Verdict(
        n_users=len(users.W),
        agreements=compare_programs(users, scorer),
        rankings=rankings(users, tflite),
    )
