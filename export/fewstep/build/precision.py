"""fp32 graphs to fp16 or bf16: a pass over the graph that keeps delicate parts in fp32.

Every float node works in the low type unless its operator is delicate (statistics of norms,
softmax, trigonometry), it computes the logits or the policy's action, it searches the nearest code,
or the caller keeps it by name. The caller also releases delicate nodes (:mod:`fewstep.build.norms`
knows which).
Casts stand where a tensor crosses from one type to the other, once per tensor. Inputs and outputs
stay float32, so the graph fits where the fp32 one did.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.build.graphs import MAC_OPERATORS, inferred, producers_of
from fewstep.runtime.errors import ExportError

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""Low types by precision."""

NORMS = frozenset(("InstanceNormalization", "GroupNormalization"))
"""Norms that builders fuse with their neighbours only where all are of one type."""

DELICATE = NORMS | frozenset(
    [
        "LayerNormalization",
        "RMSNormalization",
        "Softmax",
        "LogSoftmax",
        "ReduceMean",
        "ReduceSum",
        "ReduceL2",
        "Pow",
        "Exp",
        "Log",
        "Sin",
        "Cos",
        "CumSum",
        "Range",
    ]
)
"""Operators that stay in fp32 wherever they stand, unless the caller releases a node."""

HEADS = frozenset(("logits", "action"))
"""Graph outputs whose last matmul, and what follows it, stays in fp32."""

_CODES = "tokens"
"""The graph output of codes that are the nearest to what was computed."""

_SEARCHES = frozenset(("ArgMin", "ArgMax"))
_FLOAT = TensorProto.FLOAT
_NOT_IN_BFLOAT16 = frozenset(("Conv", "Resize", "AveragePool"))  # by the definition of opset 20
_FLOAT_BY_DEFINITION = {"Resize": frozenset((1, 2))}  # roi and scales


@dataclass(frozen=True)
class Lowered:
    """A graph in low precision, and the names of the nodes that stayed in fp32."""

    model: onnx.ModelProto
    kept: tuple[str, ...]


def lower(
    model: onnx.ModelProto,
    precision: str,
    keep: Collection[str] = (),
    *,
    heads: bool = True,
    released: Collection[str] = (),
) -> Lowered:
    """Make a low-precision copy of an fp32 graph.

    Args:
        model: the fp32 graph, weights included; not changed.
        precision: a key of :data:`LOW`.
        keep: names of further nodes that stay in fp32.
        heads: whether the nodes of :data:`HEADS` and :func:`search_nodes` stay in fp32. Compute
            capability 7.5 has no fp32 matmuls in TensorRT-RTX, so engines for it need this off.
        released: names of nodes of :data:`DELICATE` that are fp16 all the same. In bf16 none is:
            opset 20 has no InstanceNormalization in it.

    Raises:
        ExportError: the graph has something that this pass does not know.
    """
    delicate = DELICATE | (_NOT_IN_BFLOAT16 if precision == "bf16" else frozenset())
    kept = {node.name for node in model.graph.node if node.op_type in delicate}
    if precision == "fp16":
        kept -= set(released)
    kept |= set(keep)
    if heads:
        kept |= head_nodes(model.graph) | search_nodes(model.graph)
    return _Pass(model, LOW[precision], kept).run()


class _Pass:
    """One walk over the nodes in their order, which stays topological."""

    def __init__(self, model: onnx.ModelProto, low: int, kept: set[str]) -> None:
        self._model, self._low, self._kept = model, low, kept
        graph, typed = model.graph, inferred(model)
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*typed.input, *typed.value_info, *typed.output)
        }
        self._weights = {each.name: each for each in graph.initializer}
        self._types |= {name: weight.data_type for name, weight in self._weights.items()}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[str, int], str] = {}  # of each tensor in each type, once there

    def run(self) -> Lowered:
        graph = self._model.graph
        for value in graph.input:
            self._names[value.name, self._types[value.name]] = value.name
        for node in graph.node:
            self._convert(node)
        for value in graph.output:  # which get their own names and types again
            if self._types[value.name] == _FLOAT:
                self._name(value.name, _FLOAT)
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self._nodes)
        result.graph.initializer.extend(self._made.values())
        try:
            onnx.checker.check_model(result, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the graph cannot be lowered: {error}") from error
        kept = tuple(node.name for node in graph.node if node.name in self._kept)
        return Lowered(result, kept)

    def _convert(self, source: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        kind = _FLOAT if node.name in self._kept else self._low
        fixed = _FLOAT_BY_DEFINITION.get(node.op_type, frozenset())
        for index, name in enumerate(source.input):
            if name:
                wanted = _FLOAT if index in fixed else kind
                node.input[index] = self._name(name, wanted)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                raise ExportError(f"node {node.name} ({node.op_type}) has a subgraph")
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = kind
            if attribute.name == "value" and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(_cast_tensor(attribute.t, kind))
        for index, name in enumerate(source.output):
            if self._types.get(name) == _FLOAT and kind != _FLOAT:
                node.output[index] = self._names[name, kind] = f"{name}/low"
            else:
                self._names[name, self._types.get(name, _FLOAT)] = name
        self._nodes.append(node)

    def _name(self, tensor: str, wanted: int) -> str:
        """The tensor's name in the wanted type; casts or converts it when it is first needed."""
        if self._types.get(tensor) != _FLOAT:
            wanted = self._types.get(tensor, wanted)
        if tensor in self._weights:
            name = tensor if wanted in (_FLOAT, self._types[tensor]) else f"{tensor}/low"
            if name not in self._made:
                self._made[name] = _cast_tensor(self._weights[tensor], wanted, name)
            return name
        if (tensor, wanted) not in self._names:
            has = _FLOAT if (tensor, _FLOAT) in self._names else self._low
            name = tensor if wanted == _FLOAT else f"{tensor}/low"
            self._nodes.append(
                helper.make_node(
                    "Cast", [self._names[tensor, has]], [name], f"{name}/cast", to=wanted
                )
            )
            self._names[tensor, wanted] = name
        return self._names[tensor, wanted]


def head_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes from the last matmul or convolution of a head to the output, both included."""
    producers = producers_of(graph)
    found: set[str] = set()
    for output in graph.output:
        node = producers.get(output.name) if output.name in HEADS else None
        while node is not None and node.name not in found:
            found.add(node.name)
            node = None if node.op_type in MAC_OPERATORS else producers.get(node.input[0])
    return found


def search_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes that search nearest codes, of a graph that gives codes: from the distances' matmul on,
    what only moves, adds or scales its inputs, and, where latents add to the distances by
    themselves, from their last matmul or convolution on.

    Distances of thousands of codes lie closer together than half precision can tell.
    """
    if _CODES not in (output.name for output in graph.output):
        return set()
    producers, found = producers_of(graph), set[tuple[str, bool]]()
    waiting = [(node, False) for node in graph.node if node.op_type in _SEARCHES]
    while waiting:
        node, after_matmul = waiting.pop()
        multiplies = node.op_type in MAC_OPERATORS
        if (node.name, after_matmul) in found or (multiplies and after_matmul):
            continue
        found.add((node.name, after_matmul))
        before = (producers[name] for name in node.input if name in producers)
        waiting += [(each, after_matmul or multiplies) for each in before]
    return {name for name, _ in found}


def _cast_tensor(tensor: onnx.TensorProto, kind: int, name: str = "") -> onnx.TensorProto:
    if tensor.data_type != _FLOAT or kind == _FLOAT:
        return tensor
    values: npt.NDArray[np.float32] = numpy_helper.to_array(tensor)
    low = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(low, name or tensor.name)
