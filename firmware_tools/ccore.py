"""Where the C core is, how its files are compiled, and the core called from Python on this machine."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.errors import AttentionError
from trainer.integers import QuantisedTable
from trainer.params import Floats

SOURCES = (
    "src/best.c",
    "src/cbor.c",
    "src/factored.c",
    "src/frame.c",
    "src/messages.c",
    "src/model.c",
    "src/pass.c",
    "src/random.c",
    "src/score.c",
    "src/serial.c",
    "src/status.c",
    "src/table.c",
    "src/taste.c",
    "src/update.c",
    "src/writer.c",
)
C_FLAGS = ("-std=c99", "-ffp-contract=off")
"""Without fused multiplications results are the same everywhere; see `firmware_tools.arithmetic`."""
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Wcast-align",
    "-Wstrict-prototypes",
)


def core_directory() -> Path:
    """Give the folder of the C core, as it is installed."""
    return Path(str(resources.files("firmware_tools"))) / "c"


class HostCore:
    """The core, compiled for this machine.

    Raises
    ------
    AttentionError
        When there is no C compiler, or it refuses.
    """

    def __init__(self) -> None:
        if shutil.which("cc") is None:
            raise AttentionError(
                "no C compiler is installed; the C core cannot be tried: apt-get install gcc"
            )
        core = core_directory()
        sources = [str(core / name) for name in SOURCES] + [str(core.parent / "boards" / "hostcore.c")]
        with tempfile.TemporaryDirectory(prefix="pfedrec-core-") as folder:
            out = Path(folder) / "core.so"
            command = ["cc", *C_FLAGS, "-O2", "-fPIC", "-shared", f"-I{core / 'include'}", *sources, "-lm"]
            done = subprocess.run(
                [*command, "-o", str(out)], capture_output=True, text=True, check=False, timeout=120
            )
            if done.returncode:
                raise AttentionError(f"the C core does not compile here: {done.stderr.strip()[:300]}")
            self._library = ctypes.CDLL(str(out))

    def logits(self, table: Floats, w: Floats, b: float) -> Floats:
        """Score every row of a float table; shape (n_items,), float32."""
        out = np.empty(len(table), dtype=np.float32)
        rows, dim = map(ctypes.c_uint32, table.shape)
        self._library.host_logits(_address(table), rows, dim, _address(w), ctypes.c_float(b), _address(out))
        return out

    def integer_scores(self, table: QuantisedTable, w: Floats) -> NDArray[np.int32]:
        """Give every row's integer score of an 8-bit table; shape (n_items,), int32."""
        out = np.empty(len(table.values), dtype=np.int32)
        rows, dim = map(ctypes.c_uint32, table.values.shape)
        unit = ctypes.c_float(float(table.unit))
        values, multipliers = _address(table.values), _address(table.multipliers)
        self._library.host_integer_scores(values, multipliers, unit, rows, dim, _address(w), _address(out))
        return out

    def ten_best(self, table: QuantisedTable, w: Floats) -> NDArray[np.uint32]:
        """Give the ten best rows by integer score; shape (10,), uint32, of which none is 2^32 - 1."""
        out = np.empty(10, dtype=np.uint32)
        rows, dim = map(ctypes.c_uint32, table.values.shape)
        unit = ctypes.c_float(float(table.unit))
        values, multipliers = _address(table.values), _address(table.multipliers)
        self._library.host_ten_best(values, multipliers, unit, rows, dim, _address(w), _address(out))
        return out


@cache
def host_core() -> HostCore:
    """Give the core, compiled once in a process; see `HostCore`."""
    return HostCore()


def _address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    if not array.flags.c_contiguous:
        raise ValueError("the core reads contiguous arrays")
    return ctypes.c_void_p(array.ctypes.data)
