"""The runtime and its engines."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import onnx
from tests.emulated_cuda.fake_tensorrt.context import IExecutionContext, RtxExecutionContext
from tests.emulated_cuda.fake_tensorrt.graph import Graph
from tests.emulated_cuda.fake_tensorrt.library import ILogger, Library, Severity, say
from tests.emulated_cuda.fake_tensorrt.plan import (
    HEADER_BYTES,
    Malformed,
    Plan,
    read_header,
    same_version,
    unpack,
)
from tests.emulated_cuda.fake_tensorrt.run import tensor_bytes
from tests.emulated_cuda.fake_tensorrt.runtime_config import (
    IRuntimeConfig,
    Options,
    RtxRuntimeConfig,
)
from tests.emulated_cuda.fake_tensorrt.values import (
    DataType,
    Dims,
    EngineInvalidityDiagnostics,
    EngineValidity,
    Strategy,
    TensorIOMode,
    TensorLocation,
    instance,
    integer,
    text,
)

_DESERIALIZE = "IRuntime::deserializeCudaEngine"
_SCRATCH_STEP = 256


class ICudaEngine:
    """An engine on the GPU. Lives as long as one of its contexts, and keeps the runtime alive."""

    __slots__ = ("__weakref__", "_runtime", "_session", "graph", "library", "logger", "plan")

    def __init__(self, runtime: Runtime, library: Library, plan: Plan) -> None:
        self._runtime, self.library, self.logger, self.plan = runtime, library, runtime.logger, plan
        self.graph = Graph(onnx.ModelProto.FromString(plan.onnx))
        self._session: Any = None
        library.alive.add(self)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def num_layers(self) -> int:
        return len(self.graph.model.graph.node)

    @property
    def num_io_tensors(self) -> int:
        return len(self.graph.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        sizes = map(self.get_device_memory_size_for_profile_v2, range(len(self.plan.profiles)))
        return max(sizes)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        index = integer(profile_index)
        if not self._has_profile(index):
            return 0
        largest = {name: high for name, (_, _, high) in self.plan.profiles[index].items()}
        return self.scratch_bytes(largest)

    def __getitem__(self, index: int) -> str:
        return list(self.graph.tensors)[integer(index)]

    def get_tensor_name(self, index: int) -> str | None:
        names = list(self.graph.tensors)
        if 0 <= integer(index) < len(names):
            return names[index]
        self._refuse("getIOTensorName", f"index {index} is out of range")
        return None

    def get_tensor_mode(self, name: str) -> Any:
        if not self._has(name):
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self.graph.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.graph.tensors[name].dtype if self._has(name) else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self.graph.tensors[name].shape) if self._has(name) else Dims()

    def get_tensor_location(self, name: str) -> Any:
        self._has(name)
        return TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        self._has(name)
        return False

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if not (self._has(name) and self._has_profile(integer(profile_index))):
            return [Dims()] * 3
        if name not in self.graph.inputs:
            self._refuse("getProfileShape", f"{name} is not an input")
            return [Dims()] * 3
        return [Dims(sizes) for sizes in self.plan.profiles[profile_index][name]]

    def create_execution_context(self, strategy: Any = Strategy.STATIC) -> Any:
        return self._create(Options(instance(strategy, Strategy)))

    def session(self) -> Any:
        """ONNX Runtime, one thread, as tests compare with."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(self.plan.onnx, options, providers)
        return self._session

    def scratch_bytes(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """What a run at these shapes of the inputs needs beside its inputs and outputs."""
        total = sum(tensor_bytes(self.graph.inputs[name], shapes[name]) for name in shapes)
        for name, tensor in self.graph.outputs.items():
            total += tensor_bytes(tensor, self.graph.output_shape(name, shapes))
        return (total // _SCRATCH_STEP + 1) * _SCRATCH_STEP

    def kernel(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> str:
        """Name of what TensorRT-RTX compiles for these shapes."""
        what = repr((profile, sorted(shapes.items()))).encode()
        return hashlib.sha256(self.plan.onnx + what).hexdigest()

    def _create(self, options: Options) -> Any:
        if self.plan.user_allocation and options.strategy != Strategy.USER_MANAGED:
            why = "an engine built with REQUIRE_USER_ALLOCATION needs the strategy USER_MANAGED"
            self._refuse("createExecutionContext", why)
            return None
        self.session()  # what ONNX Runtime cannot run shows here, not on the stream
        kind = RtxExecutionContext if self.library.rtx else IExecutionContext
        self.library.note("context", engine=self.name, strategy=options.strategy.name)
        return kind(self, options)

    def _has(self, name: str) -> bool:
        if text(name) in self.graph.tensors:
            return True
        self._refuse("getTensor", f"there is no input or output {name}")
        return False

    def _has_profile(self, index: int) -> bool:
        if 0 <= index < len(self.plan.profiles):
            return True
        self._refuse("getProfile", f"there is no profile {index}")
        return False

    def _refuse(self, where: str, why: str) -> None:
        self.library.refuse(self.logger, f"ICudaEngine::{where}", why)


class ConfigurableEngine(ICudaEngine):
    """The same with runtime configurations: TensorRT since 10.11, and TensorRT-RTX."""

    __slots__ = ()

    def create_runtime_config(self) -> IRuntimeConfig:
        return RtxRuntimeConfig(self.library) if self.library.rtx else IRuntimeConfig()

    def create_execution_context(
        self, strategy: Any = Strategy.STATIC, *, runtime_config: Any = None
    ) -> Any:
        """By strategy or by configuration, as the first argument or by its name."""
        if runtime_config is None and isinstance(strategy, IRuntimeConfig):
            runtime_config = strategy
        if runtime_config is None:
            return super().create_execution_context(strategy)
        return self._create(instance(runtime_config, IRuntimeConfig).options())


class Runtime:
    """Opens engines; a subclass for each module names its library."""

    __slots__ = ("__weakref__", "logger")
    _library: ClassVar[Library]
    _engine_type: ClassVar[type[ICudaEngine]] = ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        self.logger = instance(logger, ILogger)
        if not self._library.rtx and self._library.capability is None:
            self._library.refuse_without_gpu(logger, "createInferRuntime")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._library.register(self)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        library = self._library
        try:
            plan = unpack(memoryview(serialized_engine).tobytes(), library.flavour)
        except Malformed as error:
            library.refuse(self.logger, _DESERIALIZE, str(error))
            return None
        if library.capability is None:
            library.refuse_without_gpu(self.logger, _DESERIALIZE)
            return None
        why = _misfit(plan, library)
        if why:
            library.refuse(self.logger, _DESERIALIZE, why)
            return None
        library.note("deserialized", engine=plan.name)
        return self._engine_type(self, library, plan)


class RtxRuntime(Runtime):
    """The same with what only TensorRT-RTX has."""

    __slots__ = ()
    _engine_type = ConfigurableEngine

    @property
    def engine_header_size(self) -> int:
        return HEADER_BYTES

    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        """Goes by the header only: content that is cut off still counts as valid."""
        why = EngineInvalidityDiagnostics
        library, data = self._library, memoryview(buffer).tobytes()
        try:
            plan, _ = read_header(data, library.flavour)
        except Malformed as error:
            say(self.logger, Severity.INFO, f"not in the expected format: {error}")
            return EngineValidity.INVALID, int(why.MALFORMED_ENGINE)
        if library.capability is None:
            library.refuse_without_gpu(self.logger, "getEngineValidity")
            return EngineValidity.INVALID, 0
        found = 0 if same_version(plan, library.version) else int(why.VERSION_MISMATCH)
        if not plan.runs_on(library.capability):
            found |= int(why.UNSUPPORTED_CC)
        return EngineValidity.INVALID if found else EngineValidity.VALID, found


class ConfigurableRuntime(Runtime):
    """TensorRT since 10.11."""

    __slots__ = ()
    _engine_type = ConfigurableEngine


def _misfit(plan: Plan, library: Library) -> str:
    """Why an engine cannot run here; empty if it can."""
    if not same_version(plan, library.version):
        built = ".".join(map(str, plan.version))
        return (
            "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag "
            f"does not match: the engine is of version {built}, the library is another"
        )
    if not plan.runs_on(library.capability or 0):
        major, minor = divmod(library.capability or 0, 10)
        return f"The engine cannot run on this GPU, which has compute capability {major}.{minor}"
    return ""
