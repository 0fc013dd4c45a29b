"""Access to the CUDA driver: optional imports, and its errors as fewstep's own.

pycuda does contexts, memory, streams and modules; it has no graphs and no external event records,
so these go through cuda-bindings on the same handles.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

from fewstep.runtime.errors import DeviceError, DeviceLostError, OutOfMemoryError, missing


def load_driver() -> Any:
    """The module ``pycuda.driver``, initialised.

    Raises:
        MissingDependencyError: pycuda is not installed, and there is a CUDA driver.
        DeviceError: there is no CUDA driver, or no GPU that it can use.
    """
    installed = importlib.util.find_spec("pycuda") is not None
    try:
        if installed:
            import pycuda.driver as driver
        else:
            ctypes.CDLL("libcuda.so.1")  # without a driver, an absent pycuda is no news
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"no CUDA driver on this machine ({error}); install NVIDIA's driver, or use device cpu"
        ) from error
    if not installed:
        raise missing("pycuda", "cuda")
    try:
        driver.init()
    except driver.Error as error:
        raise DeviceError(
            f"the CUDA driver finds no usable GPU ({error}); see what it sees with nvidia-smi, or "
            "use device cpu"
        ) from error
    return driver


def load_bindings() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise missing("cuda-bindings", "cuda") from error
    return driver


def device_of(driver: Any, ordinal: int) -> Any:
    """The pycuda device with this number.

    Raises:
        DeviceError: there are fewer GPUs.
    """
    count = driver.Device.count()
    if not 0 <= ordinal < count:
        raise DeviceError(
            f"there is no GPU {ordinal}: the driver sees {count}, numbered from 0; use cuda:0"
        )
    return driver.Device(ordinal)


def cuda_version() -> tuple[int, int]:
    """The newest CUDA version that the driver supports, for example ``(12, 6)``."""
    number = load_driver().get_driver_version()
    return number // 1000, number % 1000 // 10


def compute_capability(ordinal: int = 0) -> str:
    """Compute capability of a GPU, for example ``"8.7"``."""
    major, minor = device_of(load_driver(), ordinal).compute_capability()
    return f"{major}.{minor}"


def device_name(ordinal: int = 0) -> str:
    """Name of a GPU."""
    return str(device_of(load_driver(), ordinal).name())


_OUT_OF_MEMORY = 2
_FATAL = frozenset((214, 700, 702, 709, 710, *range(714, 720), 999))
"""Codes after which no call of the process succeeds (CUDA driver API, ``CUresult``): ECC, illegal
address, timeout, destroyed context, assertion, faults of a kernel, launch failed, unknown."""


@contextlib.contextmanager
def translated(driver: Any, doing: str) -> Iterator[None]:
    """Turn pycuda's errors into ``DeviceError``, saying what was being done.

    Raises:
        DeviceLostError: the error is one that no later call of this process survives.
        OutOfMemoryError: there is not enough memory on the GPU.
        DeviceError: any other.
    """
    try:
        yield
    except driver.MemoryError as error:
        raise failure(_OUT_OF_MEMORY, str(error), doing) from error
    except driver.Error as error:
        raise failure(_code_of(str(error)), str(error), doing) from error


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a cuda-bindings call, without its status.

    Raises:
        DeviceError: the status is not success; as for :func:`translated`.
    """
    status, *values = result
    if int(status) != 0:
        raise failure(int(status), status.name, doing)
    return values[0] if len(values) == 1 else tuple(values)


def failure(code: int, words: str, doing: str) -> DeviceError:
    """The error for a status of the driver.

    Args:
        code: ``CUresult``; 0 if it is not known.
        words: what the call said.
        doing: what was being done.
    """
    if code == _OUT_OF_MEMORY:
        return OutOfMemoryError(
            f"the GPU is out of memory {doing} ({words}); use a smaller batch, or close other "
            "programs on the GPU"
        )
    if code in _FATAL:
        return DeviceLostError(
            f"CUDA failed {doing}: {words}; this process cannot use the GPU any more, start a new "
            "one"
        )
    return DeviceError(f"CUDA failed {doing}: {words}")


def _code_of(text: str) -> int:
    """The status behind an error of pycuda, if it is a fatal one; else 0.

    pycuda keeps the driver's words for a status and not its number. Asking the driver instead would
    mean to wait, which ends a capture in another thread.
    """
    words = text.partition(" failed: ")[2].partition(" - ")[0]
    return _fatal_words().get(words, 0) if words else 0


@functools.cache
def _fatal_words() -> dict[str, int]:
    cuda, found = load_bindings(), {}
    for code in _FATAL:
        words = cuda.cuGetErrorString(cuda.CUresult(code))[1]
        found[words.decode() if isinstance(words, bytes) else str(words)] = code
    return found
