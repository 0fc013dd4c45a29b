"""Whether a quantized graph is one that TensorRT builds and that quantizes only what it may.

TensorRT refuses some graphs with a message about another node, and takes others in which a matmul
is quantized that should not be. So every rule is checked here, and each problem names its nodes:

- QuantizeLinear and DequantizeLinear of int8 (or fp8 e4m3), zero points 0, scales known and usable
- no operators of dynamic or fused quantization, and no quantized bias
- only matmuls and convolutions read what was dequantized, and each with both operands
- one operand is a weight, quantized by output channel in int8: attention is not quantized
- no QuantizeLinear on the output of a matmul
- where weights alone are quantized, no activation is, and tables of embeddings may be too
- delicate matmuls, as in :mod:`fewstep.calibration.quantize.matmuls`, are left out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from fewstep.build.capabilities import unusable_quantization
from fewstep.build.graphs import (
    CONVOLUTIONS,
    constant_of,
    inferred,
    name_of,
    producers_of,
    type_name,
)
from fewstep.build.opset import absent_operators
from fewstep.build.precision import head_nodes
from fewstep.build.preflight import Problem
from fewstep.calibration.quantize.matmuls import (
    OPERATORS,
    channel_axis,
    embeds,
    image_convolutions,
)
from fewstep.runtime.errors import ExportError

STORED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
"""The type that each precision quantizes to."""

_MULTIPLY = (*OPERATORS, *CONVOLUTIONS)
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_MOVES = frozenset(("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"))
_REMEDY = "quantize with: fewstep calibrate quantize"

Found = Iterator[tuple[str, str]]
"""What is wrong, and the node."""


def lint(
    model: onnx.ModelProto, precision: str, graph: str = "", *, weights_only: bool = False
) -> tuple[Problem, ...]:
    """Everything that is wrong with a quantized graph.

    Args:
        model: the graph, weights included.
        precision: ``int8`` or ``fp8``.
        graph: its name, for messages.
        weights_only: whether activations are to be left as they are; then tables may be quantized.
    """
    view = _View(model, precision, weights_only)
    found: dict[str, list[str]] = {}
    for rule in _RULES:
        for what, node in rule(view):
            found.setdefault(what, []).append(node)
    return tuple(
        Problem(graph, what, tuple(dict.fromkeys(nodes)), _REMEDY) for what, nodes in found.items()
    )


def require_clean(
    model: onnx.ModelProto, precision: str, graph: str, *, weights_only: bool = False
) -> None:
    """Raise unless a graph passes :func:`lint`.

    Raises:
        ExportError: names every problem.
    """
    if problems := lint(model, precision, graph, weights_only=weights_only):
        raise ExportError("\n".join(map(str, problems)))


@dataclass(frozen=True)
class _View:
    """A quantized graph and what is known of its tensors."""

    model: onnx.ModelProto
    precision: str
    weights_only: bool = False

    @cached_property
    def typed(self) -> onnx.GraphProto:
        return inferred(self.model)

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return producers_of(self.model.graph)

    @cached_property
    def weights(self) -> Mapping[str, TensorProto]:
        return {each.name: each for each in self.model.graph.initializer}

    @property
    def matmuls(self) -> Iterator[onnx.NodeProto]:
        """And convolutions, which are matmuls of patches."""
        return (node for node in self.model.graph.node if node.op_type in _MULTIPLY)

    def source(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a tensor comes from, through moves and casts."""
        producer = self.producers.get(tensor)
        while producer is not None and producer.op_type in _MOVES:
            producer = self.producers.get(producer.input[0])
        return producer if producer is not None and producer.op_type == _DEQUANTIZE else None

    def constant(self, source: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear reads a weight, stored quantized or quantized in the graph."""
        tensor = source.input[0]
        producer = self.producers.get(tensor)
        while producer is not None and producer.op_type in (*_MOVES, _QUANTIZE):
            tensor = producer.input[0]
            producer = self.producers.get(tensor)
        return tensor in self.weights

    def quantized(self, matmul: onnx.NodeProto) -> list[onnx.NodeProto | None]:
        """Where the two operands come from; empty for a matmul that is not quantized."""
        sources = [self.source(name) for name in matmul.input[:2]]
        return sources if any(sources) else []

    def scale(self, node: onnx.NodeProto) -> npt.NDArray[np.float32] | None:
        """The scale of a Q or DQ, ``None`` if it is computed."""
        tensor = constant_of(node.input[1], self.weights, self.producers)
        return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float32)


def _operators(view: _View) -> Found:
    for nodes in absent_operators(view.model, "tensorrt-rtx").values():
        for node in nodes:
            yield "operators that TensorRT does not read", node


def _types(view: _View) -> Found:
    for what, nodes in unusable_quantization(view.typed, view.weights, Path()).items():
        for node in nodes:
            yield what, node
    stored = STORED[view.precision]
    types = {each.name: each.type.tensor_type.elem_type for each in view.typed.value_info}
    types |= {name: weight.data_type for name, weight in view.weights.items()}
    for node in view.model.graph.node:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            kind = types.get((node.output if node.op_type == _QUANTIZE else node.input)[0], stored)
            if kind != stored:
                expected = type_name(stored)
                yield (
                    f"expected quantization to {expected}, received {type_name(kind)}",
                    name_of(node),
                )


def _scales(view: _View) -> Found:
    for node in view.model.graph.node:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            scale = view.scale(node)
            if scale is None:
                yield "scales that are computed as the graph runs", name_of(node)
            elif not (np.isfinite(scale) & (scale > 0)).all():
                yield "scales that are 0, negative or not finite", name_of(node)


def _after_matmuls(view: _View) -> Found:
    for node in view.model.graph.node:
        producer = view.producers.get(node.input[0]) if node.op_type == _QUANTIZE else None
        if producer is not None and producer.op_type in OPERATORS:
            nodes = f"{name_of(producer)} ({name_of(node)})"
            yield "QuantizeLinear on the output of a matmul", nodes


def _readers(view: _View) -> Found:
    for node in view.model.graph.node:
        if node.op_type in (*_MULTIPLY, *_MOVES):
            continue
        if view.weights_only and node.op_type == "Gather":
            continue
        if any(view.source(name) is not None for name in node.input):
            yield "quantized, and no matmul", f"{name_of(node)} ({node.op_type})"
    outputs = {each.name for each in view.model.graph.output}
    for name in sorted(outputs):
        if view.source(name) is not None:
            yield "an output of the graph that was quantized", name
    for node in view.matmuls:
        if len(node.input) > 2 and view.source(node.input[2]) is not None:
            yield "a quantized bias", name_of(node)


def _operands(view: _View) -> Found:
    for node in view.matmuls:
        sources = view.quantized(node)
        if not sources:
            continue
        if view.weights_only:
            if sources[0] is not None:
                yield "activations that are quantized where weights alone are to be", name_of(node)
        elif not all(sources):
            yield "matmuls with one operand quantized and the other not", name_of(node)
        elif not view.constant(sources[1]):  # type: ignore[arg-type]
            yield "quantized matmuls of two computed operands, as in attention", name_of(node)


def _channels(view: _View) -> Found:
    """Each output channel of a weight has its own scale."""
    if view.precision != "int8":
        return
    for node in view.matmuls:
        sources = view.quantized(node)
        weight = sources[1] if sources else None
        if weight is None or not view.constant(weight) or weight.input[0] not in view.weights:
            continue
        shape = view.weights[weight.input[0]].dims
        wanted = channel_axis(node)
        axis = next((each.i for each in weight.attribute if each.name == "axis"), 1)
        scale = view.scale(weight)
        given = 0 if scale is None else scale.size
        if wanted is None or given != shape[wanted] or (given > 1 and (axis - wanted) % len(shape)):
            yield "weights that are not quantized by output channel", name_of(node)


def _delicate(view: _View) -> Found:
    heads = head_nodes(view.model.graph)
    producers = {
        name: node
        for name, node in view.producers.items()
        if node.op_type not in (_QUANTIZE, _DEQUANTIZE)
    }
    unquantized = {
        node.output[0]: node.input[0]
        for node in view.model.graph.node
        if node.op_type in (_QUANTIZE, _DEQUANTIZE)
    }
    inputs = {each.name for each in view.model.graph.input}
    last = image_convolutions(view.model.graph)
    for node in view.matmuls:
        if not view.quantized(node):
            continue
        if node.op_type in CONVOLUTIONS:
            if node.name in last:
                yield "a quantized convolution that gives the image", name_of(node)
            continue
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        while plain.input[0] in unquantized:
            plain.input[0] = unquantized[plain.input[0]]
        if node.name in heads:
            yield "a quantized matmul that gives the logits", name_of(node)
        elif embeds(plain, producers, inputs):
            yield "a quantized matmul that embeds an input", name_of(node)


def _anything(view: _View) -> Found:
    if not any(view.quantized(node) for node in view.matmuls):
        yield "no quantized matmul", view.model.graph.name or "the graph"


_RULES: tuple[Callable[[_View], Found], ...] = (
    _operators,
    _types,
    _scales,
    _after_matmuls,
    _readers,
    _operands,
    _channels,
    _delicate,
    _anything,
)
