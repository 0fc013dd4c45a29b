"""What one graph computes, touches and starts, counted in its ONNX file.

*Operations* are those of matmuls and convolutions, multiply and add (MAC); everything else counts
as free. They come from onnx-tool. It takes a bias for one multiply-add per output,
which a GPU does on the way: that part is taken off, and the rest agrees with PyTorch's counter to
the last operation (tested).

*Launches* are an estimate, as only an engine knows how many kernels it has: one for every matmul
and convolution with weights, one for every softmax with the matmuls around it (fused attention),
one for every normalization. All else is taken to be fused into these. TensorRT-RTX 1.7.1, built for
8.6, has 82, 15 and 40 kernels in its engines of the sample's transformer, policy and decoder in
fp32, and 54, 16 and 51 in fp16, where this counts 42, 14 and 25 (a test repeats that on a tiny
bundle).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fewstep.build.graphs import MAC_OPERATORS
from fewstep.build.roofline import WIDTH_BYTES
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, missing
from fewstep.runtime.records import GraphInfo, TensorInfo

_NORMALIZATIONS = frozenset(
    ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization")
)
_LAST = np.iinfo(np.int64).max
_ATTENTION = frozenset(("Softmax", "LogSoftmax", "Attention"))


Sizes = Mapping[str, int]
"""Of the dimensions of a graph that vary, by name."""


@dataclass(frozen=True)
class GraphWork:
    """What one graph computes and touches.

    ``flops``: by the sizes that were asked for; ``mac_weights`` and ``other_weights`` in
    elements: those of matmuls and convolutions, and the rest (embeddings, of which a pass reads a
    few rows, norms, biases); ``launches``: kernels of a pass, estimated.
    """

    graph: str
    info: GraphInfo
    flops: Mapping[tuple[tuple[str, int], ...], int]
    mac_weights: int
    other_weights: int
    launches: int

    def flops_at(self, sizes: Sizes) -> int:
        """Operations of one run with these sizes, which were asked for."""
        return self.flops[_key(sizes)]

    def weight_bytes(self, precision: str) -> int:
        """Size of all weights in an engine; those of other operators stay in 16 bits at least."""
        width = WIDTH_BYTES[precision]
        return self.mac_weights * width + self.other_weights * max(width, 2)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "graph": self.graph,
            "runs": [{"sizes": dict(key), "flops": flops} for key, flops in self.flops.items()],
            "mac_weights": self.mac_weights,
            "other_weights": self.other_weights,
            "launches": self.launches,
        }


def graph_work(bundle: Bundle, name: str, runs: Iterable[Sizes]) -> GraphWork:
    """Count one graph.

    Args:
        bundle: the bundle.
        name: of the graph.
        runs: sizes of the dimensions that vary, for which operations are counted.

    Raises:
        BundleError: the graph is damaged, or onnx-tool does not know what is in it.
        MissingDependencyError: onnx-tool is not installed.
    """
    try:
        import onnx_tool
    except ImportError as error:
        raise missing("onnx-tool", "build") from error
    info, path = bundle.graph(name), bundle.graph_path(name)
    try:
        model = onnx.load(path)
        weights, others = _weights(model.graph)
        _with_whole_shapes(model.graph)
        counted = onnx_tool.Model(model).graph
        flops = {key: _flops(counted, info, dict(key)) for key in dict.fromkeys(map(_key, runs))}
    except Exception as error:  # protobuf and onnx-tool raise whatever their parts raise
        problem = str(error) or type(error).__name__
        raise BundleError(
            f"{path}: the operations of graph '{name}' cannot be counted ({problem}); "
            "export the bundle again"
        ) from error
    return GraphWork(name, info, flops, weights, others, graph_launches(model.graph))


def flops_of_model(model: onnx.ModelProto, info: GraphInfo, sizes: Sizes) -> int:
    """Operations of a graph with these sizes, of its ONNX model, which is changed.

    Raises:
        MissingDependencyError: onnx-tool is not installed.
    """
    try:
        import onnx_tool
    except ImportError as error:
        raise missing("onnx-tool", "build") from error
    _with_whole_shapes(model.graph)
    return _flops(onnx_tool.Model(model).graph, info, sizes)


def _key(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))


def sizes_of(tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    """Sizes of the dimensions that vary, where the tensors have these shapes."""
    return {
        name: size
        for tensor, info in tensors.items()
        for name, size in zip(info.shape, shapes[tensor], strict=True)
        if isinstance(name, str)
    }


def graph_launches(graph: onnx.GraphProto) -> int:
    """Kernels that an engine of the graph starts in a pass, estimated: see this module."""
    weights = {each.name for each in graph.initializer}

    def starts(node: onnx.NodeProto) -> bool:
        if node.op_type in MAC_OPERATORS:
            return not weights.isdisjoint(node.input[:2])
        return node.op_type in _NORMALIZATIONS | _ATTENTION

    return sum(starts(node) for node in graph.node)


def tensor_bytes(tensors: Iterable[TensorInfo], sizes: Sizes) -> int:
    """Size of a graph's inputs or outputs, in their own types."""
    return sum(math.prod(_shape(t, sizes)) * np.dtype(t.dtype).itemsize for t in tensors)


def _weights(graph: onnx.GraphProto) -> tuple[int, int]:
    """Elements of the weights of matmuls and convolutions, and of all others."""
    sizes = {each.name: math.prod(each.dims) for each in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in MAC_OPERATORS]
    read = {name for node in nodes for name in node.input[:2] if name in sizes}
    within = sum(sizes[name] for name in read)
    return within, sum(sizes.values()) - within


def _with_whole_shapes(graph: onnx.GraphProto) -> None:
    """Cut part of a shape out by a node of its own: onnx-tool's Shape gives all sizes, always."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        limits = {each.name: each.i for each in node.attribute}
        if node.op_type != "Shape" or not limits:
            nodes.append(node)
            continue
        (tensor,), (output,) = node.input, node.output
        whole = f"{output}/whole"
        ends = {"start": limits.get("start", 0), "end": limits.get("end", _LAST)}
        for name, value in ends.items():
            values = np.array([value], np.int64)
            graph.initializer.append(numpy_helper.from_array(values, f"{output}/{name}"))
        nodes.append(helper.make_node("Shape", [tensor], [whole], whole))
        names = [whole, *(f"{output}/{name}" for name in ends)]
        nodes.append(helper.make_node("Slice", names, [output], node.name))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _flops(graph: Any, info: GraphInfo, sizes: Sizes) -> int:
    """Operations of matmuls and convolutions, biases not counted."""
    inputs = {name: np.zeros(_shape(each, sizes), each.dtype) for name, each in info.inputs.items()}
    graph.shape_infer(inputs)
    graph.profile()
    total = 0
    for node in graph.nodemap.values():
        if node.op_type in MAC_OPERATORS:
            bias = math.prod(node.outshape) if len(node.input) == 3 else 0
            total += 2 * (int(node.macs[0]) - bias)
    return total


def _shape(tensor: TensorInfo, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
