"""Q/DQ graphs: their arithmetic against NumPy, and that nothing else in the graph changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from fewstep.build.graphs import load_graph
from fewstep.build.precision import lower
from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.matmuls import weighted_matmuls
from fewstep.calibration.quantize.qdq import quantized
from fewstep.runtime.bundle import Bundle

from .graphs import MATMULS, node_of, rollouts, run, transformer, weight_of

Floats = npt.NDArray[np.float32]
_ACTIVATIONS = ("x", "features", "flat")
_RANGES = measure(transformer(), _ACTIVATIONS, rollouts(), method="min-max")


def _inputs() -> dict[str, Any]:
    return dict(rollouts(seed=1).passes[0].inputs)


def _rounded(values: Floats, scale: Floats | np.float32) -> Floats:
    """Quantized and dequantized by the definition, rounding half to even."""
    result: Floats = (np.clip(np.rint(values / scale), -128, 127) * scale).astype(np.float32)
    return result


def _activation_scale(name: str) -> Floats:
    return np.array(max(map(abs, _RANGES[name])) / 127, np.float32)


def test_a_quantized_matmul_computes_what_numpy_does() -> None:
    """Weights by output channel: columns of a MatMul's, rows of a transposed Gemm's."""
    model = quantized(transformer(), MATMULS, _RANGES)
    names = ["features", "h", "flat", "g"]
    features, h, flat, g = run(model, _inputs(), names)
    w: Any = weight_of(transformer(), "w_projection")
    expected: Any = _rounded(features, _activation_scale("features")) @ _rounded(
        w, np.abs(w).max(0) / 127
    )
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-4)
    w = weight_of(transformer(), "w_gemm")
    rounded = _rounded(w, np.abs(w).max(1, keepdims=True) / 127)
    expected = _rounded(flat, _activation_scale("flat")) @ rounded.T
    bias = weight_of(transformer(), "b_gemm")
    np.testing.assert_allclose(g, expected + bias, rtol=1e-4, atol=1e-4)
    assert np.abs(h - features @ weight_of(transformer(), "w_projection")).max() > 1e-3


def test_the_stored_graph_is_small_and_sound() -> None:
    model = quantized(transformer(), MATMULS, _RANGES)
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, "int8") == ()
    stored = {each.name: each.data_type for each in model.graph.initializer}
    assert not {f"w_{name}" for name in MATMULS} & stored.keys()  # only their int8 forms
    assert [each.name for each in model.graph.output] == ["logits", "features"]
    assert not any(
        "/quantized" in name
        for node in model.graph.node
        for name in node.output[:1]
        if node.op_type == "Identity"
    )


@pytest.mark.parametrize("name", MATMULS)
def test_one_matmul_alone_leaves_every_other_reader_alone(name: str) -> None:
    """``x`` is read by two matmuls and attention, ``features`` is an output of the graph too."""
    model = quantized(transformer(), [name], _RANGES)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("DequantizeLinear") == 2
    for node in transformer().graph.node:
        same = list(node_of(model, node.name).input) == list(node.input)
        assert same == (node.name != name)
    assert lint(model, "int8") == ()
    before = {"query": "x", "key": "x", "projection": "features", "gemm": "flat"}[name]
    for original, made in zip(
        run(transformer(), _inputs(), [before]), run(model, _inputs(), [before]), strict=True
    ):
        np.testing.assert_array_equal(original, made)


def test_a_weight_that_others_read_is_copied_for_the_matmul() -> None:
    model = transformer()
    node_of(model, "key").input[1] = "w_query"
    made = quantized(model, ["query"], _RANGES)
    assert list(node_of(made, "key").input) == ["x", "w_query"]
    np.testing.assert_array_equal(weight_of(made, "w_query"), weight_of(model, "w_query"))
    assert lint(made, "int8") == ()


def test_nothing_selected_is_the_graph_itself() -> None:
    assert quantized(transformer(), [], _RANGES) == transformer()


def test_the_original_is_not_changed() -> None:
    model = transformer()
    quantized(model, MATMULS, _RANGES)
    assert model == transformer()


def test_dead_channels_and_activations_get_usable_scales() -> None:
    model = transformer()
    weight = next(each for each in model.graph.initializer if each.name == "w_projection")
    values = weight_of(model, "w_projection").copy()
    values[:, 3] = 0
    weight.raw_data = values.tobytes()
    made = quantized(model, MATMULS, _RANGES | {"flat": (0.0, 0.0)})
    assert lint(made, "int8") == ()
    found = run(made, _inputs(), ["h", "logits"])
    assert (found[0][..., 3] == 0).all() and np.isfinite(found[1]).all()


def test_scales_survive_float16() -> None:
    """Weights of 1e-5 have scales near 1e-7, which float16 would round to one bit or none."""
    model = transformer()
    weight = next(each for each in model.graph.initializer if each.name == "w_projection")
    weight.raw_data = (weight_of(model, "w_projection") * np.float32(1e-5)).tobytes()
    made = quantized(model, MATMULS, _RANGES, fp16_scales=True)
    low = lower(made, "fp16").model
    assert lint(low, "int8") == ()
    smallest = float(np.finfo(np.float16).tiny)
    for node in low.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = weight_of(low, node.input[1])
            assert scale.dtype == np.float16 and scale.min() >= smallest
    expected, found = (run(each, _inputs(), ["logits"])[0] for each in (made, low))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_an_exported_transformer_quantizes(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    model = load_graph(bundle, "transformer")
    matmuls = [each for each in weighted_matmuls(model.graph) if not each.delicate]
    ranges = {each.activation: (-3.0, 3.0) for each in matmuls}
    made = quantized(model, [each.name for each in matmuls], ranges)
    assert lint(made, "int8") == ()
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("DequantizeLinear") == 2 * len(matmuls)
