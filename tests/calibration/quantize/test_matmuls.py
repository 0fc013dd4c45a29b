"""Which matmuls can be quantized, and which belong to one block."""

from __future__ import annotations

from pathlib import Path

import onnx

from fewstep.build.graphs import load_graph
from fewstep.calibration.quantize.matmuls import blocks, weighted_matmuls
from fewstep.runtime.bundle import Bundle

from .graphs import MATMULS, node_of, transformer


def _delicate(model: onnx.ModelProto) -> dict[str, str]:
    return {each.name: each.delicate for each in weighted_matmuls(model.graph)}


def test_attention_is_not_weighted_and_the_head_is_delicate() -> None:
    assert _delicate(transformer()) == {
        **dict.fromkeys(MATMULS, ""),
        "head": "gives the logits",
    }


def test_a_matmul_that_embeds_an_input_is_delicate() -> None:
    assert _delicate(transformer(text=True))["text"] == "embeds an input"


def test_matmuls_without_names_of_their_own_or_behind_matmuls_are_left_out() -> None:
    model = transformer()
    node_of(model, "key").name = "query"
    node_of(model, "gemm").name = ""
    node_of(model, "projection").input[0] = "q"
    found = [(each.weight, each.delicate) for each in weighted_matmuls(model.graph)]
    assert found == [
        ("w_query", "has no name of its own"),
        ("w_key", "has no name of its own"),
        ("w_projection", "reads a matmul"),
        ("w_gemm", "has no name of its own"),
        ("w_head", "gives the logits"),
    ]


def test_blocks_begin_with_what_feeds_attention(tiny_bundle: Path) -> None:
    """The exported transformer has depth 2: one block in, a middle one, one out."""
    graph = load_graph(Bundle.read(tiny_bundle), "transformer").graph
    softmaxes = sum(node.op_type == "Softmax" for node in graph.node)
    found = blocks(graph, weighted_matmuls(graph))
    assert len(found) == softmaxes
    flat = [each.name for block in found for each in block]
    assert flat == [each.name for each in weighted_matmuls(graph)]
    first = {block[0].name for block in found}
    # Query, key and value come out of one matmul, three times as wide as it is.
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    wide = {p.name for b in found for p in b if shapes[p.weight][1] == 3 * shapes[p.weight][0]}
    assert wide == first


def test_two_matmuls_that_feed_one_attention_are_one_block() -> None:
    model = transformer()
    found = blocks(model.graph, weighted_matmuls(model.graph))
    assert [[each.name for each in block] for block in found] == [[*MATMULS, "head"]]
