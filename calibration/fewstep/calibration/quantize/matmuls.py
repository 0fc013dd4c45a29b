"""The matmuls of a graph that can be quantized, found by its structure.

A matmul can be quantized if one operand is a weight: those of attention, and a head that is tied to
the embedding, have two computed operands. Of the others, the delicate ones stay as they are by
default: the one that gives the logits, one that embeds an input of the graph, and one that reads
another matmul's output, since TensorRT refuses a QuantizeLinear there.

In a graph that gives images convolutions count as matmuls, which they are, of patches. Delicate of
them is the one that gives the image, as it costs more than all others (docs/calibration.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from fewstep.build.graphs import CONVOLUTIONS, MAC_OPERATORS, producers_of
from fewstep.build.precision import head_nodes

OPERATORS = ("MatMul", "Gemm")

_UNARY = frozenset(
    ("Cast", "OneHot", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
)
"""Operators through which an input of the graph still counts as one."""


@dataclass(frozen=True)
class Matmul:
    """A matmul with a weight, or a convolution.

    ``name``: of the node. ``activation`` and ``weight``: its operands' names. ``delicate``: why
    it stays in higher precision by default; empty if it does not.
    """

    name: str
    activation: str
    weight: str
    delicate: str


def weighted_matmuls(graph: onnx.GraphProto, *, convolutions: bool = False) -> tuple[Matmul, ...]:
    """The matmuls with a weight as second operand, in the order of the graph.

    Args:
        graph: weights included.
        convolutions: whether they count too.
    """
    weights = {each.name for each in graph.initializer}
    producers = producers_of(graph)
    heads, counts = head_nodes(graph), Counter(node.name for node in graph.node)
    inputs = {each.name for each in graph.input}
    last = image_convolutions(graph)
    operators = (*OPERATORS, *CONVOLUTIONS) if convolutions else OPERATORS

    def delicate(node: onnx.NodeProto) -> str:
        if not node.name or counts[node.name] > 1:
            return "has no name of its own"
        if node.name in heads:
            return "gives the logits"
        if node.op_type in CONVOLUTIONS:
            return "gives the image" if node.name in last else ""
        if embeds(node, producers, inputs):
            return "embeds an input"
        producer = producers.get(node.input[0])
        return "reads a matmul" if producer is not None and producer.op_type in OPERATORS else ""

    return tuple(
        Matmul(node.name, node.input[0], node.input[1], delicate(node))
        for node in graph.node
        if node.op_type in operators
        and node.input[1] in weights
        and node.input[0] not in weights
        and channel_axis(node) is not None
    )


def channel_axis(node: onnx.NodeProto) -> int | None:
    """The axis of a weight that output channels lie along: of a matmul counted from the last, of a
    convolution from the first. ``None`` of a transposed convolution in groups, which has none."""
    attributes = {each.name: each.i for each in node.attribute}
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Conv":
        return 0
    return -2 if node.op_type == "Gemm" and attributes.get("transB") else -1


def image_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Names of the convolutions that give the outputs of a graph, with none after them."""
    producers = producers_of(graph)
    found, seen, waiting = set[str](), set[str](), [each.name for each in graph.output]
    while waiting:
        tensor = waiting.pop()
        producer = producers.get(tensor)
        if producer is None or tensor in seen:
            continue
        seen.add(tensor)
        if producer.op_type in CONVOLUTIONS:
            found.add(producer.name)
        elif producer.op_type not in MAC_OPERATORS:
            waiting += producer.input
    return found


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
    between, and not the Softmax of the block before. Where there is no Softmax, each is one, and so
    is every convolution.
    """
    weighted = {each.name for each in weighted_matmuls(graph)}
    feeds = {name: node.output[0] for node, name in _feeders(graph, weighted)}
    if not feeds:
        return tuple((each,) for each in matmuls)
    convolutions = {node.name for node in graph.node if node.op_type in CONVOLUTIONS}
    found: list[list[Matmul]] = []
    current = None
    for matmul in matmuls:
        softmax = feeds.get(matmul.name, current)
        if not found or softmax != current or matmul.name in convolutions:
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
