"""Preflight inside graphs: operators, opsets, inputs and outputs, arithmetic by compute capability.

Files, weights and profiles are in ``test_preflight.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.build.preflight_graphs import (
    check,
    decoder,
    only_problem,
    quantized,
    using,
    with_graph,
)

from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.records import EngineBackend, Precision


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle.read(bundle_copy)


# ---- operators -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("operator", "domain", "remedy"),
    [
        ("NonZero", "", "instead of boolean masks"),
        ("Multinomial", "", "make the random numbers an input"),
        ("DynamicQuantizeLinear", "", "QuantizeLinear and DequantizeLinear"),
        ("BitwiseNot", "ai.onnx", "plain tensor operators"),
        ("FusedMatMul", "com.microsoft", "without one runtime's own optimizations"),
    ],
)
def test_operators_that_backends_lack(
    bundle: Bundle, backend: EngineBackend, operator: str, domain: str, remedy: str
) -> None:
    found = check(with_graph(bundle, using(operator, domain)), backend=backend)
    problem = next(each for each in found if each.offenders)
    name = f"{domain}::{operator}" if domain == "com.microsoft" else operator
    assert problem.offenders == (f"culprit ({name})",)
    title = "TensorRT-RTX" if backend == "tensorrt-rtx" else "TensorRT"
    assert problem.what == f"operators that {title} cannot build"
    assert remedy in problem.remedy


def test_operators_in_the_branches_of_a_condition(bundle: Bundle) -> None:
    branch = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.INT64, None)],
    )
    given = helper.make_tensor("given", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("If", ["given"], ["i"], "choice", then_branch=branch, else_branch=branch),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    problem = check(with_graph(bundle, decoder(nodes, [given])))[0]
    assert problem.offenders[0] == "choice/NonZero making b (NonZero)"


def test_only_the_first_offenders_are_written_out(bundle: Bundle) -> None:
    nodes = [helper.make_node("NonZero", ["x"], [f"i{n}"], f"mask{n}") for n in range(8)]
    content = decoder([*nodes, helper.make_node("Identity", ["x"], ["y"])], [])
    problem = only_problem(with_graph(bundle, content))
    assert len(problem.offenders) == 8
    assert "mask4 (NonZero) and 3 more; " in str(problem)
    assert "mask5" not in str(problem)


@pytest.mark.parametrize(
    ("opset", "backend", "fine"),
    [
        (8, "tensorrt-rtx", False),
        (20, "tensorrt", True),
        (21, "tensorrt", False),
        (21, "tensorrt-rtx", True),
        (99, "tensorrt-rtx", False),
    ],
)
def test_opsets(bundle: Bundle, opset: int, backend: EngineBackend, fine: bool) -> None:
    model = onnx.load_from_string(decoder([], []))
    model.opset_import[0].version = opset
    found = check(with_graph(bundle, model.SerializeToString()), backend=backend)
    if fine:
        assert found == ()
        return
    assert f"received {opset}" in found[0].what
    assert "opset 20" in found[0].remedy


# ---- inputs and outputs ----------------------------------------------------------------------


def _renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "ids"


def _wrong_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def _wrong_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 25


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _another_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed_input, "inputs that only the graph or only the manifest has: ids, tokens"),
        (_wrong_type, "input 'tokens': expected int32 ['?', 16], received int64 ['?', 16]"),
        (_wrong_size, "input 'tokens': expected int32 ['?', 16], received int32 ['?', 25]"),
        (_fixed_batch, "input 'tokens': expected int32 ['?', 16], received int32 [1, 16]"),
        (_another_output, "outputs that only the graph or only the manifest has: x"),
    ],
)
def test_inputs_and_outputs_that_the_manifest_does_not_state(
    bundle: Bundle, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    model = onnx.load_from_string(decoder([], []))
    change(model)
    problem = only_problem(with_graph(bundle, model.SerializeToString()))
    assert said in str(problem)
    assert "make it again" in problem.remedy


# ---- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fp32_matmuls_are_not_for_7_5(bundle: Bundle, precision: Precision) -> None:
    if precision == "fp16":
        bundle, _ = add_variant(bundle, "fp16")
    found = check(bundle, precision=precision, capabilities=["7.5", "8.6"])
    assert [each.graph for each in found] == ["transformer", "policy"]
    for each in found:
        assert each.what.startswith("fp32 matmuls need compute capability 8.0")
        assert each.what.endswith("received 7.5")
        assert f"fewstep build {bundle.path} --precision fp16 --no-fp32-heads --force" in str(each)
        assert each.remedy.endswith("leave 7.5 out of --compute-capability")


def test_without_fp32_heads_fp16_is_for_7_5(bundle: Bundle) -> None:
    bundle, _ = add_variant(bundle, "fp16", heads=False)
    assert check(bundle, precision="fp16", capabilities=["7.5"]) == ()


@pytest.mark.parametrize(("backend", "ending"), [("tensorrt", "fp16"), ("tensorrt-rtx", "ity")])
def test_bf16_is_not_for_7_5(bundle: Bundle, backend: EngineBackend, ending: str) -> None:
    bundle, _ = add_variant(bundle, "bf16")
    found = check(bundle, backend=backend, precision="bf16", capabilities=["7.5"])
    tensors = [each for each in found if each.what.startswith("bf16 tensors")]
    assert {each.graph for each in tensors} == set(bundle.manifest.graphs)
    assert all(f"use fp16 graphs: fewstep build {bundle.path}" in str(each) for each in tensors)
    assert all(each.remedy.endswith(ending) for each in tensors)  # no such option with tensorrt


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_fp8_is_for_8_9_and_newer(bundle: Bundle, backend: EngineBackend) -> None:
    changed = with_graph(bundle, quantized(TensorProto.FLOAT8E4M3FN))
    problem = only_problem(changed, backend=backend, capabilities=["8.6"])
    assert problem.what == "fp8 tensors need compute capability 8.9 or newer, received 8.6"
    assert "x/quantize" in problem.offenders
    assert check(changed, backend=backend, capabilities=["8.9"]) == ()


def test_int8_matmuls_of_fp32_tensors_are_not_for_7_5(bundle: Bundle) -> None:
    changed = with_graph(bundle, quantized(TensorProto.INT8))
    found = [each for each in check(changed, capabilities=["7.5"]) if each.graph == "decoder"]
    (problem,) = found
    assert problem.what.startswith("int8 matmuls with fp32 inputs and outputs need")
    assert problem.offenders == ("matmul",)
    assert check(changed, capabilities=["8.6"]) == ()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("kind", "zero", "what"),
    [
        (TensorProto.UINT8, 128, "received uint8"),
        (TensorProto.INT16, 0, "received int16"),
        (TensorProto.INT8, 3, "expected zero points of 0"),
    ],
)
def test_quantization_that_backends_refuse(
    bundle: Bundle, backend: EngineBackend, kind: int, zero: int, what: str
) -> None:
    opset = 21 if kind == TensorProto.INT16 else 20
    found = check(with_graph(bundle, quantized(kind, zero, opset)), backend=backend)
    problem = found[0]
    if backend == "tensorrt" and opset > 20:
        assert "received 21" in problem.what
        return
    assert what in problem.what
    assert set(problem.offenders) == {"x/quantize", "x/dequantize", "w/dequantize"}
    assert "symmetrically to int8, as fewstep calibrate quantize" in problem.remedy


def test_matmuls_of_integers(bundle: Bundle) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "ids", to=TensorProto.INT32),
        helper.make_node("MatMul", ["i", "w"], ["j"], "integers"),
        helper.make_node("Cast", ["j"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    weight = numpy_helper.from_array(np.ones((16, 16), np.int32), "w")
    problem = only_problem(with_graph(bundle, decoder(nodes, [weight])))
    assert "received int32" in problem.what
    assert problem.offenders == ("integers",)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bundle: Bundle, value: float) -> None:
    model = onnx.load(bundle.graph_path("decoder"))
    weight = next(each for each in model.graph.initializer if len(each.dims) > 1)
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[3] = value
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    problem = only_problem(with_graph(bundle, model.SerializeToString()))
    assert problem.what == "weights with NaN or infinite numbers"
    assert problem.offenders == (weight.name,)
