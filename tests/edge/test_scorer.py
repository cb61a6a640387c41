"""Which scorer a device gets, what the shipped model is worth, and the best rows of a catalogue."""

import math
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import edge.scorer
from broker.errors import CorruptError, MissingExtraError
from edge.scorer import ScorerChoice, available_scorer_name, make_scorer, read_model, top_k
from trainer.errors import ParameterError
from trainer.params import Floats, Rows

RUNTIMES = ("tflite_runtime", "ai_edge_litert")
PACKAGE = Path(edge.scorer.__file__).parent

needs_tflite = pytest.mark.skipif(
    available_scorer_name() == "numpy",
    reason="no TFLite runtime is installed that fits this Python, platform and numpy",
)


def uninstall(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages as good as not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def install(monkeypatch: pytest.MonkeyPatch, package: str, interpreter: ModuleType) -> None:
    """Put a runtime of our own in the place of one."""
    parent = ModuleType(package)
    parent.__spec__ = ModuleSpec(package, None)
    monkeypatch.setitem(sys.modules, package, parent)
    monkeypatch.setitem(sys.modules, f"{package}.interpreter", interpreter)


def a_broken_runtime() -> ModuleType:
    """Give a runtime that can be imported and no more, as tflite-runtime with numpy 2."""

    def refuse(**_: object) -> NoReturn:
        raise SystemError("returned a result with an exception set")

    module = ModuleType("interpreter")
    vars(module).update(
        Interpreter=refuse, OpResolverType=SimpleNamespace(BUILTIN_WITHOUT_DEFAULT_DELEGATES=3)
    )
    return module


def the_working_runtime() -> ModuleType:
    """Give the runtime that is installed here."""
    for package in RUNTIMES:
        try:
            return import_module(f"{package}.interpreter")
        except ImportError:
            continue
    raise AssertionError("available_scorer_name said that there is one")


def run_python(code: str, cwd: Path) -> str:
    """Run a program in a fresh interpreter whose first import path is `cwd`, and give what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@needs_tflite
def test_tflite_leaves_the_arithmetic_of_the_process_as_it_was() -> None:
    """The build for 32-bit ARM lets whoever loads it take numbers below 2.2e-308 for zero from then on."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from edge.scorer import make_scorer\n"
        "from trainer.params import ScoreFunction\n"
        "before = sys.float_info.min / 2\n"
        "scorer = make_scorer('tflite')\n"
        "scorer.logits(np.eye(3, dtype=np.float32), ScoreFunction(w=np.ones(3, dtype=np.float32), b=0.0))\n"
        "print(before > 0.0, sys.float_info.min / 2 == before)"
    )
    assert run_python(code, PACKAGE.parent) == "True True"


@needs_tflite
@pytest.mark.parametrize("choice", ["auto", "tflite"])
def test_make_scorer_where_tflite_works_gives_it(choice: ScorerChoice) -> None:
    """TFLite comes first."""
    assert make_scorer(choice).name == "tflite"


def test_make_scorer_told_numpy_gives_numpy() -> None:
    """Whatever else is installed."""
    assert make_scorer("numpy").name == "numpy"


def test_make_scorer_told_nonsense_names_the_choices() -> None:
    """The sentence lists what would have been right."""
    with pytest.raises(ParameterError, match="auto, tflite, numpy"):
        make_scorer(cast("ScorerChoice", "TFLite"))


def test_make_scorer_without_tflite_falls_back_when_told_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a wheel recommends all the same."""
    uninstall(monkeypatch, *RUNTIMES)
    assert make_scorer("auto").name == "numpy"
    assert available_scorer_name() == "numpy"


def test_make_scorer_with_blocked_import_falls_back_when_told_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import hook that forbids TFLite is as good as its absence."""

    class Block:
        def find_spec(self, name: str, *_: object) -> None:
            if name.split(".", maxsplit=1)[0] in RUNTIMES:
                raise ModuleNotFoundError(name)

    for module in [name for name in sys.modules if name.split(".")[0] in RUNTIMES]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Block(), *sys.meta_path])
    assert make_scorer("auto").name == "numpy"
    assert available_scorer_name() == "numpy"


def test_make_scorer_without_tflite_refuses_when_told_tflite(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what was found and what to run."""
    uninstall(monkeypatch, *RUNTIMES)
    with pytest.raises(MissingExtraError) as refusal:
        make_scorer("tflite")
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert "tflite_runtime is not installed" in sentence
    assert "pip install" in sentence


def test_make_scorer_with_broken_tflite_falls_back_when_told_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed is not enough; it must work."""
    uninstall(monkeypatch, "ai_edge_litert")
    install(monkeypatch, "tflite_runtime", a_broken_runtime())
    assert make_scorer("auto").name == "numpy"


def test_make_scorer_with_broken_tflite_says_how_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is in the sentence."""
    uninstall(monkeypatch, "tflite_runtime")
    install(monkeypatch, "ai_edge_litert", a_broken_runtime())
    with pytest.raises(MissingExtraError, match="fails with SystemError: returned a result") as refusal:
        make_scorer("tflite")
    assert "\n" not in str(refusal.value)


@needs_tflite
def test_make_scorer_with_one_broken_runtime_takes_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor is tried where the first fails."""
    working = the_working_runtime()
    install(monkeypatch, "tflite_runtime", a_broken_runtime())
    install(monkeypatch, "ai_edge_litert", working)
    assert make_scorer("tflite").name == "tflite"


def test_make_scorer_with_numpy_2_does_not_load_tflite_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import would print a traceback, then fail."""
    uninstall(monkeypatch, "ai_edge_litert")
    install(monkeypatch, "tflite_runtime", a_broken_runtime())
    monkeypatch.delitem(sys.modules, "tflite_runtime.interpreter")
    monkeypatch.setattr(np, "__version__", "2.4.6")
    assert available_scorer_name() == "numpy"
    with pytest.raises(MissingExtraError, match=r"needs numpy 1, but numpy 2\.4\.6 is installed"):
        make_scorer("tflite")
    assert "tflite_runtime.interpreter" not in sys.modules


def test_import_of_scorer_loads_no_tflite() -> None:
    """An agent that asks for the name, or scores with numpy, never pays for it."""
    loaded = run_python(
        "import sys\n"
        "from edge.scorer import available_scorer_name, make_scorer\n"
        "available_scorer_name(), make_scorer('numpy')\n"
        "print([name for name in sys.modules if name.startswith(('tflite', 'ai_edge', 'tensorflow'))])",
        cwd=PACKAGE.parent,
    )
    assert loaded == "[]"


@needs_tflite
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_make_scorer_with_damaged_package_names_the_model(tmp_path: Path, damage: str) -> None:
    """TFLite would crash on such a file; the user gets a sentence."""
    model = tmp_path / "edge" / "models" / "scorer.tflite"
    model.parent.mkdir(parents=True)
    for name in ("__init__.py", "scorer.py"):
        shutil.copy(PACKAGE / name, tmp_path / "edge")
    if damage != "missing":
        model.write_bytes(b"" if damage == "empty" else read_model()[:600])
    said = run_python(
        "from edge.scorer import make_scorer\n"
        "from broker.errors import CorruptError\n"
        "try: make_scorer('auto')\n"
        "except CorruptError as error: print(error)",
        cwd=tmp_path,
    )
    assert str(model) in said
    assert "install pfedrec-edge again" in said
    assert "\n" not in said


def test_read_model_of_the_package_is_whole() -> None:
    """What ships is what was built."""
    assert read_model()[4:8] == b"TFL3"


def test_read_model_of_missing_file_is_corrupt(tmp_path: Path) -> None:
    """A missing file is a damaged package."""
    with pytest.raises(CorruptError, match="cannot be read"):
        read_model(tmp_path / "scorer.tflite")


@given(at=st.integers(0, len(read_model()) - 1), flip=st.integers(1, 255), cut=st.booleans())
def test_read_model_of_changed_bytes_is_corrupt(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int, *, cut: bool
) -> None:
    """Any single changed byte and any truncation is noticed."""
    whole = bytearray(read_model())
    if cut:
        del whole[at:]
    else:
        whole[at] ^= flip
    file = tmp_path_factory.mktemp("model") / "scorer.tflite"
    file.write_bytes(whole)
    with pytest.raises(CorruptError, match="damaged"):
        read_model(file)


def sorted_reference(logits: Floats, k: int, exclude: Rows) -> list[int]:
    """Give the best rows by sorting all of them."""
    left_out = set(exclude.tolist())
    rows = [row for row, z in enumerate(logits.tolist()) if row not in left_out and not math.isnan(z)]
    return sorted(rows, key=lambda row: (-logits[row], row))[:k]


some_logits = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]), st.floats(width=32)
    ),
)


@given(data=st.data(), logits=some_logits, k=st.integers(0, 50))
def test_top_k_agrees_with_sorting(data: st.DataObject, logits: Floats, k: int) -> None:
    """With ties, infinities, NaN, exclusions and small catalogues."""
    excluded = data.draw(st.lists(st.integers(0, len(logits) - 1))) if len(logits) else []
    exclude = np.array(excluded, dtype=np.int64)
    best = top_k(logits, k, exclude)
    assert best.dtype == np.int64
    assert best.tolist() == sorted_reference(logits, k, exclude)


def test_top_k_of_equal_logits_takes_the_first_rows() -> None:
    """However the partition shuffles a large array."""
    logits = np.zeros(10_000, dtype=np.float32)
    logits[[9_000, 17]] = 1.0
    assert top_k(logits, 5, np.array([0, 2], dtype=np.int64)).tolist() == [17, 9_000, 1, 3, 4]


def test_top_k_of_fewer_rows_than_asked_gives_them_all() -> None:
    """A catalogue smaller than k, part of it known, part of it not a number."""
    logits = np.array([0.5, math.nan, -math.inf, 2.0], dtype=np.float32)
    assert top_k(logits, 10, np.array([3], dtype=np.int64)).tolist() == [0, 2]


def test_top_k_leaves_its_arguments_alone() -> None:
    """The same logits serve the next question."""
    logits = np.arange(5, dtype=np.float32)
    top_k(logits, 2, np.array([4], dtype=np.int64))
    assert logits.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("logits", "k", "exclude"),
    [
        (np.zeros((1, 5), np.float32), 1, []),
        (np.zeros(5, np.float32), -1, []),
        (np.zeros(5, np.float32), 1, [5]),
        (np.zeros(5, np.float32), 1, [-1]),
        (np.zeros(0, np.float32), 1, [0]),
    ],
)
def test_top_k_of_what_does_not_fit_is_refused(logits: Floats, k: int, exclude: list[int]) -> None:
    """A row that is not there is a mistake, not a wrap-around."""
    with pytest.raises(ParameterError):
        top_k(logits, k, np.array(exclude, dtype=np.int64))
