"""Engines of the fake TensorRT modules under the driver, through raw API calls.

CHECK_BUNDLE names a folder with ONNX files that have one varying size, the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pycuda.driver as cuda
import pytest
from cuda.bindings import driver
from onnx import TensorProto, helper
from tests.emulated_cuda.fake_tensorrt import fake_engine_bytes, make

Array = npt.NDArray[Any]

FILES = sorted(Path(os.environ["CHECK_BUNDLE"]).rglob("*.onnx"))
RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
VERSIONS = {"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1"}
CAPABILITY = "8.9"
BATCHES = (1, 2, 3)
PROFILE = {"x": ((1, 4), (2, 4), (3, 4))}
WIDER = {"x": ((4, 4), (40, 4), (80, 4))}


@pytest.fixture(autouse=True)
def _current(context: Any) -> None:
    """Every test here needs a context."""


@pytest.fixture(params=sorted(VERSIONS))
def module(request: pytest.FixtureRequest) -> Any:
    return make(request.param, VERSIONS[request.param], CAPABILITY)


@pytest.fixture
def rtx() -> Any:
    return make("tensorrt-rtx", VERSIONS["tensorrt-rtx"], CAPABILITY)


def doubling(inputs: str = "x") -> onnx.ModelProto:
    """`y = x + x`, or `y = x + z`."""
    tensors = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xzy"}
    node = helper.make_node("Add", [inputs[0], inputs[-1]], ["y"])
    graph = helper.make_graph([node], "graph", [tensors[n] for n in inputs], [tensors["y"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


class Used:
    """An engine and one context, with logger, stream and scratch memory."""

    def __init__(self, module: Any, content: Any = None, strategy: str = "USER_MANAGED") -> None:
        self.module, self.errors = module, []  # type: ignore[var-annotated]
        used = self

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity == module.ILogger.Severity.ERROR:
                    used.errors.append(text)

        self.logger = Logger()
        self.runtime = module.Runtime(self.logger)
        content = plan(module, PROFILE, WIDER) if content is None else content
        self.engine = self.runtime.deserialize_cuda_engine(content)
        assert self.engine is not None, self.errors
        chosen = getattr(module.ExecutionContextAllocationStrategy, strategy)
        self.context = self.engine.create_execution_context(chosen)
        self.stream = cuda.Stream(1)
        self.memory: dict[str, Any] = {}
        if strategy == "USER_MANAGED":
            self.scratch(self.engine.device_memory_size_v2)

    def scratch(self, size: int) -> Any:
        allocation = self.memory["scratch"] = cuda.mem_alloc(size)
        self.context.set_device_memory(int(allocation), size)
        return allocation

    def bind(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.memory[name] = cuda.mem_alloc(size)
        assert self.context.set_tensor_address(name, int(self.memory[name]))

    def ready(self, batch: int = 2) -> Used:
        """With shape and addresses for `y = x + x`."""
        assert self.context.set_input_shape("x", (batch, 4))
        for name in "xy":
            self.bind(name, (batch, 4))
        return self

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(int(self.stream.handle)))

    def write(self, name: str, values: Array) -> None:
        cuda.memcpy_htod_async(self.memory[name], np.ascontiguousarray(values), self.stream)
        self.stream.synchronize()

    def read(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        values: Array = np.empty(shape, dtype)
        cuda.memcpy_dtoh_async(values, self.memory[name], self.stream)
        self.stream.synchronize()
        return values

    def refused(self, text: str) -> bool:
        """Whether it does not run, and the log says why."""
        before = len(self.errors)
        return not self.run() and any(text in error for error in self.errors[before:])

    def entries(self, kind: str) -> list[Any]:
        return [entry for entry in self.module.journal if entry.kind == kind]

    def captured(self, sequence: Callable[[], Any]) -> Any:
        """What a sequence enqueues, as a graph that can be launched; its own value is kept."""
        handle = driver.CUstream(int(self.stream.handle))
        assert int(driver.cuStreamBeginCapture(handle, RELAXED)[0]) == 0
        self.value = sequence()
        status, graph = driver.cuStreamEndCapture(handle)
        assert int(status) == 0
        status, executable = driver.cuGraphInstantiate(graph, 0)
        assert int(status) == 0
        return executable

    def launch(self, executable: Any) -> None:
        handle = driver.CUstream(int(self.stream.handle))
        assert int(driver.cuGraphLaunch(executable, handle)[0]) == 0


def plan(module: Any, *profiles: Any, model: Any = None, user_allocation: bool = True) -> bytes:
    flavour: Any = module.__name__.replace("_", "-")
    return fake_engine_bytes(
        doubling() if model is None else model,
        profiles,
        flavour=flavour,
        version=module.__version__,
        compute_capabilities=[CAPABILITY],
        user_allocation=user_allocation,
    )


def counted(shape: tuple[int, ...]) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# --- graphs of a bundle


def built(module: Any, path: Path) -> Any:
    """The engine of an ONNX file, by the builder."""
    logger = module.Logger()
    builder = module.Builder(logger)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in BATCHES))
    assert config.add_optimization_profile(profile) == 0
    if module.__name__ == "tensorrt_rtx":
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(module.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(network, config)


def dtypes(module: Any) -> dict[Any, Any]:
    kinds = module.DataType
    return {kinds.FLOAT: np.float32, kinds.INT32: np.int32, kinds.INT64: np.int64}


def example(kind: Any, shape: tuple[int, ...], seed: int) -> Array:
    random = np.random.default_rng(seed)
    if np.issubdtype(kind, np.integer):
        return random.integers(0, 4, shape).astype(kind)
    return random.standard_normal(shape).astype(kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_graphs_of_a_bundle(module: Any, path: Path) -> None:
    """Outside a capture and within one, with new inputs for every replay."""
    used, batch = Used(module, built(module, path)), BATCHES[1]
    kinds, engine, context = dtypes(module), used.engine, used.context
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    kind = {name: kinds[engine.get_tensor_dtype(name)] for name in names}
    for name in inputs:
        assert context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
    assert context.infer_shapes() == []
    shapes = {name: tuple(context.get_tensor_shape(name)) for name in names}
    for name in names:
        used.bind(name, shapes[name], kind[name])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def check(seed: int, enqueue: Callable[[], Any]) -> None:
        values = {name: example(kind[name], shapes[name], seed) for name in inputs}
        for name in inputs:
            used.write(name, values[name])
        enqueue()
        outputs = [name for name in names if name not in inputs]
        for name, expected in zip(outputs, session.run(outputs, values), strict=True):
            found = used.read(name, shapes[name], kind[name])
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    check(1, used.run)
    executable = used.captured(used.run)
    assert used.value
    for seed in (2, 3):
        check(seed, lambda: used.launch(executable))
    assert [entry["captured"] for entry in used.entries("enqueued")] == [False, True]
    assert len(used.entries("ran")) == 3


# --- what is enqueued stays as it was


def test_later_changes_do_not_reach_what_was_enqueued(module: Any) -> None:
    used = Used(module).ready(batch=2)
    used.write("x", counted((2, 4)))
    first = used.memory["y"]
    assert used.run()
    used.bind("y", (3, 4))
    used.context.set_input_shape("x", (1, 4))
    used.memory["other"], used.memory["y"] = used.memory["y"], first
    np.testing.assert_array_equal(used.read("y", (2, 4)), 2 * counted((2, 4)))
    assert used.entries("enqueued")[0]["shapes"] == {"x": (2, 4)}


def test_a_released_context_does_not_run(module: Any, capfd: pytest.CaptureFixture[str]) -> None:
    used = Used(module).ready()
    used.write("x", counted((2, 4)))
    assert used.run()
    executable = used.captured(used.run)
    used.stream.synchronize()
    assert module.live() == {"ICudaEngine": 1, "IExecutionContext": 1, "Runtime": 1}
    del used.context, used.engine, used.runtime
    assert module.live() == {}
    used.write("y", counted((2, 4)))
    used.launch(executable)
    assert np.isnan(used.read("y", (2, 4))).all()
    assert "after its context was released" in capfd.readouterr().err


def test_an_engine_lives_as_long_as_its_context(module: Any) -> None:
    used = Used(module).ready()
    del used.engine, used.runtime
    used.write("x", counted((2, 4)))
    assert used.run()
    np.testing.assert_array_equal(used.read("y", (2, 4)), 2 * counted((2, 4)))


# --- capture


def test_the_first_run_with_a_shape_cannot_be_captured(module: Any) -> None:
    used = Used(module).ready()

    def refused() -> bool:
        used.captured(lambda: used.refused("not permitted when stream is capturing"))
        return bool(used.value)

    assert refused()
    assert used.run()
    used.captured(used.run)
    assert used.value
    assert used.context.set_input_shape("x", (2, 4))  # the same one
    used.bind("y", (2, 4))
    used.captured(used.run)
    assert used.value
    assert used.context.set_input_shape("x", (1, 4))
    assert refused()
    assert used.run()
    assert used.context.set_optimization_profile_async(0, int(used.stream.handle))
    assert used.context.set_input_shape("x", (1, 4))
    assert refused()


def test_profiles_are_not_switched_in_a_capture(module: Any) -> None:
    used = Used(module)

    def refused() -> None:
        with pytest.raises(RuntimeError):
            used.context.set_optimization_profile_async(1, int(used.stream.handle))

    used.captured(refused)
    assert used.context.active_optimization_profile == 0


@pytest.mark.parametrize("wrong", ["strategy", "flag", "own graphs"])
def test_rtx_captures_only_with_the_users_memory(rtx: Any, wrong: str) -> None:
    content = plan(rtx, PROFILE, user_allocation=wrong == "own graphs")
    used = Used(rtx, content, "STATIC" if wrong == "strategy" else "USER_MANAGED")
    if wrong == "own graphs":
        config = used.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        used.context = used.engine.create_execution_context(config)
        used.scratch(used.engine.device_memory_size_v2)
    used.ready()
    assert not used.context.is_stream_capturable(int(used.stream.handle))
    assert used.run()
    used.captured(lambda: used.refused("not stream capturable"))
    assert used.value


def test_an_engine_for_the_users_memory_takes_no_other(rtx: Any) -> None:
    used = Used(rtx)
    assert used.context.is_stream_capturable(int(used.stream.handle))
    assert used.engine.create_execution_context() is None
    assert "USER_MANAGED" in used.errors[-1]


# --- what is missing or wrong


def test_shapes_and_addresses_that_are_missing(module: Any) -> None:
    used = Used(module)
    assert used.context.infer_shapes() == ["x"]
    assert used.refused("the shape of input x is not specified")
    assert used.context.set_input_shape("x", (2, 4))
    assert used.context.infer_shapes() == []
    assert used.refused("no address is set for x")
    used.ready()
    address = int(used.memory["y"])
    assert used.context.set_tensor_address("y", address + 4)
    assert used.refused("not aligned to 256 bytes")
    assert used.context.set_tensor_address("y", 0)
    assert used.refused("no address is set for y")
    assert used.entries("enqueued") == []


def test_names_and_types(module: Any) -> None:
    used = Used(module)
    assert not used.context.set_input_shape("y", (2, 4))
    assert not used.context.set_input_shape("none", (2, 4))
    assert not used.context.set_tensor_address("none", 256)
    assert len(used.errors) == 3
    with pytest.raises(TypeError):
        used.context.set_input_shape("x", np.array([2, 4]))
    with pytest.raises(TypeError):
        used.context.execute_async_v3("stream")
    assert used.engine.get_tensor_mode("none") == module.TensorIOMode.NONE
    assert used.engine.get_tensor_name(2) is None


def test_profiles(module: Any) -> None:
    used = Used(module)
    context, stream = used.context, int(used.stream.handle)
    assert used.engine.num_optimization_profiles == 2
    shapes = used.engine.get_tensor_profile_shape("x", 1)
    assert [tuple(shape) for shape in shapes] == list(WIDER["x"])
    for shape in ((4, 4), (0, 4), (2, 5), (2,)):
        assert not context.set_input_shape("x", shape)
    assert context.set_input_shape("x", (2, 4))
    with pytest.raises(RuntimeError):  # instead of False
        context.set_optimization_profile_async(2, stream)
    assert context.set_optimization_profile_async(1, stream)
    assert context.active_optimization_profile == 1
    assert context.infer_shapes() == ["x"]  # shapes come after the profile
    assert not context.set_input_shape("x", (2, 4))
    assert context.set_input_shape("x", (5, 4))


def test_sizes_that_belong_together(module: Any) -> None:
    both = {"x": PROFILE["x"], "z": PROFILE["x"]}
    used = Used(module, plan(module, both, model=doubling("xz")))
    for name, batch in (("x", 2), ("z", 3)):
        assert used.context.set_input_shape(name, (batch, 4))
    with pytest.raises(RuntimeError):
        used.context.infer_shapes()
    assert used.refused("Dimensions with name batch must be equal")
