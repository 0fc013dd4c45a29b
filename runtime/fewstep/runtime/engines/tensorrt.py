"""Engines of TensorRT and TensorRT-RTX, enqueued on the device's stream and captured with it.

A captured graph keeps the addresses and the state of the contexts that it ran, so every binding has
a context of its own, whose profile, shapes, addresses and memory are set once. Contexts bring no
memory for activations; all of a bundle's share one block, since the stream runs them one after the
other.

TensorRT's objects must be gone before the CUDA context is. So nothing but :class:`_Held` refers to
them, not even the frames of an exception, and it lets go of them in their order.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.runtime.devices import ALIGNMENT, Buffer, BufferSpec, CudaStream, Device, Workspace
from fewstep.runtime.devices.cuda_context import before_leaving
from fewstep.runtime.engines import BoundEngine, require_all
from fewstep.runtime.engines.runtime_cache import RuntimeCache
from fewstep.runtime.engines.tensorrt_api import TensorRt
from fewstep.runtime.errors import EngineError, OutOfMemoryError
from fewstep.runtime.records import GraphInfo, ShapeRange, TensorInfo

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32"}
_DTYPES |= {"int64": "INT64", "uint8": "UINT8"}
_SCRATCH_ALIGNMENT = 512  # TensorRT has been seen to ask for as much
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|cudaErrorMemoryAllocation", re.IGNORECASE)


def share_scratch(device: Device, engines: Iterable[TensorRtEngine]) -> Workspace:
    """One block of memory for the activations of engines that never run at the same time.

    Returns:
        The block, to be closed after the engines.
    """
    sharing = list(engines)
    size = max(engine.scratch_bytes for engine in sharing)
    block = device.workspace({"scratch": BufferSpec((size + _SCRATCH_ALIGNMENT,), "uint8")})
    address = -(-block["scratch"].pointer // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
    for engine in sharing:
        engine.use_scratch(address, size)
    return block


@dataclass(frozen=True)
class EngineFile:
    """A serialized engine, and where what its backend compiles for this GPU may be kept."""

    content: bytes
    cache: Path | None = None


@dataclass
class _Held:
    """TensorRT's own objects, in the order in which they were made."""

    runtime: Any = None
    engine: Any = None
    cache: RuntimeCache | None = None
    config: Any = None
    contexts: dict[int, Any] = field(default_factory=dict)  # by number of the binding

    def release(self) -> None:
        """Keep what was compiled, and let go of everything, the youngest first."""
        try:
            if self.cache is not None:
                self.cache.save()
        finally:
            self.contexts.clear()
            self.config = self.cache = self.engine = self.runtime = None


class TensorRtEngine:
    """A deserialized engine with a context for every binding.

    Args:
        api: the module that built it, in the same version.
        name: the graph's name in the bundle, for messages.
        file: the engine.
        info: inputs and outputs as the manifest states them.
        stream: the device's stream; its context is current.

    Raises:
        EngineError: TensorRT refuses the engine, or its inputs and outputs are not the manifest's.
        OutOfMemoryError: there is not enough memory for its weights.
    """

    capturable = True

    def __init__(
        self, api: TensorRt, name: str, file: EngineFile, info: GraphInfo, stream: CudaStream
    ) -> None:
        self.name, self.inputs, self.outputs = name, info.inputs, info.outputs
        self._api, self._module, self._stream = api, api.module, stream.handle
        self._scratch, self._held = (0, 0), _Held()
        self._numbers = itertools.count()
        try:
            self._open(file)
        except BaseException:
            self._held.release()
            raise
        before_leaving(self.close)

    @property
    def scratch_bytes(self) -> int:
        """Memory for activations that every context of this engine may need."""
        return int(self._held.engine.device_memory_size_v2)

    def use_scratch(self, address: int, size: int) -> None:
        """Set the memory for activations; it must outlive the engine's work."""
        self._scratch = (address, size)

    @property
    def warm_up(self) -> int:
        """Runs before a capture: one after the shapes are set, three while RTX settles."""
        return 3 if self._api.backend == "tensorrt-rtx" else 1

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name, in a context of their own; outputs are written in place.

        Raises:
            EngineError: a buffer is missing, misaligned or of another dtype or shape, the
                shapes are beyond every optimization profile, or TensorRT refuses the shapes.
            OutOfMemoryError: there is not enough memory to run with these shapes.
        """
        self._require_open()
        require_all(self, bindings)
        for name, buffer in bindings.items():
            self._require_aligned(name, buffer)
        number = next(self._numbers)
        self._make_context(number, bindings)
        return BoundEngine(
            self.name,
            run=functools.partial(self._run, number),
            require_capturable=functools.partial(self._require_capturable, number),
            close=functools.partial(self._held.contexts.pop, number, None),
        )

    def close(self) -> None:
        """Keep what was compiled and release everything; closing twice is fine."""
        self._held.release()

    def _require_open(self) -> None:
        if self._held.engine is None:
            raise EngineError(f"graph '{self.name}' is closed; open the Generator again")

    def _run(self, number: int) -> None:
        self._require_open()
        if not self._held.contexts[number].execute_async_v3(self._stream):
            raise self._refused("it does not run")

    def _require_capturable(self, number: int) -> None:
        """Only TensorRT-RTX can tell; TensorRT itself refuses while it is being captured."""
        tells = getattr(self._held.contexts[number], "is_stream_capturable", None)
        try:
            if tells is not None and not tells(self._stream):
                raise self._refused("its work cannot be captured into a CUDA graph")
        finally:
            tells = None  # or the frame of an exception would hold the context

    def _open(self, file: EngineFile) -> None:
        held = self._held
        self._api.messages.clear()
        try:
            held.runtime = self._module.Runtime(self._api.messages.logger)
        except (TypeError, RuntimeError) as error:  # what pybind11 makes of a null pointer
            raise self._refused("the runtime does not start; is the driver too old?") from error
        held.engine = held.runtime.deserialize_cuda_engine(file.content)
        if held.engine is None:
            raise self._refused(f"the engine does not load{self._validity(file.content)}")
        self._check_against_manifest()
        self._profiles = self._engine_profiles()
        held.cache = RuntimeCache(file.cache)
        held.config = self._runtime_config(held.cache)

    def _require_aligned(self, name: str, buffer: Buffer) -> None:
        if buffer.pointer % ALIGNMENT:
            raise EngineError(
                f"graph '{self.name}', tensor '{name}': TensorRT needs addresses that are "
                f"multiples of {ALIGNMENT}, got {buffer.pointer:#x}"
            )

    def _make_context(self, number: int, bindings: Mapping[str, Buffer]) -> None:
        """A context with its profile, shapes, addresses and memory set for good."""
        self._api.messages.clear()
        shapes = {name: bindings[name].shape for name in self.inputs}
        profile, contexts = self._profile_for(shapes), self._held.contexts
        contexts[number] = self._held.engine.create_execution_context(self._held.config)
        try:
            self._prepare(contexts[number], profile, bindings)
        except BaseException:
            del contexts[number]
            raise

    def _prepare(self, context: Any, profile: int, bindings: Mapping[str, Buffer]) -> None:
        try:
            if context is None:
                raise self._refused("no execution context")
            if profile and not self._sets_profile(context, profile):  # a new one has the first
                raise self._refused(f"optimization profile {profile} was not taken")
            for name in self.inputs:
                shape = bindings[name].shape
                if not context.set_input_shape(name, shape):
                    raise self._refused(f"input '{name}' of shape {list(shape)} was not taken")
            if missing := self._missing_shapes(context):
                raise self._refused(f"its shapes depend on {', '.join(missing)}")
            for name, buffer in bindings.items():
                if not context.set_tensor_address(name, buffer.pointer):
                    raise self._refused(f"no tensor '{name}'")
            context.set_device_memory(*self._scratch)
        finally:
            context = None  # or the frame of an exception would hold it

    def _sets_profile(self, context: Any, profile: int) -> bool:
        try:
            return bool(context.set_optimization_profile_async(profile, self._stream))
        except RuntimeError:  # instead of False, in some versions
            return False
        finally:
            context = None

    def _missing_shapes(self, context: Any) -> list[str]:
        try:
            found: list[str] = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused("its shapes contradict each other") from error
        finally:
            context = None
        return found

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile that spans these shapes and is tuned for some near them."""
        fitting = [
            (_distance(profile, shapes), index)
            for index, profile in enumerate(self._profiles)
            if _beyond(profile, shapes) is None
        ]
        if fitting:
            return min(fitting)[1]
        name = next(each for profile in self._profiles if (each := _beyond(profile, shapes)))
        ranges = " or ".join(
            f"{list(profile[name].min)} … {list(profile[name].max)}" for profile in self._profiles
        )
        raise EngineError(
            f"graph '{self.name}', input '{name}': the engine takes {ranges}, got "
            f"{list(shapes[name])}; build it for more images with: fewstep build --max-batch"
        )

    def _engine_profiles(self) -> list[dict[str, ShapeRange]]:
        """The range of every input that varies, of every optimization profile."""
        held, varying = self._held, [n for n, info in self.inputs.items() if info.varies]
        return [
            {
                name: ShapeRange.of(*held.engine.get_tensor_profile_shape(name, index))
                for name in varying
            }
            for index in range(max(1, held.engine.num_optimization_profiles))
        ]

    def _runtime_config(self, cache: RuntimeCache) -> Any:
        """What contexts are created with: memory from us, kernels compiled at once and kept."""
        owned = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._module, "IRuntimeCache"):
            return owned
        config = self._held.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(owned)
        # Otherwise it runs, and a graph would capture, makeshift kernels until better are ready.
        eager = self._module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        cache.attach(config)
        return config

    def _check_against_manifest(self) -> None:
        held = self._held
        count = held.engine.num_io_tensors
        names = sorted(held.engine.get_tensor_name(index) for index in range(count))
        expected = {**self.inputs, **self.outputs}
        if names != sorted(expected):
            raise EngineError(
                f"graph '{self.name}': the engine has the inputs and outputs {names}, the "
                f"manifest says {sorted(expected)}; build it again with --force"
            )
        for name, info in expected.items():
            self._check_tensor(name, info)

    def _check_tensor(self, name: str, info: TensorInfo) -> None:
        """TensorRT knows no sizes of buffers: what is wrong here would write beyond them."""
        held, modes = self._held, self._module.TensorIOMode
        mode = modes.INPUT if name in self.inputs else modes.OUTPUT
        shape = [int(size) for size in held.engine.get_tensor_shape(name)]
        dtype = held.engine.get_tensor_dtype(name)
        alike = len(shape) == len(info.shape) and all(
            a == b or (isinstance(b, str) and a == -1)
            for a, b in zip(shape, info.shape, strict=True)
        )
        same = dtype == getattr(self._module.DataType, _DTYPES[info.dtype])
        if not (alike and same and held.engine.get_tensor_mode(name) == mode):
            raise EngineError(
                f"graph '{self.name}', tensor '{name}': the engine has {dtype} {shape}, the "
                f"manifest says {info.dtype} {list(info.shape)}; build it again with --force"
            )

    def _validity(self, content: bytes) -> str:
        """What TensorRT-RTX thinks of an engine that it refuses, in brackets."""
        tells = getattr(self._held.runtime, "get_engine_validity", None)
        if tells is None:
            return ""
        _, mask = tells(content)
        flags = self._module.EngineInvalidityDiagnostics.__members__
        names = [name for name, flag in flags.items() if int(flag) & int(mask)]
        return f" ({', '.join(names)})" if names else ""

    def _refused(self, what: str) -> EngineError | OutOfMemoryError:
        said = "; ".join(self._api.messages.errors()) or "it did not say why"
        self._api.messages.clear()
        message = f"graph '{self.name}': {what}: {said} ({self._api})"
        if _OUT_OF_MEMORY.search(said):
            return OutOfMemoryError(f"{message}; use a smaller batch, or close other programs")
        return EngineError(message)


def _beyond(profile: Mapping[str, ShapeRange], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first input whose shape a profile does not span."""
    return next((name for name, each in profile.items() if not each.spans(shapes[name])), None)


def _distance(profile: Mapping[str, ShapeRange], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How far all dimensions together are from those that a profile is tuned for."""
    return sum(
        abs(best - size)
        for name, each in profile.items()
        for best, size in zip(each.opt, shapes[name], strict=True)
    )
