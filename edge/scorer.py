"""How a device scores its whole catalogue: one interface, with TFLite or numpy behind it.

This file is the only home of TFLite, and imports it when a ``TfliteScorer`` is made, never before: a
process that does not score does not load it. It knows no store, no catalogue keys and no user.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from threading import Lock
from typing import Any, Literal, Protocol, get_args

import numpy as np

from broker.errors import CorruptError, MissingExtraError
from trainer.errors import ParameterError, PFedRecError
from trainer.params import Floats, Rows, ScoreFunction

ScorerChoice = Literal["auto", "tflite", "numpy"]
ScorerName = Literal["tflite", "numpy"]

MODEL_SHA256 = "99fa7ef188e8af00e0b960029d51ff969af1e07675b8663393a77b4ce8ef9b1d"
"""Digest of ``models/scorer.tflite``, as ``firmware-tools build`` prints it.

It is compared before the file is parsed: TFLite trusts the bytes and ends the process with a segmentation
fault on a truncated file.
"""

_LIBC = ctypes.CDLL(None)
_FENV_BYTES = 64
"""Room for C's ``fenv_t``: 4 bytes on 32-bit ARM, 8 on 64-bit, 32 on x86-64."""

_RUNTIMES = ("tflite_runtime", "ai_edge_litert")
_NUMPY_1_ONLY = "tflite_runtime"
"""Built for numpy 1. With numpy 2 its import prints a traceback, then ``Interpreter()`` fails."""

_FLOAT32 = np.dtype(np.float32)
_FEW = 32
"""Up to so many items are looked for one by one."""

_RUNTIME_FAILURES = (
    ImportError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)
"""What a runtime that does not fit this machine, Python or numpy raises on import and construction."""


class TfliteUnavailableError(MissingExtraError):
    """No TFLite runtime is installed that works here.

    It belongs to no extra: a bare install brings it along wherever there is a wheel.
    """

    def __init__(self, found: str) -> None:
        self.extra = ""
        package = "tflite-runtime 'numpy<2'" if _python_has_tflite_runtime() else "ai-edge-litert"
        PFedRecError.__init__(
            self,
            f"TFLite cannot be used here ({found}); install it with: pip install {package}, "
            "or choose the scorer auto or numpy",
        )


class Scorer(Protocol):
    """Scores every item of one user's view of the item table.

    Made by ``make_scorer``, called by whoever recommends. Threads may share a scorer; they take turns.
    """

    @property
    def name(self) -> ScorerName:
        """What does the work."""
        ...

    def logits(self, table: Floats, score_function: ScoreFunction) -> Floats:
        """Give ``w · e_i + b`` for every row e_i: the score before the sigmoid, in the same order.

        A table that is scored again and again is best made read-only (``table.setflags(write=False)``): an
        implementation that keeps a copy then copies it once. A table that can be written is taken as new in
        every call.

        Parameters
        ----------
        table : ndarray, shape (n_items, dim), float32
            The user's own view of the item table. Not changed.
        score_function : ScoreFunction
            Its `w` has shape (dim,), float32.

        Returns
        -------
        ndarray, shape (n_items,), float32
            The caller's own. Differs from exact arithmetic by rounding only.

        Raises
        ------
        ParameterError
            When a shape or dtype does not fit, or the table is empty.
        """
        ...


class NumpyScorer:
    """The scorer that runs wherever Python does; the reference for the other."""

    @property
    def name(self) -> ScorerName:
        """What does the work."""
        return "numpy"

    def logits(self, table: Floats, score_function: ScoreFunction) -> Floats:
        """Give the logits; see ``Scorer.logits``."""
        _require_fit(table, score_function)
        result: Floats = np.dot(table, score_function.w)
        result += np.float32(score_function.b)
        return result


class TfliteScorer:
    """The scorer with TFLite behind it: one interpreter, kept as long as the shapes stay the same.

    Raises
    ------
    TfliteUnavailableError
        When no runtime is installed, or none works.
    CorruptError
        When the model that ships with the package is missing or damaged.
    """

    def __init__(self, read: Callable[[], bytes] | None = None) -> None:
        self._interpreter = _first_working_interpreter(read or read_model)
        # By their names in the signature: the order of the inputs in the file is the converter's own.
        signature = self._interpreter.get_signature_runner()
        self._input = {name: tensor["index"] for name, tensor in signature.get_input_details().items()}
        self._output = signature.get_output_details()["logits"]["index"]
        self._shape: tuple[int, ...] | None = None
        self._placed: Floats | None = None
        self._placed_w, self._placed_b = b"", math.nan
        self._b = np.empty(1, dtype=np.float32)
        self._lock = Lock()

    @property
    def name(self) -> ScorerName:
        """What does the work."""
        return "tflite"

    def logits(self, table: Floats, score_function: ScoreFunction) -> Floats:
        """Give the logits; see ``Scorer.logits``."""
        _require_fit(table, score_function)
        with self._lock:
            self._fit(table.shape)
            self._place(table)
            self._place_function(score_function)
            self._interpreter.invoke()
            result: Floats = self._interpreter.get_tensor(self._output)
        return result.reshape(-1)

    def _fit(self, shape: tuple[int, ...]) -> None:
        if shape == self._shape:
            return
        # Forgotten first: after a failure in between, neither shape nor contents can be relied on.
        self._shape = self._placed = None
        self._placed_w, self._placed_b = b"", math.nan
        self._interpreter.resize_tensor_input(self._input["items"], shape)
        self._interpreter.resize_tensor_input(self._input["w"], (1, shape[1]))
        self._interpreter.allocate_tensors()
        self._shape = shape

    def _place(self, table: Floats) -> None:
        # The copy is most of a call's time (100,000 x 32: 0.9 of 1.4 ms), so an unchanged table is spared it.
        # Only one that cannot have been changed in place is known to be unchanged.
        frozen = _is_frozen(table)
        if frozen and table is self._placed:
            return
        self._placed = None
        self._interpreter.set_tensor(self._input["items"], table)
        self._placed = table if frozen else None

    def _place_function(self, score_function: ScoreFunction) -> None:
        # It changes with a training pass only; to compare is cheaper than to hand over.
        w, b = score_function.w.tobytes(), score_function.b
        if w != self._placed_w:
            self._placed_w = b""
            self._interpreter.set_tensor(self._input["w"], score_function.w[np.newaxis])
            self._placed_w = w
        if b != self._placed_b:
            self._placed_b = math.nan
            self._b[0] = b
            self._interpreter.set_tensor(self._input["b"], self._b)
            self._placed_b = b


def make_scorer(choice: ScorerChoice, read: Callable[[], bytes | None] = lambda: None) -> Scorer:
    """Make the scorer that the configuration asks for.

    Parameters
    ----------
    choice : {"auto", "tflite", "numpy"}
        "auto" takes TFLite where it is installed and works, else numpy.
    read : callable
        Gives a model that was checked, for TFLite; None: the one that ships with the package.

    Raises
    ------
    TfliteUnavailableError
        When "tflite" is asked for and does not work here; a ``MissingExtraError``.
    CorruptError
        When TFLite works, but the model that ships with the package is missing or damaged.
    ParameterError
        When `choice` is none of the three.
    """
    if choice not in get_args(ScorerChoice):
        raise ParameterError(f"scorer is {choice!r}; choose one of {', '.join(get_args(ScorerChoice))}")
    if choice == "numpy":
        return NumpyScorer()
    try:
        return TfliteScorer(partial(_read_first, read))
    except TfliteUnavailableError:
        if choice == "tflite":
            raise
        return NumpyScorer()


def _read_first(read: Callable[[], bytes | None]) -> bytes:
    model = read()
    return read_model() if model is None else model


def available_scorer_name() -> ScorerName:
    """Give what "auto" is going to take, without loading it.

    It looks at what is installed only: a runtime that fails when it is loaded is not found out.
    """
    return "numpy" if all(_known_obstacle(package) for package in _RUNTIMES) else "tflite"


def top_k(logits: Floats, k: int, exclude: Rows) -> Rows:
    """Give the best rows, best first; of equal ones the smaller row number first.

    Parameters
    ----------
    logits : ndarray, shape (n_items,), float32
        A NaN is never among the best; infinities are ordinary values.
    k : int
        At most so many; fewer where fewer are left.
    exclude : ndarray, shape (n_excluded,), int64
        Rows to leave out, in any order, repeated or not.

    Returns
    -------
    ndarray, shape (at most k,), int64

    Raises
    ------
    ParameterError
        When `k` is negative, `logits` is not one-dimensional or an excluded row does not exist.
    """
    if logits.ndim != 1:
        raise ParameterError(f"logits have shape {logits.shape}; one number for each item was expected")
    if k < 0:
        raise ParameterError(f"k is {k}; it must not be negative")
    if exclude.size and exclude.item(exclude.argmin()) < 0:
        raise ParameterError(f"an excluded row is {exclude.min()}; it must not be negative")
    try:
        few = _top_few(logits, k, exclude) if k <= _FEW else None
        if few is not None:
            return few
    except IndexError:
        raise ParameterError(f"row {exclude.max()} is excluded; the table has {len(logits)} rows") from None
    allowed = ~np.isnan(logits)
    allowed[exclude] = False
    rows = np.flatnonzero(allowed)
    k = min(k, len(rows))
    if k == 0:
        return np.empty(0, dtype=np.int64)
    values = logits[rows]
    kth_best = values[np.argpartition(values, -k)[-k]]
    # The partition chooses among equal values as it likes; the smaller rows are to win.
    better = np.flatnonzero(values > kth_best)
    equal = np.flatnonzero(values == kth_best)[: k - len(better)]
    chosen = np.concatenate((better, equal))
    best_first = np.argsort(-values[chosen], kind="stable")
    best: Rows = rows[chosen[best_first]].astype(np.int64, copy=False)
    return best


def _top_few(logits: Floats, k: int, exclude: Rows) -> Rows | None:
    """Give what `top_k` gives by looking k times for the best; None where less than k numbers are left.

    A look is one pass over the catalogue at the speed of memory: for ten items several times faster than
    a partition.
    """
    count = min(k, logits.size)
    left = logits.copy()
    left[exclude] = lowest = -math.inf
    if not count:
        return np.empty(0, dtype=np.int64)
    argmax = left.argmax
    numbers: memoryview[Any] = left.data
    best = []
    for _ in range(count - 1):
        row = argmax()
        best.append(row)
        numbers[row] = lowest
    row = argmax()
    best.append(row)
    # A NaN is the largest to argmax, so the first would be one; what is left out, the last.
    if math.isnan(logits.item(best[0])) or not numbers[row] > lowest:
        return None
    return np.array(best, dtype=np.int64)


def read_model(file: Traversable | None = None) -> bytes:
    """Read the scorer model and check that it is whole.

    Parameters
    ----------
    file : Traversable, optional
        By default the one that ships with the package.

    Raises
    ------
    CorruptError
        When it is missing, unreadable or not the file that this release was built with.
    """
    file = resources.files("edge") / "models" / "scorer.tflite" if file is None else file
    try:
        model = file.read_bytes()
    except OSError as error:
        raise CorruptError(f"the scorer model {file} cannot be read; install pfedrec-edge again") from error
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise CorruptError(
            f"the scorer model {file} is damaged: its SHA-256 is not that of this release; "
            "install pfedrec-edge again"
        )
    return model


def _python_has_tflite_runtime() -> bool:
    """Whether tflite-runtime has wheels for this Python; its last release knows none after 3.11."""
    return sys.version_info < (3, 12)


def _known_obstacle(package: str) -> str | None:
    """Why a runtime cannot be used, as far as that shows without loading it."""
    try:
        installed = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        installed = False
    if not installed:
        return f"{package} is not installed"
    if package == _NUMPY_1_ONLY and int(np.__version__.split(".")[0]) >= 2:
        return f"{package} needs numpy 1, but numpy {np.__version__} is installed"
    return None


def open_interpreter(model: bytes) -> Any:
    """Give a TFLite interpreter of any model, which the caller has checked: for tools that compare models.

    Raises
    ------
    TfliteUnavailableError
        When no runtime is installed, or none takes the model.
    """
    return _first_working_interpreter(lambda: model)


def _first_working_interpreter(read: Callable[[], bytes]) -> Any:
    obstacles = []
    for package in _RUNTIMES:
        obstacle = _known_obstacle(package)
        if obstacle is None:
            model = read()
            try:
                return _interpreter(package, model)
            except _RUNTIME_FAILURES as error:
                reason = " ".join(str(error).split())
                obstacle = f"{package} fails with {type(error).__name__}: {reason}"
        obstacles.append(obstacle)
    raise TfliteUnavailableError("; ".join(obstacles))


def _interpreter(package: str, model: bytes) -> Any:
    with _arithmetic_kept():
        module = importlib.import_module(f"{package}.interpreter")
    return module.Interpreter(
        model_content=model,
        num_threads=1,
        # XNNPACK takes no part of a model with dynamic shapes; it would only announce itself on stderr.
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )


@contextmanager
def _arithmetic_kept() -> Iterator[None]:
    """Undo what a library does to this thread's floating-point unit when it is loaded.

    tflite-runtime for 32-bit ARM is linked with ``-ffast-math``: its first lines have numbers below 2.2e-308
    taken for zero from then on, in all that the process computes.
    """
    environment = ctypes.create_string_buffer(_FENV_BYTES)
    known = _LIBC.fegetenv(environment) == 0
    try:
        yield
    finally:
        if known:
            _LIBC.fesetenv(environment)


def _require_fit(table: Floats, score_function: ScoreFunction) -> None:
    w = score_function.w
    # Checked although the type says it: TFLite takes the bytes of a big-endian array as they are.
    if table.dtype != _FLOAT32 or w.dtype != _FLOAT32:
        raise ParameterError(f"the item table is {table.dtype} and w is {w.dtype}; both must be float32")
    if table.ndim != 2 or table.size == 0:
        raise ParameterError(
            f"the item table has shape {table.shape}; (items, dim) was expected, both at least 1"
        )
    if w.shape != table.shape[1:]:
        raise ParameterError(f"w has shape {w.shape}, but the item table has rows of shape {table.shape[1:]}")


def _is_frozen(array: Floats) -> bool:
    """Whether its values cannot change: it and everything that it is a view of are read-only."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)
