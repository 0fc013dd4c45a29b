"""How contexts are to be made, and the cache of what TensorRT-RTX compiles as they run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.emulated_cuda.fake_tensorrt.library import Library
from tests.emulated_cuda.fake_tensorrt.stream import has_context
from tests.emulated_cuda.fake_tensorrt.values import (
    CudaGraphStrategy,
    KernelSpecialization,
    Strategy,
    host_memory,
    instance,
)

_MAGIC = b"fake runtime cache\n"


class IRuntimeCache:
    """Names of compiled kernels. They only fit the library's version and the GPU."""

    __slots__ = ("_environment", "kernels")

    def __init__(self, library: Library) -> None:
        self._environment = [list(library.version), library.capability]
        self.kernels: set[str] = set()

    def serialize(self) -> Any:
        content = {"environment": self._environment, "kernels": sorted(self.kernels)}
        return host_memory(_MAGIC + json.dumps(content).encode())

    def deserialize(self, blob: Any) -> bool:
        """Whether the content was taken. It is not without a CUDA context in this thread."""
        data = memoryview(blob).tobytes()
        if not data.startswith(_MAGIC) or not has_context():
            return False
        try:
            content = json.loads(data[len(_MAGIC) :])
        except ValueError:
            return False
        if content["environment"] != self._environment:
            return False
        self.kernels.update(content["kernels"])
        return True

    def reset(self) -> bool:
        self.kernels.clear()
        return True


@dataclass(frozen=True)
class Options:
    """What a context was made with; later changes of the configuration do not reach it.

    ``captures``: the context captures graphs of its own.
    """

    strategy: Any = Strategy.STATIC
    cache: IRuntimeCache | None = None
    captures: bool = False


class IRuntimeConfig:
    """Options of contexts to be made."""

    __slots__ = ("_strategy",)

    def __init__(self) -> None:
        self._strategy: Any = Strategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Any = Strategy.STATIC) -> None:
        self._strategy = instance(strategy, Strategy)

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def options(self) -> Options:
        """What it says at this moment."""
        return Options(self._strategy)


class RtxRuntimeConfig(IRuntimeConfig):
    """The same with what only TensorRT-RTX has."""

    __slots__ = ("_cache", "_graphs", "_library", "_specialization")

    def __init__(self, library: Library) -> None:
        super().__init__()
        self._library = library
        self._cache: IRuntimeCache | None = None
        self._graphs, self._specialization = CudaGraphStrategy.DISABLED, KernelSpecialization.LAZY

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._library)

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        if cache is None:
            return False
        self._cache = instance(cache, IRuntimeCache)
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        self._graphs = instance(strategy, CudaGraphStrategy)

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: Any) -> None:
        self._specialization = instance(strategy, KernelSpecialization)

    def options(self) -> Options:
        captures = self._graphs != CudaGraphStrategy.DISABLED
        return Options(self._strategy, self._cache, captures)
