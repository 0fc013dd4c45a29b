"""The fake TensorRT modules: their types and files, and engines under the driver.

What needs no GPU runs against the real TensorRT-RTX as well, where that is installed, so that the
fake stays like it; `test_fake_tensorrt_builds.py` does so for the builder. Running engines is in
`scripts/fake_engine*.py`, in processes of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.emulated_cuda.build import CannotBuild
from tests.emulated_cuda.checks import Prepared, prepare
from tests.emulated_cuda.fake_tensorrt import installed, make
from tests.emulated_cuda.fake_tensorrt_builds import (
    RANGES,
    Build,
    logger_of,
    model,
    rtx_without_gpu,
)


@pytest.fixture(scope="module", params=["fake", "real"])
def rtx(request: pytest.FixtureRequest) -> Any:
    """TensorRT-RTX without a GPU."""
    return rtx_without_gpu(request.param)


# --- like the real module


def test_values_behave_as_those_of_pybind11(rtx: Any) -> None:
    assert str(rtx.ComputeCapability.SM86) == "ComputeCapability.SM86"
    assert repr(rtx.ComputeCapability(87)) == "<ComputeCapability.???: 87>"
    assert rtx.ComputeCapability.SM86 != 86
    assert rtx.DataType.FLOAT != 0
    assert rtx.ILogger.Severity.ERROR < rtx.ILogger.Severity.WARNING
    with pytest.raises(TypeError):
        rtx.ComputeCapability("SM86")
    dims = rtx.Dims([1, 2])
    assert dims == (1, 2) and dims == [1, 2] and tuple(dims) == (1, 2) and len(dims) == 2
    for wrong in (lambda: dims == rtx.Dims([1, 2]), lambda: hash(dims)):
        with pytest.raises(TypeError):
            wrong()


def test_numbers_of_the_enums(rtx: Any) -> None:
    fake = make("tensorrt-rtx", "1.7.1")
    for name in (
        "ComputeCapability",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "EngineInvalidityDiagnostics",
        "EngineValidity",
        "ExecutionContextAllocationStrategy",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "TensorIOMode",
        "TensorLocation",
    ):
        expected = {key: int(value) for key, value in getattr(rtx, name).__members__.items()}
        found = {key: int(value) for key, value in getattr(fake, name).__members__.items()}
        assert found == expected, name
    for name in ("BuilderFlag", "DataType", "ErrorCode"):
        for key, value in getattr(fake, name).__members__.items():
            assert int(getattr(getattr(rtx, name), key)) == int(value), key


def test_everything_public_exists_in_the_real_module(rtx: Any) -> None:
    fake: Any = make("tensorrt-rtx", "1.7.1")
    for name, value in vars(fake).items():
        if name.startswith("__") or name in ("journal", "live"):
            continue
        real = getattr(rtx, name)
        if not isinstance(value, type) or hasattr(value, "__members__"):
            continue
        own = {attribute for attribute in dir(value) if not attribute.startswith("_")}
        missing = {attribute for attribute in own if not hasattr(real, attribute)}
        assert missing <= FOR_TESTS_ONLY, name


FOR_TESTS_ONLY = {
    *(
        "first_refused_by_turing",
        "flags",
        "graph",
        "keep",
        "kernel",
        "kernels",
        "library",
        "logger",
    ),
    *("options", "plan", "profiles", "ranges", "scratch_bytes", "session", "targets"),
    "user_allocation",
}


@pytest.mark.parametrize("base", ["ILogger", "IProgressMonitor"])
def test_base_classes_must_be_constructed(rtx: Any, base: str) -> None:
    forgetful = type("Forgetful", (getattr(rtx, base),), {"__init__": lambda self: None})
    with pytest.raises(TypeError, match="__init__"):
        forgetful()


def test_no_attributes_but_those_there_are(rtx: Any) -> None:
    build = Build(rtx)
    for thing in (build.builder, build.network, build.config, build.parser, build.profile()):
        with pytest.raises(AttributeError):
            thing.optimisation = 1


def test_arguments_of_other_types(rtx: Any) -> None:
    build = Build(rtx, RANGES)
    pool = rtx.MemoryPoolType.WORKSPACE
    wrong = (
        lambda: rtx.Builder(None),
        lambda: rtx.Runtime(None),
        lambda: rtx.OnnxParser(build.network, None),
        lambda: build.builder.create_network(1.0),
        lambda: build.builder.build_serialized_network(build.network, None),
        lambda: build.parser.parse("text"),
        lambda: build.parser.parse_from_file(Path("graph.onnx")),
        lambda: build.config.set_memory_pool_limit(0, 1),
        lambda: build.config.set_memory_pool_limit(pool, 1.5),
        lambda: build.config.set_compute_capability(86, 0),
        lambda: setattr(build.config, "progress_monitor", 5),
        lambda: build.profile(x=(["batch", 4], [2, 4], [4, 4])),
        lambda: rtx.Runtime(build.logger).deserialize_cuda_engine("text"),
    )
    for call in wrong:
        with pytest.raises(TypeError):
            call()


def test_an_exception_of_a_logger_goes_nowhere(rtx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("from the logger")

    build = Build(rtx)
    build.logger.log = fail
    assert build.network.get_input(5) is None


def test_without_a_gpu_engines_are_only_built(rtx: Any) -> None:
    build = Build(rtx, RANGES)
    runtime = rtx.Runtime(build.logger)
    engine = build.engine()
    assert runtime.deserialize_cuda_engine(engine) is None
    assert any("cudaError 35" in error for error in build.logger.errors)
    assert runtime.get_engine_validity(engine) == (rtx.EngineValidity.INVALID, 0)
    assert runtime.engine_header_size == 64


def test_what_is_no_engine(rtx: Any) -> None:
    logger = logger_of(rtx)
    runtime = rtx.Runtime(logger)
    malformed = int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    for content, text in (
        (b"", "empty"),
        (b"vtrt", "bufferSize >= minBufferSize"),
        (b"x" * 200, "Serialization assertion"),
    ):
        assert runtime.deserialize_cuda_engine(content) is None
        assert any(text in error for error in logger.errors), text
        assert runtime.get_engine_validity(content) == (rtx.EngineValidity.INVALID, malformed)
    engine = bytes(Build(rtx, RANGES).engine())
    assert runtime.deserialize_cuda_engine(engine[:-1]) is None
    assert any("header.size == blobSize" in error for error in logger.errors)


def test_a_second_logger_is_warned_of(rtx: Any) -> None:
    first, second = Build(rtx), logger_of(rtx)
    runtime = rtx.Runtime(second)
    assert any("differs from one already registered" in text for text in second.warnings)
    del first, runtime


# --- only of the fake


def test_misuse_that_ends_the_real_process() -> None:
    build = Build(make("tensorrt-rtx", "1.7.1"), RANGES)
    build.config.num_compute_capabilities = 1
    with pytest.raises(RuntimeError, match="crashes"):
        build.engine()
    parser = build.module.OnnxParser(build.builder.create_network(1), build.logger)
    with pytest.raises(RuntimeError, match="crashes"):
        parser.parse(model().SerializeToString())


def test_tensorrt_needs_a_gpu_to_build() -> None:
    module = make("tensorrt", "10.3.0")
    for kind in (module.Builder, module.Runtime):
        with pytest.raises(TypeError, match="nullptr"):
            kind(logger_of(module))


@pytest.mark.parametrize("version", ["10.3.0", "10.11.0", "11.1.0"])
def test_what_tensorrt_has_in_which_version(version: str) -> None:
    module: Any = make("tensorrt", version, "8.7")
    bit = 0 if version.startswith("11") else 1
    assert int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == bit
    assert hasattr(module, "IRuntimeConfig") == (version != "10.3.0")
    for name in ("ComputeCapability", "IRuntimeCache", "EngineValidity"):
        assert not hasattr(module, name)
    assert not hasattr(module.BuilderFlag, "FP16")
    build = Build(module, RANGES)
    engine = build.engine()
    assert not bytes(engine).startswith(b"vtrt")
    opened = module.Runtime(build.logger).deserialize_cuda_engine(engine)
    assert hasattr(opened, "create_runtime_config") == (version != "10.3.0")
    context = opened.create_execution_context()
    assert not hasattr(context, "is_stream_capturable")


def test_the_journal_tells_of_builds() -> None:
    build = Build(make("tensorrt", "10.3.0", "8.7"), RANGES)
    build.network = build.builder.create_network()
    build.module.OnnxParser(build.network, build.logger).parse(model().SerializeToString())
    assert build.engine() is not None
    (entry,) = build.module.journal
    assert (entry.kind, entry["strongly_typed"], entry["capabilities"]) == ("built", False, 87)
    assert entry["profiles"] == ({"x": RANGES},)


def test_installed_and_gone() -> None:
    module, before = make("tensorrt-rtx", "1.2.0"), sys.modules.get("tensorrt_rtx")
    with installed(module):
        assert importlib.import_module("tensorrt_rtx") is module
        assert importlib.util.find_spec("tensorrt_rtx") is module.__spec__
    assert sys.modules.get("tensorrt_rtx") is before


def test_versions_that_are_not_modelled() -> None:
    for flavour, version in (("tensorrt", "8.6.1"), ("tensorrt-rtx", "1.1.0")):
        with pytest.raises(ValueError, match="not modelled"):
            make(flavour, version)  # type: ignore[arg-type]


def test_building_needs_nothing_of_cuda() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('cuda', 'pycuda', 'onnxruntime')));"
        "import tests.emulated_cuda.fake_tensorrt_builds as t;"
        "assert t.Build(t.make('tensorrt-rtx', '1.7.1'), t.RANGES).engine()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


# --- under the driver


@pytest.fixture(scope="module")
def emulated() -> Prepared:
    try:
        return prepare()
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("streams", ["lazy", "eager"])
def test_engines(
    emulated: Prepared, tiny_bundle: Path, streams: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of a bundle, outside capture and within; and every rule of contexts and memory."""
    monkeypatch.setenv("CHECK_BUNDLE", str(tiny_bundle))
    emulated.check("fake_engines", "fake_engine_memory", streams=streams)
