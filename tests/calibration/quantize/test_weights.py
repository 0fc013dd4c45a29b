"""Weights alone in int8: tables and matmuls, against NumPy and ONNX's own evaluator; and a bundle
whose text encoder is quantized so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.prompts import TOKENS, with_encoder

from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.settings import Settings
from fewstep.calibration.quantize.weights import quantized, stored_weights
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

Floats = npt.NDArray[np.float32]

_NAMES = ("look", "project", "out")


def _model(length: int = 3, width: int = 12) -> onnx.ModelProto:
    """Ids ``[B, TOKENS]`` → states: a table, a matmul, and a Gemm with its weight transposed."""
    random = np.random.default_rng(0)
    shapes = {"table": (9, 8), "weight": (TOKENS * 8, 16), "flipped": (length * width, 16)}
    arrays = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays |= {"flat": np.array([-1, TOKENS * 8]), "text_shape": np.array([-1, length, width])}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "look"),
        helper.make_node("Reshape", ["rows", "flat"], ["x"], "flatten"),
        helper.make_node("MatMul", ["x", "weight"], ["y"], "project"),
        helper.make_node("Tanh", ["y"], ["z"], "tanh"),
        helper.make_node("Gemm", ["z", "flipped"], ["each"], "out", transB=1),
        helper.make_node("Reshape", ["each", "text_shape"], ["text"], "shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "text_encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", TOKENS])],
        [helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", length, width])],
        [numpy_helper.from_array(each, name) for name, each in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _rounded(weight: Floats, axis: int) -> Floats:
    scale = abs(weight).max(axis, keepdims=True) / np.float32(127)
    found: Floats = (np.rint(weight / scale) * scale).astype(np.float32)
    return found


def test_columns_of_weights_are_rounded_and_nothing_else() -> None:
    model = _model()
    assert tuple(each.name for each in stored_weights(model.graph)) == _NAMES
    made = quantized(model, _NAMES)
    onnx.checker.check_model(made, full_check=True)
    assert lint(made, "int8", weights_only=True) == ()
    assert lint(made, "int8") != ()  # activations are not quantized
    assert {each.name for each in made.graph.initializer}.isdisjoint({"table", "weight", "flipped"})
    w = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    ids = np.random.default_rng(1).integers(0, 9, (4, TOKENS)).astype(np.int32)
    x = _rounded(w["table"], 0)[ids].reshape(4, -1) @ _rounded(w["weight"], 0)
    expected = (np.tanh(x) @ _rounded(w["flipped"], 1).T).reshape(4, 3, 12)
    found = ReferenceEvaluator(made).run(None, {"ids": ids})
    assert isinstance(found, list)
    np.testing.assert_allclose(np.asarray(found[0]), expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_stays_fp32() -> None:
    model = _model()
    made = quantized(model, ["project"])
    given = {each.name: each for each in model.graph.initializer}
    stored = {each.name: each for each in made.graph.initializer}
    assert stored["table"] == given["table"] and stored["flipped"] == given["flipped"]
    assert stored["weight/int8"].data_type == TensorProto.INT8


def test_scales_that_float16_can_hold() -> None:
    model = _model()
    for each in model.graph.initializer:
        if each.name == "weight":
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) * 1e-6, "weight"))
    made = quantized(model, _NAMES, fp16_scales=True)
    scales = [numpy_helper.to_array(e) for e in made.graph.initializer if e.name.endswith("/scale")]
    assert min(each.astype(np.float16).min() for each in scales) >= np.finfo(np.float16).tiny


@pytest.fixture
def path(tiny_text_bundle: Path, tmp_path: Path) -> Path:
    """A text-conditional bundle whose encoder has weights."""
    made = shutil.copytree(tiny_text_bundle, tmp_path / "bundle")
    bundle = with_encoder(made)
    content = _model(*_size(bundle)).SerializeToString()
    info = bundle.manifest.graphs["text_encoder"].model_copy(update={"file": "encoder.onnx"})
    graphs = {**bundle.manifest.graphs, "text_encoder": info}
    dumped = {name: each.model_dump() for name, each in graphs.items()}
    bundle.update({"encoder.onnx": content}, graphs=dumped)
    return made


def _size(bundle: Bundle) -> tuple[int, int]:
    length, width = bundle.manifest.graphs["text_encoder"].outputs["text"].shape[1:]
    assert isinstance(length, int) and isinstance(width, int)
    return length, width


def test_a_text_encoder_is_judged_by_states_and_by_the_logits_made_of_them(path: Path) -> None:
    few = Settings(rollouts=2, held_out=2, generation={"steps": 2})
    outcome = quantize(QuantizeRequest(path, few))
    assert [each.name for each in outcome.graphs] == ["transformer", "text_encoder"]
    transformer, encoder = (each.record for each in outcome.graphs)
    assert (transformer.weights_only, encoder.weights_only) == (False, True)
    assert transformer.cosine is None
    assert encoder.cosine is not None and 0.999 < encoder.cosine < 1
    assert encoder.kl_nats is not None and 0 < encoder.kl_nats < 0.1
    assert outcome.graphs[1].bytes < outcome.graphs[1].fp32_bytes
    assert any("golden rollouts" in note for note in outcome.notes)
    assert not quantize(QuantizeRequest(path, few)).made
    with Generator.open(path, precision="int8", device="cpu") as generator:
        assert generator.generate(text="a red dog", steps=2).images.shape[0] == 1
    alone = quantize(QuantizeRequest(path, few, graphs=frozenset({"transformer"})))
    assert [each.name for each in alone.graphs] == ["transformer"] and alone.made
    assert Bundle.read(path).graph("text_encoder", "int8").quantization is None


def test_graphs_that_cannot_be_quantized_are_refused(path: Path) -> None:
    few = Settings(rollouts=1, held_out=1, generation={"steps": 1})
    with pytest.raises(RequestError, match="graph to quantize 'encoder'.*text_encoder"):
        quantize(QuantizeRequest(path, few, graphs=frozenset({"encoder"})))
    states = np.zeros((1, *_size(Bundle.read(path))), np.float32)
    with pytest.raises(RequestError, match="no rollout ran text_encoder.*give prompts"):
        quantize(QuantizeRequest(path, few, text=states))
