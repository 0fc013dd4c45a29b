"""Engines of TensorRT and TensorRT-RTX, enqueued on the device's stream and captured with it.

A context keeps the shapes it was made for: one is made per batch, so that no shape changes between
the pass that runs before a capture and the capture itself. Contexts bring no memory for activations
of their own; all of a bundle's share one block, since the stream runs them one after the other.

TensorRT-RTX compiles its kernels for the GPU when a context first runs. What it compiled goes into
a file beside the engine, so that only the first start is slow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.runtime.device import ALIGNMENT, Buffer, CudaStream
from fewstep.runtime.engine import check_binding
from fewstep.runtime.engine.tensorrt_api import TensorRt
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.files import replacing
from fewstep.runtime.manifest import GraphInfo

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32"}
_DTYPES |= {"int64": "INT64", "uint8": "UINT8"}


@dataclass(frozen=True)
class EngineFile:
    """A serialized engine, and where what its backend compiles for this GPU may be kept."""

    content: bytes
    cache: Path | None = None


class TensorRtEngine:
    """A deserialized engine with a context for every batch that it has seen.

    Args:
        api: the module that built it, in the same version.
        name: the graph's name in the bundle, for messages.
        file: the engine.
        info: inputs and outputs as the manifest states them.
        stream: the device's stream; its context is current.

    Raises:
        EngineError: TensorRT refuses the engine, or its inputs and outputs are not the manifest's.
    """

    capturable = True

    def __init__(
        self, api: TensorRt, name: str, file: EngineFile, info: GraphInfo, stream: CudaStream
    ) -> None:
        self.name, self.inputs, self.outputs = name, info.inputs, info.outputs
        self._api, self._module, self._stream = api, api.module, stream.handle
        api.messages.clear()
        self._runtime: Any = api.module.Runtime(api.messages.logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(file.content)
        if self._engine is None:
            raise self._refused(f"the engine does not load{self._validity(file.content)}")
        self._check_against_manifest()
        self._profiles = self._profile_batches()
        self._cache = _RuntimeCache(file.cache)
        self._config = self._runtime_config()
        self._contexts: dict[int, Any] = {}
        self._scratch = (0, 0)

    @property
    def scratch_bytes(self) -> int:
        """Memory for activations that every context of this engine may need."""
        return int(self._engine.device_memory_size_v2)

    def use_scratch(self, address: int, size: int) -> None:
        """Set the memory for activations; it must outlive the engine's work."""
        self._scratch = (address, size)

    def enqueue(self, bindings: Mapping[str, Buffer]) -> None:
        """Run on buffers bound by name; outputs are written in place.

        Raises:
            EngineError: a binding is missing, misaligned or of another dtype or shape, the batch
                is beyond every optimization profile, or TensorRT refuses to run.
        """
        if self._engine is None:
            raise EngineError(f"graph '{self.name}' is closed; open the Generator again")
        names = {*self.inputs, *self.outputs}
        if absent := sorted(names - bindings.keys()):
            raise EngineError(f"graph '{self.name}': no buffer bound to {', '.join(absent)}")
        batch = bindings[next(iter(self.inputs))].shape[0]
        context = self._contexts.get(batch) or self._context(batch)
        for name, buffer in bindings.items():
            check_binding(self, name, buffer)
            if buffer.pointer % ALIGNMENT:
                raise EngineError(
                    f"graph '{self.name}', tensor '{name}': TensorRT needs addresses that are "
                    f"multiples of {ALIGNMENT}, got {buffer.pointer:#x}"
                )
            if not context.set_tensor_address(name, buffer.pointer):
                raise self._refused(f"no tensor '{name}'")
        if not context.execute_async_v3(self._stream):
            raise self._refused("it does not run")

    def close(self) -> None:
        """Keep what was compiled, then release contexts, engine and runtime, in this order."""
        if self._engine is None:
            return
        self._cache.save()
        self._contexts.clear()
        self._config = self._engine = None
        self._runtime = None

    def _context(self, batch: int) -> Any:
        """A context for one batch, with its profile, shapes and memory set for good."""
        profile = self._profile_for(batch)
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self._refused("no execution context")
        if profile:  # a new context has the first
            self._set_profile(context, profile)
        for name, info in self.inputs.items():
            shape = tuple(batch if isinstance(size, str) else size for size in info.shape)
            if not context.set_input_shape(name, shape):
                raise self._refused(f"input '{name}' of shape {list(shape)} was not taken")
        if missing := self._missing_shapes(context):
            raise self._refused(f"its shapes depend on {', '.join(missing)}")
        context.set_device_memory(*self._scratch)
        # Only TensorRT-RTX can tell; TensorRT itself refuses while it is being captured.
        tells = getattr(context, "is_stream_capturable", None)
        if tells is not None and not tells(self._stream):
            raise self._refused("its work cannot be captured into a CUDA graph")
        self._contexts[batch] = context
        return context

    def _missing_shapes(self, context: Any) -> list[str]:
        try:
            found: list[str] = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused("its shapes contradict each other") from error
        return found

    def _set_profile(self, context: Any, profile: int) -> None:
        try:
            taken = context.set_optimization_profile_async(profile, self._stream)
        except RuntimeError:  # instead of False, says the log
            taken = False
        if not taken:
            raise self._refused(f"optimization profile {profile} was not taken")

    def _profile_for(self, batch: int) -> int:
        """The profile that spans ``batch`` and is tuned for one near it."""
        fitting = [
            (abs(best - batch), index)
            for index, (least, best, most) in enumerate(self._profiles)
            if least <= batch <= most
        ]
        if not fitting:
            most = max(most for _, _, most in self._profiles)
            raise EngineError(
                f"graph '{self.name}': the engine takes batches up to {most}, got {batch}; build "
                "it for more with: fewstep build --max-batch"
            )
        return min(fitting)[1]

    def _profile_batches(self) -> list[tuple[int, int, int]]:
        """Least, best and largest batch of every optimization profile."""
        first = next(iter(self.inputs))
        count = self._engine.num_optimization_profiles
        shapes = [self._engine.get_tensor_profile_shape(first, index) for index in range(count)]
        return [(int(low[0]), int(best[0]), int(high[0])) for low, best, high in shapes]

    def _runtime_config(self) -> Any:
        """What contexts are created with: memory from us, kernels compiled at once and kept."""
        owned = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._module, "IRuntimeCache"):
            return owned
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(owned)
        # Otherwise it runs, and a graph would capture, makeshift kernels until better are ready.
        eager = self._module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache.attach(config)
        return config

    def _check_against_manifest(self) -> None:
        engine, module = self._engine, self._module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        expected = {**self.inputs, **self.outputs}
        if sorted(names) != sorted(expected):
            raise EngineError(
                f"graph '{self.name}': the engine has the inputs and outputs {sorted(names)}, the "
                f"manifest says {sorted(expected)}; build it again with --force"
            )
        for name, info in expected.items():
            wanted = getattr(module.DataType, _DTYPES[info.dtype])
            if engine.get_tensor_dtype(name) != wanted:
                raise EngineError(
                    f"graph '{self.name}', tensor '{name}': the engine has "
                    f"{engine.get_tensor_dtype(name)}, the manifest says {info.dtype}; build it "
                    "again with --force"
                )

    def _validity(self, content: bytes) -> str:
        """What TensorRT-RTX thinks of an engine that it refuses, in brackets."""
        tells = getattr(self._runtime, "get_engine_validity", None)
        if tells is None:
            return ""
        _, mask = tells(content)
        flags = self._module.EngineInvalidityDiagnostics.__members__
        names = [name for name, flag in flags.items() if int(flag) & int(mask)]
        return f" ({', '.join(names)})" if names else ""

    def _refused(self, what: str) -> EngineError:
        said = self._api.messages.explain("it did not say why")
        return EngineError(f"graph '{self.name}': {what}: {said} ({self._api})")


class _RuntimeCache:
    """Kernels that TensorRT-RTX compiled for this GPU, in a file that only it understands.

    A cache that does not fit the machine, or cannot be kept, costs time and nothing else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._loaded = path, 0
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Load what is in the file, and collect what is compiled from now on."""
        if self._path is None:
            return
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            content = self._path.read_bytes()
            if self._cache.deserialize(content):
                self._loaded = len(content)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if there is more than was loaded."""
        if self._cache is None or self._path is None:
            return
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if len(content) > self._loaded:
            with contextlib.suppress(FewstepError), replacing(self._path) as temporary:
                temporary.write_bytes(content)
        self._cache = None
