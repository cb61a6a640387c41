"""The C core, built with the host's compiler and called through ctypes."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.protocol.encodings import FactoredChange
from firmware_tools.ccore import C_FLAGS, SOURCES, WARNINGS, core_directory
from trainer.integers import QuantisedTable
from trainer.params import Floats, Hyperparameters, Rows

SANITIZED = os.environ.get("PFEDREC_C_SANITIZE") == "1"
"""Set by the test that runs these tests again under sanitizers."""
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def examples(count: int) -> int:
    """Give how many examples to try: fewer where each is several times slower."""
    return -(-count // 8) if SANITIZED else count


ROOM, MALFORMED, SCHEMA, FORMAT, CHECKSUM, NOT_FINITE, NOTHING, SINK = range(2, 10)
OK, ARGUMENT = 0, 1

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler is installed: apt-get install gcc"
)

_SHIM = Path(__file__).parent / "c" / "shim.c"
Words = NDArray[np.uint64]


@cache
def library() -> ctypes.CDLL:
    """Build the core with the shim; once a process."""
    folder = Path(tempfile.mkdtemp(prefix="pfedrec-core-"))
    out = folder / "libcore.so"
    core = core_directory()
    sources = [str(core / name) for name in SOURCES]
    sanitizers = SANITIZERS if SANITIZED else ()
    command = ["cc", *C_FLAGS, *WARNINGS, "-Werror", "-O1", *sanitizers, "-fPIC", "-shared"]
    # The runtime of a sanitizer is for Python, not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(
        [*command, f"-I{core / 'include'}", *sources, str(_SHIM), "-lm", "-o", str(out)],
        check=True,
        env=environment,
    )
    loaded = ctypes.CDLL(str(out))
    shutil.rmtree(folder)
    for kind in ("state", "want", "part", "passed"):
        getattr(loaded, f"shim_serial_{kind}").restype = ctypes.c_size_t
    for name in ("shim_update_bytes", "shim_room"):
        getattr(loaded, name).restype = ctypes.c_size_t if name == "shim_update_bytes" else ctypes.c_void_p
    loaded.shim_pass_rows.restype = ctypes.c_uint32
    loaded.shim_changes.restype = ctypes.c_uint32
    loaded.shim_frames.restype = ctypes.c_uint32
    loaded.shim_status_text.restype = ctypes.c_char_p
    return loaded


def pointer(array: NDArray[Any] | None) -> Any:
    """Give an array's address; it must live as long as the call, and be contiguous."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def u32(values: Any) -> NDArray[np.uint32]:
    """Give row numbers as the core takes them."""
    return np.ascontiguousarray(values, dtype=np.uint32)


def words_of(seed: int) -> Words:
    """Give the words with which the core's stream is `numpy.random.default_rng(seed)`'s."""
    words: Words = np.random.SeedSequence(seed).generate_state(4, np.uint64).astype(np.uint64)
    return words


Table = Floats | QuantisedTable


def table_arguments(table: Table) -> tuple[Any, ...]:
    """Give the shim's arguments of a table."""
    if isinstance(table, QuantisedTable):
        rows, dim = table.values.shape
        floats, integers = None, (pointer(table.values), pointer(table.multipliers))
        unit = ctypes.c_float(float(table.unit))
    else:
        rows, dim = table.shape
        floats, integers, unit = pointer(table), (None, None), ctypes.c_float(0.0)
    return (floats, *integers, unit, ctypes.c_uint32(rows), ctypes.c_uint32(dim))


def shape_of(table: Table) -> tuple[int, int]:
    """Give rows and dim."""
    values = table.values if isinstance(table, QuantisedTable) else table
    return values.shape[0], values.shape[1]


def logits(table: Table, w: Floats, b: float) -> Floats:
    """Score every item."""
    out = np.empty(shape_of(table)[0], dtype=np.float32)
    done = library().shim_logits(*table_arguments(table), pointer(w), ctypes.c_float(b), pointer(out))
    assert done == OK
    return out


def recommend(
    table: Table,
    k: int,
    *,
    w: Floats | None = None,
    b: float = 0.0,
    vector: NDArray[np.int16] | None = None,
    own: "Pass | None" = None,
    masked: Any = (),
) -> tuple[Rows, NDArray[np.int32]]:
    """Give the best rows and their keys."""
    rows, keys = np.empty(k, dtype=np.uint32), np.empty(k, dtype=np.int32)
    mask = u32(masked)
    found = library().shim_recommend(
        *table_arguments(table),
        pointer(w),
        ctypes.c_float(b),
        pointer(vector),
        None if own is None else own.room,
        pointer(mask),
        ctypes.c_uint32(mask.size),
        ctypes.c_uint32(k),
        pointer(rows),
        pointer(keys),
    )
    assert found >= 0, library().shim_status_text(-found)
    return rows[:found].astype(np.int64), keys[:found]


@dataclass
class Pass:
    """Room for passes, a random stream, and a user's w and b."""

    w: Floats
    b: float
    samples: int
    batches: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.w = self.w.astype(np.float32).copy()
        words = words_of(self.seed)
        made = library().shim_room(
            ctypes.c_uint32(self.samples),
            ctypes.c_uint32(self.batches),
            ctypes.c_uint32(self.w.size),
            pointer(words),
        )
        self.room = ctypes.c_void_p(made)

    def __del__(self) -> None:
        library().shim_free(self.room)

    def run(self, table: Table, positives: Any, excluded: Any, settings: Hyperparameters) -> int:
        """Train one pass; give the status."""
        b = np.array([self.b], dtype=np.float32)
        chosen, left_out = u32(positives), u32(excluded)
        status = library().shim_pass(
            self.room,
            *table_arguments(table),
            pointer(self.w),
            pointer(b),
            pointer(chosen),
            ctypes.c_uint32(chosen.size),
            pointer(left_out),
            ctypes.c_uint32(left_out.size),
            ctypes.c_double(settings.lr),
            ctypes.c_double(settings.item_lr),
            ctypes.c_double(settings.decay),
            ctypes.c_uint32(settings.negatives),
            ctypes.c_uint32(settings.batch_size),
        )
        self.b = float(b[0])
        return int(status)

    def changes(self) -> tuple[Rows, Floats]:
        """Give the rows of the newest pass and their changes."""
        n_rows = library().shim_pass_rows(self.room)
        rows = np.empty(n_rows, dtype=np.uint32)
        changes = np.empty((n_rows, self.w.size), dtype=np.float32)
        assert library().shim_changes(self.room, pointer(rows), pointer(changes)) == n_rows
        return rows.astype(np.int64), changes

    def factors(self) -> FactoredChange:
        """Give the newest pass as the factors that a device would encode."""
        rows, coefficients = np.empty(self.samples, dtype=np.uint32), np.empty(self.samples, dtype=np.float32)
        starts = np.zeros(self.batches + 1, dtype=np.uint32)
        vectors = np.empty((self.batches, self.w.size), dtype=np.float32)
        library().shim_factors(self.room, *map(pointer, (rows, coefficients, starts, vectors)))
        n_batches = int(np.argmax(starts))
        touched = self.changes()[0]
        dense = np.zeros((n_batches, touched.size), dtype=np.float32)
        for batch in range(n_batches):
            cells = slice(starts[batch], starts[batch + 1])
            dense[batch, np.searchsorted(touched, rows[cells])] = coefficients[cells]
        return FactoredChange(rows=touched, coefficients=dense, directions=vectors[:n_batches])

    def update(
        self,
        *,
        encoding: str = "float32",
        instance: int = 7,
        incarnation: int = 8,
        seq: int = 1,
        base_version: int = 3,
        room: int | None = None,
    ) -> tuple[int, bytes]:
        """Encode the newest pass; give the status and the bytes, at most `room` of them."""
        names = (*map(ctypes.c_uint64, (instance, incarnation, seq, base_version)), encoding.encode())
        size = library().shim_update_bytes(self.room, *names)
        buffer = np.empty(max(1, size if room is None else room), dtype=np.uint8)
        used = ctypes.c_size_t()
        status = library().shim_update(
            self.room,
            *names,
            pointer(buffer),
            ctypes.c_size_t(size if room is None else room),
            ctypes.byref(used),
        )
        if status == OK:
            assert used.value == size
        return int(status), buffer[: used.value].tobytes()


class _Bytes(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("size", ctypes.c_uint32))


class _Hyperparameters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "item_lr", "decay")),
        ("negatives", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        ("hyperparameters", _Hyperparameters),
        ("encoding", _Bytes),
        ("check_in_s", ctypes.c_double),
        ("max_idle_passes", ctypes.c_uint32),
        ("taste_recency", ctypes.c_double),
        ("taste_strength", ctypes.c_double),
        ("guard", ctypes.c_double),
    )


class _Delta(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint64), ("size", ctypes.c_uint32), ("digest", ctypes.c_void_p))


class _Offer(ctypes.Structure):
    _fields_ = (
        ("release", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("sha256", ctypes.c_void_p),
        ("percent", ctypes.c_uint32),
        ("n_groups", ctypes.c_uint32),
    )


class CHead(ctypes.Structure):
    """``pfr_head``."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("instance", "session", "version")),
        ("rows", ctypes.c_uint32),
        ("dim", ctypes.c_uint32),
        ("sha256", ctypes.c_void_p),
        *(
            (name, ctypes.c_uint32)
            for name in ("slot", "chunks", "catalogue_rows", "catalogue_chunks", "catalogue_bytes")
        ),
        ("catalogue_sha256", ctypes.c_void_p),
        ("plan", _Plan),
        ("w", _Bytes),
        ("b", ctypes.c_double),
        ("n_deltas", ctypes.c_uint32),
        ("deltas", _Delta * 8),
        ("signature", ctypes.c_void_p),
        ("offer", _Offer),
    )


class CReceipt(ctypes.Structure):
    """``pfr_receipt``."""

    _fields_ = (
        ("incarnation", ctypes.c_uint64),
        ("seq", ctypes.c_uint64),
        ("verdict", ctypes.c_int),
        ("reason", _Bytes),
        ("version", ctypes.c_uint64),
        ("staleness", ctypes.c_uint64),
        ("check_in_s", ctypes.c_double),
    )


class CChunk(ctypes.Structure):
    """``pfr_chunk``."""

    _fields_ = (
        ("digest", ctypes.c_void_p),
        ("index", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("data", _Bytes),
    )


def decode_head(payload: bytes) -> tuple[int, CHead]:
    """Decode; what the head points to is gone."""
    head = CHead()
    status = library().shim_head(payload, ctypes.c_size_t(len(payload)), ctypes.byref(head), None)
    return int(status), head


def head_vector(payload: bytes, dim: int) -> Floats:
    """Give the score function that a head carries."""
    head, w = CHead(), np.empty(dim, dtype=np.float32)
    size = ctypes.c_size_t(len(payload))
    assert library().shim_head(payload, size, ctypes.byref(head), pointer(w)) == OK
    return w


def decode_receipt(payload: bytes) -> tuple[int, CReceipt]:
    """Decode; what the receipt points to is gone."""
    receipt = CReceipt()
    status = library().shim_receipt(payload, ctypes.c_size_t(len(payload)), ctypes.byref(receipt))
    return int(status), receipt


def decode_chunk(payload: bytes) -> tuple[int, CChunk]:
    """Decode; what the chunk points to is gone."""
    chunk = CChunk()
    status = library().shim_chunk(payload, ctypes.c_size_t(len(payload)), ctypes.byref(chunk))
    return int(status), chunk


def apply_step(content: bytes, table: Floats) -> int:
    """Apply a step to a table in place; give its rows, or minus the status."""
    rows, dim = map(ctypes.c_uint32, table.shape)
    return int(library().shim_step(content, ctypes.c_size_t(len(content)), rows, dim, pointer(table)))


def decode_model(content: bytes, room: int = 1 << 16) -> tuple[int, Floats]:
    """Decode a model; give the status and its logits of its own w and b."""
    rows, dim = ctypes.c_uint32(), ctypes.c_uint32()
    out = np.empty(room, dtype=np.float32)
    status = library().shim_model(
        content,
        ctypes.c_size_t(len(content)),
        ctypes.byref(rows),
        ctypes.byref(dim),
        pointer(out),
        ctypes.c_size_t(room),
    )
    return int(status), out[: rows.value]


def frame_of(message: bytes, room: int | None = None) -> tuple[int, bytes]:
    """Frame a message; give the status and the bytes, at most `room` of them."""
    room = 2 * len(message) + 16 if room is None else room
    out, used = np.empty(max(1, room), dtype=np.uint8), ctypes.c_size_t()
    status = library().shim_frame_write(
        message, ctypes.c_size_t(len(message)), pointer(out), ctypes.c_size_t(room), ctypes.byref(used)
    )
    return int(status), out[: used.value].tobytes()


def messages_of(line: bytes, room: int) -> tuple[list[bytes], int]:
    """Read a line with memory for messages of `room` bytes; give the messages, and the frames dropped."""
    out = np.empty(5 * len(line) + 16, dtype=np.uint8)
    dropped = ctypes.c_uint32()
    count = library().shim_frames(
        line, ctypes.c_size_t(len(line)), ctypes.c_size_t(room + 4), pointer(out), ctypes.byref(dropped)
    )
    content, messages, at = out.tobytes(), [], 0
    for _ in range(count):
        size = int.from_bytes(content[at : at + 4], "little")
        messages.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return messages, dropped.value


class CSerialState(ctypes.Structure):
    """``pfr_serial_state``."""

    _fields_ = (
        ("table_format", ctypes.c_int),
        ("room", ctypes.c_uint16),
        ("package_room", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("incarnation", "seq", "pending", "instance", "version")),
        *((name, ctypes.c_uint32) for name in ("crc", "size")),
        ("revision", ctypes.c_uint64),
        ("known", ctypes.c_uint32),
    )


class CSerialAnswer(ctypes.Structure):
    """``pfr_serial_answer``."""

    _fields_ = (
        ("kind", ctypes.c_int),
        *((name, ctypes.c_uint64) for name in ("time", "instance", "version", "incarnation", "seq")),
        *((name, ctypes.c_uint32) for name in ("crc", "offset", "model", "mask", "head")),
        *((name, ctypes.c_uint32) for name in ("online", "verdict", "reason")),
        ("data", _Bytes),
    )


def serial_message(kind: str, *arguments: Any) -> bytes:
    """Write a board's message; of a part what stands before its data."""
    out = np.zeros(256, dtype=np.uint8)
    size = getattr(library(), f"shim_serial_{kind}")(*arguments, pointer(out))
    return out[:size].tobytes()


def read_serial(message: bytes) -> tuple[int, CSerialAnswer, bytes]:
    """Read a gateway's answer; give the status, the answer and its data."""
    found, data = CSerialAnswer(), ctypes.c_size_t()
    size = ctypes.c_size_t(len(message))
    status = library().shim_serial_read(message, size, ctypes.byref(found), ctypes.byref(data))
    return int(status), found, message[data.value :] if data.value else b""
