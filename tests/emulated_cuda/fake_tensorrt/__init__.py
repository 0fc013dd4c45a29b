"""A strict stand-in for the Python modules ``tensorrt`` and ``tensorrt_rtx``, for tests.

    module = make("tensorrt-rtx", "1.7.1", "8.9")
    with installed(module):
        ...  # `import tensorrt_rtx` gives the module

Engines are ONNX models, which ONNX Runtime computes under the emulated CUDA driver. What would fail
or mislead with the real modules does so here; `module.journal` tells what was done, and
`module.live()` what still is there. Building needs neither driver nor pycuda. README.md beside this
folder lists the rules, and which of them were seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import onnx
from tests.emulated_cuda.fake_tensorrt import values
from tests.emulated_cuda.fake_tensorrt.builder import Builder
from tests.emulated_cuda.fake_tensorrt.config import IBuilderConfig, IOptimizationProfile
from tests.emulated_cuda.fake_tensorrt.context import IExecutionContext
from tests.emulated_cuda.fake_tensorrt.engine import (
    ConfigurableRuntime,
    ICudaEngine,
    RtxRuntime,
    Runtime,
)
from tests.emulated_cuda.fake_tensorrt.library import (
    Entry,
    Flavour,
    ILogger,
    IProgressMonitor,
    Library,
    Logger,
)
from tests.emulated_cuda.fake_tensorrt.network import INetworkDefinition, OnnxParser, ParserError
from tests.emulated_cuda.fake_tensorrt.plan import MASK_BITS, Plan, Ranges, pack
from tests.emulated_cuda.fake_tensorrt.runtime_config import IRuntimeCache, IRuntimeConfig

__all__ = ["Entry", "Flavour", "fake_engine_bytes", "installed", "make"]

_NAMES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST: Mapping[Flavour, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 2)}
_RUNTIME_CONFIG_SINCE = (10, 11)

_SHARED: Mapping[str, Any] = {
    "DataType": values.DataType,
    "Dims": values.Dims,
    "ErrorCode": values.ErrorCode,
    "ExecutionContextAllocationStrategy": values.Strategy,
    "IBuilderConfig": IBuilderConfig,
    "ICudaEngine": ICudaEngine,
    "IExecutionContext": IExecutionContext,
    "IHostMemory": values.IHostMemory,
    "ILogger": ILogger,
    "INetworkDefinition": INetworkDefinition,
    "IOptimizationProfile": IOptimizationProfile,
    "IProgressMonitor": IProgressMonitor,
    "Logger": Logger,
    "MemoryPoolType": values.MemoryPoolType,
    "OnnxParser": OnnxParser,
    "ParserError": ParserError,
    "TensorIOMode": values.TensorIOMode,
    "TensorLocation": values.TensorLocation,
}
_RTX: Mapping[str, Any] = {
    "BuilderFlag": values.BuilderFlagRtx,
    "ComputeCapability": values.ComputeCapability,
    "CudaGraphStrategy": values.CudaGraphStrategy,
    "DynamicShapesKernelSpecializationStrategy": values.KernelSpecialization,
    "EngineInvalidityDiagnostics": values.EngineInvalidityDiagnostics,
    "EngineValidity": values.EngineValidity,
    "IRuntimeCache": IRuntimeCache,
    "IRuntimeConfig": IRuntimeConfig,
}


def make(flavour: Flavour, version: str, compute_capability: str | None = None) -> ModuleType:
    """A fake module.

    Args:
        flavour: which of the two modules.
        version: for ``__version__``; the API is that of this version.
        compute_capability: of the GPU, for example ``"8.7"``. ``None``: no GPU, so that
            TensorRT-RTX can build and not run, and TensorRT neither.

    Raises:
        ValueError: a version that is not modelled.
    """
    numbers = _numbers(version)
    if numbers < _OLDEST[flavour]:
        raise ValueError(f"{flavour} {version} is not modelled, only from {_OLDEST[flavour]} on")
    capability = None if compute_capability is None else _tenths(compute_capability)
    library = Library(flavour, numbers, capability)
    module = ModuleType(_NAMES[flavour], "Fake of tests.emulated_cuda.fake_tensorrt.")
    module.__spec__ = ModuleSpec(module.__name__, None)
    contents = {"__version__": version, "journal": library.journal, "live": library.live}
    module.__dict__.update(contents, **_SHARED, **_differences(library))
    return module


@contextlib.contextmanager
def installed(module: ModuleType) -> Iterator[ModuleType]:
    """The module in ``sys.modules``; what was there before comes back at the end."""
    with mock.patch.dict(sys.modules, {module.__name__: module}):
        yield module


def fake_engine_bytes(
    model: onnx.ModelProto,
    profiles: Sequence[Ranges],
    *,
    flavour: Flavour,
    version: str,
    compute_capabilities: Sequence[str],
    user_allocation: bool = True,
    name: str = "Unnamed Network 0",
) -> bytes:
    """An engine without a builder.

    Args:
        model: what it computes.
        profiles: minimum, best and maximum of every input's shape, for each profile.
        flavour, version: of the module that is to read it.
        compute_capabilities: that it is for; exactly one for TensorRT.
        user_allocation: as if built with ``REQUIRE_USER_ALLOCATION``; only of TensorRT-RTX.
        name: of the network.
    """
    rtx, tenths = flavour == "tensorrt-rtx", [_tenths(one) for one in compute_capabilities]
    targets = sum(MASK_BITS[one] for one in tenths) if rtx else tenths[0]
    content = model.SerializeToString()
    options = (name, tuple(profiles), user_allocation and rtx)
    return pack(Plan(flavour, _numbers(version), targets, *options, content))


def _differences(library: Library) -> dict[str, Any]:
    """What depends on flavour, version, or this one module."""
    made: dict[str, Any] = dict(_RTX) if library.rtx else {"BuilderFlag": values.BuilderFlag}
    configurable = library.rtx or library.version >= _RUNTIME_CONFIG_SINCE
    if configurable:
        made["IRuntimeConfig"] = IRuntimeConfig
    runtime = ConfigurableRuntime if configurable else Runtime
    flags = values.CreationFlag
    if not library.rtx and library.version < (11,):
        flags = values.CreationFlag10
    made["NetworkDefinitionCreationFlag"] = flags
    bound = {"__slots__": (), "_library": library}
    made["Runtime"] = type("Runtime", (RtxRuntime if library.rtx else runtime,), dict(bound))
    made["Builder"] = type("Builder", (Builder,), {**bound, "_creation_flags": flags})
    return made


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _tenths(capability: str) -> int:
    return int(capability.replace(".", ""))
