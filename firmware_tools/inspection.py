"""What a model file holds, as facts and as lines: a TFLite model, or the C core's model.pfr."""

import hashlib
import struct
import zlib
from typing import Any

from broker.errors import CorruptError
from broker.protocol.modelfile import FORMAT, HEADER_BYTES, MAGIC
from firmware_tools.flatbuffer import Graph, Tensor, read_graph

_CRC_END = 24


def facts_of(content: bytes) -> dict[str, Any]:
    """Give all facts of a file's content, for JSON.

    Raises
    ------
    CorruptError
        When it is neither kind of model, or damaged.
    """
    common = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if content.startswith(MAGIC):
        return common | _model_facts(content)
    graph = read_graph(content)
    return common | {
        "kind": "tflite",
        "inputs": [_tensor_facts(graph.tensors[each]) for each in graph.inputs],
        "outputs": [_tensor_facts(graph.tensors[each]) for each in graph.outputs],
        "operators": [operator.name for operator in graph.operators],
        "tensors": [_tensor_facts(tensor) for tensor in graph.tensors],
        "constant_bytes": graph.constant_bytes,
        "arena_estimate_bytes": graph.arena_estimate,
    }


def lines_of(content: bytes) -> dict[str, str]:
    """Give the facts as a person reads them."""
    facts = facts_of(content)
    lines = {"size": f"{facts['bytes']:,} bytes, SHA-256 {facts['sha256']}"}
    if facts["kind"] != "tflite":
        lines["model"] = f"{facts['items']} items x {facts['dim']}, {facts['quant']}; for the C core"
        return lines
    graph = read_graph(content)
    lines["inputs"] = "; ".join(_told(graph.tensors[each]) for each in graph.inputs)
    lines["outputs"] = "; ".join(_told(graph.tensors[each]) for each in graph.outputs)
    lines["operators"] = ", ".join(facts["operators"])
    inner = [t for n, t in enumerate(graph.tensors) if n not in {*graph.inputs, *graph.outputs}]
    lines["tensors"] = "; ".join(_told(tensor) for tensor in inner)
    lines["constants"] = f"{graph.constant_bytes:,} bytes"
    lines["arena"] = f"at least {graph.arena_estimate:,} bytes{_as_known(graph)}"
    return lines


def _as_known(graph: Graph) -> str:
    unknown = any(-1 in tensor.shape for tensor in graph.tensors)
    return ", sizes that are known at run time only counted as 1" if unknown else ""


def _tensor_facts(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.type,
        "shape": list(tensor.shape),
        "scales": tensor.scales,
        "scale": tensor.scale,
        "zero_point": tensor.zero_point,
        "constant_bytes": tensor.constant,
    }


def _told(tensor: Tensor) -> str:
    shape = " x ".join("?" if size == -1 else str(size) for size in tensor.shape) or "scalar"
    text = f"{tensor.name} {tensor.type} {shape}"
    if tensor.scales > 1:
        return f"{text} ({tensor.scales} scales)"
    return f"{text} (scale {tensor.scale:.4g}, zero {tensor.zero_point})" if tensor.scales else text


def _model_facts(content: bytes) -> dict[str, Any]:
    if len(content) < HEADER_BYTES:
        raise CorruptError("the model.pfr ends within its header")
    version, table_format, rows, dim, size, crc = struct.unpack_from("<HHIIII", content, 4)
    if version != FORMAT or table_format > 1:
        raise CorruptError(f"a model.pfr of format {version}; this release reads {FORMAT}")
    if size != len(content) or crc != zlib.crc32(content[_CRC_END:]):
        raise CorruptError("the model.pfr is damaged: its size or checksum is another")
    return {"kind": "pfr", "items": rows, "dim": dim, "quant": ("float32", "int8")[table_format]}
