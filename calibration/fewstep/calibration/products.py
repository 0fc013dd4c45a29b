"""The matrix products of a transformer that can be quantized, found by the structure of its graph.

A product can be quantized if one operand is a weight: the products of attention, and a head that is
tied to the embedding, have two computed operands. Of the others, the delicate ones stay as they
are by default: the one that gives the logits, one that embeds an input of the graph, and one that
reads another product's output, since TensorRT refuses a QuantizeLinear there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from fewstep.build.precision import head_nodes

OPERATORS = ("MatMul", "Gemm")

_UNARY = frozenset(
    ("Cast", "OneHot", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
)
"""Operators through which an input of the graph still counts as one."""


@dataclass(frozen=True)
class Product:
    """A matrix product with a weight.

    ``name``: of the node. ``activation`` and ``weight``: its operands' names. ``delicate``: why
    it stays in higher precision by default; empty if it does not.
    """

    name: str
    activation: str
    weight: str
    delicate: str


def weighted_products(graph: onnx.GraphProto) -> tuple[Product, ...]:
    """The products with a weight as second operand, in the order of the graph."""
    weights = {each.name for each in graph.initializer}
    makers = makers_of(graph)
    heads, counts = head_nodes(graph), Counter(node.name for node in graph.node)
    inputs = {each.name for each in graph.input}

    def delicate(node: onnx.NodeProto) -> str:
        if not node.name or counts[node.name] > 1:
            return "has no name of its own"
        if node.name in heads:
            return "gives the logits"
        if embeds(node, makers, inputs):
            return "embeds an input"
        maker = makers.get(node.input[0])
        return "reads a product" if maker is not None and maker.op_type in OPERATORS else ""

    return tuple(
        Product(node.name, node.input[0], node.input[1], delicate(node))
        for node in graph.node
        if node.op_type in OPERATORS and node.input[1] in weights and node.input[0] not in weights
    )


def embeds(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], inputs: frozenset[str] | set[str]
) -> bool:
    """Whether a product reads an input of the graph with nothing but moves and casts between."""
    tensor = node.input[0]
    while tensor in makers and makers[tensor].op_type in _UNARY:
        tensor = makers[tensor].input[0]
    return tensor in inputs


def blocks(graph: onnx.GraphProto, products: Sequence[Product]) -> tuple[tuple[Product, ...], ...]:
    """The products by transformer block, which begins with what feeds its attention.

    A new block begins at the first product that reaches a Softmax without another weighted
    product between, and not the Softmax of the block before.
    """
    weighted = {each.name for each in weighted_products(graph)}
    feeds = {name: node.output[0] for node, name in _feeders(graph, weighted)}
    found: list[list[Product]] = []
    current = None
    for product in products:
        softmax = feeds.get(product.name, current)
        if not found or softmax != current:
            found.append([])
        found[-1].append(product)
        current = softmax
    return tuple(map(tuple, found))


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Nodes by the tensors that they make."""
    return {name: node for node in graph.node for name in node.output if name}


def _feeders(graph: onnx.GraphProto, weighted: set[str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every Softmax with the names of the weighted products that reach it first."""
    makers = makers_of(graph)
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        seen: set[str] = set()
        waiting = list(softmax.input)
        while waiting:
            maker = makers.get(waiting.pop())
            if maker is None or maker.output[0] in seen:
                continue
            seen.add(maker.output[0])
            if maker.name in weighted:
                yield softmax, maker.name
            else:
                waiting += maker.input
