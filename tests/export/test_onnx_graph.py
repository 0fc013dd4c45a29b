"""One module to one ONNX file: opset, operators, dimensions that vary, and every way to be
refused."""

from __future__ import annotations

import contextlib
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
from fewstep.export.source import Graph
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
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


class DependsOnBatch(Scale):
    """Turns the size of the batch into a number, which is then the only one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.full((3,), float(int(x.shape[0])))


class DependsOnData(Scale):
    """Branches on a value, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Cached(nn.Module):
    """Attention of new positions to themselves and to those of before, and the new keys."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9).reshape(3, 3))

    def forward(self, past: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = new @ self.weight  # [new, batch, 3]
        whole = torch.cat([past, keys])  # [past + new, batch, 3]
        scores = torch.einsum("nbc,pbc->bnp", new, whole).softmax(-1)
        return torch.einsum("bnp,pbc->nbc", scores, whole), keys, whole


class ManyAreOthers(Scale):
    """Computes something else in the graph, but only from the second row on."""

    def forward(self, x: Tensor) -> Tensor:
        shift = 0.01 if torch.compiler.is_compiling() else 0.0
        return super().forward(x) + shift * (torch.ones_like(x).cumsum(0) - 1)


def example(module: nn.Module | None = None) -> Graph:
    inputs = {"x": torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])}
    return Graph(module or Scale(), inputs, ("y",))


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
    info = export_graph("scale", example(), tmp_path)
    tensor = TensorInfo(dtype="float32", shape=("batch", 3))
    assert info == GraphInfo(file="scale.onnx", inputs={"x": tensor}, outputs={"y": tensor})
    assert [path.name for path in tmp_path.iterdir()] == ["scale.onnx"]
    assert capfd.readouterr().out == ""
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_weights_move_to_their_own_file_above_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    info = export_graph("scale", example(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scale.onnx", "scale.onnx.data"}
    engine = OnnxRuntimeEngine("scale", tmp_path / info.file, info)
    out = run_once(CpuDevice(), engine, {"x": np.ones((4, 3), np.float32)})
    np.testing.assert_array_equal(out["y"], np.tile(np.array([1, -2, 0.5], np.float32), (4, 1)))


def test_dimensions_that_vary_keep_their_names(tmp_path: Path) -> None:
    """As of a cache: positions of before, new ones, and the batch, in any place."""
    random = torch.Generator().manual_seed(0)
    inputs = {"past": torch.randn(3, 2, 3, generator=random), "new": torch.randn(4, 2, 3)}
    dynamic = {"past": {0: "past", 1: "batch"}, "new": {0: "new", 1: "batch"}}
    graph = Graph(Cached(), inputs, ("y", "keys", "whole"), dynamic)
    info = export_graph("cached", graph, tmp_path)
    assert {name: tensor.shape for name, tensor in {**info.inputs, **info.outputs}.items()} == {
        "past": ("past", "batch", 3),
        "new": ("new", "batch", 3),
        "y": ("new", "batch", 3),
        "keys": ("new", "batch", 3),
        "whole": ("past + new", "batch", 3),
    }
    engine = OnnxRuntimeEngine("cached", tmp_path / info.file, info)
    for past, new, batch in ((0, 1, 1), (5, 2, 4)):
        fed = [torch.randn(size, batch, 3, generator=random) for size in (past, new)]
        shapes = [(new, batch, 3), (new, batch, 3), (past + new, batch, 3)]
        found = [np.empty(shape, np.float32) for shape in shapes]
        values = [*(tensor.numpy() for tensor in fed), *found]
        names = [*info.inputs, *info.outputs]
        bound = engine.bind({n: CpuBuffer(v) for n, v in zip(names, values, strict=True)})
        bound.run()
        with torch.no_grad():
            for value, expected in zip(found, graph.module(*fed), strict=True):
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)


def test_an_input_without_such_dimensions_is_of_one_shape(tmp_path: Path) -> None:
    graph = Graph(Scale(), {"x": torch.ones(1, 3)}, ("y",), dynamic={})
    info = export_graph("fixed", graph, tmp_path)
    assert (info.inputs["x"].shape, info.outputs["y"].shape) == ((1, 3), (1, 3))


@pytest.mark.parametrize(
    ("module", "batch"),
    [(OtherWhenExported(), 1), (NotANumber(), 1), (ManyAreOthers(), 3)],
    ids=["other", "nan", "many"],
)
def test_a_graph_that_computes_something_else_is_refused(
    module: Scale, batch: int, tmp_path: Path
) -> None:
    expected = rf"graph 'g', output 'y' at batch {batch}: .* by \S+ of the"
    with pytest.raises(ExportError, match=expected):
        export_graph("g", example(module), tmp_path)


@pytest.mark.parametrize("tolerance", [0.0024, 0.0026])  # 0.01 of a largest |y| of 4
def test_the_tolerance_decides(
    tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "TOLERANCE", tolerance)
    refused = pytest.raises(ExportError, match="0.0025 of the range")
    with refused if tolerance < 0.0025 else contextlib.nullcontext():
        export_graph("g", example(OtherWhenExported()), tmp_path)


def test_a_module_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="graph 'g' could not be exported: ") as caught:
        export_graph("g", example(DependsOnData()), tmp_path)
    assert caught.value.__cause__ is not None


def test_a_dimension_that_became_fixed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="graph 'g', input 'x': dimension batch is always 2"):
        export_graph("g", example(DependsOnBatch()), tmp_path)


def test_a_module_with_other_outputs_is_refused(tmp_path: Path) -> None:
    graph = Graph(Scale(), example().inputs, ("y", "z"))
    with pytest.raises(ExportError, match="graph 'g' could not be exported"):
        export_graph("g", graph, tmp_path)
