"""Lowering graphs to fp16 and bf16: types at the boundary and inside, what stays fp32, and results
against the fp32 graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewstep.build.precision import DELICATE, lower
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import ExportError

_GRAPHS = ["transformer", "policy", "decoder"]


@pytest.fixture(params=_GRAPHS)
def graph(request: pytest.FixtureRequest, tiny_bundle: Path) -> onnx.ModelProto:
    return onnx.load(tiny_bundle / f"{request.param}.onnx")


def test_results_are_those_of_fp32_within_half_precision(graph: onnx.ModelProto) -> None:
    inputs = _inputs(graph)
    expected, found = _run(graph, inputs), _run(lower(graph, "fp16").model, inputs)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype == np.float32
        assert np.abs(found[name] - value).max() < 2e-2 * max(1, np.abs(value).max())
    assert any((found[name] != expected[name]).any() for name in expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_delicate_nodes_compute_in_fp32_and_the_others_do_not(
    graph: onnx.ModelProto, precision: str
) -> None:
    lowered = lower(graph, precision)
    types = _types(lowered.model)
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    matmuls = 0
    for node in lowered.model.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output) if name in types}
        if node.op_type in DELICATE:
            assert low not in kinds
            assert node.name in lowered.kept
        matmuls += node.op_type in ("MatMul", "Gemm") and low in kinds
    assert matmuls > 0 or "Conv" in {node.op_type for node in lowered.model.graph.node}


@pytest.mark.parametrize("heads", [True, False])
def test_nearest_codes_are_searched_in_fp32_only_if_asked(edit_bundle: Path, heads: bool) -> None:
    """With the codes as they are stored: not one of them rounded."""
    graph = onnx.load(edit_bundle / "image_encoder.onnx")
    lowered = lower(graph, "fp16", heads=heads)
    types, nodes = _types(lowered.model), lowered.model.graph.node
    kind = TensorProto.FLOAT if heads else TensorProto.FLOAT16
    (search,) = (node for node in nodes if node.op_type == "ArgMin")
    distances = next(node for node in nodes if node.op_type == "MatMul")
    assert types[search.input[0]] == types[distances.input[0]] == kind
    producers = {made: node for node in nodes for made in node.output}
    codes = distances.input[1]
    while codes in producers:
        assert producers[codes].op_type == "Transpose"
        codes = producers[codes].input[0]
    assert {each.name: each.data_type for each in lowered.model.graph.initializer}[codes] == kind


@pytest.mark.parametrize("name", ["image_encoder", "decoder"])
def test_graphs_with_pooling_can_be_bf16(edit_bundle: Path, name: str) -> None:
    """The definition of averages over windows has no bf16."""
    lowered = lower(onnx.load(edit_bundle / f"{name}.onnx"), "bf16")
    types = _types(lowered.model)
    for node in lowered.model.graph.node:
        if node.op_type in ("AveragePool", "Conv", "Resize"):
            assert types[node.input[0]] == TensorProto.FLOAT


@pytest.mark.parametrize(("name", "output"), [("transformer", "logits"), ("policy", "action")])
@pytest.mark.parametrize("heads", [True, False])
def test_the_last_product_of_a_head_is_fp32_only_if_asked(
    tiny_bundle: Path, name: str, output: str, heads: bool
) -> None:
    lowered = lower(onnx.load(tiny_bundle / f"{name}.onnx"), "fp16", heads=heads)
    types = _types(lowered.model)
    producer = {made: node for node in lowered.model.graph.node for made in node.output}
    node = producer[output]
    while node.op_type not in ("MatMul", "Gemm"):
        node = producer[node.input[0]]
    assert types[node.input[0]] == (TensorProto.FLOAT if heads else TensorProto.FLOAT16)


def test_a_node_kept_by_name_computes_in_fp32() -> None:
    graph = _matmul(300.0)
    assert _types(lower(graph, "fp16").model)["middle/low"] == TensorProto.FLOAT16
    lowered = lower(graph, "fp16", keep=["large"])
    assert lowered.kept == ("large",)
    assert _types(lowered.model)["middle"] == TensorProto.FLOAT
    inputs = {"x": np.full((1, 4), 30, np.float32)}
    np.testing.assert_allclose(_run(lowered.model, inputs)["y"], 36.0, rtol=1e-3)


def test_a_delicate_node_that_is_released_computes_in_fp16_but_not_in_bf16(
    tiny_bundle: Path,
) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx")
    first, *others = [n.name for n in graph.graph.node if n.op_type == "InstanceNormalization"]
    lowered = lower(graph, "fp16", released=[first])
    assert set(lowered.kept) == {*others}
    types = _types(lowered.model)
    found = {
        n.name: types[n.input[0]] for n in lowered.model.graph.node if n.name in (first, *others)
    }
    assert found == {first: TensorProto.FLOAT16, **dict.fromkeys(others, TensorProto.FLOAT)}
    assert lower(graph, "fp16", [first], released=[first]).kept == lower(graph, "fp16").kept
    low = lower(graph, "bf16", released=[first, *others])
    assert set(low.kept) >= {first, *others}


def test_a_subgraph_is_refused_by_name() -> None:
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, [])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value_float=1.0)], "branch", [], [output]
    )
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    chosen = helper.make_node("If", ["c"], ["y"], "chosen", then_branch=branch, else_branch=branch)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([chosen], "choice", [condition], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(ExportError, match=r"chosen \(If\) has a subgraph"):
        lower(model, "fp16")


def test_what_the_pass_does_not_know_is_refused() -> None:
    """A constant that is written as a number is float32, whatever its neighbours are."""
    nodes = [
        helper.make_node("Constant", [], ["half"], "number", value_floats=[0.5]),
        helper.make_node("Mul", ["x", "half"], ["y"], "halved"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch"]) for n in "xy")
    graph = helper.make_graph(nodes, "half", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(ExportError, match="cannot be lowered"):
        lower(model, "fp16")


def test_the_source_is_not_changed(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    lower(graph, "fp16")
    assert graph.SerializeToString(deterministic=True) == before


def test_the_same_bytes_come_out_twice(graph: onnx.ModelProto) -> None:
    first, second = (lower(graph, "fp16").model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_weights_take_half_the_room(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "transformer.onnx")
    lowered = lower(graph, "fp16", heads=False).model
    assert lowered.ByteSize() < 0.75 * graph.ByteSize()


def _matmul(factor: float) -> onnx.ModelProto:
    """y = (x · factor) · 0.001: the first matmul leaves float16 at x = factor = 300."""
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32) * factor, "factor"),
        numpy_helper.from_array(np.eye(4, dtype=np.float32) * 0.004, "back"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "factor"], ["middle"], "large"),
        helper.make_node("MatMul", ["middle", "back"], ["y"], "small"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    graph = helper.make_graph(nodes, "matmul", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _inputs(graph: onnx.ModelProto) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for value in graph.graph.input:
        shape = [each.dim_value or 2 for each in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            made[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            made[value.name] = rng.integers(0, 4, shape).astype(np.int32)
    return made


def _run(graph: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _types(graph: onnx.ModelProto) -> dict[str, int]:
    return dict(_typed(onnx.shape_inference.infer_shapes(graph).graph))


def _typed(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type in floats:
            yield value.name, value.type.tensor_type.elem_type
    for weight in graph.initializer:
        if weight.data_type in floats:
            yield weight.name, weight.data_type
