"""What a graph asks of a GPU: the lowest compute capability that can do its arithmetic.

Sources. TensorRT-RTX: measured with 1.7.1 on a machine without a GPU, one graph per arithmetic and
compute capability (``tests/build/test_capabilities.py`` builds them again). TensorRT:
``docs/operators.md`` and ``docs/Changelog.md`` of github.com/onnx/onnx-tensorrt, 10.1 to 10.15.

Both build strongly typed networks, so the types in the ONNX graph decide what a GPU must be able to
do. :func:`demands` reads them off: a graph needs the highest compute capability of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fewstep.build.graphs import (
    CONVOLUTIONS,
    MAC_OPERATORS,
    MATMULS,
    Placed,
    constant_of,
    placed,
    type_name,
)

NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.DOUBLE: "fp32",  # the parser makes fp32 of it
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "fp4",
}
"""Names of the types that matmuls compute in or are quantized to."""

QUANTIZED = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
"""Types that QuantizeLinear and DequantizeLinear may have, the most demanding last."""

_TYPES_NEED: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {"bf16": "8.0", "fp8": "8.9"},
    "tensorrt-rtx": {"bf16": "8.0", "int4": "8.0", "fp8": "8.9", "fp4": "12.0"},
}
"""Lowest compute capability of a graph with any tensor of the type."""

_FP32_MATMULS_NEED: Mapping[str, str] = {"tensorrt-rtx": "8.0"}
"""Convolutions are none: TensorRT-RTX builds them in fp32 for 7.5 as well."""

_LAYOUT = frozenset(
    ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Expand")
)
"""Operators that may stand between a DequantizeLinear and what multiplies by it."""


@dataclass(frozen=True)
class MacOperator:
    """A matmul or convolution, which multiplies and accumulates (MAC).

    ``arithmetic`` is the type of its quantized inputs, else ``tensors``, the type of its inputs
    as the graph has them, after any DequantizeLinear; "" where the graph does not tell.
    """

    name: str
    operator: str
    arithmetic: str
    tensors: str

    @property
    def title(self) -> str:
        """What to call such operators in a message."""
        kind = "convolutions" if self.operator in CONVOLUTIONS else "matmuls"
        if self.arithmetic == self.tensors:
            return f"{self.arithmetic} {kind}"
        return f"{self.arithmetic} {kind} with {self.tensors} inputs and outputs"


@dataclass(frozen=True)
class Demand:
    """Something in a graph that needs a compute capability, and the nodes that have it.

    ``kind`` is the type that is to blame; ``what`` says it in full.
    """

    kind: str
    what: str
    lowest: str
    nodes: tuple[str, ...]


def version(capability: str) -> tuple[int, int]:
    """A compute capability such as "8.9", to compare with others."""
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def mac_operators(graph: onnx.GraphProto) -> tuple[MacOperator, ...]:
    """Every matmul and convolution of a graph whose types are inferred."""
    return tuple(_mac_operator(each) for each in placed(graph) if _multiplies(each.node))


def demands(graph: onnx.GraphProto, backend: str) -> tuple[Demand, ...]:
    """What a graph, with its types inferred, asks of a GPU: one entry per type or kind."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in placed(graph):
        for need in _needs(each, backend):
            found.setdefault(need, []).append(each.name)
    return tuple(Demand(*need, tuple(nodes)) for need, nodes in found.items())


def unusable_quantization(
    graph: onnx.GraphProto, weights: Mapping[str, TensorProto], folder: Path
) -> dict[str, list[str]]:
    """QuantizeLinear and DequantizeLinear nodes that the parsers refuse, by the reason.

    Args:
        graph: types inferred.
        weights: initializers by name, with their values.
        folder: where those kept in other files are.
    """
    found: dict[str, list[str]] = {}
    for each in placed(graph):
        quantizes = each.node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if quantizes and (reason := _unusable(each, weights, folder)):
            found.setdefault(reason, []).append(each.name)
    return found


def _multiplies(node: onnx.NodeProto) -> bool:
    transposes = node.op_type == "Einsum" and len(node.input) == 1
    return node.op_type in MAC_OPERATORS and not transposes


def _mac_operator(each: Placed) -> MacOperator:
    inputs = [name for name in each.node.input[:2] if name]
    kinds = {each.types.get(name, 0) for name in inputs} - {0}
    tensors = min((NAMES.get(kind) or type_name(kind) for kind in kinds), default="")
    stored = {_stored_type(each, name) for name in inputs}
    arithmetic = next((NAMES[kind] for kind in reversed(QUANTIZED) if kind in stored), tensors)
    return MacOperator(each.name, each.node.op_type, arithmetic, tensors)


def _stored_type(each: Placed, tensor: str) -> int:
    """The type that a tensor is dequantized from, 0 if it is not."""
    producer = each.producers.get(tensor)
    while producer is not None and producer.op_type in _LAYOUT:
        producer = each.producers.get(producer.input[0])
    if producer is None or producer.op_type != "DequantizeLinear":
        return 0
    return each.types.get(producer.input[0], 0)


def _needs(each: Placed, backend: str) -> Iterator[tuple[str, str, str]]:
    """Kinds of work in one node: the type to blame, the whole name, the lowest capability."""
    node = each.node
    if node.op_type in MATMULS and _multiplies(node) and backend in _FP32_MATMULS_NEED:
        matmul = _mac_operator(each)
        if matmul.tensors == "fp32":
            yield "fp32", matmul.title, _FP32_MATMULS_NEED[backend]
    kinds = {NAMES.get(each.types.get(name, 0), "") for name in (*node.input, *node.output)}
    for kind, lowest in _TYPES_NEED[backend].items():
        if kind in kinds:
            yield kind, f"{kind} tensors", lowest


def _unusable(each: Placed, weights: Mapping[str, TensorProto], folder: Path) -> str:
    """Why the parsers refuse a QuantizeLinear or DequantizeLinear; empty if they do not."""
    node = each.node
    kind = each.types.get((node.output if node.op_type == "QuantizeLinear" else node.input)[0], 0)
    if kind not in (0, *QUANTIZED):
        names = ", ".join(NAMES[each] for each in QUANTIZED)
        return f"expected quantization to one of {names}, received {type_name(kind)}"
    if len(node.input) < 3 or not node.input[2]:
        return ""
    zero = constant_of(node.input[2], weights, each.producers)
    values = None if zero is None else numpy_helper.to_array(zero, base_dir=str(folder))
    if values is None or not np.any(values.astype(np.float32)):
        return ""
    return "expected zero points of 0, received others"
