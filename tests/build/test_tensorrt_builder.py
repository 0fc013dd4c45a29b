"""The builder itself: what it refuses ends in an error with graph, reason and what was logged.

No preflight comes before these builds. Refusals are those of the real TensorRT-RTX; setters that
ignore what they are given, and other versions of the modules, are played by the strict fake.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.emulated_cuda.fake_tensorrt import make

from fewstep.build.profiles import Profile
from fewstep.build.tensorrt_builder import BuiltEngine, EngineRequest, build_here
from fewstep.runtime.engines.compatibility import read_header
from fewstep.runtime.engines.tensorrt_api import TensorRt, load
from fewstep.runtime.errors import EngineError, MissingDependencyError
from fewstep.runtime.records import BuildOptions, EngineBackend, ShapeRange

_MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")
_PROFILE = {"x": ShapeRange(min=(1, 4), opt=(2, 4), max=(8, 4))}


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return TensorRt("tensorrt-rtx", pytest.importorskip("tensorrt_rtx", reason=reason))


class Build:
    """Builds a graph of one matmul, unless asked otherwise, for 8.6."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[tuple[str, float]] = []

    def __call__(
        self,
        api: TensorRt,
        content: bytes | None = None,
        *,
        profiles: Sequence[Profile] = (_PROFILE,),
        options: BuildOptions | None = None,
        capabilities: Sequence[str] = ("8.6",),
    ) -> BuiltEngine:
        self.path.write_bytes(_model(_MATMUL) if content is None else content)
        options = options or BuildOptions()
        request = EngineRequest("decoder", self.path, profiles, options, capabilities)
        return build_here(api, request, lambda *each: self.reports.append(each))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path / "some.onnx")


def _model(
    node: NodeProto, kind: int = TensorProto.FLOAT, batch: int | str = "batch", change: Any = None
) -> bytes:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])]
    outputs = [helper.make_tensor_value_info("y", kind, [None, None])]
    graph = helper.make_graph([node], "tiny", inputs, outputs, [weight])
    if change is not None:
        change(graph)
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return bytes(model.SerializeToString())


def _elsewhere(graph: onnx.GraphProto) -> None:
    weight = graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "gone.bin")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL


# --- building


def test_an_engine_with_what_it_took(rtx: TensorRt, build: Build) -> None:
    built = build(rtx, capabilities=["8.6", "12.0"])
    content = bytes(built.content)
    header = read_header(content)
    assert header is not None
    assert (header.version, header.size) == (rtx.version, len(content))
    assert header.capabilities == ("8.6", "12.0")
    assert built.warnings == ()
    assert 0 < built.seconds < 60
    assert 1 << 20 < built.peak_memory_bytes < 1 << 36


def test_progress_has_phases_and_fractions_that_rise(rtx: TensorRt, build: Build) -> None:
    build(rtx)
    fractions = [done for _, done in build.reports]
    assert len(fractions) >= 3
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < fractions[-1] <= 1
    assert len({phase for phase, _ in build.reports}) > 3
    assert all(phase for phase, _ in build.reports)


def test_a_graph_of_one_shape(rtx: TensorRt, build: Build) -> None:
    assert build(rtx, _model(_MATMUL, batch=2), profiles=[{}]).content.nbytes


@pytest.mark.parametrize("level", [0, 5])
def test_options_are_taken(rtx: TensorRt, build: Build, level: int) -> None:
    options = BuildOptions(optimization_level=level, workspace_mib=64)
    assert build(rtx, options=options).content.nbytes


# --- refusals

_WHOLE = _model(_MATMUL)
_UNKNOWN = helper.make_node("Frobnicate", ["x"], ["y"], "frob")
_NON_ZERO = helper.make_node("NonZero", ["x"], ["y"], "ids")


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (b"", ["no graph", "is it an ONNX file?"]),
        (bytes(100), ["no graph", "is it an ONNX file?"]),
        (b"anything but an ONNX file", ["parser refuses", "MODEL_DESERIALIZE_FAILED"]),
        (_WHOLE[: len(_WHOLE) // 2], ["parser refuses", "MODEL_DESERIALIZE_FAILED"]),
        (_model(_UNKNOWN), ["parser refuses", "frob", "Frobnicate", "Plugin not found"]),
        (_model(_NON_ZERO, TensorProto.INT64), ["parser refuses", "ids", "NonZero"]),
        (_model(_MATMUL, change=_elsewhere), ["parser refuses", "Failed to open", "gone.bin"]),
    ],
    ids=["empty", "zeros", "garbage", "truncated", "unknown", "NonZero", "external"],
)
def test_graphs_that_are_refused(
    rtx: TensorRt, build: Build, content: bytes, reasons: list[str]
) -> None:
    _refused(lambda: build(rtx, content), rtx, *reasons)


@pytest.mark.parametrize(
    ("profiles", "reasons"),
    [
        ([], ["gave no engine", "no optimization profile has been defined"]),
        ([{}], ["gave no engine", "tensor x is missing dimensions in profile 0"]),
        (
            [{"x": ShapeRange(min=(4, 4), opt=(2, 4), max=(8, 4))}],
            ["profile was not taken", "tensors x", "MIN<=OPT<=MAX"],
        ),
        (
            [_PROFILE, {"x": ShapeRange(min=(1, 5), opt=(1, 5), max=(1, 5))}],
            ["gave no engine", "Dimension mismatch for tensor x and profile 1"],
        ),
    ],
    ids=["none", "empty", "min > opt", "other size"],
)
def test_profiles_that_are_refused(
    rtx: TensorRt, build: Build, profiles: list[Profile], reasons: list[str]
) -> None:
    _refused(lambda: build(rtx, profiles=profiles), rtx, *reasons)


@pytest.mark.parametrize("capabilities", [["8.7"], ["8.6", "9.0"], ["11.0", "8.6"]])
def test_capabilities_that_are_refused(
    rtx: TensorRt, build: Build, capabilities: list[str]
) -> None:
    (wrong,) = set(capabilities) - {"8.6"}
    reasons = (f"compute capability {wrong}", "invalid or not supported")
    _refused(lambda: build(rtx, capabilities=capabilities), rtx, *reasons)


def test_precision_that_a_target_lacks(rtx: TensorRt, build: Build) -> None:
    reasons = ("gave no engine", "matmul", "FP32 GEMM is not supported")
    _refused(lambda: build(rtx, capabilities=["7.5"]), rtx, *reasons)


def test_too_small_a_workspace_says_which_option_to_raise(rtx: TensorRt, build: Build) -> None:
    options = BuildOptions(workspace_mib=1)
    _refused(lambda: build(rtx, options=options), rtx, "workspace limit", "more with --workspace")


def test_an_error_leaves_nothing_in_the_next_one(rtx: TensorRt, build: Build) -> None:
    _refused(lambda: build(rtx, b"garbage garbage"), rtx, "DESERIALIZE")
    with pytest.raises(EngineError) as raised:
        build(rtx, profiles=[])
    assert "DESERIALIZE" not in str(raised.value)
    assert build(rtx).warnings == ()


def _refused(attempt: Callable[[], object], api: TensorRt, *reasons: str) -> None:
    with pytest.raises(EngineError) as raised:
        attempt()
    said = str(raised.value)
    assert said.startswith("graph 'decoder' (some.onnx): ")
    assert str(api) in said
    for reason in reasons:
        assert reason in said


# --- setters that do not take what they are given


def _ignored(*_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("setter", "replacement", "reason"),
    [
        ("clear_flag", _ignored, "TF32"),
        ("set_flag", _ignored, "REQUIRE_USER_ALLOCATION"),
        ("set_compute_capability", lambda *_: False, "no engines for compute capability 8.6"),
        ("num_compute_capabilities", property(lambda _: 0, _ignored), "compute capability 8.6"),
        ("builder_optimization_level", property(lambda _: 3, _ignored), "optimization level"),
        ("set_memory_pool_limit", _ignored, "workspace limit"),
        ("add_optimization_profile", lambda *_: -1, "profile was not taken"),
    ],
)
def test_every_setter_that_refuses_is_noticed(
    build: Build, monkeypatch: pytest.MonkeyPatch, setter: str, replacement: Any, reason: str
) -> None:
    api = TensorRt("tensorrt-rtx", make("tensorrt-rtx", "1.7.1"))
    options = BuildOptions(optimization_level=2, workspace_mib=64)
    assert build(api, options=options).content.nbytes
    config = type(api.module.Builder(api.module.Logger()).create_builder_config())
    monkeypatch.setattr(config, setter, replacement)
    _refused(lambda: build(api, options=options), api, reason)


@pytest.mark.parametrize("version", ["10.3.0", "11.0.0"])
def test_tensorrt_builds_typed_networks_for_the_gpu_at_hand(build: Build, version: str) -> None:
    module: Any = make("tensorrt", version, "8.7")
    build(TensorRt("tensorrt", module), capabilities=())
    (noted,) = [each for each in module.journal if each.kind == "built"]
    assert noted["strongly_typed"]
    assert noted["capabilities"] == 87


# --- modules


@pytest.mark.parametrize(
    ("backend", "module", "remedy"),
    [
        ("tensorrt", "tensorrt", "python3-libnvinfer"),
        ("tensorrt-rtx", "tensorrt_rtx", "pip install 'fewstep[rtx]'"),
    ],
)
def test_modules_that_are_absent_or_broken(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    backend: EngineBackend,
    module: str,
    remedy: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=module) as raised:
        load(backend)
    assert remedy in str(raised.value)
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("OSError", "RuntimeError", "ImportError"):
        (tmp_path / f"{module}.py").write_text(f"raise {kind}('libnvinfer.so: {kind}')")
        with pytest.raises(MissingDependencyError) as raised:
            load(backend)
        assert f"{module} does not load (libnvinfer.so: {kind}); install" in str(raised.value)
        assert remedy in str(raised.value)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0.post1"])
def test_tensorrt_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(EngineError, match=f"{version} is too old; fewstep needs TensorRT 10.3"):
        load("tensorrt")
