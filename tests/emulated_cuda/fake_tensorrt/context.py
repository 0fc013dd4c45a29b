"""Execution contexts: what they refuse, and what they enqueue.

A context is *settled* once it has enqueued outside capture with the profile and the shapes that it
has: only then may it be captured. Whatever is enqueued keeps the shapes, addresses and memory of
that moment.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from tests.emulated_cuda.fake_tensorrt.library import Severity, say
from tests.emulated_cuda.fake_tensorrt.run import Run
from tests.emulated_cuda.fake_tensorrt.runtime_config import Options
from tests.emulated_cuda.fake_tensorrt.stream import enqueue, is_capturing
from tests.emulated_cuda.fake_tensorrt.values import (
    Dims,
    Strategy,
    integer,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from tests.emulated_cuda.fake_tensorrt.engine import ICudaEngine

Shapes = dict[str, tuple[int, ...]]

_ALIGNMENT = 256


class IExecutionContext:
    """Runs an engine with one set of shapes and addresses at a time."""

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_library",
        "_logger",
        "_memory",
        "_needed",
        "_options",
        "_profile",
        "_settled",
        "_shapes",
        "engine",
        "name",
    )

    def __init__(self, engine: ICudaEngine, options: Options) -> None:
        self.engine, self._options, self.name = engine, options, ""
        self._library, self._logger = engine.library, engine.logger
        self._profile, self._settled = 0, False
        self._addresses: dict[str, int] = {}
        self._shapes = self._fixed_shapes()
        self._memory = (0, 0)
        self._needed: int | None = None  # for the present shapes, once asked
        self._library.alive.add(self)

    # --- shapes

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Raises instead of returning False: the real binding checks the result itself."""
        index, stream = integer(profile_index), integer(stream_handle)
        why = "the stream is being captured" if is_capturing(stream) else ""
        if not 0 <= index < self.engine.num_optimization_profiles:
            why = f"there is no profile {index}"
        if why:
            self._refuse("setOptimizationProfileAsync", why)
            raise RuntimeError("Error in set optimization profile async.")
        self._profile, self._shapes = index, self._fixed_shapes()
        self._changed()
        self._note("profile", index=index)
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        sizes = shape_of(shape)
        tensor = self.engine.graph.inputs.get(text(name))
        if tensor is None:
            return self._refuse("setInputShape", f"there is no input {name}")
        low, _, high = self.engine.plan.profiles[self._profile][name]
        fits = len(sizes) == len(low) and all(
            least <= size <= most for size, least, most in zip(sizes, low, high, strict=True)
        )
        if not fits:
            why = (
                f"shape {sizes} of input {name} is outside profile {self._profile}: {low} … {high}"
            )
            return self._refuse("setInputShape", why)
        if self._shapes.get(name) != sizes:
            self._shapes[name] = sizes
            self._changed()
        self._note("shape", name=name, shape=sizes)
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        if text(name) in self._shapes:
            return Dims(self._shapes[name])
        if name in self.engine.graph.outputs:
            return Dims(self.engine.graph.output_shape(name, self._shapes))
        return self.engine.get_tensor_shape(name)

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self.engine.graph.inputs if name not in self._shapes]
        why = self.engine.graph.contradiction(self._shapes)
        if why:
            self._refuse("inferShapes", why)
            raise RuntimeError("infer_shapes error code: -1")
        return missing

    # --- memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if text(name) not in self.engine.graph.tensors:
            return self._refuse("setTensorAddress", f"there is no input or output {name}")
        self._addresses[name] = integer(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(text(name), 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        memory, size = integer(memory), integer(size)
        if self._options.strategy != Strategy.USER_MANAGED:
            self._refuse("setDeviceMemoryV2", "the context manages its memory itself")
        elif memory % _ALIGNMENT:
            self._refuse("setDeviceMemoryV2", f"{memory:#x} is not aligned to {_ALIGNMENT} bytes")
        else:
            self._memory = (memory, size)

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            self._refuse("updateDeviceMemorySizeForShapes", "not all input shapes are specified")
            return 0
        self._needed = self.engine.scratch_bytes(self._shapes)
        return self._needed

    # --- running

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = integer(stream_handle)
        try:
            captured = is_capturing(stream)
            why = self._not_ready() or (self._not_capturable() if captured else "")
            if why:
                return self._refuse("enqueueV3", why)
            self._enqueue(stream)
        except RuntimeError as error:
            return self._refuse("enqueueV3", str(error))
        if not stream:
            say(self._logger, Severity.WARNING, "Using default stream in enqueueV3()")
        self._settled = self._settled or not captured
        self._note(
            "enqueued",
            stream=stream,
            captured=captured,
            profile=self._profile,
            shapes=dict(self._shapes),
            addresses=dict(self._addresses),
            memory=self._memory,
        )
        return True

    @property
    def _capturable(self) -> bool:
        return True

    def _not_capturable(self) -> str:
        if not self._capturable:
            return (
                "The CUDA stream is in capturing mode, but this TRT engine is not stream "
                "capturable (BuilderFlag.REQUIRE_USER_ALLOCATION, USER_MANAGED memory, and no "
                "CudaGraphStrategy make it so)"
            )
        if not self._settled:
            return "operation not permitted when stream is capturing: shapes or profile changed"
        return ""

    def _not_ready(self) -> str:
        graph = self.engine.graph
        missing = [name for name in graph.inputs if name not in self._shapes]
        if missing:
            return f"the shape of input {missing[0]} is not specified"
        why = graph.contradiction(self._shapes)
        unknown = [name for name in graph.outputs if -1 in self.get_tensor_shape(name)]
        if why or unknown:
            return why or f"the shape of output {unknown[0]} is not known"
        for name in graph.tensors:
            address = self._addresses.get(name, 0)
            if not address:
                return f"no address is set for {name}"
            if address % _ALIGNMENT:
                return f"the address {address:#x} of {name} is not aligned to {_ALIGNMENT} bytes"
        return self._memory_problem()

    def _memory_problem(self) -> str:
        if self._options.strategy != Strategy.USER_MANAGED:
            return ""
        memory, size = self._memory
        needed = self._needed_bytes
        if memory and size >= needed:
            return ""
        return f"the device memory has {size} bytes at {memory:#x}, {needed} are needed"

    @property
    def _needed_bytes(self) -> int:
        """A context that was not asked for its present shapes needs what the profile may."""
        if self._needed is not None:
            return self._needed
        return self.engine.get_device_memory_size_for_profile_v2(self._profile)

    def _enqueue(self, stream: int) -> None:
        user_managed = self._options.strategy == Strategy.USER_MANAGED
        run = Run(
            weakref.ref(self),
            self._library,
            self.engine.name,
            {name: tuple(self.get_tensor_shape(name)) for name in self.engine.graph.tensors},
            dict(self._addresses),
            self.engine.graph.outputs,
            (self._memory[0], self._needed_bytes) if user_managed else (0, 0),
        )
        enqueue(stream, run)

    def _fixed_shapes(self) -> Shapes:
        inputs = self.engine.graph.inputs.items()
        return {name: tensor.shape for name, tensor in inputs if not tensor.dynamic}

    def _changed(self) -> None:
        self._settled, self._needed = False, None

    def _note(self, kind: str, **details: Any) -> None:
        self._library.note(kind, engine=self.engine.name, **details)

    def _refuse(self, where: str, why: str) -> bool:
        self._library.refuse(self._logger, f"IExecutionContext::{where}", why)
        return False


class RtxExecutionContext(IExecutionContext):
    """The same with what only TensorRT-RTX has: kernels are compiled as shapes come up."""

    __slots__ = ("_compiled",)

    def __init__(self, engine: ICudaEngine, options: Options) -> None:
        super().__init__(engine, options)
        self._compiled = set() if options.cache is None else options.cache.kernels

    def is_stream_capturable(self, stream: int) -> bool:
        integer(stream)
        return self._capturable

    @property
    def _capturable(self) -> bool:
        user_managed = self._options.strategy == Strategy.USER_MANAGED
        return user_managed and self.engine.plan.user_allocation and not self._options.captures

    def _enqueue(self, stream: int) -> None:
        kernel = self.engine.kernel(self._profile, self._shapes)
        if kernel not in self._compiled:
            self._note("compiled", kernel=kernel)
        super()._enqueue(stream)
        self._compiled.add(kernel)
