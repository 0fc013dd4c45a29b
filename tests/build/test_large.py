"""Graphs beyond what protobuf holds, by a limit that is lowered: their weights lie beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewstep.build import large
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


def _product(weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weights.shape[0]])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, weights.shape[1]])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.full(1, 0.5, np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_large_graph_runs_and_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    model = _product(weights)
    before = model.SerializeToString(deterministic=True)
    assert large.files_of(model, "a.onnx") == {"a.onnx": before}
    monkeypatch.setattr(large, "MOST_BYTES", 1000)
    x = np.ones((1, 40), np.float32)
    (found,) = large.session_of(model).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights + 0.5, rtol=1e-5)
    files = large.files_of(model, "a.onnx")
    assert [*files] == ["a.onnx", "a.onnx.data"] and len(files["a.onnx"]) < 1000
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    onnx.checker.check_model(tmp_path / "a.onnx")
    assert numpy_helper.to_array(onnx.load(tmp_path / "a.onnx").graph.initializer[0]).tolist() == (
        weights.tolist()
    )
    assert model.SerializeToString(deterministic=True) == before


def test_a_large_variant_is_whole_and_replaced_whole(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "MOST_BYTES", 1000)
    made, _ = add_variant(Bundle.read(bundle_copy), "fp16")
    info = made.graph("transformer", "fp16")
    assert info.external == (f"{info.file}.data",) and made.damage() == {}
    with Generator.open(made, precision="fp16", backend="onnxruntime", threads=1) as generator:
        assert verify(generator).passed
    monkeypatch.undo()
    again, _ = add_variant(made, "fp16")
    assert not again.graph("transformer", "fp16").external
    assert not list(bundle_copy.glob("*.data"))
