"""ONNX Runtime engines: outputs in place, and errors that name the graph and the tensor.

The graphs are built here with onnx: ``double [B, 3] int32`` and ``scale [B, 3] float32``, or the
tiny bundle's own. Covered: checks of every binding, reuse of bindings, files and manifests that
do not fit, shapes that the graph itself refuses, and an absent onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError, MissingDependencyError
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo, TensorInfo


def _info(**changes: Any) -> GraphInfo:
    """What a manifest says of the graph of :func:`graph_file`."""
    tensors: dict[str, Any] = {
        "ids": TensorInfo(dtype="int32", shape=("batch", 3)),
        "weights": TensorInfo(dtype="float32", shape=("batch", 3)),
        "doubled": TensorInfo(dtype="int32", shape=("batch", 3)),
        "scaled": TensorInfo(dtype="float32", shape=("batch", 3)),
    } | changes
    given = {name: info for name, info in tensors.items() if info is not None}
    outputs = ("doubled", "scaled")
    return GraphInfo(
        file="graph.onnx",
        inputs={name: info for name, info in given.items() if name not in outputs},
        outputs={name: info for name, info in given.items() if name in outputs},
    )


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """doubled = ids + ids; scaled = weights · weights."""
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    shape: list[str | int | None] = ["batch", 3]
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["ids", "ids"], ["doubled"]),
            helper.make_node("Mul", ["weights", "weights"], ["scaled"]),
        ],
        "graph",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, shape),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("doubled", TensorProto.INT32, shape),
            helper.make_tensor_value_info("scaled", TensorProto.FLOAT, shape),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def engine(graph_file: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine("sums", graph_file, _info(), threads=1)


def _bindings(batch: int = 2) -> dict[str, CpuBuffer]:
    return {
        "ids": CpuBuffer(np.arange(3 * batch, dtype=np.int32).reshape(batch, 3)),
        "weights": CpuBuffer(np.full((batch, 3), 3, np.float32)),
        "doubled": CpuBuffer(np.full((batch, 3), -1, np.int32)),
        "scaled": CpuBuffer(np.full((batch, 3), -1, np.float32)),
    }


# --- running


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_outputs_are_written_in_place(engine: OnnxRuntimeEngine, batch: int) -> None:
    bindings = _bindings(batch)
    engine.bind(bindings).run()
    assert (bindings["doubled"].array == 2 * np.arange(3 * batch).reshape(batch, 3)).all()
    assert (bindings["scaled"].array == 9).all()


def test_new_contents_of_the_same_buffers_are_seen(engine: OnnxRuntimeEngine) -> None:
    bindings = _bindings()
    bound = engine.bind(bindings)
    bound.run()
    bindings["ids"].array[:] = 50
    bound.run()
    assert (bindings["doubled"].array == 100).all()


def test_rows_of_larger_buffers_leave_the_rest_alone(engine: OnnxRuntimeEngine) -> None:
    bindings = _bindings(4)
    engine.bind({name: buffer[1:3] for name, buffer in bindings.items()}).run()
    assert bindings["scaled"].array[:, 0].tolist() == [-1, 9, 9, -1]


def test_many_bindings_live_side_by_side(engine: OnnxRuntimeEngine) -> None:
    bindings = _bindings(600)
    rows = ({name: each[row : row + 1] for name, each in bindings.items()} for row in range(600))
    for bound in [engine.bind(each) for each in rows]:
        bound.run()
    assert (bindings["doubled"].array.ravel() == 2 * np.arange(1800)).all()


def test_run_once_makes_the_buffers_itself(engine: OnnxRuntimeEngine) -> None:
    inputs = {"ids": np.ones((5, 3), np.int32), "weights": np.full((5, 3), 0.5, np.float32)}
    outputs = run_once(CpuDevice(), engine, inputs)
    assert {name: value.shape for name, value in outputs.items()} == {
        "doubled": (5, 3),
        "scaled": (5, 3),
    }
    assert (outputs["scaled"] == 0.25).all()


# --- wrong bindings


@pytest.mark.parametrize("name", ["ids", "weights", "doubled", "scaled"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3), np.float64),
        ((2, 3), np.int64),
        ((2, 4), None),
        ((2,), None),
        ((2, 3, 1), None),
        ((), None),
    ],
)
def test_wrong_dtype_or_shape_names_graph_and_tensor(
    engine: OnnxRuntimeEngine, name: str, shape: tuple[int, ...], dtype: type | None
) -> None:
    bindings = _bindings()
    right = bindings[name].dtype
    bindings[name] = CpuBuffer(np.zeros(shape, dtype or right))
    with pytest.raises(EngineError) as caught:
        engine.bind(bindings).run()
    assert f"graph 'sums', tensor '{name}'" in str(caught.value)
    assert f"expected {right} [batch, 3]" in str(caught.value)
    assert f"got {np.dtype(dtype or right)} {list(shape)}" in str(caught.value)


def test_missing_bindings_are_all_named(engine: OnnxRuntimeEngine) -> None:
    bindings = _bindings()
    del bindings["weights"], bindings["doubled"]
    with pytest.raises(EngineError, match="graph 'sums': no buffer bound to doubled, weights"):
        engine.bind(bindings).run()


def test_unknown_binding_is_named(engine: OnnxRuntimeEngine) -> None:
    bindings = _bindings() | {"idz": CpuBuffer(np.zeros((2, 3), np.int32))}
    with pytest.raises(EngineError, match="graph 'sums' has no input or output 'idz'"):
        engine.bind(bindings).run()


@pytest.mark.parametrize("name", ["weights", "doubled", "scaled"])
def test_another_batch_is_refused_before_anything_runs(
    engine: OnnxRuntimeEngine, name: str
) -> None:
    bindings = _bindings()
    right = bindings[name].dtype
    bindings[name] = CpuBuffer(np.zeros((1, 3), right))
    message = rf"'{name}': expected {right} \[batch, 3\] with batch 2, got {right} \[1, 3\]"
    with pytest.raises(EngineError, match=message):
        engine.bind(bindings)


def test_engine_works_after_a_refused_binding(engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(EngineError):
        engine.bind({})
    bindings = _bindings()
    engine.bind(bindings).run()
    assert (bindings["scaled"].array == 9).all()


# --- files and manifests that do not fit


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a" * 1000])
def test_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"refuses graph 'broken' \(.*broken\.onnx\)") as caught:
        OnnxRuntimeEngine("broken", path, _info())
    assert caught.value.__cause__ is not None


def test_truncated_graph_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    content = (tiny_bundle / "transformer.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match="refuses graph 'cut'"):
        OnnxRuntimeEngine("cut", path, _info())


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="refuses graph 'gone'"):
        OnnxRuntimeEngine("gone", tmp_path / "gone.onnx", _info())


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": None},
        {"scaled": None},
        {"extra": TensorInfo(dtype="int32", shape=("batch",))},
        {"weights": None, "gewichte": TensorInfo(dtype="float32", shape=("batch", 3))},
    ],
)
def test_manifest_with_other_tensors_is_refused(graph_file: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="graph 'sums' has the inputs and outputs") as caught:
        OnnxRuntimeEngine("sums", graph_file, _info(**changes))
    assert "export the bundle again" in str(caught.value)


def test_manifest_with_another_dtype_is_refused_at_the_latest_by_the_run(graph_file: Path) -> None:
    info = _info(ids=TensorInfo(dtype="int64", shape=("batch", 3)))
    bindings = _bindings() | {"ids": CpuBuffer(np.zeros((2, 3), np.int64))}
    with pytest.raises(EngineError, match="graph 'sums'"):
        OnnxRuntimeEngine("sums", graph_file, info).bind(bindings).run()


# --- onnxruntime itself


def test_absent_onnxruntime_names_the_extra(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fewstep\[cpu\]'") as caught:
        OnnxRuntimeEngine("sums", graph_file, _info())
    assert isinstance(caught.value, ImportError)


def test_opening_a_bundle_without_onnxruntime_names_the_extra(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime is not installed"):
        Generator.open(tiny_bundle)


def test_threads_zero_is_every_core(graph_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[int] = []
    session = onnxruntime.InferenceSession

    def note(path: Path, options: Any, **rest: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", note)
    monkeypatch.setattr("fewstep.runtime.engines.sessions.cores", lambda: 3)
    for threads in (0, 1, 2):
        OnnxRuntimeEngine("sums", graph_file, _info(), threads=threads)
    assert asked == [3, 1, 2]
