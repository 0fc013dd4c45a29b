"""ONNX Runtime engines on a GPU, as far as that can be seen without one.

A session stands in that notes what it is asked for. Covered: provider, GPU and stream; addresses of
buffers; the option that keeps a run from waiting; checks of bindings; and the errors where
onnxruntime is absent, has no CUDA provider, or falls back to the CPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from fewstep.runtime.devices import CudaStream
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError, MissingDependencyError
from fewstep.runtime.records import GraphInfo, TensorInfo

_IDS = {name: TensorInfo(dtype="int32", shape=("batch", 3)) for name in ("ids", "doubled")}
_INFO = GraphInfo(
    file="graph.onnx", inputs={"ids": _IDS["ids"]}, outputs={"doubled": _IDS["doubled"]}
)


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """doubled = ids + ids."""
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 3]) for name in _IDS
    }
    node = helper.make_node("Add", ["ids", "ids"], ["doubled"])
    graph = helper.make_graph([node], "graph", [values["ids"]], [values["doubled"]])
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def _buffers(columns: int = 3) -> dict[str, Address]:
    """Both tensors for a batch of 2, somewhere in the memory of a GPU."""
    places = {"ids": 0x7F00_0000_1000, "doubled": 0x7F00_0000_2000}
    return {name: Address(place, (2, columns), np.dtype("int32")) for name, place in places.items()}


_STREAM = CudaStream(ordinal=1, handle=0x7F00_1234_5678)


class Session:
    """A session on a GPU that is not there: it notes what it is asked for."""

    def __init__(self, real: Any, path: Path, providers: list[Any], first: str) -> None:
        self.providers, self._first = providers, first
        self._real = real(path, providers=["CPUExecutionProvider"])
        self.bound: list[tuple[Any, ...]] = []
        self.run_options: Any = None

    def get_providers(self) -> list[str]:
        return [self._first, "CPUExecutionProvider"]

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def io_binding(self) -> Session:
        return self

    def bind_input(self, *arguments: Any) -> None:
        self.bound.append(arguments)

    bind_output = bind_input

    def run_with_iobinding(self, bound: Session, options: Any) -> None:
        self.run_options = options


@dataclass
class Address:
    """A buffer in the memory of a GPU."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: int | slice) -> Address:
        raise AssertionError("nobody asks for rows")

    def view(self, shape: tuple[int, ...]) -> Address:
        raise AssertionError("nobody asks for another shape")


def _with_sessions(monkeypatch: pytest.MonkeyPatch, first: str) -> list[Session]:
    """Let onnxruntime have a CUDA provider, or say so and then fall back to the CPU."""
    import onnxruntime

    made: list[Session] = []
    real = onnxruntime.InferenceSession

    def make(path: Path, options: Any, providers: list[Any], **rest: Any) -> Session:
        made.append(Session(real, path, providers, first))
        return made[-1]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    return made


def test_onnxruntime_without_cuda_names_the_package_that_has_it(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    names = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime-gpu") as caught:
        OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM)
    assert "uninstall onnxruntime" in str(caught.value)  # both own the same module


def test_absent_onnxruntime_on_a_gpu_names_the_package_for_gpus(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime-gpu"):
        OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM)


def test_silent_fall_back_to_the_cpu_is_refused(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the CUDA libraries do not load: onnxruntime only warns."""
    _with_sessions(monkeypatch, "CPUExecutionProvider")
    with pytest.raises(EngineError, match="cannot run graph 'sums' on the GPU.*preload_dlls"):
        OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM)


def test_session_runs_on_the_devices_gpu_and_stream(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _with_sessions(monkeypatch, "CUDAExecutionProvider")
    engine = OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM)
    settings = {
        **{"device_id": "1", "user_compute_stream": str(0x7F00_1234_5678)},
        "use_tf32": "0",
    }
    assert made[0].providers == [("CUDAExecutionProvider", settings)]
    assert not engine.capturable
    assert OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=None).capturable


def test_buffers_are_bound_by_their_address_on_the_gpu(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _with_sessions(monkeypatch, "CUDAExecutionProvider")
    OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM).bind(_buffers()).run()
    assert made[0].bound == [
        ("ids", "cuda", 1, np.int32, (2, 3), 0x7F00_0000_1000),
        ("doubled", "cuda", 1, np.int32, (2, 3), 0x7F00_0000_2000),
    ]


def test_the_run_does_not_wait_for_the_gpu(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _with_sessions(monkeypatch, "CUDAExecutionProvider")
    OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM).bind(_buffers()).run()
    waiting = "disable_synchronize_execution_providers"
    assert made[0].run_options.get_run_config_entry(waiting) == "1"


def test_checks_of_bindings_are_the_same_on_a_gpu(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _with_sessions(monkeypatch, "CUDAExecutionProvider")
    engine = OnnxRuntimeEngine("sums", graph_file, _INFO, cuda=_STREAM)
    with pytest.raises(EngineError, match="tensor 'ids': expected int32"):
        engine.bind(_buffers(columns=4)).run()
    assert made[0].run_options is None
