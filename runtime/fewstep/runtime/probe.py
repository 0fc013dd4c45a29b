"""What TensorRT modules, GPU driver and GPUs there are, asked quickly and harmlessly.

TensorRT is imported only in a process of its own, which may crash, and the driver is asked
directly, so that it answers without pycuda.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.runtime.engines.tensorrt_api import MODULES, OLDEST
from fewstep.runtime.errors import MissingDependencyError
from fewstep.runtime.jetson import Jetson, tensorrt_remedy
from fewstep.runtime.records import EngineBackend

_PATIENCE_S = 20
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76  # of CUdevice_attribute
_IMPORT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
module = importlib.import_module(sys.argv[1])
targets = getattr(getattr(module, "ComputeCapability", None), "__members__", ())
print(json.dumps([str(module.__version__), [each[2:] for each in targets if each[2:].isdigit()]]))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; an integrated one shares the memory of the CPU."""

    name: str
    compute_capability: str
    memory_bytes: int
    integrated: bool

    def __str__(self) -> str:
        kind = "integrated" if self.integrated else "discrete"
        memory = f"{self.memory_bytes / 2**30:.1f} GiB"
        return f"{self.name}, compute capability {self.compute_capability}, {memory}, {kind}"


@dataclass(frozen=True)
class Driver:
    """The CUDA driver: the newest CUDA version that it runs, and the GPUs that it finds."""

    cuda: str
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class TensorRt:
    """One of the TensorRT modules: its version and targets, or why it cannot be used."""

    backend: EngineBackend
    version: str | None = None
    targets: tuple[str, ...] = ()
    installed: bool = True
    problem: str = ""
    remedy: str = ""

    def require(self) -> str:
        """Name and version.

        Raises:
            MissingDependencyError: the module is absent, broken or too old.
        """
        if self.problem:
            raise MissingDependencyError(f"{self.problem}; {self.remedy}")
        return f"{self.backend} {self.version}"


def find_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver | None:
    """The CUDA driver with its GPUs; ``None`` where there is no driver."""
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        cuda = load("libcuda.so.1")
        if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            count.value = 0
        gpus = tuple(_describe(cuda, ordinal) for ordinal in range(count.value))
    except (OSError, AttributeError):  # no library, or a stub in its place
        return None
    return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", gpus)


def _describe(cuda: Any, ordinal: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    capability = f"{attribute(_MAJOR)}.{attribute(_MINOR)}"
    return Gpu(name.value.decode(), capability, memory.value, attribute(_INTEGRATED) != 0)


def find_tensorrt(
    backend: EngineBackend, jetson: Jetson | None = None, root: Path = Path("/")
) -> TensorRt:
    """A TensorRT module, with the remedy for this machine if it cannot be used."""
    module, remedy = MODULES[backend], _remedy(backend, jetson, root)
    if importlib.util.find_spec(module) is None:
        problem = f"{module} is not installed"
        return TensorRt(backend, installed=False, problem=problem, remedy=remedy)
    try:
        version, targets = _imported(module)
    except MissingDependencyError as error:
        problem = f"{module} is installed but does not import: {error}"
        return TensorRt(backend, problem=problem, remedy=remedy)
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if backend == "tensorrt" and numbers < OLDEST:
        problem, remedy = f"tensorrt {version} is older than 10.3", "install JetPack 6 or newer"
        return TensorRt(backend, version, problem=problem, remedy=remedy)
    return TensorRt(backend, version, targets)


def _imported(module: str) -> tuple[str, tuple[str, ...]]:
    """Version and targets of a module, from a process of its own: it may crash on import.

    Raises:
        MissingDependencyError: it does not import.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _IMPORT, module, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(f"not within {_PATIENCE_S} s") from error
    if done.returncode != 0:
        raise MissingDependencyError(_cause(done))
    version, targets = json.loads(done.stdout.splitlines()[-1])
    return version, tuple(f"{each[:-1]}.{each[-1]}" for each in targets)


def _cause(failed: subprocess.CompletedProcess[str]) -> str:
    """Why an import failed: the signal, or the last line of the traceback."""
    if failed.returncode < 0:
        return f"it crashes ({signal.Signals(-failed.returncode).name})"
    lines = failed.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ends Python with code {failed.returncode}"


def _remedy(backend: EngineBackend, jetson: Jetson | None, root: Path) -> str:
    if backend == "tensorrt":
        return "pip install tensorrt" if jetson is None else tensorrt_remedy(root)
    return "pip install 'fewstep[rtx]'" if jetson is None else "not for Jetsons: use tensorrt"
