"""Access to the CUDA driver: optional imports, and its errors as fewstep's own.

pycuda does contexts, memory, streams and modules; it has no graphs and no external event records,
so these go through cuda-bindings on the same handles.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from fewstep.runtime.errors import DeviceError, OutOfMemoryError, missing


def load_driver() -> Any:
    """The module ``pycuda.driver``, initialised.

    Raises:
        MissingDependencyError: pycuda is not installed.
        DeviceError: there is no CUDA driver, or no GPU that it can use.
    """
    if importlib.util.find_spec("pycuda") is None:
        raise missing("pycuda", "cuda")
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise DeviceError(
            f"no CUDA driver on this machine ({error}); install NVIDIA's driver, or use device cpu"
        ) from error
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


@contextlib.contextmanager
def translated(driver: Any, doing: str) -> Iterator[None]:
    """Turn pycuda's errors into ``DeviceError``, saying what was being done."""
    try:
        yield
    except driver.MemoryError as error:
        raise OutOfMemoryError(
            f"the GPU is out of memory {doing} ({error}); use a smaller batch, or close other "
            "programs on the GPU"
        ) from error
    except driver.Error as error:
        raise DeviceError(f"CUDA failed {doing}: {error}") from error


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a cuda-bindings call, without its status.

    Raises:
        DeviceError: the status is not success.
    """
    status, *values = result
    if int(status) != 0:
        raise DeviceError(f"CUDA failed {doing}: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
