"""The matmuls of a transformer that can be quantized, found by the structure of its graph.

A matmul can be quantized if one operand is a weight: those of attention, and a head that is tied to
the embedding, have two computed operands. Of the others, the delicate ones stay as they are by
default: the one that gives the logits, one that embeds an input of the graph, and one that reads
another matmul's output, since TensorRT refuses a QuantizeLinear there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from fewstep.build.graphs import producers_of
from fewstep.build.precision import head_nodes

OPERATORS = ("MatMul", "Gemm")

_UNARY = frozenset(
    ("Cast", "OneHot", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
)
"""Operators through which an input of the graph still counts as one."""


@dataclass(frozen=True)
class Matmul:
    """A matmul with a weight.

    ``name``: of the node. ``activation`` and ``weight``: its operands' names. ``delicate``: why
    it stays in higher precision by default; empty if it does not.
    """

    name: str
    activation: str
    weight: str
    delicate: str


def weighted_matmuls(graph: onnx.GraphProto) -> tuple[Matmul, ...]:
    """The matmuls with a weight as second operand, in the order of the graph."""
    weights = {each.name for each in graph.initializer}
    producers = producers_of(graph)
    heads, counts = head_nodes(graph), Counter(node.name for node in graph.node)
    inputs = {each.name for each in graph.input}

    def delicate(node: onnx.NodeProto) -> str:
        if not node.name or counts[node.name] > 1:
            return "has no name of its own"
        if node.name in heads:
            return "gives the logits"
        if embeds(node, producers, inputs):
            return "embeds an input"
        producer = producers.get(node.input[0])
        return "reads a matmul" if producer is not None and producer.op_type in OPERATORS else ""

    return tuple(
        Matmul(node.name, node.input[0], node.input[1], delicate(node))
        for node in graph.node
        if node.op_type in OPERATORS and node.input[1] in weights and node.input[0] not in weights
    )


def embeds(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], inputs: Collection[str]
) -> bool:
    """Whether a matmul reads an input of the graph with nothing but moves and casts between."""
    tensor = node.input[0]
    while tensor in producers and producers[tensor].op_type in _UNARY:
        tensor = producers[tensor].input[0]
    return tensor in inputs


def blocks(graph: onnx.GraphProto, matmuls: Sequence[Matmul]) -> tuple[tuple[Matmul, ...], ...]:
    """The matmuls by transformer block, which begins with what feeds its attention.

    A new block begins at the first matmul that reaches a Softmax without another weighted matmul
    between, and not the Softmax of the block before. Where there is no Softmax, each is one.
    """
    weighted = {each.name for each in weighted_matmuls(graph)}
    feeds = {name: node.output[0] for node, name in _feeders(graph, weighted)}
    if not feeds:
        return tuple((each,) for each in matmuls)
    found: list[list[Matmul]] = []
    current = None
    for matmul in matmuls:
        softmax = feeds.get(matmul.name, current)
        if not found or softmax != current:
            found.append([])
        found[-1].append(matmul)
        current = softmax
    return tuple(map(tuple, found))


def _feeders(graph: onnx.GraphProto, weighted: set[str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every Softmax with the names of the weighted matmuls that reach it first."""
    producers = producers_of(graph)
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        seen: set[str] = set()
        waiting = list(softmax.input)
        while waiting:
            producer = producers.get(waiting.pop())
            if producer is None or producer.output[0] in seen:
                continue
            seen.add(producer.output[0])
            if producer.name in weighted:
                yield softmax, producer.name
            else:
                waiting += producer.input
