"""The tables of what the backends can build, each compared with real TensorRT-RTX builds, and the
classification of graphs that they are applied to.

A small graph is built per arithmetic and compute capability; no GPU takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewstep.build.capabilities import (
    ABSENT,
    OPSETS,
    absent_operators,
    demands,
    inferred,
    products,
    unusable_quantization,
    version,
)
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES

_KINDS = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "fp4": TensorProto.FLOAT4E2M1,
}
_LOWEST = {
    ("fp32", "fp32"): "8.0",
    ("fp16", "fp16"): "7.5",
    ("bf16", "bf16"): "8.0",
    ("int8", "fp32"): "8.0",
    ("int8", "fp16"): "7.5",
    ("int8", "bf16"): "8.0",
    ("int4", "fp32"): "8.0",
    ("int4", "fp16"): "8.0",
    ("fp8", "fp32"): "8.9",
    ("fp8", "fp16"): "8.9",
    ("fp8", "bf16"): "8.9",
    ("fp4", "fp16"): "12.0",
}
"""Lowest compute capability in TensorRT-RTX by arithmetic and type of the tensors (MatMul)."""


@pytest.mark.parametrize(
    ("arithmetic", "tensors", "weights_only"),
    [
        *((*kinds, False) for kinds in _LOWEST),
        *((*kinds, True) for kinds in _LOWEST if kinds[0] in ("int8", "fp8")),
    ],
)
def test_real_builds_agree_with_the_table(
    rtx: Rtx, arithmetic: str, tensors: str, weights_only: bool
) -> None:
    model = _product("MatMul", arithmetic, tensors, weights_only=weights_only)
    lowest = _LOWEST[arithmetic, tensors]
    told = [demand.lowest for demand in demands(inferred(model), "tensorrt-rtx")]
    assert max(told, key=version, default="7.5") == lowest
    for capability in RTX_CAPABILITIES:
        assert rtx.builds(model, capability) == (version(capability) >= version(lowest))


@pytest.mark.parametrize("operator", ["Gemm", "Einsum", "LSTM", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("tensors", ["fp32", "fp16"])
def test_convolutions_in_fp32_build_for_7_5_where_other_products_do_not(
    rtx: Rtx, operator: str, tensors: str
) -> None:
    model = _product(operator, tensors, tensors)
    expected = tensors == "fp16" or operator.startswith("Conv")
    assert rtx.builds(model, "7.5") == expected
    assert rtx.builds(model, "8.6")
    assert (not demands(inferred(model), "tensorrt-rtx")) == expected


def test_the_type_of_any_tensor_counts_not_only_of_products(rtx: Rtx) -> None:
    model = _unary("Relu", "bf16")
    assert not rtx.builds(model, "7.5")
    assert [(each.kind, each.lowest) for each in demands(inferred(model), "tensorrt-rtx")] == [
        ("bf16", "8.0")
    ]


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_capabilities_outside_the_list_are_refused_by_the_builder(
    rtx: Rtx, capability: str
) -> None:
    assert capability not in RTX_CAPABILITIES
    assert not rtx.builds(_unary("Relu", "fp32"), capability)


def test_every_listed_capability_builds(rtx: Rtx) -> None:
    assert all(rtx.builds(_unary("Relu", "fp32"), each) for each in RTX_CAPABILITIES)


def test_operators_that_the_parser_does_not_know_are_all_listed(rtx: Rtx) -> None:
    names = {each.name for each in onnx.defs.get_all_schemas() if each.domain == ""}
    unknown = {name for name in names if not rtx.supports(name)}
    listed = ABSENT["tensorrt-rtx"].keys()
    assert not unknown - listed
    # What the parser believes to have, and has not; or, for Attention, has for few shapes.
    believed = {"Attention", "CausalConvWithState", "LinearAttention", "NonMaxSuppression"}
    assert (listed & names) - unknown == believed | {"NonZero", "RoiAlign"}


def test_the_newest_opset_of_the_table_builds(rtx: Rtx) -> None:
    newest = min(OPSETS["tensorrt-rtx"][1], onnx.defs.onnx_opset_version())
    assert rtx.builds(_unary("Relu", "fp32", opset=newest), "8.9")


@pytest.mark.parametrize(
    ("kind", "zero", "refused"),
    [("int8", 0, False), ("int8", 3, True), ("uint8", 0, True), ("uint8", 128, True)],
)
def test_quantization_that_the_parser_refuses_is_found(
    rtx: Rtx, kind: str, zero: int, refused: bool
) -> None:
    model = _product("MatMul", kind, "fp16", zero=zero)
    found = unusable_quantization(inferred(model), _weights(model), Path())
    assert bool(found) == refused == (not rtx.builds(model, "8.9"))
    if refused:
        nodes = {node for nodes in found.values() for node in nodes}
        assert nodes == {"w/dequantize", "x/quantize", "x/dequantize"}
        assert ("uint8" if kind == "uint8" else "zero points of 0") in next(iter(found))


def test_a_zero_point_made_by_a_constant_node_is_read() -> None:
    model = _product("MatMul", "int8", "fp32", zero=3)
    zero = next(each for each in model.graph.initializer if each.name == "x/zero")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["x/zero"], value=zero))
    model.graph.initializer.remove(zero)
    found = unusable_quantization(inferred(model), _weights(model), Path())
    assert "x/quantize" in next(iter(found.values()))


def test_without_a_zero_point_onnx_means_uint8() -> None:
    """TensorRT-RTX 1.7.1 takes it for int8 without a word, so results would differ."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], "dequantize"),
    ]
    model = _model(nodes, [_tensor("scale", 0.1, "fp32")], ["batch", 32], ["batch", 32])
    found = unusable_quantization(inferred(model), {}, Path())
    assert list(found.values()) == [["quantize", "dequantize"]]


@pytest.mark.parametrize("between", [[], ["Transpose"], ["Cast"], ["Transpose", "Identity"]])
def test_quantized_weights_are_found_through_changes_of_layout(between: list[str]) -> None:
    model = _product("MatMul", "int8", "fp32", between=between)
    (found,) = products(inferred(model))
    assert (found.name, found.operator, found.arithmetic) == ("product", "MatMul", "int8")
    assert found.title == "int8 matrix products with fp32 inputs and outputs"


def test_plain_products_are_titled_by_their_type() -> None:
    (matrices,) = products(inferred(_product("MatMul", "fp16", "fp16")))
    (convolution,) = products(inferred(_product("Conv", "fp32", "fp32")))
    assert matrices.title == "fp16 matrix products"
    assert convolution.title == "fp32 convolutions"


def test_bodies_of_conditions_and_functions_are_read() -> None:
    for model in (_in_a_condition("MatMul"), _in_a_function("MatMul")):
        (demand,) = demands(inferred(model), "tensorrt-rtx")
        assert demand.kind == "fp32"
        assert "inner" in demand.nodes[0]
    for model in (_in_a_condition("NonZero"), _in_a_function("NonZero")):
        ((node,),) = absent_operators(model, "tensorrt").values()
        assert "inner" in node
        assert "NonZero" in node


def test_tensorrt_asks_only_for_types_that_gpus_lack() -> None:
    for (arithmetic, tensors), _ in _LOWEST.items():
        model = _product("MatMul", arithmetic, tensors)
        told = {each.lowest for each in demands(inferred(model), "tensorrt")}
        expected = {"8.9"} if arithmetic in ("fp8", "fp4") else set()
        assert told == expected | ({"8.0"} if tensors == "bf16" else set())


def test_large_weights_are_not_needed_for_types() -> None:
    model = _product("MatMul", "fp32", "fp32", width=64)
    before = model.SerializeToString()
    light = inferred(model)
    assert not light.initializer[0].raw_data
    assert model.SerializeToString() == before


class Rtx:
    """Builds networks with TensorRT-RTX."""

    def __init__(self, module: Any) -> None:
        class Log(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                pass

        self._module, self._log = module, Log()
        self._builder = module.Builder(self._log)

    def supports(self, operator: str) -> bool:
        network = self._network()
        found: bool = self._module.OnnxParser(network, self._log).supports_operator(operator)
        return found

    def builds(self, model: onnx.ModelProto, capability: str) -> bool:
        network = self._network()
        parser = self._module.OnnxParser(network, self._log)
        if not parser.parse(model.SerializeToString()):
            return False
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        shape = tuple(network.get_input(0).shape)
        profile.set_shape("x", *((rows, *shape[1:]) for rows in (1, 2, 4)))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        target = self._module.ComputeCapability(int(capability.replace(".", "")))
        if not config.set_compute_capability(target, 0):
            return False
        return self._builder.build_serialized_network(network, config) is not None

    def _network(self) -> Any:
        strongly_typed = self._module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._builder.create_network(1 << int(strongly_typed))


@pytest.fixture(scope="module")
def rtx() -> Rtx:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return Rtx(pytest.importorskip("tensorrt_rtx", reason=reason))


def _product(
    operator: str,
    arithmetic: str,
    tensors: str,
    *,
    weights_only: bool = False,
    zero: int = 0,
    between: Sequence[str] = (),
    width: int = 32,
) -> onnx.ModelProto:
    """x, float32 → the type of the tensors → product → y, float32.

    ``between``: operators between the weights' DequantizeLinear and the product.
    """
    sizes, weights, attributes = _shapes(operator, width)
    nodes = [helper.make_node("Cast", ["x"], ["low"], "low", to=_KINDS[tensors])]
    values = np.random.default_rng(0).integers(-5, 6, weights)
    source, weight = "low", "w"
    if arithmetic == tensors:
        made = [_tensor("w", values, tensors)]
    else:
        made = [_tensor("w/q", values, arithmetic)]
        nodes, weight = nodes + _dequantized("w", made, arithmetic, tensors, zero), "w/d"
        if not weights_only and arithmetic in ("int8", "uint8", "fp8"):
            # the codes of activations come from a node, those of weights are stored
            nodes += _dequantized("x", made, arithmetic, tensors, zero, source)
            source = "x/d"
    for index, each in enumerate(between):
        choices: dict[str, dict[str, Any]] = {
            "Transpose": {"perm": [1, 0]},
            "Cast": {"to": _KINDS[tensors]},
        }
        extra = choices.get(each, {})
        nodes.append(helper.make_node(each, [weight], [f"w{index}"], each, **extra))
        weight = f"w{index}"
    inputs = [source, weight]
    if operator == "LSTM":
        made.append(_tensor("r", np.ones((1, 32, 8)), tensors))
        inputs.append("r")
    nodes.append(helper.make_node(operator, inputs, ["p"], "product", **attributes))
    nodes.append(helper.make_node("Cast", ["p"], ["y"], "high", to=TensorProto.FLOAT))
    return _model(nodes, made, sizes, None, opset=23 if arithmetic in ("int4", "fp4") else 20)


def _shapes(operator: str, width: int) -> tuple[list[int | str], tuple[int, ...], dict[str, Any]]:
    """Shape of x and of the weights, and attributes."""
    if operator == "LSTM":
        return ["batch", 2, 8], (1, 32, 8), {"hidden_size": 8}
    if operator.startswith("Conv"):
        return ["batch", width, 8, 8], (width, width, 3, 3), {"pads": [1] * 4}
    attributes = {"equation": "bi,ij->bj"} if operator == "Einsum" else {}
    return ["batch", width], (width, width), attributes


def _dequantized(
    name: str, made: list[TensorProto], arithmetic: str, tensors: str, zero: int, source: str = ""
) -> list[onnx.NodeProto]:
    """Nodes from ``source``, or from the codes ``name/q``, to ``name/d``; adds their weights."""
    others = [f"{name}/scale", f"{name}/zero"]
    blocks: dict[str, Any] = {}
    if arithmetic == "fp4":  # blocks of 16 values, their scales in fp8
        made += [_tensor("w/blocks", np.ones((2, 32)), "fp8"), _tensor("w/all", 0.1, tensors)]
        blocks = {"axis": 0, "block_size": 16}
        nodes = [helper.make_node("DequantizeLinear", ["w/blocks", "w/all"], others[:1], "scales")]
        others = others[:1]
    else:
        made += [_tensor(others[0], 0.05, tensors), _tensor(others[1], zero, arithmetic)]
        nodes = []
    if source:
        into = [f"{name}/q"]
        node = helper.make_node("QuantizeLinear", [source, *others], into, f"{name}/quantize")
        nodes.append(node)
    inputs = [f"{name}/q", *others]
    node = helper.make_node(
        "DequantizeLinear", inputs, [f"{name}/d"], f"{name}/dequantize", **blocks
    )
    return [*nodes, node]


def _unary(operator: str, tensors: str, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], "low", to=_KINDS[tensors]),
        helper.make_node(operator, ["low"], ["p"], "middle"),
        helper.make_node("Cast", ["p"], ["y"], "high", to=TensorProto.FLOAT),
    ]
    return _model(nodes, [], ["batch", 32], ["batch", 32], opset)


def _in_a_condition(operator: str) -> onnx.ModelProto:
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    inputs = ["x"] if operator == "NonZero" else ["x", "x"]
    branches = [
        helper.make_graph(
            [helper.make_node(operator, inputs, [f"{name}_y"], f"inner_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", kind, None)],
        )
        for name in ("yes", "no")
    ]
    given = helper.make_tensor("given", TensorProto.BOOL, [], [True])
    node = helper.make_node(
        "If", ["given"], ["y"], "choice", then_branch=branches[0], else_branch=branches[1]
    )
    if operator == "NonZero":
        branches[1].node[0].op_type = node.attribute[1].g.node[0].op_type = "Shape"
    return _model([node], [given], [8, 8], None, kind=kind)


def _in_a_function(operator: str) -> onnx.ModelProto:
    inputs = ["a"] if operator == "NonZero" else ["a", "a"]
    body = [helper.make_node(operator, inputs, ["b"], "inner")]
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("own", "Inside", ["a"], ["b"], body, opsets)
    call = helper.make_node("Inside", ["x"], ["y"], "call", domain="own")
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    model = _model([call], [], [8, 8], None, kind=kind)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto],
    x: Sequence[int | str],
    y: Sequence[int | str] | None,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", kind, y)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def _tensor(name: str, values: Any, kind: str) -> TensorProto:
    low = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(_KINDS[kind]))
    return numpy_helper.from_array(low, name)


def _weights(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {each.name: each for each in model.graph.initializer}
