"""One module to one ONNX file: opset, operators, dynamic batch, and every way to be refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fewstep.export import onnx_graph
from fewstep.export.onnx_graph import export_graph
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import ExportError
from fewstep.runtime.records import GraphInfo, TensorInfo

FORBIDDEN = {"NonZero", "Multinomial", "RandomUniform", "RandomNormal", "If", "Loop", "Scan"}
GRAPHS = [
    ("tiny_bundle", "transformer"),
    ("tiny_bundle", "policy"),
    ("tiny_bundle", "decoder"),
    ("tiny_text_bundle", "transformer"),
]


class Scale(nn.Module):
    """``x · w`` row by row, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class OtherWhenExported(Scale):
    """Computes something else in the exported graph than in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        shift = 0.01 if torch.compiler.is_compiling() else 0.0
        return super().forward(x) + shift


class NotANumber(Scale):
    """NaN everywhere, in the graph as in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs().neg().sub(1).log()


class DependsOnData(Scale):
    """Branches on a value, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def example() -> dict[str, Tensor]:
    return {"x": torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])}


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphInfo]:
    """A graph of the shared bundles, with its description in the manifest."""
    fixture, name = request.param
    folder: Path = request.getfixturevalue(fixture)
    info = Bundle.read(folder).manifest.graphs[name]
    return folder / info.file, info


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def test_passes_the_full_check(exported: tuple[Path, GraphInfo]) -> None:
    onnx.checker.check_model(exported[0], full_check=True)


def test_has_opset_20_and_nothing_but_the_standard(exported: tuple[Path, GraphInfo]) -> None:
    model = onnx.load(exported[0])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in _nodes(model.graph)} == {""}
    assert not model.functions


def test_has_no_operator_of_dynamic_size_or_chance(exported: tuple[Path, GraphInfo]) -> None:
    operators = {node.op_type for node in _nodes(onnx.load(exported[0]).graph)}
    assert operators & {"MatMul", "Gemm", "Conv"}
    assert not operators & FORBIDDEN


def test_every_tensor_is_as_described_with_a_named_batch(exported: tuple[Path, GraphInfo]) -> None:
    path, info = exported
    graph = onnx.load(path).graph
    for values, described in ((graph.input, info.inputs), (graph.output, info.outputs)):
        assert [value.name for value in values] == list(described)
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
            assert shape == described[value.name].shape
            assert shape[0] == "batch"
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            assert dtype == described[value.name].dtype


def test_is_one_file_of_its_own(exported: tuple[Path, GraphInfo]) -> None:
    path, info = exported
    assert path.name == info.file
    initializers = onnx.load(path, load_external_data=False).graph.initializer
    assert initializers
    assert not any(tensor.external_data for tensor in initializers)


def test_holds_no_path_of_the_machine(exported: tuple[Path, GraphInfo]) -> None:
    """Its hash would depend on where fewstep is installed."""
    content = exported[0].read_bytes()
    for source in (onnx_graph.__file__, __file__, torch.__file__):
        assert str(Path(source).parent).encode() not in content
    assert b"stack_trace" not in content


def test_runs_batches_that_the_export_did_not_try(exported: tuple[Path, GraphInfo]) -> None:
    path, info = exported
    random, device = np.random.default_rng(0), CpuDevice()
    inputs = {
        name: random.uniform(0, 5, (5, *map(int, tensor.shape[1:]))).astype(tensor.dtype)
        for name, tensor in info.inputs.items()
    }
    engine = OnnxRuntimeEngine("graph", path, info, threads=1)
    together = run_once(device, engine, inputs)
    alone = run_once(device, engine, {name: value[4:] for name, value in inputs.items()})
    for name in info.outputs:
        assert not np.allclose(together[name][3], together[name][4], atol=1e-4)
        np.testing.assert_allclose(together[name][4:], alone[name], rtol=0, atol=1e-4)
    engine.close()


def test_describes_what_it_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Silently: the exporter's own progress lines are kept off the terminal."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    info, error = export_graph(Scale(), "scale", example(), ("y",), tmp_path)
    tensor = TensorInfo(dtype="float32", shape=("batch", 3))
    assert info == GraphInfo(file="scale.onnx", inputs={"x": tensor}, outputs={"y": tensor})
    assert 0 <= error < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["scale.onnx"]
    assert capfd.readouterr().out == ""
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_weights_move_to_their_own_file_above_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    info, _ = export_graph(Scale(), "scale", example(), ("y",), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scale.onnx", "scale.onnx.data"}
    engine = OnnxRuntimeEngine("scale", tmp_path / info.file, info)
    out = run_once(CpuDevice(), engine, {"x": np.ones((4, 3), np.float32)})
    np.testing.assert_array_equal(out["y"], np.tile(np.array([1, -2, 0.5], np.float32), (4, 1)))


@pytest.mark.parametrize("module", [OtherWhenExported(), NotANumber()], ids=["other", "nan"])
def test_a_graph_that_computes_something_else_is_refused(module: Scale, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"graph 'g', output 'y' at batch 1: .* by \S+ of the"):
        export_graph(module, "g", example(), ("y",), tmp_path)


def test_the_tolerance_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 0.1)
    _, error = export_graph(OtherWhenExported(), "g", example(), ("y",), tmp_path)
    assert error == pytest.approx(0.01 / 4, rel=1e-3)  # relative to the largest |y|


def test_a_module_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="graph 'g' could not be exported: ") as caught:
        export_graph(DependsOnData(), "g", example(), ("y",), tmp_path)
    assert caught.value.__cause__ is not None
