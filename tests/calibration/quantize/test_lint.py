"""The lint on graphs that are wrong on purpose: each is refused by the name of its node.

The first ones are what ``onnxruntime.quantization`` makes without the right options.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.lint import lint, require_clean
from fewstep.calibration.quantize.qdq import quantized
from fewstep.runtime.errors import ExportError

from .graphs import MATMULS, node_of, rollouts, transformer

_RANGES = measure(transformer(), ("x", "features", "flat"), rollouts(), method="min-max")
_RIGHT: dict[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._passes = iter([dict(each.inputs) for each in rollouts().passes])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._passes, None)


def _static(folder: Path, extra: dict[str, Any] | None = None, **options: Any) -> onnx.ModelProto:
    onnx.save(transformer(), folder / "in.onnx")
    options = {"nodes_to_quantize": list(MATMULS), "per_channel": True} | options
    quantize_static(
        folder / "in.onnx", folder / "out.onnx", _Reader(), extra_options=extra, **options
    )
    return onnx.load(folder / "out.onnx")


def _right() -> onnx.ModelProto:
    return quantized(transformer(), MATMULS, _RANGES)


def _said(model: onnx.ModelProto, precision: str = "int8") -> str:
    with pytest.raises(ExportError) as raised:
        require_clean(model, precision, "small")
    return str(raised.value)


def test_what_this_package_makes_passes() -> None:
    assert lint(_right(), "int8") == ()
    require_clean(_right(), "int8", "small")


# --- what ONNX Runtime makes with other options


def test_defaults_of_quantize_static(tmp_path: Path) -> None:
    said = _said(_static(tmp_path))
    assert "expected zero points of 0, received others" in said
    assert "QuantizeLinear on the output of a matmul: " in said and "query" in said


def test_uint8_activations(tmp_path: Path) -> None:
    said = _said(_static(tmp_path, _RIGHT, activation_type=QuantType.QUInt8))
    assert "received uint8" in said and "features_QuantizeLinear" in said


def test_asymmetric_activations(tmp_path: Path) -> None:
    said = _said(_static(tmp_path, _RIGHT | {"ActivationSymmetric": False}))
    assert "expected zero points of 0, received others: " in said and "flat_QuantizeLinear" in said


def test_quantized_outputs_of_matmuls(tmp_path: Path) -> None:
    said = _said(_static(tmp_path, _RIGHT | {"OpTypesToExcludeOutputQuantization": []}))
    assert "QuantizeLinear on the output of a matmul: query (q_QuantizeLinear)" in said


def test_quantized_bias(tmp_path: Path) -> None:
    said = _said(_static(tmp_path, _RIGHT | {"QuantizeBias": True}))
    assert "received int32: b_gemm_DequantizeLinear" in said
    assert "a quantized bias: gemm" in said


def test_attention_and_delicate_matmuls(tmp_path: Path) -> None:
    everything = {"nodes_to_quantize": None, "op_types_to_quantize": ["MatMul", "Gemm"]}
    said = _said(_static(tmp_path, _RIGHT, **everything))
    assert "quantized matmuls of two computed operands, as in attention: attend, mix" in said
    assert "a quantized matmul that gives the logits: head" in said


def test_tensors_that_others_read_as_well(tmp_path: Path) -> None:
    """``features`` is an output of the graph, and part of a sum."""
    said = _said(_static(tmp_path, _RIGHT, nodes_to_quantize=["projection"]))
    assert "quantized, and no matmul: residual_2 (Add)" in said
    assert "an output of the graph that was quantized: features" in said


def test_one_scale_for_all_channels(tmp_path: Path) -> None:
    said = _said(_static(tmp_path, _RIGHT, per_channel=False))
    assert "not quantized by output channel: query, key, projection, gemm" in said


def test_dynamic_quantization(tmp_path: Path) -> None:
    onnx.save(transformer(), tmp_path / "in.onnx")
    quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx")
    said = _said(onnx.load(tmp_path / "out.onnx"))
    assert "operators that TensorRT does not read: " in said
    assert "(DynamicQuantizeLinear)" in said and "(MatMulInteger)" in said


# --- changes by hand


def _initializer(model: onnx.ModelProto, name: str, values: Any) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def _scale_of(model: onnx.ModelProto, node: str) -> str:
    return str(node_of(model, node).input[1])


def _zero_scale(model: onnx.ModelProto) -> None:
    _initializer(model, _scale_of(model, "flat/quantized_QuantizeLinear"), np.float32(0))


def _nan_scale(model: onnx.ModelProto) -> None:
    _initializer(model, _scale_of(model, "flat/quantized_QuantizeLinear"), np.float32("nan"))


def _computed_scale(model: onnx.ModelProto) -> None:
    name = _scale_of(model, "flat/quantized_QuantizeLinear")
    model.graph.node.insert(0, helper.make_node("Identity", [name], ["other"], "computed"))
    node_of(model, "flat/quantized_QuantizeLinear").input[1] = "other"


def _half(model: onnx.ModelProto) -> None:
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "plain")
    model.graph.initializer.append(weight)
    node_of(model, "gemm").input[1] = "plain"


def _weight_only(model: onnx.ModelProto) -> None:
    node_of(model, "gemm").input[0] = "flat"


def _wrong_axis(model: onnx.ModelProto) -> None:
    node = node_of(model, "w_projection_DequantizeLinear")
    next(each for each in node.attribute if each.name == "axis").i = 0


def _zero_point(model: onnx.ModelProto) -> None:
    name = node_of(model, "flat/quantized_QuantizeLinear").input[2]
    _initializer(model, name, np.int8(3))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_zero_scale, "scales that are 0, negative or not finite: flat"),
        (_nan_scale, "scales that are 0, negative or not finite: flat"),
        (_computed_scale, "scales that are computed as the graph runs: flat"),
        (_half, "one operand quantized and the other not: gemm"),
        (_weight_only, "one operand quantized and the other not: gemm"),
        (_wrong_axis, "not quantized by output channel: projection"),
        (_zero_point, "expected zero points of 0, received others: flat"),
    ],
)
def test_each_rule_names_the_node(damage: Callable[[onnx.ModelProto], None], said: str) -> None:
    model = _right()
    damage(model)
    assert said in _said(model)


def test_a_quantized_matmul_that_embeds_an_input() -> None:
    model = quantized(transformer(text=True), ["text"], {"text": (-1.0, 1.0)})
    assert "a quantized matmul that embeds an input: text" in _said(model)


def test_a_graph_without_quantization() -> None:
    assert "no quantized matmul: small" in _said(transformer())


def test_int8_is_not_fp8_and_the_other_way() -> None:
    assert "expected quantization to float8e4m3fn, received int8" in _said(_right(), "fp8")
    model = _fp8()
    assert lint(model, "fp8") == ()
    assert "expected quantization to int8, received float8e4m3fn" in _said(model)


def _fp8() -> onnx.ModelProto:
    """The right graph with fp8 in the place of int8."""
    model, kind = _right(), TensorProto.FLOAT8E4M3FN
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(tensor).astype(np.float32).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model
