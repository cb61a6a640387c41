"""A TFLite file's structure, read without TensorFlow: tensors, quantisation, operators, buffers.

Only what `inspect` tells is read. The format is that of FlatBuffers (tables with a vtable of field offsets)
and TensorFlow's schema.fbs, version 3. No offset is followed beyond the file's end.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from broker.errors import CorruptError

_T = TypeVar("_T")
_IDENTIFIER = b"TFL3"
_TYPES = (
    *("FLOAT32", "FLOAT16", "INT32", "UINT8", "INT64", "STRING", "BOOL", "INT16", "COMPLEX64", "INT8"),
    *("FLOAT64", "COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16", "INT4", "BFLOAT16"),
)
_BYTES = {
    "FLOAT32": 4,
    "FLOAT16": 2,
    "INT32": 4,
    "UINT8": 1,
    "INT64": 8,
    "BOOL": 1,
    "INT16": 2,
    "INT8": 1,
    "FLOAT64": 8,
    "UINT64": 8,
    "UINT32": 4,
    "UINT16": 2,
    "BFLOAT16": 2,
}
_OPERATORS = {
    0: "ADD",
    3: "CONV_2D",
    6: "DEQUANTIZE",
    9: "FULLY_CONNECTED",
    14: "LOGISTIC",
    18: "MUL",
    22: "RESHAPE",
    25: "SOFTMAX",
    28: "TANH",
    36: "GATHER",
    39: "TRANSPOSE",
    41: "SUB",
    45: "STRIDED_SLICE",
    48: "TOPK_V2",
    53: "CAST",
    70: "EXPAND_DIMS",
    74: "SUM",
    77: "SHAPE",
    83: "PACK",
    94: "FILL",
    114: "QUANTIZE",
    126: "BATCH_MATMUL",
    130: "BROADCAST_TO",
}
_ARENA_ALIGNMENT = 16
MOST = 100_000
"""Of anything in one list; a scorer has a dozen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor of the graph.

    Attributes
    ----------
    shape : tuple of int
        A size that is only known at run time is -1.
    scales : int
        How many quantisation scales it has: none, one, or one a channel.
    scale : float or None
        The first one.
    constant : int
        Bytes of it in the file; 0: computed.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    scales: int
    scale: float | None
    zero_point: int | None
    constant: int

    @property
    def bytes(self) -> int:
        """In memory, sizes known at run time counted as 1."""
        size = _BYTES.get(self.type, 0)
        for each in self.shape:
            size *= max(1, each)
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """A step of the graph, with the tensors that it reads and writes, by number; -1 is none."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """The first subgraph of a TFLite model."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]

    @property
    def constant_bytes(self) -> int:
        """Of all constants."""
        return sum(tensor.constant for tensor in self.tensors)

    @property
    def arena_estimate(self) -> int:
        """Bytes of the tensors that are alive at the worst step, each filled up to 16: a lower bound.

        Runtimes also keep their own structures there (TFLite Micro some kilobytes).
        """
        last = dict.fromkeys(self.inputs, -1)
        first = dict.fromkeys(self.inputs, -1)
        for step, operator in enumerate(self.operators):
            for tensor in operator.outputs:
                first.setdefault(tensor, step)
            for tensor in (*operator.inputs, *operator.outputs):
                last[tensor] = step
        last.update(dict.fromkeys(self.outputs, len(self.operators)))
        needs = {
            tensor: -(-self.tensors[tensor].bytes // _ARENA_ALIGNMENT) * _ARENA_ALIGNMENT
            for tensor in first
            if 0 <= tensor < len(self.tensors) and not self.tensors[tensor].constant
        }
        steps = range(-1, len(self.operators) + 1)
        return max(
            sum(need for tensor, need in needs.items() if first[tensor] <= step <= last[tensor])
            for step in steps
        )


def read_graph(content: bytes) -> Graph:
    """Read a ``.tflite`` file.

    Raises
    ------
    CorruptError
        When it is none, or ends too early.
    """
    if content[4:8] != _IDENTIFIER:
        raise CorruptError("this is no TFLite model: the identifier TFL3 is missing")
    try:
        return _graph(_Table(content, _u32(content, 0)))
    except (struct.error, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptError(f"the TFLite model is damaged: {error}") from error


def _u32(content: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", content, at)[0])


class _Table:
    """A table of a flatbuffer: fields by number, absent ones by default."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._vtable = at - struct.unpack_from("<i", content, at)[0]
        if self._vtable < 0:
            raise IndexError("a table without fields")
        self._n_fields = (struct.unpack_from("<H", content, self._vtable)[0] - 4) // 2

    def _field(self, number: int) -> int:
        if number >= self._n_fields:
            return 0
        offset = struct.unpack_from("<H", self._content, self._vtable + 4 + 2 * number)[0]
        return self._at + offset if offset else 0

    def number(self, field_number: int, form: str, default: int = 0) -> int:
        at = self._field(field_number)
        return int(struct.unpack_from(f"<{form}", self._content, at)[0]) if at else default

    def _target(self, field_number: int) -> int:
        at = self._field(field_number)
        return at + _u32(self._content, at) if at else 0

    def table(self, field_number: int) -> "_Table | None":
        at = self._target(field_number)
        return _Table(self._content, at) if at else None

    def text(self, field_number: int) -> str:
        at = self._target(field_number)
        if not at:
            return ""
        return self._slice(at + 4, _u32(self._content, at)).decode()

    def length(self, field_number: int) -> int:
        at = self._target(field_number)
        return _u32(self._content, at) if at else 0

    def numbers(self, field_number: int, form: str) -> tuple[float, ...]:
        at = self._target(field_number)
        if not at:
            return ()
        count = self._bounded(_u32(self._content, at))
        return struct.unpack_from(f"<{count}{form}", self._content, at + 4)

    def tables(self, field_number: int, read: Callable[["_Table"], _T]) -> tuple[_T, ...]:
        at = self._target(field_number)
        if not at:
            return ()
        places = range(at + 4, at + 4 + 4 * self._bounded(_u32(self._content, at)), 4)
        return tuple(read(_Table(self._content, place + _u32(self._content, place))) for place in places)

    def _bounded(self, count: int) -> int:
        if count > MOST:
            raise IndexError(f"a list of {count}")
        return count

    def _slice(self, start: int, size: int) -> bytes:
        if start + size > len(self._content):
            raise IndexError("a text runs past the end")
        return self._content[start : start + size]


def _graph(model: _Table) -> Graph:
    names = model.tables(1, _operator_name)
    buffers = model.tables(4, lambda buffer: buffer.length(0))
    graphs = model.tables(2, lambda graph: graph)
    if not graphs:
        raise IndexError("no graph")
    graph = graphs[0]
    read = Graph(
        tensors=graph.tables(0, lambda tensor: _tensor(tensor, buffers)),
        inputs=_integers(graph, 1),
        outputs=_integers(graph, 2),
        operators=graph.tables(3, lambda operator: _operator(operator, names)),
    )
    needed = [*read.inputs, *read.outputs, *(each for step in read.operators for each in step.outputs)]
    optional = [each for step in read.operators for each in step.inputs]
    if min(needed, default=0) < 0 or max([*needed, *optional], default=-1) >= len(read.tensors):
        raise IndexError("a tensor that is not there")
    return read


def _integers(table: _Table, field_number: int) -> tuple[int, ...]:
    return tuple(int(value) for value in table.numbers(field_number, "i"))


def _operator_name(code: _Table) -> str:
    # Numbers up to 126 are in the first field too, larger ones in the last alone.
    number = max(code.number(0, "b"), code.number(3, "i"))
    return code.text(1) or _OPERATORS.get(number, f"BUILTIN_{number}")


def _operator(operator: _Table, names: tuple[str, ...]) -> Operator:
    return Operator(
        name=names[operator.number(0, "I")], inputs=_integers(operator, 1), outputs=_integers(operator, 2)
    )


def _tensor(tensor: _Table, buffers: tuple[int, ...]) -> Tensor:
    number = tensor.number(1, "b")
    quantisation = tensor.table(4)
    scales = quantisation.numbers(2, "f") if quantisation is not None else ()
    zeros = quantisation.numbers(3, "q") if quantisation is not None else ()
    return Tensor(
        name=tensor.text(3),
        type=_TYPES[number],
        shape=_integers(tensor, 7) or _integers(tensor, 0),
        scales=len(scales),
        scale=scales[0] if scales else None,
        zero_point=int(zeros[0]) if zeros else None,
        constant=buffers[tensor.number(2, "I")],
    )
