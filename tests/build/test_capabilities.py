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
from tests.build.rtx import KINDS, Rtx, in_a_condition, in_a_function, model_of, unary

from fewstep.build.capabilities import demands, mac_operators, unusable_quantization, version
from fewstep.build.graphs import inferred
from fewstep.build.opset import absent_operators
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES

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


@pytest.mark.slow
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
    model = _multiplying("MatMul", arithmetic, tensors, weights_only=weights_only)
    lowest = _LOWEST[arithmetic, tensors]
    lowest_of_all = [demand.lowest for demand in demands(inferred(model), "tensorrt-rtx")]
    assert max(lowest_of_all, key=version, default="7.5") == lowest
    for capability in RTX_CAPABILITIES:
        assert rtx.builds(model, capability) == (version(capability) >= version(lowest))


@pytest.mark.parametrize("operator", ["Gemm", "Einsum", "LSTM", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("tensors", ["fp32", "fp16"])
def test_convolutions_in_fp32_build_for_7_5_where_matmuls_do_not(
    rtx: Rtx, operator: str, tensors: str
) -> None:
    model = _multiplying(operator, tensors, tensors)
    expected = tensors == "fp16" or operator.startswith("Conv")
    assert rtx.builds(model, "7.5") == expected
    assert rtx.builds(model, "8.6")
    assert (not demands(inferred(model), "tensorrt-rtx")) == expected


def test_the_type_of_any_tensor_counts_not_only_of_matmuls(rtx: Rtx) -> None:
    model = unary("Relu", "bf16")
    assert not rtx.builds(model, "7.5")
    assert [(each.kind, each.lowest) for each in demands(inferred(model), "tensorrt-rtx")] == [
        ("bf16", "8.0")
    ]


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_capabilities_outside_the_list_are_refused_by_the_builder(
    rtx: Rtx, capability: str
) -> None:
    assert capability not in RTX_CAPABILITIES
    assert not rtx.builds(unary("Relu", "fp32"), capability)


def test_every_listed_capability_builds(rtx: Rtx) -> None:
    assert all(rtx.builds(unary("Relu", "fp32"), each) for each in RTX_CAPABILITIES)


@pytest.mark.parametrize(
    ("kind", "zero", "refused"),
    [("int8", 0, False), ("int8", 3, True), ("uint8", 0, True), ("uint8", 128, True)],
)
def test_quantization_that_the_parser_refuses_is_found(
    rtx: Rtx, kind: str, zero: int, refused: bool
) -> None:
    model = _multiplying("MatMul", kind, "fp16", zero=zero)
    found = unusable_quantization(inferred(model), _weights(model), Path())
    assert bool(found) == refused == (not rtx.builds(model, "8.9"))
    if refused:
        nodes = {node for nodes in found.values() for node in nodes}
        assert nodes == {"w/dequantize", "x/quantize", "x/dequantize"}
        assert ("uint8" if kind == "uint8" else "zero points of 0") in next(iter(found))


def test_a_zero_point_made_by_a_constant_node_is_read() -> None:
    model = _multiplying("MatMul", "int8", "fp32", zero=3)
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
    model = model_of(nodes, [_tensor("scale", 0.1, "fp32")], ["batch", 32], ["batch", 32])
    found = unusable_quantization(inferred(model), {}, Path())
    assert list(found.values()) == [["quantize", "dequantize"]]


@pytest.mark.parametrize("between", [[], ["Transpose"], ["Cast"], ["Transpose", "Identity"]])
def test_quantized_weights_are_found_through_changes_of_layout(between: list[str]) -> None:
    model = _multiplying("MatMul", "int8", "fp32", between=between)
    (found,) = mac_operators(inferred(model))
    assert (found.name, found.operator, found.arithmetic) == ("matmul", "MatMul", "int8")
    assert found.title == "int8 matmuls with fp32 inputs and outputs"


def test_plain_operators_are_titled_by_their_type() -> None:
    (matrices,) = mac_operators(inferred(_multiplying("MatMul", "fp16", "fp16")))
    (convolution,) = mac_operators(inferred(_multiplying("Conv", "fp32", "fp32")))
    assert matrices.title == "fp16 matmuls"
    assert convolution.title == "fp32 convolutions"


def test_bodies_of_conditions_and_functions_are_read() -> None:
    for model in (in_a_condition("MatMul"), in_a_function("MatMul")):
        (demand,) = demands(inferred(model), "tensorrt-rtx")
        assert demand.kind == "fp32"
        assert "inner" in demand.nodes[0]
    for model in (in_a_condition("NonZero"), in_a_function("NonZero")):
        ((node,),) = absent_operators(model, "tensorrt").values()
        assert "inner" in node
        assert "NonZero" in node


def test_tensorrt_asks_only_for_types_that_gpus_lack() -> None:
    for (arithmetic, tensors), _ in _LOWEST.items():
        model = _multiplying("MatMul", arithmetic, tensors)
        lowest_of_all = {each.lowest for each in demands(inferred(model), "tensorrt")}
        expected = {"8.9"} if arithmetic in ("fp8", "fp4") else set()
        assert lowest_of_all == expected | ({"8.0"} if tensors == "bf16" else set())


def test_large_weights_are_not_needed_for_types() -> None:
    model = _multiplying("MatMul", "fp32", "fp32", width=64)
    before = model.SerializeToString()
    light = inferred(model)
    assert not light.initializer[0].raw_data
    assert model.SerializeToString() == before


@pytest.fixture(scope="module")
def rtx() -> Rtx:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return Rtx(pytest.importorskip("tensorrt_rtx", reason=reason))


def _multiplying(
    operator: str,
    arithmetic: str,
    tensors: str,
    *,
    weights_only: bool = False,
    zero: int = 0,
    between: Sequence[str] = (),
    width: int = 32,
) -> onnx.ModelProto:
    """x, float32 → the type of the tensors → MAC operator → y, float32.

    ``between``: operators between the weights' DequantizeLinear and the operator.
    """
    sizes, weights, attributes = _shapes(operator, width)
    nodes = [helper.make_node("Cast", ["x"], ["low"], "low", to=KINDS[tensors])]
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
            "Cast": {"to": KINDS[tensors]},
        }
        extra = choices.get(each, {})
        nodes.append(helper.make_node(each, [weight], [f"w{index}"], each, **extra))
        weight = f"w{index}"
    inputs = [source, weight]
    if operator == "LSTM":
        made.append(_tensor("r", np.ones((1, 32, 8)), tensors))
        inputs.append("r")
    nodes.append(helper.make_node(operator, inputs, ["p"], "matmul", **attributes))
    nodes.append(helper.make_node("Cast", ["p"], ["y"], "high", to=TensorProto.FLOAT))
    return model_of(nodes, made, sizes, None, opset=23 if arithmetic in ("int4", "fp4") else 20)


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


def _tensor(name: str, values: Any, kind: str) -> TensorProto:
    low = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(KINDS[kind]))
    return numpy_helper.from_array(low, name)


def _weights(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {each.name: each for each in model.graph.initializer}
