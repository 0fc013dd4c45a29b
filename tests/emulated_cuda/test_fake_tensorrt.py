"""The fake TensorRT module: what builds and what is refused, and engines under the driver.

What needs no GPU runs against the real TensorRT-RTX as well, where that is installed, so that the
fake stays like it. Running engines is in `scripts/fake_engines*.py`, in processes of their own.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.emulated_cuda.fake_tensorrt import make

RANGES = ((1, 4), (2, 4), (4, 4))


@pytest.fixture(scope="module", params=["fake", "real"])
def rtx(request: pytest.FixtureRequest) -> ModuleType:
    """TensorRT-RTX without a GPU."""
    if request.param == "fake":
        return make("tensorrt-rtx", "1.7.1")
    try:
        return importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no TensorRT-RTX: {error}")


def model(
    operator: str = "Relu", size: int | str = "batch", weight: bool = False, width: int = 4
) -> onnx.ModelProto:
    """`y = operator(x)`, or `operator(x, w)`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, width]) for name in "xy"
    ]
    weights = [numpy_helper.from_array(np.ones((width, width), np.float32), "w")] if weight else []
    node = helper.make_node(operator, ["x", "w"] if weight else ["x"], ["y"], name="node")
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


def logger_of(module: Any) -> Any:
    """A logger that keeps errors and warnings."""

    class Kept(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(text)
            elif severity == module.ILogger.Severity.WARNING:
                self.warnings.append(text)

    return Kept()


class Build:
    """A builder with an empty network, its parser and a configuration."""

    def __init__(self, module: Any, *ranges: Any, content: bytes | None = None) -> None:
        self.module, self.logger = module, logger_of(module)
        self.builder = module.Builder(self.logger)
        typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(typed)
        self.parser = module.OnnxParser(self.network, self.logger)
        self.config = self.builder.create_builder_config()
        self.parsed = self.parser.parse(model().SerializeToString() if content is None else content)
        for one in ranges:
            self.config.add_optimization_profile(self.profile(x=one))

    def profile(self, **inputs: Any) -> Any:
        profile = self.builder.create_optimization_profile()
        for name, (low, best, high) in inputs.items():
            profile.set_shape(name, low, best, high)
        return profile

    def target(self, *capabilities: int) -> None:
        self.config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            wanted = self.module.ComputeCapability(capability)
            assert self.config.set_compute_capability(wanted, index)

    def engine(self) -> Any:
        return self.builder.build_serialized_network(self.network, self.config)

    def refused(self, text: str) -> bool:
        """Whether no engine comes out, and the log says why."""
        return self.engine() is None and any(text in error for error in self.logger.errors)


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
    *("flags", "graph", "keep", "library", "logger", "plan", "profiles", "ranges", "targets"),
    *("first_refused_by_turing", "kernel", "kernels", "kind", "options", "scratch_bytes"),
    *("session", "user_allocation"),
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


def test_what_the_parser_finds(rtx: Any) -> None:
    build = Build(rtx)
    assert (build.parsed, build.parser.num_errors, build.network.num_layers) == (True, 0, 1)
    found = build.network.get_input(0)
    assert (found.name, found.shape == (-1, 4), found.dtype) == ("x", True, rtx.DataType.FLOAT)
    assert build.network.get_output(0).name == "y"
    assert build.network.get_input(1) is None
    assert build.logger.errors


def test_nothing_parses_as_nothing(rtx: Any) -> None:
    build = Build(rtx, content=b"")
    assert (build.parsed, build.parser.num_errors, build.network.num_layers) == (True, 0, 0)
    assert build.refused("Network must have at least one output")


def test_what_the_parser_refuses(rtx: Any) -> None:
    codes = rtx.ErrorCode
    for content, code, node, operator in (
        (b"garbage bytes here", codes.MODEL_DESERIALIZE_FAILED, "", ""),
        (model().SerializeToString()[:40], codes.MODEL_DESERIALIZE_FAILED, "", ""),
        (model("Nope").SerializeToString(), codes.INVALID_NODE, "node", "Nope"),
        (model("Multinomial").SerializeToString(), codes.UNSUPPORTED_NODE, "node", "Multinomial"),
    ):
        build = Build(rtx, content=content)
        assert (build.parsed, build.parser.num_errors) == (False, 1)
        error = build.parser.get_error(0)
        assert error.code() == code
        assert (error.node_name(), error.node_operator()) == (node, operator)
        assert error.desc() and build.logger.errors
        assert build.network.num_layers == build.network.num_outputs == 0
        build.parser.clear_errors()
        assert build.parser.num_errors == 0 and build.parser.get_error(0) is None


def test_a_network_is_filled_once(rtx: Any) -> None:
    build = Build(rtx)
    assert not build.parser.parse(model().SerializeToString())
    assert build.parser.num_errors == 0 and "non-empty" in build.logger.errors[-1]


def test_files(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(model("MatMul", weight=True, width=16), path)
    build = Build(rtx, content=b"")
    assert build.parser.parse_from_file(str(path))
    other = Build(rtx, content=b"")
    assert not other.parser.parse_from_file(str(tmp_path / "none.onnx"))
    assert other.parser.get_error(0).code() == rtx.ErrorCode.INVALID_VALUE


def test_weights_in_a_file_of_their_own(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(model("MatMul", weight=True, width=16), path, **options)
    build = Build(rtx, content=b"")
    assert build.parser.parse_from_file(str(path))
    (tmp_path / "weights").unlink()
    other = Build(rtx, content=b"")
    assert not other.parser.parse_from_file(str(path))
    assert "Failed to import initializer" in other.parser.get_error(0).desc()


def test_profiles(rtx: Any) -> None:
    build = Build(rtx)
    profile = build.profile(x=RANGES)
    assert [tuple(sizes) for sizes in profile.get_shape("x")] == list(RANGES)
    assert profile.get_shape("z") == []
    assert build.config.add_optimization_profile(profile) == 0
    assert build.config.add_optimization_profile(profile) == 1
    for falling in (((2, 4), (1, 4), (4, 4)), ((1, 4), (4, 4), (2, 4))):
        wrong = build.profile(x=falling)  # only logged
        assert not wrong
        assert build.config.add_optimization_profile(wrong) == -1
    assert build.config.num_optimization_profiles == 2
    with pytest.raises(RuntimeError, match="inconsistent"):
        build.profile(x=((-1, 4), (2, 4), (4, 4)))


def test_builds_that_cannot_be(rtx: Any) -> None:
    assert Build(rtx).refused("no optimization profile has been defined")
    assert Build(rtx, ((1, 5), (2, 5), (4, 5))).refused("Dimension mismatch for tensor x")
    assert Build(rtx, ((1,), (2,), (4,))).refused("dimensions")
    build = Build(rtx)
    build.config.add_optimization_profile(build.profile(z=RANGES))
    assert build.refused("Dynamic input tensor x is missing dimensions in profile 0")
    build = Build(rtx, RANGES, content=model("MatMul", weight=True).SerializeToString())
    build.target(75)
    assert build.refused("for Turing (SM75)")


def test_tied_sizes_are_tuned_alike(rtx: Any) -> None:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xzy"]
    node = helper.make_node("Add", ["x", "z"], ["y"])
    graph = helper.make_graph([node], "graph", tensors[:2], tensors[2:])
    opset = [helper.make_opsetid("", 20)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    build = Build(rtx, content=content)
    build.config.add_optimization_profile(build.profile(x=RANGES, z=((1, 4), (3, 4), (4, 4))))
    assert build.refused("Dimensions with name batch must be equal")


def test_options(rtx: Any) -> None:
    config = Build(rtx).config
    for wanted, taken in ((1, 1), (9, 5), (-1, 5)):
        config.builder_optimization_level = wanted
        assert config.builder_optimization_level == taken
    pool = rtx.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, 1 << 20)
    assert config.get_memory_pool_limit(pool) == 1 << 20
    flag = rtx.BuilderFlag.REQUIRE_USER_ALLOCATION
    config.set_flag(flag)
    assert config.get_flag(flag) and config.flags == 1 << 6 | 1 << 28
    config.clear_flag(flag)
    assert not config.get_flag(flag)


def test_compute_capabilities(rtx: Any) -> None:
    config, known = Build(rtx).config, rtx.ComputeCapability
    assert not config.set_compute_capability(known.SM86, 0)  # there is no place for it yet
    config.num_compute_capabilities = 2
    assert config.set_compute_capability(known.SM86, 0)
    assert config.get_compute_capability(0) == known.SM86
    for refused in (known(87), known.NONE, known.CURRENT):
        assert not config.set_compute_capability(refused, 1)


def test_header(rtx: Any) -> None:
    build = Build(rtx, RANGES)
    assert struct.unpack_from("<I", bytes(build.engine()), 32) == (126,)
    build.target(86, 89)
    engine = bytes(build.engine())
    magic, _, _, size, *version = struct.unpack_from("<4sIQQ4B", engine)
    assert (magic, size, version[:3]) == (b"vtrt", len(engine), [1, 7, 1])
    assert struct.unpack_from("<I", engine, 32) == (4 + 8,)
    assert engine == bytes(build.engine())


def test_an_engine_is_a_buffer_and_nothing_else(rtx: Any) -> None:
    engine = Build(rtx, RANGES).engine()
    view = memoryview(engine)
    assert view.nbytes == engine.nbytes == len(bytes(engine)) == io.BytesIO().write(view)
    assert hashlib.sha256(view).digest() == hashlib.sha256(bytes(engine)).digest()
    assert engine.dtype == rtx.DataType.INT8
    for misuse in (len, iter, lambda it: it[0]):
        with pytest.raises(TypeError):
            misuse(engine)
    # Its format fits no item, so a view of it is not like bytes.
    with pytest.raises((NotImplementedError, struct.error, AssertionError)):
        assert view[:4] == b"vtrt"


class Monitor:
    """Methods of a progress monitor that notes its calls."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def of(self, module: Any) -> Any:
        outer = self

        class Progress(module.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                outer.calls.append(("start", phase, parent, steps))

            def step_complete(self, phase: str, step: int) -> Any:
                outer.calls.append(("step", phase, step))
                if isinstance(outer.answer, type):
                    raise outer.answer("from the monitor")
                return outer.answer

            def phase_finish(self, phase: str) -> None:
                outer.calls.append(("finish", phase))

        return Progress()


def test_progress(rtx: Any) -> None:
    build, monitor = Build(rtx, RANGES), Monitor(answer=True)
    kept = build.config.progress_monitor = monitor.of(rtx)
    assert build.engine() is not None
    phases = [call[1] for call in monitor.calls if call[0] == "start"]
    assert len(phases) >= 2 and monitor.calls[0][2] is None and monitor.calls[-1][0] == "finish"
    assert sorted(phases) == sorted(call[1] for call in monitor.calls if call[0] == "finish")
    del kept


@pytest.mark.parametrize("answer", [False, None, ValueError, KeyboardInterrupt])
def test_cancelled(rtx: Any, answer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """No exception of a monitor comes out, not even that of Ctrl-C."""
    build, monitor = Build(rtx, RANGES), Monitor(answer)
    kept = build.config.progress_monitor = monitor.of(rtx)
    assert build.refused("Build canceled by user")
    assert ("Exception caught in step_complete" in "".join(capfd.readouterr())) == isinstance(
        answer, type
    )
    assert len([call for call in monitor.calls if call[0] == "step"]) == 1
    del kept


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
