"""Reading ONNX graphs: their nodes with what is known around each, their weights, their types."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError

STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

MATMULS = frozenset(("MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"))
"""Operators that multiply matrices, and recurrent cells, which are made of such."""

CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))

MAC_OPERATORS = MATMULS | CONVOLUTIONS
"""Operators that multiply and accumulate (MAC): nearly all of a graph's arithmetic and weights."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
_SMALL_BYTES = 4096  # weights that hold shapes are smaller


@dataclass(frozen=True)
class Placed:
    """A node, its name (with those of the nodes around it) and what is known where it stands.

    ``types``: element types of tensors; ``producers``: nodes by the tensors that they produce.
    """

    name: str
    node: onnx.NodeProto
    types: Mapping[str, int]
    producers: Mapping[str, onnx.NodeProto]


def load_graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    """The fp32 ONNX model of a graph, weights included.

    Raises:
        BundleError: damaged, or no ONNX model.
    """
    path = bundle.graph_path(name)
    try:
        return onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise BundleError(
            f"{path} is not an ONNX model ({error}); export the bundle again"
        ) from error


def placed(graph: onnx.GraphProto) -> Iterator[Placed]:
    """Every node of a graph and of the subgraphs in it (If, Loop, Scan)."""
    return _placed(graph, "", ChainMap(), ChainMap())


def _placed(
    graph: onnx.GraphProto,
    prefix: str,
    types: ChainMap[str, int],
    producers: ChainMap[str, onnx.NodeProto],
) -> Iterator[Placed]:
    own = {each.name: each.data_type for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        own[value.name] = value.type.tensor_type.elem_type
    types, producers = types.new_child(own), producers.new_child(producers_of(graph))
    for node in graph.node:
        name = prefix + name_of(node)
        yield Placed(name, node, types, producers)
        for inner in _inner_graphs(node):
            yield from _placed(inner, f"{name}/", types, producers)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Nodes by the tensors that they produce."""
    return {name: node for node in graph.node for name in node.output if name}


def name_of(node: onnx.NodeProto) -> str:
    """A node's name, or the first tensor it produces where it has none."""
    made = next(filter(None, node.output), "nothing")
    return str(node.name or f"{node.op_type} making {made}")


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Weights and constants of a graph and of the subgraphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in _inner_graphs(node):
            yield from tensors(inner)


def constant_of(
    tensor: str, weights: Mapping[str, TensorProto], producers: Mapping[str, onnx.NodeProto]
) -> TensorProto | None:
    """The value of a tensor that is a weight or comes out of a Constant; ``None`` of others."""
    producer = producers.get(tensor)
    if producer is not None and producer.op_type == "Constant":
        return next((each.t for each in producer.attribute if each.name == "value"), None)
    return weights.get(tensor)


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with the types of its tensors, of a copy without large weights."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for weight in light.graph.initializer:
        whole = weight.data_type in (TensorProto.INT32, TensorProto.INT64)
        if len(weight.raw_data) > _SMALL_BYTES and not whole:
            weight.ClearField("raw_data")
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    return onnx.shape_inference.infer_shapes(light).graph


def type_name(kind: int) -> str:
    """An ONNX element type in the words of the manifest."""
    try:
        name = str(TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return f"type {kind}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes that the numbers of a tensor take, wherever they are stored."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _FOUR_BITS:
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def not_finite(graph: onnx.GraphProto) -> list[str]:
    """Weights and constants of a graph, stored in it, that hold NaN or infinite numbers."""
    found = []
    for tensor in tensors(graph):
        here = tensor.data_location != TensorProto.EXTERNAL
        if (
            tensor.data_type in _FLOATS
            and here
            and not np.isfinite(numpy_helper.to_array(tensor)).all()
        ):
            found.append(tensor.name or "a constant")
    return found
